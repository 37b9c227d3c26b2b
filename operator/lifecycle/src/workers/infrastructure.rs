//! What the infrastructure refuses: from a typed failure to a condition, an owner, and when it is tried again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::Reason;
use kaas_crds::status::Owner;
use kaas_crds::worker::InfrastructureFailure;

/// Why the infrastructure did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// A quota is used up.
    Quota,
    /// There is no room for such a machine now.
    NoCapacity,
    /// It may not be done, or the request is wrong: asking again alone does not help.
    Denied,
    /// It fails for now.
    Transient,
    /// Nobody knows whether it was done: no answer, or one that says nothing. Looking shows.
    Unknown,
    /// The machine is gone.
    Gone,
}

impl Failure {
    /// All of them.
    pub const ALL: [Failure; 6] = [
        Failure::Quota,
        Failure::NoCapacity,
        Failure::Denied,
        Failure::Transient,
        Failure::Unknown,
        Failure::Gone,
    ];

    /// In one word.
    pub const fn reason(self) -> Reason {
        match self {
            Failure::Quota => Reason::QuotaExceeded,
            Failure::NoCapacity => Reason::NoCapacity,
            Failure::Denied => Reason::InfrastructureDenied,
            Failure::Transient | Failure::Unknown => Reason::InfrastructureFailing,
            Failure::Gone => Reason::InfrastructureGone,
        }
    }

    /// Who can do something about it.
    pub const fn owner(self) -> Owner {
        match self {
            Failure::Quota | Failure::NoCapacity | Failure::Denied => Owner::Platform,
            Failure::Transient | Failure::Unknown => Owner::Nobody,
            Failure::Gone => Owner::Tenant,
        }
    }

    /// How long to wait before the next attempt, after so many in a row.
    pub fn pause(self, attempts: i32) -> SignedDuration {
        let doubled = |most: i64| {
            let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(16);
            SignedDuration::from_secs(2_i64.saturating_pow(exponent).min(most))
        };
        match self {
            Failure::Quota | Failure::NoCapacity => SignedDuration::from_mins(1),
            Failure::Denied => SignedDuration::from_mins(5),
            Failure::Transient | Failure::Gone => doubled(300),
            // It is likely to be there already: a look costs little.
            Failure::Unknown => doubled(30),
        }
    }
}

/// What is stored of a failure, after what was stored of the last one.
pub fn record(
    before: Option<&InfrastructureFailure>,
    failure: Failure,
    message: &str,
    now: Timestamp,
) -> InfrastructureFailure {
    let reason = failure.reason().as_str();
    let same = before.filter(|before| before.reason == reason);
    let attempts = same.map_or(1, |before| before.attempts.saturating_add(1)).clamp(1, 1_000_000);
    InfrastructureFailure {
        reason: reason.to_owned(),
        message: message.chars().take(512).collect(),
        attempts,
        since: same.map_or(Time(now), |before| before.since.clone()),
        retry_at: Time(now.checked_add(failure.pause(attempts)).unwrap_or(now)),
    }
}

/// Whether the infrastructure may be asked again.
pub fn due(failure: Option<&InfrastructureFailure>, now: Timestamp) -> bool {
    failure.is_none_or(|failure| now >= failure.retry_at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn pauses_grow_and_end() {
        let of = |failure: Failure| [1, 2, 3, 20, i32::MAX].map(|attempts| failure.pause(attempts).as_secs());
        assert_eq!(of(Failure::Transient), [1, 2, 4, 300, 300]);
        assert_eq!(of(Failure::Unknown), [1, 2, 4, 30, 30]);
        assert_eq!(of(Failure::Quota), [60; 5]);
        assert_eq!(of(Failure::Denied), [300; 5]);
    }

    #[test]
    fn failures_of_one_kind_are_counted() {
        let first = record(None, Failure::Quota, "pods", now());
        let later = now() + SignedDuration::from_mins(1);
        let second = record(Some(&first), Failure::Quota, "pods", later);
        assert_eq!((second.attempts, second.since.0), (2, now()));
        let other = record(Some(&second), Failure::Denied, "no", later);
        assert_eq!(
            (other.attempts, other.since.0, other.reason.as_str()),
            (1, later, "InfrastructureDenied")
        );
    }

    #[test]
    fn nothing_is_tried_before_its_time() {
        let failure = record(None, Failure::NoCapacity, "", now());
        assert!(due(None, now()));
        assert!(!due(Some(&failure), now() + SignedDuration::from_secs(59)));
        assert!(due(Some(&failure), now() + SignedDuration::from_secs(60)));
    }

    #[test]
    fn each_has_an_owner_and_a_reason() {
        for failure in Failure::ALL {
            assert!(!failure.reason().as_str().is_empty());
            assert!(failure.owner() != Owner::Tenant || failure == Failure::Gone);
        }
    }
}
