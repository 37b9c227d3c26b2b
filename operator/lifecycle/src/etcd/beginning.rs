//! Whether etcd may begin to go to another minor version, and what it waits for if not. What has begun goes on.
//!
//! Of such a change and one of Kubernetes' version one is made at a time, and Kubernetes' first: what has begun ends, the
//! other waits.

use kaas_crds::Reason;
use kaas_crds::status::Owner;

use super::snapshot;
use crate::observed::Observed;
use crate::revision;
use crate::upgrade;
use crate::upgrade::stage::amiss;
use crate::upgrade::step::Progress;
use crate::upgrade::window::{Admission, admission};

/// Whether a change may begin: nothing keeps it, and a snapshot is there.
pub(super) fn now(observed: &Observed) -> bool {
    wait(observed, "").is_none() && snapshot::saved(observed)
}

/// What keeps a change that leads to this version from beginning.
pub(super) fn wait(observed: &Observed, target: &str) -> Option<Progress> {
    let spec = &observed.cluster.spec;
    let (reason, step, until) = if upgrade::under_way(observed) {
        let step =
            format!("Kubernetes goes to {} first; it begins when that has proved itself", spec.version);
        (Reason::ControlPlaneUnsettled, step, None)
    } else if !revision::is_applied(observed) {
        let step = "what was asked for before is rolled out first";
        (Reason::ControlPlaneUnsettled, step.to_owned(), None)
    } else if let Some(words) = amiss(observed) {
        (Reason::ControlPlaneUnsettled, words.to_owned(), None)
    } else {
        match admission(spec.maintenance.as_ref(), observed.now) {
            Admission::Open => return None,
            Admission::Closed { until, words } => (Reason::WaitingForWindow, words, until),
        }
    };
    let waiting = Some((reason, Owner::Nobody));
    Some(Progress { target: target.to_owned(), step, waiting, until })
}
