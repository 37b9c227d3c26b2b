//! Which members do not run what they should, and which of several is restarted next.

use kaas_crds::name::component;

use super::GRACE_SECONDS;
use super::health::{Health, health};
use super::members::{member_name, members, set};
use super::servers::stays;
use super::version::starts;
use crate::action::{Action, EtcdOrder};
use crate::object::{Kind, Reference};
use crate::observed::{Observed, Pod};

/// Whether it can be said which members run what they should: the StatefulSet's controller has hashed its template.
pub(super) fn known(observed: &Observed) -> bool {
    set(observed).is_some_and(|set| {
        set.count("/status/observedGeneration") >= set.count("/metadata/generation")
            && !set.text("/status/updateRevision").is_empty()
    })
}

/// Members that do not run what the StatefulSet says now; nobody while that cannot be said.
pub fn outdated(observed: &Observed) -> Vec<&Pod> {
    let Some(set) = set(observed).filter(|_| known(observed)) else { return Vec::new() };
    let wanted = set.text("/status/updateRevision");
    observed.pods_of(component::ETCD).filter(|pod| pod.template_hash != wanted).collect()
}

/// The next member to restart, if one may be restarted now: first the leadership moves away, then the pod goes. A lone
/// member is not restarted.
pub fn restart(observed: &Observed) -> Option<Action> {
    if stays(observed).is_some() || !starts(observed) {
        return None;
    }
    let outdated = outdated(observed);
    let pods: Vec<&Pod> = observed.pods_of(component::ETCD).collect();
    let (etcd, replicas) = (observed.etcd.as_ref()?, members(observed).len());
    let whole = pods.len() == replicas && pods.iter().all(|pod| pod.ready && !pod.terminating);
    if !whole {
        // A pod that cannot even start takes nothing away when it is replaced.
        let broken = outdated.iter().find(|pod| cannot_start(pod))?;
        let others = pods.iter().filter(|pod| pod.uid != broken.uid);
        let others_ready = others.clone().all(|pod| pod.ready && !pod.terminating);
        // Pods tell of processes; whether the others hold the data, members tell.
        let mut voters =
            etcd.members.iter().filter(|member| member_name(member).as_ref() != Some(&broken.name));
        let others_well = etcd.leader != 0 && voters.all(|member| member.healthy && !member.learner);
        return (others_ready && others_well && replicas > 1).then(|| delete(observed, broken));
    }
    if health(observed) != Health::Healthy || replicas <= 1 || !found(observed, replicas) {
        return None;
    }
    let leader =
        etcd.members.iter().find(|member| member.id == etcd.leader).map(|member| member.name.as_str());
    match outdated.iter().find(|pod| Some(pod.name.as_str()) != leader) {
        Some(follower) => Some(delete(observed, follower)),
        None => {
            outdated.first()?;
            let heir = etcd.members.iter().find(|member| member.id != etcd.leader)?;
            Some(Action::Etcd(EtcdOrder::MoveLeader { to: heir.id }))
        }
    }
}

/// Whether all members are there for long enough to have been found by API servers.
fn found(observed: &Observed, replicas: usize) -> bool {
    let available = set(observed).map(|set| set.count("/status/availableReplicas"));
    available.and_then(|count| usize::try_from(count).ok()).is_some_and(|count| count >= replicas)
}

/// Whether a pod does not run, and something keeps it from that.
pub(super) fn cannot_start(pod: &Pod) -> bool {
    !pod.ready && !pod.terminating && pod.trouble.is_some()
}

pub(super) fn delete(observed: &Observed, pod: &Pod) -> Action {
    Action::Delete {
        reference: Reference::namespaced(Kind::Pod, observed.tenant.control_plane_namespace(), &pod.name),
        uid: pod.uid.clone(),
        grace: Some(GRACE_SECONDS),
    }
}
