//! Who the members are, which pods there are for them, and what one that starts for the first time is told.

use std::collections::BTreeSet;

use kaas_crds::name::component;
use serde_json::{Value, json};

use super::memory::{remembered, remembered_volumes};
use super::step::{Step, next_step};
use super::{CLUSTER_ID_KEY, MOST};
use crate::desired::{EtcdBootstrap, SEVERAL_ELECTION_TIMEOUT, etcd_member_name};
use crate::object::{Kind, Object};
use crate::observed::{Live, Member, Observed};

/// The pods of a StatefulSet: from which number on, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Number of the first pod.
    pub first: i32,
    /// How many there are.
    pub count: i32,
}

impl Places {
    /// What a StatefulSet says.
    pub fn of(set: &Value) -> Self {
        let number = |pointer: &str, absent: i64| {
            let said = set.pointer(pointer).and_then(Value::as_i64).unwrap_or(absent);
            i32::try_from(said).unwrap_or(i32::MAX)
        };
        Places { first: number("/spec/ordinals/start", 0), count: number("/spec/replicas", 1) }
    }

    /// Whether the pod of this number is one of them.
    pub fn contains(self, index: i32) -> bool {
        index >= self.first && index < self.first.saturating_add(self.count)
    }
}

/// What members start from: who the members are, the one that is about to be added included; and which of them may start
/// without data. Founders may, and a learner that never started. A lone member has nobody to join.
pub fn bootstrap(observed: &Observed) -> EtcdBootstrap {
    let mut members: BTreeSet<String> = members(observed).into_iter().map(etcd_member_name).collect();
    let joins = match next_step(observed) {
        Some(Step::Add(index)) => Some(etcd_member_name(index)),
        _ => None,
    };
    members.extend(joins.clone());
    let established = remembered(observed, CLUSTER_ID_KEY).is_some();
    let learners = observed.etcd.iter().flat_map(|etcd| &etcd.members);
    let new = learners.filter(|member| member.learner && member.name.is_empty()).filter_map(member_name);
    let starters =
        if established && members.len() > 1 { new.chain(joins).collect() } else { members.clone() };
    EtcdBootstrap { members: members.into_iter().collect(), starters }
}

/// Whether members have the timings of a lone one. Once they had those of several they keep them: a restart only to
/// start faster one day would be a poor trade.
pub fn alone(observed: &Observed) -> bool {
    let several = set(observed).is_some_and(|set| set.content.to_string().contains(SEVERAL_ELECTION_TIMEOUT));
    observed.cluster.spec.etcd.replicas == 1 && !several
}

/// Indices of the members that etcd knows, or of those that found the cluster while it is not known.
pub fn members(observed: &Observed) -> BTreeSet<i32> {
    let known: Option<BTreeSet<i32>> =
        observed.etcd.as_ref().map(|etcd| etcd.members.iter().filter_map(index).collect());
    let established = remembered(observed, CLUSTER_ID_KEY).is_some();
    match known.filter(|known| established && !known.is_empty()) {
        Some(known) => known,
        // Not heard from now: what was remembered is the best guess, and nothing is done on a guess.
        None if established => {
            remembered_volumes(observed).keys().filter_map(|name| index_of(name)).collect()
        }
        // Founders wait for each other: who changes his mind meanwhile changes it once they are all well.
        None => {
            let count = begun(observed).map_or(observed.cluster.spec.etcd.replicas, |begun| begun.count);
            (0..count.min(MOST)).collect()
        }
    }
}

/// Which pods the StatefulSet should have now: one for each member, learners included. While no leader says who they
/// are it keeps what it has: a guess would take a member's pod and its volume.
pub fn places(observed: &Observed) -> Places {
    let led = observed.etcd.as_ref().is_some_and(|etcd| etcd.leader != 0);
    let begun = begun(observed);
    if let (Some(begun), false) = (begun, led) {
        return begun;
    }
    let members = members(observed);
    let replicas = observed.cluster.spec.etcd.replicas;
    let (Some(first), Some(last)) = (members.first(), members.last()) else {
        return Places { first: 0, count: replicas };
    };
    // Of several the first may be away to be replaced: its pod waits for it.
    let first = begun.filter(|_| replicas > 1).map_or(*first, |begun| begun.first.min(*first));
    Places { first, count: last.saturating_sub(first).saturating_add(1) }
}

/// The StatefulSet with the pods that it should have now, any other object as it is: the membership leads, the pods
/// follow. Where they are numbered from is left out as long as it is zero and always was.
pub fn put_places(observed: &Observed, mut object: Object) -> Object {
    if object.reference.kind != Kind::StatefulSet {
        return object;
    }
    let places = places(observed);
    let numbered = set(observed).is_some_and(|set| set.get("/spec/ordinals").is_some());
    if let Some(spec) = object.content.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("replicas".into(), places.count.into());
        if numbered || places.first != 0 {
            spec.insert("ordinals".into(), json!({"start": places.first}));
        }
    }
    object
}

/// The pods that the StatefulSet has, once it exists.
pub(super) fn begun(observed: &Observed) -> Option<Places> {
    set(observed).map(|set| Places::of(&set.content))
}

/// The StatefulSet.
pub(super) fn set(observed: &Observed) -> Option<&Live> {
    observed.live(Kind::StatefulSet, component::ETCD)
}

/// Whether a member has a place to run.
pub fn placed(observed: &Observed) -> bool {
    observed.pods_of(component::ETCD).any(|pod| pod.placed)
}

/// A member's name: its own, or before its first start the one that its address says.
pub(super) fn member_name(member: &Member) -> Option<String> {
    if !member.name.is_empty() {
        return Some(member.name.clone());
    }
    let host = member.peer_urls.first()?.strip_prefix("https://")?;
    host.split('.').next().map(str::to_owned)
}

/// A member's number.
pub(super) fn index(member: &Member) -> Option<i32> {
    index_of(&member_name(member)?)
}

pub(super) fn index_of(name: &str) -> Option<i32> {
    name.strip_prefix(component::ETCD)?.strip_prefix('-')?.parse().ok()
}
