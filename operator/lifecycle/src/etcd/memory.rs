//! What is remembered of the members' volumes, and what a member has its data on now: whether a member that comes back
//! is the one that left.

use std::collections::BTreeMap;

use kaas_crds::name::component;

use super::health::{Health, health};
use super::members::{index_of, member_name};
use super::{CLUSTER_ID_KEY, IDENTITY, STARTS};
use crate::desired::EtcdIdentity;
use crate::object::Kind;
use crate::observed::{Live, Observed, Pod};

/// The volumes of members that left have this before their names.
const LEFT: &str = "left.";
/// And those of learners this, so that one whose data goes before all were seen well is known by it too.
const JOINS: &str = "joins.";

pub(super) fn remembered<'a>(observed: &'a Observed, key: &str) -> Option<&'a str> {
    observed
        .live(Kind::ConfigMap, IDENTITY)
        .and_then(|live| live.get("/data")?.get(key)?.as_str())
        .filter(|id| !id.is_empty())
}

/// Members that were seen well, and the volume that each had then.
pub(super) fn remembered_volumes(observed: &Observed) -> BTreeMap<&str, &str> {
    let data = observed.live(Kind::ConfigMap, IDENTITY).and_then(|live| live.get("/data")?.as_object());
    data.into_iter()
        .flatten()
        .filter(|(key, _)| index_of(key).is_some())
        .filter_map(|(key, volume)| Some((key.as_str(), volume.as_str()?)))
        .collect()
}

/// What a member's data is on: its claim, or without one the pod itself.
pub(super) fn volume<'a>(observed: &'a Observed, member: &str) -> Option<&'a str> {
    match &observed.cluster.spec.etcd.storage.persistent {
        Some(_) => claim(observed, member).map(|claim| claim.uid.as_str()),
        None => pod(observed, member).map(|pod| pod.uid.as_str()),
    }
}

pub(super) fn claim<'a>(observed: &'a Observed, member: &str) -> Option<&'a Live> {
    observed.live(Kind::PersistentVolumeClaim, &format!("data-{member}"))
}

pub(super) fn pod<'a>(observed: &'a Observed, member: &str) -> Option<&'a Pod> {
    observed.pods_of(component::ETCD).find(|pod| pod.name == member)
}

/// Whether a member is known to have lost its data: it had another volume when it was last well.
pub(super) fn on_new_volume(observed: &Observed, member: &str) -> bool {
    match (last_volume(observed, member), volume(observed, member)) {
        (Some(was), Some(is)) => was != is,
        _ => false,
    }
}

/// Whether a member's data, which is in its pod, is none that it can start from.
pub(super) fn stuck(observed: &Observed, member: &str) -> bool {
    let crashes = |pod: &Pod| {
        let trouble = pod.trouble.as_ref().is_some_and(|trouble| trouble.reason == "CrashLoopBackOff");
        trouble && observed.now.duration_since(pod.created) > STARTS
    };
    observed.cluster.spec.etcd.storage.persistent.is_none() && pod(observed, member).is_some_and(crashes)
}

/// What a member had its data on when it was seen up last.
pub(super) fn last_volume<'a>(observed: &'a Observed, member: &str) -> Option<&'a str> {
    remembered(observed, &format!("{JOINS}{member}"))
        .or_else(|| remembered_volumes(observed).get(member).copied())
}

/// Whether a member that left had its data on this volume.
pub(super) fn used(observed: &Observed, member: &str, volume: &str) -> bool {
    let left = remembered(observed, &format!("{LEFT}{member}"));
    left == Some(volume) || remembered_volumes(observed).get(member) == Some(&volume)
}

/// What is to be remembered: made once all members are well, and again when one got a new volume and is well on it.
/// Of a learner it is remembered when it is up.
pub fn identity(observed: &Observed) -> Option<EtcdIdentity> {
    seen_well(observed).or_else(|| {
        let cluster_id = remembered(observed, CLUSTER_ID_KEY)?.to_owned();
        let mut volumes = memory(observed);
        let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
        for learner in members.filter(|member| member.learner && member.healthy) {
            if let Some(volume) = volume(observed, &learner.name) {
                volumes.insert(format!("{JOINS}{}", learner.name), volume.to_owned());
            }
        }
        Some(EtcdIdentity { cluster_id, volumes })
    })
}

fn seen_well(observed: &Observed) -> Option<EtcdIdentity> {
    let etcd = observed.etcd.as_ref()?;
    let voting = etcd.members.iter().all(|member| !member.learner);
    if !voting || health(observed) != Health::Healthy {
        return None;
    }
    let volumes = etcd.members.iter().map(|member| {
        let name = member_name(member)?;
        let volume = volume(observed, &name)?.to_owned();
        Some((name, volume))
    });
    let mut volumes: BTreeMap<String, String> = volumes.collect::<Option<_>>()?;
    // What members that left had their data on: they must not come back to it. The last volume comes last.
    let memory = memory(observed);
    let (left, been): (Vec<_>, Vec<_>) = memory.into_iter().partition(|(name, _)| name.starts_with(LEFT));
    for (name, volume) in left.into_iter().chain(been) {
        let name = bare(&name);
        if !volumes.contains_key(name) {
            volumes.insert(format!("{LEFT}{name}"), volume);
        }
    }
    Some(EtcdIdentity { cluster_id: etcd.cluster_id.clone(), volumes })
}

/// The name of the member that a key is about.
fn bare(key: &str) -> &str {
    key.strip_prefix(LEFT).or_else(|| key.strip_prefix(JOINS)).unwrap_or(key)
}

/// All volumes that are remembered, those of members that left or join under their longer keys.
fn memory(observed: &Observed) -> BTreeMap<String, String> {
    let data = observed.live(Kind::ConfigMap, IDENTITY).and_then(|live| live.get("/data")?.as_object());
    let all = data.into_iter().flatten().filter(|(key, _)| index_of(bare(key)).is_some());
    all.filter_map(|(key, volume)| Some((key.clone(), volume.as_str()?.to_owned()))).collect()
}
