//! etcd: what its members should be, what may be done to one of them now, and when its data is not the data it was.
//!
//! The StatefulSet never restarts a member by itself (`OnDelete`); members are restarted here, one at a time, only
//! while all the others are well, and the leader last.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use kaas_crds::name::component;

use crate::action::{Action, EtcdOrder};
use crate::desired::{
    EtcdBootstrap, EtcdIdentity, SEVERAL_ELECTION_TIMEOUT, etcd_member_name, etcd_peer_url,
};
use crate::object::{Kind, Reference};
use crate::observed::{Live, Member, Observed, Pod};

/// ConfigMap that members start from.
pub const BOOTSTRAP: &str = "etcd-bootstrap";
/// ConfigMap that remembers whose data it is: the cluster ID, and the volume of each member that was seen well.
/// Tenants cannot reach it. It is made when all members are well for the first time.
pub const IDENTITY: &str = "etcd-identity";
/// The volumes of members that left have this before their names.
const LEFT: &str = "left.";
/// And those of learners this, so that one whose data goes before all were seen well is known by it too.
const JOINS: &str = "joins.";
/// Key of the remembered cluster ID.
pub const CLUSTER_ID_KEY: &str = "cluster-id";
/// Key of what makes a member without data join instead of founding a cluster; a variable of that name in pods.
pub const STATE_KEY: &str = "ETCD_INITIAL_CLUSTER_STATE";

/// Most members that there can be, whatever a spec says.
pub(crate) const MOST: i32 = 5;

/// Grace period of a member: its log is synced at every write, so that nothing is gained by waiting for clients'
/// watches, which never end (etcd holds its listener closed for 5 s + 2 x election timeout while it waits).
pub const GRACE_SECONDS: u32 = 1;

/// A member's first starts fail while it is not known to the others, or they are not by name: seconds.
const STARTS: SignedDuration = SignedDuration::from_secs(30);

/// Members that joined, and a restart that was, within so long belong to one and the same change of the membership.
const RECENT: SignedDuration = SignedDuration::from_mins(10);

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

fn remembered<'a>(observed: &'a Observed, key: &str) -> Option<&'a str> {
    observed
        .live(Kind::ConfigMap, IDENTITY)
        .and_then(|live| live.get("/data")?.get(key)?.as_str())
        .filter(|id| !id.is_empty())
}

/// Members that were seen well, and the volume that each had then.
fn remembered_volumes(observed: &Observed) -> BTreeMap<&str, &str> {
    let data = observed.live(Kind::ConfigMap, IDENTITY).and_then(|live| live.get("/data")?.as_object());
    data.into_iter()
        .flatten()
        .filter(|(key, _)| index_of(key).is_some())
        .filter_map(|(key, volume)| Some((key.as_str(), volume.as_str()?)))
        .collect()
}

/// What a member's data is on: its claim, or without one the pod itself.
fn volume<'a>(observed: &'a Observed, member: &str) -> Option<&'a str> {
    match &observed.cluster.spec.etcd.storage.persistent {
        Some(_) => claim(observed, member).map(|claim| claim.uid.as_str()),
        None => pod(observed, member).map(|pod| pod.uid.as_str()),
    }
}

fn claim<'a>(observed: &'a Observed, member: &str) -> Option<&'a Live> {
    observed.live(Kind::PersistentVolumeClaim, &format!("data-{member}"))
}

fn pod<'a>(observed: &'a Observed, member: &str) -> Option<&'a Pod> {
    observed.pods_of(component::ETCD).find(|pod| pod.name == member)
}

/// Whether a member is known to have lost its data: it had another volume when it was last well.
fn on_new_volume(observed: &Observed, member: &str) -> bool {
    match (last_volume(observed, member), volume(observed, member)) {
        (Some(was), Some(is)) => was != is,
        _ => false,
    }
}

/// Whether a member's data, which is in its pod, is none that it can start from.
fn stuck(observed: &Observed, member: &str) -> bool {
    let crashes = |pod: &Pod| {
        let trouble = pod.trouble.as_ref().is_some_and(|trouble| trouble.reason == "CrashLoopBackOff");
        trouble && observed.now.duration_since(pod.created) > STARTS
    };
    observed.cluster.spec.etcd.storage.persistent.is_none() && pod(observed, member).is_some_and(crashes)
}

/// What a member had its data on when it was seen up last.
fn last_volume<'a>(observed: &'a Observed, member: &str) -> Option<&'a str> {
    remembered(observed, &format!("{JOINS}{member}"))
        .or_else(|| remembered_volumes(observed).get(member).copied())
}

/// Whether a member that left had its data on this volume.
fn used(observed: &Observed, member: &str, volume: &str) -> bool {
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
    let several = observed
        .live(Kind::StatefulSet, component::ETCD)
        .is_some_and(|set| set.content.to_string().contains(SEVERAL_ELECTION_TIMEOUT));
    observed.cluster.spec.etcd.replicas == 1 && !several
}

/// Indices of the members that etcd knows, or of those that found the cluster while it is not known.
pub fn members(observed: &Observed) -> BTreeSet<i32> {
    let known: Option<BTreeSet<i32>> = observed
        .etcd
        .as_ref()
        .map(|etcd| etcd.members.iter().filter_map(|member| index_of(&member_name(member)?)).collect());
    let established = remembered(observed, CLUSTER_ID_KEY).is_some();
    match known.filter(|known| established && !known.is_empty()) {
        Some(known) => known,
        // Not heard from now: what was remembered is the best guess, and nothing is done on a guess.
        None if established => {
            remembered_volumes(observed).keys().filter_map(|name| index_of(name)).collect()
        }
        // Founders wait for each other: who changes his mind meanwhile changes it once they are all well.
        None => (0..begun(observed).unwrap_or(observed.cluster.spec.etcd.replicas).min(MOST)).collect(),
    }
}

/// How many pods the StatefulSet should have now: one for each member, learners included. While no leader says who
/// they are it keeps what it has: a guess would take a member's pod and its volume.
pub fn replicas(observed: &Observed) -> i32 {
    let led = observed.etcd.as_ref().is_some_and(|etcd| etcd.leader != 0);
    if let (Some(begun), false) = (begun(observed), led) {
        return begun;
    }
    members(observed).last().map_or(observed.cluster.spec.etcd.replicas, |last| last.saturating_add(1))
}

/// How many pods the StatefulSet has, once it exists.
fn begun(observed: &Observed) -> Option<i32> {
    let set = observed.live(Kind::StatefulSet, component::ETCD)?;
    i32::try_from(set.count("/spec/replicas")).ok()
}

/// A member's name: its own, or before its first start the one that its address says.
fn member_name(member: &Member) -> Option<String> {
    if !member.name.is_empty() {
        return Some(member.name.clone());
    }
    let host = member.peer_urls.first()?.strip_prefix("https://")?;
    host.split('.').next().map(str::to_owned)
}

fn index_of(name: &str) -> Option<i32> {
    name.strip_prefix(component::ETCD)?.strip_prefix('-')?.parse().ok()
}

/// A change of the membership. One at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member with this index joins as a learner.
    Add(i32),
    /// The learner of this name catches up, and votes once it has.
    Promote(String, u64),
    /// This member leaves; the leadership goes first, to that one.
    Remove(String, u64, Option<u64>),
    /// This member lost its data: it leaves, and joins again as a learner.
    Replace(String, u64),
    /// A member that left has its old volume still: it goes before the member joins again.
    Clear(String),
}

/// The next change of the membership, if one is due and safe now: only while a quorum is well before and after it.
pub fn next_step(observed: &Observed) -> Option<Step> {
    remembered(observed, CLUSTER_ID_KEY)?;
    let etcd = observed.etcd.as_ref()?;
    let health = health(observed);
    if !matches!(health, Health::Healthy | Health::Degraded(_) | Health::Alarm(_)) {
        return None;
    }
    if let Some(learner) = etcd.members.iter().find(|member| member.learner) {
        let name = member_name(learner)?;
        // It has no vote yet: a learner that started and lost what it got begins anew.
        let (started, stuck) = (!learner.name.is_empty(), stuck(observed, &name));
        return Some(match (learner.healthy, started) {
            (false, true) if stuck || on_new_volume(observed, &name) => Step::Replace(name, learner.id),
            (false, false) if stuck => Step::Clear(name),
            _ => Step::Promote(name, learner.id),
        });
    }
    let voters = etcd.members.len();
    if let Health::Degraded(unwell) = &health {
        // A member that is merely away comes back by itself. One on a new volume cannot.
        let patient = etcd.members.iter().find(|member| {
            !member.healthy
                && member_name(member)
                    .is_some_and(|name| unwell.contains(&name) && on_new_volume(observed, &name))
        })?;
        let others = etcd.members.iter().filter(|member| member.healthy).count();
        return (others >= quorum(voters.saturating_sub(1)) && voters > 1)
            .then(|| member_name(patient).map(|name| Step::Replace(name, patient.id)))?;
    }
    let pods_well = observed.pods_of(component::ETCD).all(|pod| pod.ready && !pod.terminating);
    let wanted = usize::try_from(observed.cluster.spec.etcd.replicas).ok()?;
    if health != Health::Healthy {
        return None;
    }
    // A gap is closed before others leave: pods are numbered from zero.
    let members = members(observed);
    if let Some(index) =
        (0..observed.cluster.spec.etcd.replicas.min(MOST)).find(|index| !members.contains(index))
    {
        let name = etcd_member_name(index);
        return match volume(observed, &name) {
            Some(volume) if used(observed, &name, volume) => Some(Step::Clear(name)),
            // Its pod goes with its place. Were it added now it might join with that pod, and lose what it got with it.
            Some(_) if leaves(observed, index, &name) => None,
            // Its pod runs already, on an empty volume: it lost its data and left.
            Some(_) => Some(Step::Add(index)),
            None => pods_well.then_some(Step::Add(index)),
        };
    }
    match voters.cmp(&wanted) {
        Ordering::Greater => {
            let last = etcd
                .members
                .iter()
                .max_by_key(|member| member_name(member).and_then(|name| index_of(&name)))?;
            let heir = etcd.members.iter().find(|member| member.id != last.id).map(|member| member.id);
            let leads = last.id == etcd.leader;
            Some(Step::Remove(member_name(last)?, last.id, heir.filter(|_| leads)))
        }
        Ordering::Equal | Ordering::Less => None,
    }
}

/// Whether the StatefulSet has no place for this pod any more, and the pod is not gone yet.
fn leaves(observed: &Observed, index: i32, name: &str) -> bool {
    begun(observed).is_some_and(|places| index >= places) && pod(observed, name).is_some()
}

/// The actions of a step.
pub fn actions(observed: &Observed, step: &Step) -> Vec<Action> {
    let order = |order| vec![Action::Etcd(order)];
    match step {
        Step::Add(index) => {
            order(EtcdOrder::AddLearner { peer_url: etcd_peer_url(&observed.tenant, *index) })
        }
        Step::Promote(name, id) => {
            // etcd itself refuses while the learner lags. A learner's pod is not ready before it votes.
            let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
            let up = members
                .filter(|member| member.id == *id)
                .any(|member| member.healthy && member.name == *name);
            // What it has its data on is remembered first: should that be lost with a vote, it is known to be.
            let known = last_volume(observed, name).is_some() && !on_new_volume(observed, name);
            if up && known { order(EtcdOrder::Promote { id: *id }) } else { Vec::new() }
        }
        Step::Remove(_, _, Some(heir)) => order(EtcdOrder::MoveLeader { to: *heir }),
        Step::Remove(_, id, None) | Step::Replace(_, id) => order(EtcdOrder::Remove { id: *id }),
        Step::Clear(name) => clear(observed, name),
    }
}

/// Takes away what a member that left had its data on.
fn clear(observed: &Observed, member: &str) -> Vec<Action> {
    let home = observed.tenant.control_plane_namespace();
    let claim = claim(observed, member).filter(|claim| !claim.terminating);
    let claim = claim.map(|claim| Action::Delete {
        reference: Reference::namespaced(Kind::PersistentVolumeClaim, &home, format!("data-{member}")),
        uid: claim.uid.clone(),
        grace: None,
    });
    let pod = pod(observed, member).filter(|pod| !pod.terminating);
    claim.into_iter().chain(pod.map(|pod| delete(observed, pod))).collect()
}

/// A sentence for status.
pub fn tell(step: &Step) -> String {
    match step {
        Step::Add(index) => format!("{} is added as a learner", etcd_member_name(*index)),
        Step::Promote(name, _) => format!("{name} catches up and is promoted"),
        Step::Remove(name, _, None) => format!("{name} is removed"),
        Step::Remove(name, _, Some(_)) => {
            format!("the leadership moves away from {name}, which is removed next")
        }
        Step::Replace(name, _) | Step::Clear(name) => format!("{name} lost its data and is replaced"),
    }
}

/// Members that do not run what the StatefulSet says now.
pub fn outdated(observed: &Observed) -> Vec<&Pod> {
    let Some(set) = observed.live(Kind::StatefulSet, component::ETCD) else { return Vec::new() };
    if set.count("/status/observedGeneration") < set.count("/metadata/generation") {
        // The controller has not hashed the new template yet: nothing can be said about pods.
        return Vec::new();
    }
    if observed.cluster.spec.etcd.storage.ephemeral.is_some() && members(observed).len() <= 1 {
        // Restarting the only member would be the end of the data: it runs as it is until it is one of several.
        return Vec::new();
    }
    let wanted = set.text("/status/updateRevision");
    observed
        .pods_of(component::ETCD)
        .filter(|pod| !wanted.is_empty() && pod.template_hash != wanted)
        .collect()
}

/// The next member to restart, if one may be restarted now: first the leadership moves away, then the pod goes.
pub fn restart(observed: &Observed) -> Option<Action> {
    let outdated = outdated(observed);
    let pods: Vec<&Pod> = observed.pods_of(component::ETCD).collect();
    let (etcd, replicas) = (observed.etcd.as_ref()?, members(observed).len());
    let whole = pods.len() == replicas && pods.iter().all(|pod| pod.ready && !pod.terminating);
    if !whole {
        // A pod that cannot even start takes nothing away when it is replaced.
        let broken = outdated.iter().find(|pod| !pod.ready && !pod.terminating && pod.trouble.is_some())?;
        let others = pods.iter().filter(|pod| pod.uid != broken.uid);
        let others_ready = others.clone().all(|pod| pod.ready && !pod.terminating);
        // Pods tell of processes; whether the others hold the data, members tell.
        let mut voters =
            etcd.members.iter().filter(|member| member_name(member).as_ref() != Some(&broken.name));
        let others_well = etcd.leader != 0 && voters.all(|member| member.healthy && !member.learner);
        return (others_ready && others_well && replicas > 1).then(|| delete(observed, broken));
    }
    if health(observed) != Health::Healthy {
        return None;
    }
    let leader =
        etcd.members.iter().find(|member| member.id == etcd.leader).map(|member| member.name.as_str());
    match outdated.iter().find(|pod| Some(pod.name.as_str()) != leader) {
        Some(follower) => Some(delete(observed, follower)),
        None => {
            let pod = outdated.first()?;
            match etcd.members.iter().find(|member| member.id != etcd.leader) {
                Some(heir) => Some(Action::Etcd(EtcdOrder::MoveLeader { to: heir.id })),
                None => Some(delete(observed, pod)),
            }
        }
    }
}

/// After one member became several, and the first of them restarted for it, the leadership goes back to that one, which
/// is the last to leave should they become fewer again. A move costs the few writes that are on their way: it is done
/// now, in the one step that clients may notice, so that later steps need none.
pub fn homecoming(observed: &Observed) -> Option<Action> {
    let etcd = observed.etcd.as_ref().filter(|_| health(observed) == Health::Healthy)?;
    let first = etcd.members.iter().find(|member| member.name == etcd_member_name(0))?;
    if first.id == etcd.leader || !outdated(observed).is_empty() {
        return None;
    }
    let restarted = pod(observed, &first.name)?.created;
    let recent = |time: Timestamp| observed.now.duration_since(time) < RECENT;
    let joined = etcd.members.iter().filter(|member| member.id != first.id).all(|member| {
        let earlier = pod(observed, &member.name).is_some_and(|pod| pod.created < restarted);
        earlier && data_since(observed, &member.name).is_some_and(recent)
    });
    (joined && recent(restarted)).then_some(Action::Etcd(EtcdOrder::MoveLeader { to: first.id }))
}

/// Since when a member has its volume.
fn data_since(observed: &Observed, member: &str) -> Option<Timestamp> {
    match &observed.cluster.spec.etcd.storage.persistent {
        Some(_) => claim(observed, member)?.text("/metadata/creationTimestamp").parse().ok(),
        None => pod(observed, member).map(|pod| pod.created),
    }
}

/// Whether a member has a place to run.
pub fn placed(observed: &Observed) -> bool {
    observed.pods_of(component::ETCD).any(|pod| pod.placed)
}

fn delete(observed: &Observed, pod: &Pod) -> Action {
    Action::Delete {
        reference: Reference::namespaced(Kind::Pod, observed.tenant.control_plane_namespace(), &pod.name),
        uid: pod.uid.clone(),
        grace: Some(GRACE_SECONDS),
    }
}
