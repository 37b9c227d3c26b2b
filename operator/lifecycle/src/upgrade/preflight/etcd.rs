//! Findings about etcd: an upgrade writes much, and moves the leader; neither is for members that are not well.

use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;

use super::Finding;
use crate::etcd::{self, Health};
use crate::observed::{Member, Observed};
use crate::validated::data_lost;

/// Of the quota, in percent: an upgrade rewrites objects, and each rewriting takes space until it is compacted.
const FULL: i64 = 90;
/// Here somebody should begin to look.
const FILLING: i64 = 75;

pub(super) fn findings(observed: &Observed) -> Vec<Finding> {
    health(observed).into_iter().chain(learner(observed)).chain(space(observed)).collect()
}

fn health(observed: &Observed) -> Option<Finding> {
    let (reason, message, fix) = match etcd::health(observed) {
        Health::Healthy => return None,
        Health::DataLost(fact) => {
            (Reason::DataLost, "etcd does not hold the data that it held".into(), data_lost(&fact))
        }
        Health::Unknown => (
            Reason::QuorumLost,
            "no member of etcd answers".to_owned(),
            "bring the members back, see EtcdHealthy".to_owned(),
        ),
        Health::NoQuorum(healthy, voters) => (
            Reason::QuorumLost,
            format!("{healthy} of {voters} members of etcd are healthy, which is no quorum"),
            "bring the members back, see EtcdHealthy".to_owned(),
        ),
        Health::Degraded(names) => (
            Reason::MemberUnhealthy,
            format!("members of etcd are not healthy: {}", names.join(", ")),
            "wait until they are, or replace them, see EtcdHealthy".to_owned(),
        ),
        Health::Alarm(alarms) => (
            Reason::AlarmRaised,
            format!("etcd raised alarms: {}", alarms.join(", ")),
            "remove the cause and disarm them, see EtcdHealthy".to_owned(),
        ),
    };
    Some(Finding {
        reason,
        subject: String::new(),
        severity: Severity::Error,
        message,
        evidence: String::new(),
        owner: Owner::Platform,
        fix,
    })
}

fn learner(observed: &Observed) -> Option<Finding> {
    let learner = observed.etcd.as_ref()?.members.iter().find(|member| member.learner)?;
    Some(Finding {
        reason: Reason::LearnerWaiting,
        subject: String::new(),
        severity: Severity::Error,
        message: "a member of etcd has no vote yet".into(),
        evidence: format!("member {:x} {}", learner.id, learner.name),
        owner: Owner::Nobody,
        fix: "it becomes a member when it has caught up; wait until etcd has its size".into(),
    })
}

fn space(observed: &Observed) -> Option<Finding> {
    let share = |member: &Member| {
        let quota = (member.quota > 0).then_some(member.quota)?;
        member.size.checked_mul(100)?.checked_div(quota)
    };
    let members = observed.etcd.as_ref()?.members.iter();
    let (full, member) =
        members.filter_map(|member| Some((share(member)?, member))).max_by_key(|(full, _)| *full)?;
    // In steps, so that it says the same for a while.
    let (severity, step) = match full {
        FULL.. => (Severity::Error, FULL),
        FILLING.. => (Severity::Warning, FILLING),
        _ => return None,
    };
    Some(Finding {
        reason: Reason::SpaceShort,
        subject: String::new(),
        severity,
        message: format!("the data of etcd takes more than {step} % of its quota"),
        evidence: format!("member {}, quota {} MiB", member.name, member.quota >> 20),
        owner: Owner::Tenant,
        fix: "delete what is not needed; the platform then compacts and defragments, or gives more room"
            .into(),
    })
}
