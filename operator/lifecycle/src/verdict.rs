//! Verdicts: conditions before they are compared with what was said last.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kaas_crds::condition::{ConditionType, Reason};

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    True,
    False,
    Unknown,
}

/// A condition before it is compared with the last one of its type.
pub(crate) struct Verdict {
    pub(crate) kind: ConditionType,
    pub(crate) is: Is,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Verdict {
    pub(crate) fn new(kind: ConditionType, is: Is, reason: Reason, message: impl Into<String>) -> Self {
        Verdict { kind, is, reason, message: message.into() }
    }
}

/// Keeps the time of the last transition where the status did not change.
pub(crate) fn conditions(
    now: Timestamp,
    generation: Option<i64>,
    before: &[Condition],
    verdicts: Vec<Verdict>,
) -> Vec<Condition> {
    verdicts
        .into_iter()
        .map(|verdict| {
            let status = match verdict.is {
                Is::True => "True",
                Is::False => "False",
                Is::Unknown => "Unknown",
            };
            let kind = verdict.kind.to_string();
            let last = before.iter().find(|condition| condition.type_ == kind && condition.status == status);
            Condition {
                last_transition_time: last
                    .map_or(Time(now), |condition| condition.last_transition_time.clone()),
                message: verdict.message.chars().take(2000).collect(),
                observed_generation: generation,
                reason: verdict.reason.as_str().to_owned(),
                status: status.to_owned(),
                type_: kind,
            }
        })
        .collect()
}
