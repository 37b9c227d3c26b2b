//! Which stage of an upgrade a control plane is at, and which one is next.
//!
//! A stage is the release of the binaries, and the release whose API they still serve while they emulate it. From what
//! a control plane serves now the target says the next stage; whether it may begin is decided on facts: nothing begins
//! on a control plane that is not whole, and the emulated version is raised last, when the new binaries have been
//! well for the time that the tenant wants, or by the tenant's own hand.

use jiff::Timestamp;
use kaas_crds::name::component;
use kaas_crds::status::Owner;
use kaas_crds::tenant_cluster::Finalize;
use kaas_crds::{KubernetesReleaseSpec, Reason};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canary;
use super::path::{Version, Way, way};
use super::preflight;
use super::window::{Admission, admission};
use crate::etcd::{self, Health};
use crate::object::Kind;
use crate::observed::Observed;
use crate::revision;
use crate::rollout;
use crate::validated::Problem;

const ROLLING: &str = "pods are being started or replaced; it goes on when they are ready";

/// What a rendering is made from, as far as versions go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Release of the control plane's binaries.
    pub version: String,
    /// Release whose API they serve, and whose addons run, while they emulate it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulates: Option<String>,
}

/// What is stored with a revision besides the rendering. No tenant can write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it was rendered from.
    #[serde(flatten)]
    pub stage: Stage,
    /// When it became the one to apply; long ago if it was the first.
    #[serde(default = "long_ago", skip_serializing_if = "is_long_ago")]
    pub since: Timestamp,
    /// Where the way back leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Stage>,
    /// It is the way back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
    /// What was tried from here, and did not prove itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// A version that did not prove itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The version that was asked for.
    pub version: String,
    /// What was seen.
    pub evidence: String,
    /// When.
    pub at: Timestamp,
    /// It had clients already: it was rolled back, not merely not let in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub served: bool,
}

fn long_ago() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn is_long_ago(since: &Timestamp) -> bool {
    *since == long_ago()
}

impl Stage {
    /// Binaries that emulate nothing.
    pub fn of(version: &str) -> Self {
        Stage { version: version.to_owned(), emulates: None }
    }

    /// The version whose API is served.
    pub fn serves(&self) -> &str {
        self.emulates.as_deref().unwrap_or(&self.version)
    }

    /// The catalogue entries of the binaries and of what they emulate; `None` when one is missing.
    pub fn releases<'a>(
        &self,
        observed: &'a Observed,
    ) -> Option<(&'a KubernetesReleaseSpec, Option<&'a KubernetesReleaseSpec>)> {
        let find = |version: &String| observed.catalogue.get(version);
        let emulated = match &self.emulates {
            Some(version) => Some(find(version)?),
            None => None,
        };
        Some((find(&self.version)?, emulated))
    }
}

impl Record {
    /// What is known of a revision of before there were records, or of a new one.
    pub fn of(stage: Stage) -> Self {
        Record { stage, since: long_ago(), before: None, back: false, refused: None }
    }

    /// Whether controllers go before their API servers, which they must not lead. They do not within a minor version: there
    /// API servers that clients suffer from go first, as on the way forth.
    pub fn controllers_first(&self) -> bool {
        let series = |version: &str| version.parse().ok().map(Version::series);
        let within = |refused: &Refused| series(&refused.version) == series(&self.stage.version);
        self.back && !self.refused.as_ref().is_some_and(within)
    }
}

/// What is next.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing: it is where it should be.
    Stay,
    /// It is where it should be, and has been well for long enough: there is no way back from it any more.
    Proved,
    /// This stage, now.
    Go {
        /// Which.
        stage: Stage,
        /// It leads back to what ran before: nothing has to be proved first, and controllers go first.
        back: bool,
    },
    /// A stage is wanted and has to wait.
    Wait {
        /// Cause in one word.
        reason: Reason,
        /// What is waited for, in a sentence.
        words: String,
        /// Who can end it.
        owner: Owner,
        /// When it ends by itself, if that is known.
        until: Option<Timestamp>,
    },
    /// It cannot go where it is asked to.
    Blocked(Problem),
}

/// What is next for a control plane that runs what this record says.
pub fn next(observed: &Observed, record: &Record) -> Turn {
    let target = &observed.cluster.spec.version;
    let at = &record.stage;
    if *at == Stage::of(target) {
        return if record.before.is_some() { prove(observed) } else { Turn::Stay };
    }
    if let Some(refused) = record.refused.as_ref().filter(|refused| refused.version == *target) {
        return Turn::Blocked(refusal(observed, record, refused));
    }
    // That is said elsewhere.
    if !observed.catalogue.contains_key(target) {
        return Turn::Stay;
    }
    let (Ok(from), Ok(to)) = (at.serves().parse::<Version>(), target.parse::<Version>()) else {
        return Turn::Stay;
    };
    // A patch that is not proved yet is taken back as it came: neither a canary nor its health is waited for.
    if let Some(before) = record.before.as_ref().filter(|before| **before == Stage::of(target)) {
        return Turn::Go { stage: before.clone(), back: true };
    }
    let go = |stage| Turn::Go { stage, back: false };
    let found = match way(from, to) {
        Err(why) => return Turn::Blocked(no_way(observed, at, &why)),
        // All of it emulates what is asked for at last: then the new binaries go, not before.
        Ok(Way::None | Way::Patch) if at.emulates.is_some() && record.back && rolling(observed) => {
            return unsettled(ROLLING);
        }
        Ok(Way::None | Way::Patch) if at.emulates.is_some() => {
            return Turn::Go { stage: Stage::of(target), back: true };
        }
        Ok(Way::None | Way::Patch) => go(Stage::of(target)),
        Ok(Way::Minor) if at.version == *target => return raise(observed, target),
        Ok(Way::Minor) => go(Stage { version: target.clone(), emulates: Some(at.serves().to_owned()) }),
        // What it says of consent and losses stands in the way of its beginning.
        Ok(Way::Back) => {
            let stage = Stage { version: at.version.clone(), emulates: Some(target.clone()) };
            Turn::Go { stage, back: true }
        }
    };
    waiting_to_begin(observed, at).or_else(|| waiting_for_health(observed)).unwrap_or(found)
}

/// An upgrade begins in a window, and when nothing speaks against it; what has begun goes on. It begins with the canary.
fn waiting_to_begin(observed: &Observed, at: &Stage) -> Option<Turn> {
    if at.emulates.is_some() || canary::live(observed).is_some() {
        return None;
    }
    if let Admission::Closed { until, words } =
        admission(observed.cluster.spec.maintenance.as_ref(), observed.now)
    {
        return Some(Turn::Wait { reason: Reason::WaitingForWindow, words, owner: Owner::Nobody, until });
    }
    let finding = preflight::blocker(observed, observed.catalogue.get(&observed.cluster.spec.version)?)?;
    let words = format!("{}: {}; {}", finding.id(), finding.message, finding.fix);
    Some(Turn::Wait { reason: finding.reason, words, owner: finding.owner, until: None })
}

/// A patch is taken: what it runs has to be well for the time of the soak before that is all there is to it.
fn prove(observed: &Observed) -> Turn {
    let words = "the upgrade is over when all has been well for";
    waiting_for_health(observed).or_else(|| waiting_for_soak(observed, words)).unwrap_or(Turn::Proved)
}

/// The last step: binaries serve their own version.
fn raise(observed: &Observed, target: &str) -> Turn {
    if let Some(wait) = waiting_for_health(observed) {
        return wait;
    }
    let upgrade = &observed.cluster.spec.upgrade;
    if upgrade.finalize == Finalize::Manual {
        return Turn::Wait {
            reason: Reason::FinalizeHeld,
            words: "spec.upgrade.finalize is Manual: the emulated version is raised when it is AfterSoak"
                .into(),
            owner: Owner::Tenant,
            until: None,
        };
    }
    let words = "the emulated version is raised when all has been well for";
    waiting_for_soak(observed, words).unwrap_or(Turn::Go { stage: Stage::of(target), back: false })
}

fn waiting_for_soak(observed: &Observed, words: &str) -> Option<Turn> {
    let until = soaked_at(observed);
    until.is_none_or(|over| observed.now < over).then(|| Turn::Wait {
        reason: Reason::Soaking,
        words: format!("{words} {}", observed.cluster.spec.upgrade.soak),
        owner: Owner::Nobody,
        until,
    })
}

/// When the newest pod of the control plane has been there for the time of the soak.
pub(super) fn soaked_at(observed: &Observed) -> Option<Timestamp> {
    let newest = [component::KUBE_APISERVER, component::KUBE_CONTROLLERS]
        .iter()
        .flat_map(|component| observed.pods_of(component))
        .map(|pod| pod.created)
        .max()?;
    newest.checked_add(observed.cluster.spec.upgrade.soak.duration()).ok()
}

/// Nothing begins on a control plane that is not whole, nor while etcd goes to another version.
fn waiting_for_health(observed: &Observed) -> Option<Turn> {
    let changing = etcd::under_way(observed)
        .then_some("etcd goes to another minor version; it goes on when all members run it");
    changing.or_else(|| amiss(observed)).map(unsettled)
}

/// What keeps a control plane from being whole.
pub(crate) fn amiss(observed: &Observed) -> Option<&'static str> {
    if !observed.serving() {
        Some("requests through the endpoint fail; it goes on when they succeed")
    } else if etcd::health(observed) != Health::Healthy {
        Some("etcd is not healthy; it goes on when it is")
    } else if etcd::next_step(observed).is_some() || rolling(observed) {
        Some(ROLLING)
    } else {
        None
    }
}

/// Whether pods are being replaced, or are going to be: between two components of a change all of them are settled for a
/// moment.
fn rolling(observed: &Observed) -> bool {
    if rollout::unsettled(observed) {
        return true;
    }
    let Some(current) = revision::current(observed) else { return false };
    [component::KUBE_APISERVER, component::KUBE_CONTROLLERS].iter().any(|component| {
        let wanted = current.objects.iter().find(|object| object.reference.name == *component);
        let live = observed.live(Kind::Deployment, component);
        wanted.zip(live).is_some_and(|(wanted, live)| binaries(&wanted.content) != binaries(&live.content))
    })
}

/// What a workload runs, as far as versions go: images, and what they emulate.
fn binaries(workload: &Value) -> Vec<(&str, Option<&str>)> {
    let containers = workload.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let told = containers.into_iter().flatten().map(|container| {
        let words = container.get("command").and_then(Value::as_array);
        let mut words = words.into_iter().flatten().filter_map(Value::as_str);
        let emulated = words.find(|word| word.starts_with("--emulated-version="));
        (container.get("image").and_then(Value::as_str).unwrap_or_default(), emulated)
    });
    let mut all: Vec<_> = told.collect();
    all.sort_unstable();
    all
}

fn unsettled(words: &str) -> Turn {
    let words = words.to_owned();
    Turn::Wait { reason: Reason::ControlPlaneUnsettled, words, owner: Owner::Nobody, until: None }
}

fn no_way(observed: &Observed, at: &Stage, why: &str) -> Problem {
    let serves = at.serves();
    let near: Vec<&str> = observed
        .catalogue
        .keys()
        .filter(|version| {
            let ways = serves.parse().ok().zip(version.parse().ok()).map(|(from, to)| way(from, to));
            matches!(ways, Some(Ok(Way::Patch | Way::Minor)))
        })
        .map(String::as_str)
        .collect();
    let offer = match near.as_slice() {
        [] => format!("set it back to {serves}"),
        near => format!("from {serves} the catalogue has {}", near.join(", ")),
    };
    Problem {
        reason: Reason::UpgradePathInvalid,
        message: format!("spec.version: {}: {why}; {offer}", observed.cluster.spec.version),
        owner: Owner::Tenant,
    }
}

fn refusal(observed: &Observed, record: &Record, refused: &Refused) -> Problem {
    let outcome = match (refused.served, &record.stage.emulates) {
        (true, _) => format!("it was rolled back to {}", record.stage.version),
        (false, Some(emulated)) => format!("no client met it, {emulated} is served on"),
        (false, None) => format!("no client met it, {} runs on", record.stage.version),
    };
    Problem {
        reason: Reason::UpgradeRefused,
        message: format!(
            "spec.version: {} did not prove itself at {}: {}; {outcome}; to try again set spec.version to {} and then back",
            observed.cluster.spec.version,
            refused.at,
            refused.evidence,
            record.stage.serves(),
        ),
        owner: Owner::Platform,
    }
}
