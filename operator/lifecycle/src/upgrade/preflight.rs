//! The preflight: what speaks against the next upgrade, said before anybody asks for it.
//!
//! Decided from what was seen of the control plane and of the inside of the tenant. Each finding has its evidence, who
//! must act, and what to do; it goes away by itself when its cause does. Errors block the beginning of an upgrade, but
//! for those that the tenant names in its spec. What could not be seen is an error too: nothing is good on a guess.
//! Without a version that one could go to there is no preflight.

pub mod back;
mod budgets;
mod etcd;
pub mod facts;
mod kubelets;
mod removed;
#[cfg(test)]
mod tests;
mod webhooks;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::KubernetesReleaseSpec;
use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::preflight::{Finding as Shown, MOST_FINDINGS, Preflight, Severity};
use kaas_crds::status::Owner;

pub use self::facts::Facts;
pub use self::removed::{api, watched};
use super::path::{Version, Way, way};
use crate::key_material;
use crate::observed::{Answer, Observed};
use crate::revision::{self, Revision};
use crate::verdict::{Is, Verdict};

/// An operation is over in this time. A certificate that ends earlier and should have been renewed could end in it.
const OPERATION: SignedDuration = SignedDuration::from_hours(24);

/// Something that speaks against an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In one word.
    pub reason: Reason,
    /// What it is about; with the reason it is the finding's name. Empty when there can be only one.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// The fact.
    pub message: String,
    /// What was seen.
    pub evidence: String,
    /// Who must act.
    pub owner: Owner,
    /// What to do.
    pub fix: String,
}

impl Finding {
    /// Its name, by which it can be ignored.
    pub fn id(&self) -> String {
        let id = match self.subject.as_str() {
            "" => self.reason.to_string(),
            subject => format!("{}/{subject}", self.reason),
        };
        id.chars().take(253).collect()
    }
}

/// The release that one would go to: the one that is asked for, or else the newest that there is a way to.
pub fn target(observed: &Observed) -> Option<&KubernetesReleaseSpec> {
    let running = running(observed)?;
    let from: Version = running.parse().ok()?;
    let reachable = |version: &str| -> Option<Version> {
        let to = version.parse().ok()?;
        matches!(way(from, to), Ok(Way::Patch | Way::Minor)).then_some(to)
    };
    let asked = &observed.cluster.spec.version;
    if asked != running {
        return observed
            .catalogue
            .get(asked)
            .filter(|_| reachable(asked).is_some() || back::is_back(running, asked));
    }
    let newer = observed
        .catalogue
        .iter()
        .filter_map(|(version, release)| reachable(version).filter(|to| *to > from).map(|to| (to, release)));
    newer.max_by_key(|(version, _)| *version).map(|(_, release)| release)
}

/// Whether somebody waits for the answer: another version is asked for than the one that runs, and no step to it was
/// taken yet.
pub fn asked(observed: &Observed) -> bool {
    let asked = &observed.cluster.spec.version;
    let begun = |current: Revision| {
        let stage = current.record.stage;
        stage.emulates.is_some() || stage.version == *asked
    };
    running(observed).is_some_and(|running| running != asked)
        && !revision::current(observed).is_some_and(begun)
}

/// The version that runs: as status has it, or before it has one, as the API said just now.
fn running(observed: &Observed) -> Option<&str> {
    let told = observed.cluster.status.as_ref().and_then(|status| status.version.as_deref());
    told.or_else(|| match &observed.probe.as_ref()?.answer {
        Answer::Serving { version } => Some(version.as_str()),
        Answer::Failed { .. } => None,
    })
}

/// The catalogue's entry of the version that runs.
pub fn serving_release(observed: &Observed) -> Option<&KubernetesReleaseSpec> {
    observed.catalogue.get(running(observed)?)
}

/// Everything that speaks against the upgrade to this release, errors first, of each severity the most useful first.
pub fn findings(observed: &Observed, target: &KubernetesReleaseSpec) -> Vec<Finding> {
    let mut found = etcd::findings(observed);
    found.extend(certificates(observed));
    match observed.preflight.as_ref().filter(|facts| facts.target == target.version) {
        Some(facts) => {
            found.extend(kubelets::findings(facts, target));
            found.extend(budgets::findings(facts));
            found.extend(webhooks::findings(facts));
            found.extend(removed::findings(observed, facts, target));
            let from = serving_release(observed).filter(|from| back::is_back(&from.version, &target.version));
            found.extend(from.into_iter().flat_map(|from| back::findings(facts, from, target)));
        }
        None => found.push(unseen()),
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// What was not seen is not known to be well.
fn unseen() -> Finding {
    Finding {
        reason: Reason::NotObserved,
        subject: String::new(),
        severity: Severity::Error,
        message: "the inside of the cluster was not read".into(),
        evidence: String::new(),
        owner: Owner::Nobody,
        fix: "it is read as soon as the API answers; see Ready".into(),
    }
}

fn certificates(observed: &Observed) -> Option<Finding> {
    let (due, end) = key_material::horizon(observed)?;
    if observed.now < due || end.duration_since(observed.now) > OPERATION {
        return None;
    }
    Some(Finding {
        reason: Reason::CertificateExpiring,
        subject: String::new(),
        severity: Severity::Error,
        message: "a certificate of the control plane could end during the upgrade".into(),
        evidence: format!("it ends at {end} and should have been renewed since {due}"),
        owner: Owner::Platform,
        fix: "find out why it is not renewed, see CertificatesValid and Stalled".into(),
    })
}

/// The first error that blocks the beginning of an upgrade; `None` when it may begin.
pub fn blocker(observed: &Observed, target: &KubernetesReleaseSpec) -> Option<Finding> {
    let found = findings(observed, target).into_iter();
    found.filter(|finding| finding.severity == Severity::Error).find(|finding| !ignored(observed, finding))
}

/// Whether the tenant wants to upgrade in spite of it. What nobody has seen cannot be ignored.
fn ignored(observed: &Observed, finding: &Finding) -> bool {
    let id = finding.id();
    finding.reason != Reason::NotObserved && observed.cluster.spec.upgrade.ignore.contains(&id)
}

/// The condition; `None` while there is nothing to go to.
pub(crate) fn verdict(observed: &Observed) -> Option<Verdict> {
    if observed.deleting() {
        return None;
    }
    let target = target(observed)?;
    let verdict = |is, reason, message| Verdict::new(ConditionType::UpgradePossible, is, reason, message);
    let found = findings(observed, target);
    let errors = found.iter().filter(|finding| finding.severity == Severity::Error);
    let blocking: Vec<&Finding> = errors.filter(|finding| !ignored(observed, finding)).collect();
    let version = &target.version;
    Some(match blocking.as_slice() {
        [] => {
            let told = match found.len() {
                0 => String::new(),
                count => format!("; status.preflight has {count} to know"),
            };
            verdict(
                Is::True,
                Reason::PreflightPassed,
                format!("nothing speaks against an upgrade to {version}{told}"),
            )
        }
        [first, rest @ ..] => {
            let is = if first.reason == Reason::NotObserved { Is::Unknown } else { Is::False };
            let more = match rest.len() {
                0 => String::new(),
                count => format!("; status.preflight has {count} more errors"),
            };
            let message = format!("upgrade to {version}: {}; {}{more}", first.message, first.fix);
            verdict(is, first.reason, message)
        }
    })
}

/// What stands in status; `None` while there is nothing to go to.
pub(crate) fn shown(observed: &Observed) -> Option<Preflight> {
    let target = target(observed).filter(|_| !observed.deleting())?;
    let mut found = findings(observed, target);
    let more = found.len().saturating_sub(MOST_FINDINGS);
    found.truncate(MOST_FINDINGS);
    let cut = |text: String| text.chars().take(512).collect();
    let findings = found.into_iter().map(|finding| Shown {
        id: finding.id(),
        ignored: finding.severity == Severity::Error && ignored(observed, &finding),
        severity: finding.severity,
        message: cut(finding.message),
        evidence: cut(finding.evidence),
        owner: finding.owner,
        fix: cut(finding.fix),
    });
    Some(Preflight {
        target: target.version.clone(),
        findings: findings.collect(),
        more: i32::try_from(more).unwrap_or(i32::MAX),
    })
}

/// When a finding goes away only because time passes, and nothing else would wake the tenant.
pub fn due(observed: &Observed) -> Option<Timestamp> {
    removed::clears(observed.preflight.as_ref()?, observed.now)
}
