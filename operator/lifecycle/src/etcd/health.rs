//! How the members stand, and whether the data that is there is the data that was.

use super::CLUSTER_ID_KEY;
use super::members::member_name;
use super::memory::{on_new_volume, remembered, remembered_volumes};
use crate::observed::Observed;

/// How the members stand, in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing was heard.
    Unknown,
    /// Every member serves.
    Healthy,
    /// These do not, the rest is a quorum.
    Degraded(Vec<String>),
    /// So many of so many serve: not a quorum.
    NoQuorum(usize, usize),
    /// An alarm is raised.
    Alarm(Vec<String>),
    /// The data is not the data that was there before.
    DataLost(String),
}

/// Judges the members. A learner that still catches up is no patient.
pub fn health(observed: &Observed) -> Health {
    if let Some(lost) = data_lost(observed) {
        return Health::DataLost(lost);
    }
    let Some(etcd) = &observed.etcd else { return Health::Unknown };
    let voters = etcd.members.iter().filter(|member| !member.learner).count();
    let healthy = etcd.members.iter().filter(|member| !member.learner && member.healthy).count();
    if healthy < quorum(voters) || etcd.leader == 0 {
        return Health::NoQuorum(healthy, voters);
    }
    if !etcd.alarms.is_empty() {
        return Health::Alarm(etcd.alarms.clone());
    }
    let unwell: Vec<String> = etcd
        .members
        .iter()
        .filter(|member| !member.healthy && !member.learner)
        .map(|member| member_name(member).unwrap_or_else(|| format!("{:x}", member.id)))
        .collect();
    if unwell.is_empty() { Health::Healthy } else { Health::Degraded(unwell) }
}

/// The smallest majority.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Why the data that is there cannot be the data that was: another cluster answers, or so many members came back on
/// new volumes that no quorum holds the old data.
fn data_lost(observed: &Observed) -> Option<String> {
    let was = remembered(observed, CLUSTER_ID_KEY)?;
    if let Some(etcd) = &observed.etcd {
        let is = &etcd.cluster_id;
        if is != was && !is.is_empty() {
            return Some(format!(
                "etcd answers as cluster {is}, the data of this TenantCluster was in cluster {was}"
            ));
        }
        if etcd.leader != 0 {
            return None;
        }
    }
    let volumes = remembered_volumes(observed);
    let kept = volumes.iter().filter(|(name, _)| !on_new_volume(observed, name)).count();
    let lost: Vec<&str> = volumes.keys().copied().filter(|name| on_new_volume(observed, name)).collect();
    (kept < quorum(volumes.len())).then(|| {
        format!(
            "{} came back on new volumes without the data, {kept} of {} members still have it",
            lost.join(", "),
            volumes.len()
        )
    })
}
