//! The snapshot of the version that runs, before another minor version of etcd takes its place: whether one is due, and
//! whether it is there.
//!
//! It is taken anew for each change, when that may begin, so that what is in it is as young as can be.

use jiff::SignedDuration;
use kaas_crds::Reason;
use kaas_crds::name::component::ETCD_SNAPSHOT;
use kaas_crds::status::Owner;

use super::beginning;
use super::members::members;
use super::version::{held, running, under_way};
use crate::desired::{Inputs, etcd_snapshot};
use crate::object::{Kind, Object, Reference};
use crate::observed::{Live, Observed};
use crate::upgrade::step::Progress;

/// What runs for so long is taken anew: what it saved would be old, or its pod cannot get any further. `etcdutl` does not
/// write into a directory that it once began.
const LIFETIME: SignedDuration = SignedDuration::from_mins(30);

/// Where what takes it is.
pub fn reference(observed: &Observed) -> Reference {
    Reference::namespaced(Kind::StatefulSet, observed.tenant.control_plane_namespace(), ETCD_SNAPSHOT)
}

/// What takes it, if that is there.
pub fn live(observed: &Observed) -> Option<&Live> {
    observed.objects.get(&reference(observed))
}

/// Whether a change of the minor version is about to begin. The members are those that a revision wants.
pub fn due(observed: &Observed, wanted: &Object) -> bool {
    kept(observed)
        && held(observed, wanted)
        && !under_way(observed)
        && beginning::wait(observed, "").is_none()
        && !is_old(observed)
}

fn is_old(observed: &Observed) -> bool {
    let mut runs = observed.pods_of(ETCD_SNAPSHOT).filter_map(|pod| pod.placed_at);
    runs.any(|since| observed.now.duration_since(since) > LIFETIME)
}

/// What takes it.
pub fn object(observed: &Observed, inputs: &Inputs<'_>) -> Option<Object> {
    let (image, series) = running(observed)?;
    etcd_snapshot(inputs, image, series, *members(observed).first()?)
}

/// Whether there is a volume to keep it on.
pub(super) fn kept(observed: &Observed) -> bool {
    observed.cluster.spec.etcd.storage.persistent.is_some()
}

/// Whether it was saved and seen to start, if there is anything to keep it on.
pub(super) fn saved(observed: &Observed) -> bool {
    let of = |live: &Live| {
        let seen = live.count("/status/observedGeneration") >= live.count("/metadata/generation");
        let mut pods = observed.pods_of(ETCD_SNAPSHOT);
        let only = pods.next().filter(|_| pods.next().is_none());
        seen && !live.terminating
            && only.is_some_and(|pod| {
                pod.ready && !pod.terminating && pod.template_hash == live.text("/status/updateRevision")
            })
    };
    !kept(observed) || !is_old(observed) && live(observed).is_some_and(of)
}

/// How far it is, before a change that leads to this version.
pub(super) fn progress(observed: &Observed, target: String) -> Option<Progress> {
    let (_, runs) = running(observed)?;
    let home = observed.tenant.control_plane_namespace();
    let mut step = format!("a snapshot of the data is saved by etcd {runs} first, and seen to start");
    if let Some(trouble) = observed.pods_of(ETCD_SNAPSHOT).find_map(|pod| pod.tell_trouble(&home)) {
        step = format!("{step}, until then nothing is changed: {trouble}");
    }
    Some(Progress { target, step, waiting: Some((Reason::SnapshotPending, Owner::Nobody)), until: None })
}

/// What there is of it after a change.
pub(super) fn remains(observed: &Observed) -> String {
    let claim = format!("data-{ETCD_SNAPSHOT}-0");
    if !kept(observed) {
        "no snapshot was kept: spec.etcd.storage is ephemeral".into()
    } else if observed.live(Kind::PersistentVolumeClaim, &claim).is_some() {
        format!("the data of before is in PersistentVolumeClaim {claim}")
    } else {
        format!("the snapshot is gone: there is no PersistentVolumeClaim {claim}")
    }
}
