//! The next change of the membership.

use std::cmp::Ordering;

use kaas_crds::name::component;

use super::health::{Health, health, quorum};
use super::members::{begun, index, member_name, members};
use super::memory::{claim, last_volume, on_new_volume, pod, remembered, stuck, used, volume};
use super::restart::{cannot_start, delete, known, outdated};
use super::servers::{runs_as_wanted, stays, successor};
use super::version::starts;
use super::{CLUSTER_ID_KEY, MOST};
use crate::action::{Action, EtcdOrder};
use crate::desired::{etcd_member_name, etcd_peer_url};
use crate::object::{Kind, Reference};
use crate::observed::{Etcd, Member, Observed};
use crate::rollout;

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
        return of_learner(observed, learner);
    }
    match health {
        Health::Degraded(unwell) => of_patient(observed, etcd, &unwell),
        Health::Healthy => match stays(observed) {
            Some(index) => towards_one(observed, etcd, index),
            None => towards_several(observed, etcd),
        },
        _ => None,
    }
}

fn of_learner(observed: &Observed, learner: &Member) -> Option<Step> {
    let name = member_name(learner)?;
    if needless(observed) {
        return Some(Step::Remove(name, learner.id, None));
    }
    // It has no vote yet: a learner that started and lost what it got begins anew.
    let (started, stuck) = (!learner.name.is_empty(), stuck(observed, &name));
    Some(match (learner.healthy, started) {
        (false, true) if stuck || on_new_volume(observed, &name) => Step::Replace(name, learner.id),
        (false, false) if stuck => Step::Clear(name),
        _ => Step::Promote(name, learner.id),
    })
}

/// Whether a learner joins for nothing: one member is wanted, and one runs what it should.
fn needless(observed: &Observed) -> bool {
    let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
    let mut voters = members.filter(|member| !member.learner).filter_map(index);
    stays(observed).is_some() && voters.any(|index| runs_as_wanted(observed, index))
}

/// A member that is merely away comes back by itself. One on a new volume cannot.
fn of_patient(observed: &Observed, etcd: &Etcd, unwell: &[String]) -> Option<Step> {
    let patient = etcd.members.iter().find(|member| {
        !member.healthy
            && member_name(member)
                .is_some_and(|name| unwell.contains(&name) && on_new_volume(observed, &name))
    })?;
    let voters = etcd.members.len();
    let others = etcd.members.iter().filter(|member| member.healthy).count();
    let spared = others >= quorum(voters.saturating_sub(1)) && voters > 1;
    spared.then(|| member_name(patient).map(|name| Step::Replace(name, patient.id)))?
}

/// All others leave. A lone member that does not run what it should gets a successor: API servers must be well for it,
/// for they have to turn to it before the old one leaves.
fn towards_one(observed: &Observed, etcd: &Etcd, stays: i32) -> Option<Step> {
    let others = etcd.members.iter().filter(|member| index(member) != Some(stays));
    let Some(last) = others.max_by_key(|member| index(member)) else {
        let due = known(observed) && starts(observed) && !runs_as_wanted(observed, stays);
        let ready = due && rollout::settled(observed, component::KUBE_APISERVER);
        return ready.then(|| add(observed, successor(stays)))?;
    };
    let stayer = etcd.members.iter().find(|member| index(member) == Some(stays))?;
    let heir = (etcd.leader != stayer.id).then_some(stayer.id);
    known(observed).then(|| Some(Step::Remove(member_name(last)?, last.id, heir)))?
}

fn towards_several(observed: &Observed, etcd: &Etcd) -> Option<Step> {
    let wanted = observed.cluster.spec.etcd.replicas.min(MOST);
    // A gap is closed before others leave: several are numbered from zero.
    let members = members(observed);
    if let Some(missing) = (0..wanted).find(|index| !members.contains(index)) {
        return add(observed, missing);
    }
    match etcd.members.len().cmp(&usize::try_from(wanted).ok()?) {
        Ordering::Greater => {
            let last = etcd.members.iter().max_by_key(|member| index(member))?;
            let heir = etcd.members.iter().find(|member| member.id != last.id).map(|member| member.id);
            let leads = last.id == etcd.leader;
            Some(Step::Remove(member_name(last)?, last.id, heir.filter(|_| leads)))
        }
        Ordering::Equal | Ordering::Less => None,
    }
}

/// A member joins, once nothing of an earlier one of its name is left.
fn add(observed: &Observed, index: i32) -> Option<Step> {
    let pods_well = observed.pods_of(component::ETCD).all(|pod| pod.ready && !pod.terminating);
    let name = etcd_member_name(index);
    match volume(observed, &name) {
        Some(volume) if used(observed, &name, volume) => Some(Step::Clear(name)),
        // Its pod goes with its place. Were it added now it might join with that pod, and lose what it got with it.
        Some(_) if leaves(observed, index, &name) => None,
        // Its pod runs already, on an empty volume: it lost its data and left.
        Some(_) => Some(Step::Add(index)),
        None => pods_well.then_some(Step::Add(index)),
    }
}

/// Whether the StatefulSet has no place for this pod any more, and the pod is not gone yet.
fn leaves(observed: &Observed, index: i32, name: &str) -> bool {
    begun(observed).is_some_and(|places| !places.contains(index)) && pod(observed, name).is_some()
}

/// The actions of a step.
pub fn actions(observed: &Observed, step: &Step) -> Vec<Action> {
    let order = |order| vec![Action::Etcd(order)];
    match step {
        Step::Add(index) => {
            order(EtcdOrder::AddLearner { peer_url: etcd_peer_url(&observed.tenant, *index) })
        }
        Step::Promote(name, id) => promote(observed, name, *id),
        Step::Remove(_, _, Some(heir)) => order(EtcdOrder::MoveLeader { to: *heir }),
        Step::Remove(_, id, None) | Step::Replace(_, id) => order(EtcdOrder::Remove { id: *id }),
        Step::Clear(name) => clear(observed, name),
    }
}

/// etcd itself refuses while the learner lags. A learner's pod is not ready before it votes.
fn promote(observed: &Observed, name: &str, id: u64) -> Vec<Action> {
    let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
    let up = members.filter(|member| member.id == id).any(|member| member.healthy && member.name == *name);
    // What it has its data on is remembered first: should that be lost with a vote, it is known to be.
    let remembered = last_volume(observed, name).is_some() && !on_new_volume(observed, name);
    if up {
        let order = Action::Etcd(EtcdOrder::Promote { id });
        return if remembered { vec![order] } else { Vec::new() };
    }
    // It cannot even start with what it was given first, and something else is wanted by now.
    let broken = outdated(observed).into_iter().find(|pod| pod.name == name && cannot_start(pod));
    broken.map(|pod| delete(observed, pod)).into_iter().collect()
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
        Step::Remove(name, _, None) => format!("{name} is removed when no API server dials it"),
        Step::Remove(name, _, Some(_)) => {
            format!(
                "the leadership moves to one that stays when API servers dial no other; {name} is removed next"
            )
        }
        Step::Replace(name, _) | Step::Clear(name) => format!("{name} lost its data and is replaced"),
    }
}

/// Whether the step is one of a lone member that is replaced by a successor, and changes no number.
pub fn rolls(observed: &Observed) -> bool {
    let known = observed.etcd.as_ref().map_or(0, |etcd| etcd.members.len());
    observed.cluster.spec.etcd.replicas == 1 && known <= super::LONE_PLACES.len()
}
