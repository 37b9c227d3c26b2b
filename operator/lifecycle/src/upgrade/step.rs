//! The next step of an upgrade: from what is stored and what was seen to the revision that is applied next, the canary
//! that has to prove it, and the words for people.

use jiff::Timestamp;
use kaas_crds::Reason;
use kaas_crds::status::{OperationType, Owner};

use super::canary::{self, Verdict};
use super::gate;
use super::stage::{Record, Refused, Stage, Turn, next};
use crate::etcd;
use crate::object::Object;
use crate::observed::Observed;
use crate::revision::{self, Revision};
use crate::rollout;
use crate::validated::Problem;

/// What an upgrade asks of the plan now. Empty while none is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The revision to store, and to apply from now on.
    pub revision: Option<Revision>,
    /// The canary that there should be.
    pub canary: Option<Object>,
    /// Where it stands.
    pub progress: Option<Progress>,
    /// Why it cannot go on.
    pub problem: Option<Problem>,
}

/// Where an upgrade stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The version that it leads to.
    pub target: String,
    /// What is going on.
    pub step: String,
    /// What it waits for, and who can end that.
    pub waiting: Option<(Reason, Owner)>,
    /// When that ends by itself, if it is known.
    pub until: Option<Timestamp>,
}

/// Decides the next step. `render` renders a stage; `None` when the catalogue does not have what it needs.
pub fn step(observed: &Observed, current: &Revision, render: impl Fn(&Stage) -> Option<Vec<Object>>) -> Step {
    let record = &current.record;
    // People read it: no fractions.
    let now = Timestamp::from_second(observed.now.as_second()).unwrap_or(observed.now);
    let target = observed.cluster.spec.version.clone();
    let going =
        |words: String, waiting| Some(Progress { target: target.clone(), step: words, waiting, until: None });
    let replaced = |rendering: Vec<Object>, record: Record| {
        revision::made(observed, current.number.saturating_add(1), rendering, record)
    };
    if let (Some(evidence), Some(before)) = (gate::breach(observed, record), &record.before)
        && let Some(rendering) = render(before)
    {
        let refused = Refused {
            version: record.stage.version.clone(),
            evidence: evidence.clone(),
            at: now,
            served: true,
        };
        let revision = replaced(
            rendering,
            Record { since: now, back: true, refused: Some(refused), ..Record::of(before.clone()) },
        );
        let progress = going(format!("going back to {}: {evidence}", before.version), None);
        return Step { revision: Some(revision), progress, ..Step::default() };
    }
    let noted = |record: Record| Some(Revision { record, ..current.clone() });
    match next(observed, record) {
        Turn::Stay => {
            // Whoever asks for what runs has taken back what was refused, and may ask for it again.
            let taken_back = record.refused.is_some() && record.stage.version == target;
            let revision = noted(Record { refused: None, ..record.clone() }).filter(|_| taken_back);
            Step { revision, progress: finishing(observed, record), ..Step::default() }
        }
        Turn::Proved => {
            Step { revision: noted(Record { before: None, ..record.clone() }), ..Step::default() }
        }
        Turn::Blocked(problem) => {
            let progress = finishing(observed, record);
            // While it goes back there is nothing to do for anybody.
            let problem = (progress.is_none() || !record.back).then_some(problem);
            Step { progress, problem, ..Step::default() }
        }
        Turn::Wait { reason: Reason::ControlPlaneUnsettled, .. }
            if record.before.is_some() && rollout::unsettled(observed) =>
        {
            Step { progress: going(rolling(&record.stage), None), ..Step::default() }
        }
        Turn::Wait { reason, words, owner, until } => {
            let words = format!("{}{words}", standing(record));
            let progress = Some(Progress { target, step: words, waiting: Some((reason, owner)), until });
            Step { progress, ..Step::default() }
        }
        Turn::Go { stage, back } => {
            let Some(rendering) = render(&stage) else { return Step::default() };
            let id = revision::rendering_id(&rendering);
            if back {
                let words = format!("going back to {}", stage.version);
                let record = Record { since: now, back: true, ..Record::of(stage) };
                return Step {
                    revision: Some(replaced(rendering, record)),
                    progress: going(words, None),
                    ..Step::default()
                };
            }
            match canary::judge(observed, &id) {
                Verdict::Passed => {
                    let raising = stage.version == record.stage.version;
                    let words = rolling(&stage);
                    // Once the new version is served, going back is nothing that is done unasked.
                    let before = (!raising).then(|| record.stage.clone());
                    let record = Record { since: now, before, ..Record::of(stage) };
                    let revision = Some(replaced(rendering, record));
                    Step { revision, progress: going(words, None), ..Step::default() }
                }
                Verdict::Failed(evidence) => {
                    let refused = Refused { version: target.clone(), evidence, at: now, served: false };
                    let revision = noted(Record { refused: Some(refused), ..record.clone() });
                    Step { revision, progress: going("the canary failed".into(), None), ..Step::default() }
                }
                Verdict::Absent | Verdict::Waiting => Step {
                    canary: canary::deployment(observed, &rendering, &id),
                    progress: going(
                        format!("one API server without clients proves {}", tell(&stage)),
                        Some((Reason::CanaryProving, Owner::Nobody)),
                    ),
                    ..Step::default()
                },
            }
        }
    }
}

/// A stage, in words.
fn tell(stage: &Stage) -> String {
    match &stage.emulates {
        Some(emulated) => format!("{} emulating {emulated}", stage.version),
        None => stage.version.clone(),
    }
}

fn rolling(stage: &Stage) -> String {
    format!("API servers and controllers become {}", tell(stage))
}

/// What was reached already, before the words of a wait.
fn standing(record: &Record) -> String {
    match record.before.is_some() || record.stage.emulates.is_some() {
        true => format!("{} runs; ", tell(&record.stage)),
        false => String::new(),
    }
}

/// The last pods of an upgrade, or of its way back, are part of it.
fn finishing(observed: &Observed, record: &Record) -> Option<Progress> {
    let operation = observed.cluster.status.as_ref()?.operation.as_ref()?;
    // What etcd does on its way to another version follows, and is no part of it.
    let last = operation.kind == OperationType::Upgrade
        && rollout::unsettled(observed)
        && !etcd::under_way(observed);
    last.then(|| Progress {
        target: operation.target.clone(),
        step: if record.back {
            format!("going back to {}: pods are replaced", tell(&record.stage))
        } else {
            rolling(&record.stage)
        },
        waiting: None,
        until: None,
    })
}
