//! How far the pods are: what is settled, what is still being replaced.
//!
//! "The Deployment is ready" is not enough: a roll is done when every pod is of the new template *and* none of the
//! old ones is still terminating.

use kaas_crds::name::component;

use crate::etcd;
use crate::object::Kind;
use crate::observed::Observed;

/// Components in the order in which a change goes through them.
const ORDER: [&str; 3] = [component::ETCD, component::KUBE_APISERVER, component::KUBE_CONTROLLERS];
/// And on the way back from a version: controllers never lead their API servers.
const ORDER_BACK: [&str; 3] = [component::ETCD, component::KUBE_CONTROLLERS, component::KUBE_APISERVER];

/// The order in which a change goes through the components.
pub fn order(back: bool) -> [&'static str; 3] {
    if back { ORDER_BACK } else { ORDER }
}

/// How the pods of one component stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Pods that there should be.
    pub desired: i64,
    /// Pods of the newest template that are ready.
    pub ready: i64,
    /// Pods of the newest template.
    pub updated: i64,
    /// All pods, also those that go.
    pub total: i64,
}

impl Count {
    /// Every pod is there, new and ready, and none is going.
    pub fn settled(self) -> bool {
        self.ready == self.desired && self.updated == self.desired && self.total == self.desired
    }
}

/// Counts the pods of a component; `None` when its workload does not exist.
pub fn count(observed: &Observed, component: &str) -> Option<Count> {
    let kind = if component == component::ETCD { Kind::StatefulSet } else { Kind::Deployment };
    let workload = observed.live(kind, component)?;
    let desired = workload.count("/spec/replicas");
    let total = i64::try_from(observed.pods_of(component).count()).unwrap_or(i64::MAX);
    let seen = workload.count("/status/observedGeneration") >= workload.count("/metadata/generation");
    if !seen {
        // The workload's controller has not looked at the newest template yet.
        return Some(Count { desired, total, ..Count::default() });
    }
    let pods = |ready_only: bool| -> i64 {
        let outdated: Vec<&str> = match kind {
            Kind::StatefulSet => etcd::outdated(observed).iter().map(|pod| pod.name.as_str()).collect(),
            _ => Vec::new(),
        };
        let hash = newest_template(observed, component);
        observed
            .pods_of(component)
            .filter(|pod| !pod.terminating && (pod.ready || !ready_only))
            .filter(|pod| match kind {
                Kind::StatefulSet => !outdated.contains(&pod.name.as_str()),
                _ => hash.is_none_or(|hash| pod.template_hash == hash),
            })
            .count()
            .try_into()
            .unwrap_or(i64::MAX)
    };
    let updated = if kind == Kind::Deployment {
        workload.count("/status/updatedReplicas").min(pods(false))
    } else {
        pods(false)
    };
    Some(Count { desired, total, updated, ready: pods(true).min(updated) })
}

/// Hash of a Deployment's newest template, as far as pods show it: the only hash there is once the Deployment says
/// that all its pods are updated.
fn newest_template<'a>(observed: &'a Observed, component: &'a str) -> Option<&'a str> {
    let workload = observed.live(Kind::Deployment, component)?;
    if workload.count("/status/updatedReplicas") != workload.count("/status/replicas") {
        return None;
    }
    observed.pods_of(component).find(|pod| !pod.terminating).map(|pod| pod.template_hash.as_str())
}

/// Whether a component's pods are all there, new and ready.
pub fn settled(observed: &Observed, component: &str) -> bool {
    count(observed, component).is_some_and(Count::settled)
}

/// Whether all components that come before this one in a change are settled.
pub fn settled_before(observed: &Observed, component: &str, back: bool) -> bool {
    order(back).into_iter().take_while(|other| *other != component).all(|other| match other {
        component::ETCD => whole(observed),
        other => settled(observed, other),
    })
}

/// Whether every member that there should be is ready, of whatever template. Members are restarted one after the other,
/// or leave to a successor, which clients bear as long as they know who stays: so API servers learn of it before that.
fn whole(observed: &Observed) -> bool {
    let Some(set) = observed.live(Kind::StatefulSet, component::ETCD) else { return false };
    let pods: Vec<_> = observed.pods_of(component::ETCD).collect();
    i64::try_from(pods.len()).is_ok_and(|count| count == set.count("/spec/replicas"))
        && pods.iter().all(|pod| pod.ready && !pod.terminating)
}

/// Whether members that run an earlier template may be restarted now: each goes after the API servers know them all.
pub fn members_may_restart(observed: &Observed) -> bool {
    ORDER.iter().filter(|name| **name != component::ETCD).all(|name| settled(observed, name))
}

/// Whether pods are missing, not ready, or being replaced.
pub fn unsettled(observed: &Observed) -> bool {
    ORDER.iter().any(|component| !settled(observed, component))
}
