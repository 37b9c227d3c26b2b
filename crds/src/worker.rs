//! `Worker`: one worker of a pool. Made and written by the operator alone; tenants read it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::worker_pool::{Infrastructure, Kubelet};

/// One worker: a machine and its node. What it is cannot change; its pool makes another one instead.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kaas.dev",
    version = "v1alpha1",
    kind = "Worker",
    plural = "workers",
    shortname = "wk",
    category = "kaas",
    namespaced,
    status = "WorkerStatus",
    derive = "PartialEq",
    doc = "Worker is one worker of a WorkerPool: its machine and its node. It is made by the operator.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterName"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.instanceType"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0].address"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')").message(Message::Expression(
        "\"metadata.name: '\" + self.metadata.name + \"' must be at most 63 lower-case letters, digits and '-': it is the name of a node\"".into()
    )),
    validation = Rule::new("self.spec == oldSelf.spec").message(
        "spec: what a worker is cannot change; change its WorkerPool"
    ),
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerSpec {
    /// The TenantCluster of this namespace that it belongs to.
    #[schemars(length(min = 1, max = 50))]
    pub cluster_name: String,

    /// UID of that TenantCluster: a later one of the same name is another.
    #[serde(rename = "clusterUID")]
    #[schemars(length(min = 1, max = 64))]
    pub cluster_uid: String,

    /// The pool that it belongs to.
    #[schemars(length(min = 1, max = 57))]
    pub pool_name: String,

    /// What it is: the name of an InstanceType.
    #[schemars(length(min = 1, max = 63))]
    pub instance_type: String,

    /// Kubernetes version of its kubelet.
    #[schemars(length(min = 1, max = 32))]
    pub version: String,

    /// The zone that its machine is wanted in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub zone: Option<String>,

    /// Where its machine comes from.
    pub infrastructure: Infrastructure,

    /// Settings of its kubelet.
    #[serde(default)]
    pub kubelet: Kubelet,

    /// Of what of the pool's spec it was made: `<version of the hash function>-<hash>`.
    #[schemars(length(min = 1, max = 63))]
    pub template_hash: String,
}

/// State of a worker, as observed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// The generation of the spec that the rest speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Its node in the tenant cluster, once it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ref: Option<NodeReference>,

    /// What the kubelet says of the machine: the node is matched by it besides the name.
    #[serde(rename = "providerID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub provider_id: Option<String>,

    /// Version that the kubelet runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// Addresses, as the infrastructure says them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub addresses: Vec<Address>,

    /// One sentence: what is going on.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub summary: String,

    /// Facts in the form of metav1 conditions.
    #[serde(default)]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// What the infrastructure refused last, until it succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<InfrastructureFailure>,
}

/// A node of the tenant cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReference {
    /// Its name: the worker's.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// An address of a machine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// As Nodes have it, for example `InternalIP`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 32))]
    pub kind: String,
    /// The address.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
}

/// What the infrastructure refused last: stored because it cannot be observed again.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InfrastructureFailure {
    /// In one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// In the infrastructure's words.
    #[schemars(length(max = 512))]
    pub message: String,
    /// How often in a row.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempts: i32,
    /// Since when.
    pub since: Time,
    /// Not tried again before.
    pub retry_at: Time,
}
