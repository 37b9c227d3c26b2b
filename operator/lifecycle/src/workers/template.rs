//! What a worker is made of: from the pool's spec to a Worker object, and to the hash that tells whether one is of the
//! newest template.
//!
//! The hash is of what the user asked for and nothing else, and has a version: a newer operator replaces no worker.
//! Labels and taints are not in it, as they change in place, and neither is what an InstanceType says: that cannot change.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kaas_crds::worker_pool::Kubelet;
use kaas_crds::{InstanceTypeSpec, Worker, WorkerPoolSpec, WorkerSpec, name};
use serde_json::json;

use crate::difference::digest;
use crate::workers::observed::{Cluster, Member, PoolObserved};

/// Version of the function that new workers are made with. Older ones stay, so that their workers are still understood.
const HASH_VERSION: u32 = 1;

/// Hash of the part of the spec that a change of replaces workers.
pub fn hash(spec: &WorkerPoolSpec) -> String {
    versioned(spec, HASH_VERSION).unwrap_or_default()
}

/// Whether a worker is of the newest template, and of the version that workers are to have (empty: not known, and nobody
/// is replaced for it). One that a newer operator made, with a function that is not known here, is left alone.
pub fn is_current(spec: &WorkerPoolSpec, version: &str, worker: &Worker) -> bool {
    if !version.is_empty() && worker.spec.version != version {
        return false;
    }
    let made = &worker.spec.template_hash;
    let version = made.split_once('-').and_then(|(version, _)| version.parse().ok());
    version.and_then(|version| versioned(spec, version)).is_none_or(|hash| hash == *made)
}

fn versioned(spec: &WorkerPoolSpec, version: u32) -> Option<String> {
    let Kubelet { max_pods, pod_pids_limit, container_log_max_size } = &spec.template.kubelet;
    let intent = match version {
        1 => json!({
            "instanceTypes": spec.instance_types,
            "infrastructure": spec.infrastructure.kind().map(|kind| kind.as_str()),
            "maxPods": max_pods,
            "podPidsLimit": pod_pids_limit,
            "containerLogMaxSize": container_log_max_size.map(|size| size.bytes()),
        }),
        _ => return None,
    };
    Some(format!("{version}-{}", digest(&intent)))
}

/// The Worker of this ordinal.
pub(super) fn worker(
    observed: &PoolObserved,
    cluster: &Cluster,
    ordinal: u32,
    zone: Option<String>,
) -> Worker {
    let pool = &observed.pool;
    let pool_name = pool.metadata.name.clone().unwrap_or_default();
    let spec = &pool.spec;
    let mut worker = Worker::new(
        &name::worker(&pool_name, ordinal),
        WorkerSpec {
            cluster_name: spec.cluster_name.clone(),
            cluster_uid: cluster.uid.clone(),
            pool_name: pool_name.clone(),
            instance_type: spec.instance_types.first().cloned().unwrap_or_default(),
            version: observed.version(cluster).to_owned(),
            zone,
            infrastructure: spec.infrastructure.clone(),
            kubelet: spec.template.kubelet.clone(),
            template_hash: hash(spec),
        },
    );
    worker.metadata.namespace = pool.metadata.namespace.clone();
    worker.metadata.labels = Some(BTreeMap::from([
        (name::MANAGED_BY_LABEL.to_owned(), name::MANAGED_BY.to_owned()),
        (name::CLUSTER_LABEL.to_owned(), spec.cluster_name.clone()),
        (name::POOL_LABEL.to_owned(), pool_name.clone()),
        (name::TENANT_UID_LABEL.to_owned(), cluster.uid.clone()),
    ]));
    worker.metadata.finalizers = Some(vec![name::WORKER_FINALIZER.to_owned()]);
    worker.metadata.owner_references = Some(vec![OwnerReference {
        api_version: format!("{}/v1alpha1", name::GROUP),
        kind: "WorkerPool".into(),
        name: pool_name,
        uid: pool.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    worker
}

/// The zone that has the fewest workers of the pool; of several the first in the InstanceType's list.
pub(super) fn zone(
    instance_type: &InstanceTypeSpec,
    members: &[&Member],
    chosen: &[Worker],
) -> Option<String> {
    let there = members.iter().filter(|member| !member.going()).map(|member| &member.worker);
    let zones: Vec<&str> = there.chain(chosen).filter_map(|worker| worker.spec.zone.as_deref()).collect();
    let count = |zone: &&String| zones.iter().filter(|other| *other == zone).count();
    instance_type.zones.iter().min_by_key(count).cloned()
}

#[cfg(test)]
mod tests {
    use kaas_crds::worker_pool::Infrastructure;

    use super::*;

    fn spec() -> WorkerPoolSpec {
        serde_json::from_value(json!({
            "clusterName": "blue", "instanceTypes": ["small"], "infrastructure": {"pod": {}},
        }))
        .unwrap()
    }

    /// A change of this text replaces every worker of every tenant.
    #[test]
    fn the_hash_of_an_intent_never_changes() {
        assert_eq!(hash(&spec()), "1-6c978c62fea35255");
    }

    #[test]
    fn what_changes_in_place_is_not_in_it() {
        let mut changed = spec();
        changed.replicas = 7;
        changed.template.labels.0.insert("a".into(), "b".into());
        changed.rollout.max_unavailable = 3;
        assert_eq!(hash(&changed), hash(&spec()));
        changed.template.kubelet.max_pods = 50;
        assert_ne!(hash(&changed), hash(&spec()));
        let other = WorkerPoolSpec { instance_types: vec!["large".into()], ..spec() };
        assert_ne!(hash(&other), hash(&spec()));
        let other = WorkerPoolSpec { infrastructure: Infrastructure::external(), ..spec() };
        assert_ne!(hash(&other), hash(&spec()));
    }

    #[test]
    fn what_a_newer_operator_made_is_current() {
        let mut worker = Worker::new("p-0", serde_json::from_value(json!({
            "clusterName": "blue", "clusterUID": "u", "poolName": "p", "instanceType": "small", "version": "v1.37.1",
            "infrastructure": {"pod": {}}, "templateHash": "2-ffff",
        })).unwrap());
        assert!(is_current(&spec(), "v1.37.1", &worker));
        worker.spec.template_hash = "1-ffff".into();
        assert!(!is_current(&spec(), "v1.37.1", &worker));
        worker.spec.template_hash = hash(&spec());
        assert!(is_current(&spec(), "v1.37.1", &worker));
    }
}
