//! Findings about going back to the minor version before: what is new in the version that serves, and in use.
//!
//! An older API server reads what a newer one has written, but for kinds and fields that it does not know: those stay
//! in etcd where nobody reads them, and a field goes with the next write of its object. Nobody goes back without a word
//! of consent, which is to ignore the finding that says so.

use kaas_crds::KubernetesReleaseSpec;
use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;

use super::Finding;
use super::facts::{Added, Facts};
use crate::upgrade::path::{Way, way};

/// Whether the way from one version to the other leads to the minor version before.
pub fn is_back(from: &str, to: &str) -> bool {
    let versions = from.parse().ok().zip(to.parse().ok());
    versions.is_some_and(|(from, to)| matches!(way(from, to), Ok(Way::Back)))
}

pub(super) fn findings(
    facts: &Facts,
    from: &KubernetesReleaseSpec,
    target: &KubernetesReleaseSpec,
) -> Vec<Finding> {
    let (old, new) = (&target.version, &from.version);
    let finding = |reason, subject: &str, message, evidence, fix| Finding {
        reason,
        subject: subject.to_owned(),
        severity: Severity::Error,
        message,
        evidence,
        owner: Owner::Tenant,
        fix,
    };
    let losses = facts.added.iter().map(|added| {
        let Added { what, stored, names, all } = added;
        let least = if *all { "" } else { "at least " };
        let evidence = format!("{least}{stored} have it: {}", names.join(", "));
        let fix = "save what is needed and take it away, or ignore this finding to lose it".to_owned();
        match what.split_once(':') {
            None => finding(
                Reason::NewKindStored,
                what,
                format!("{what} are stored, and {old} has no API for them"),
                evidence,
                fix,
            ),
            Some((resource, field)) => finding(
                Reason::NewFieldStored,
                what,
                format!("{field} of {resource} is set, and {old} drops it with the next write"),
                evidence,
                fix,
            ),
        }
    });
    let looked = match facts.looked_for {
        0 => format!("the catalogue does not say what is new in {new}: nothing was looked for"),
        count => format!(
            "{count} new kinds and fields were looked for, and what is in use is a finding of its own"
        ),
    };
    let consent = finding(
        Reason::GoingBack,
        old,
        format!("{new} serves already, and going back to {old} loses what is new in it"),
        looked,
        format!(
            "to go back, put {}/{old} into spec.upgrade.ignore; to stay, set spec.version to {new}",
            Reason::GoingBack
        ),
    );
    losses.chain([consent]).collect()
}
