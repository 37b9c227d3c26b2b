//! What the operator says about a `TenantCluster`. Written by the operator alone; nothing in it grants anything.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::preflight::Preflight;

/// Longest list of finished operations kept in status.
pub const HISTORY_LIMIT: usize = 10;

/// State of a tenant cluster, as observed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantClusterStatus {
    /// The generation of the spec that the rest speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The version that really runs, read from the API. Unset until it answered once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub version: Option<String>,

    /// The address of the API as one string, for people: `https://host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub endpoint: Option<String>,

    /// The address of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_endpoint: Option<ControlPlaneEndpoint>,

    /// Secret in this namespace with the admin kubeconfig under the key `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<SecretReference>,

    /// Workers of this cluster.
    #[serde(default)]
    pub workers: Workers,

    /// One sentence: what is going on.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub summary: String,

    /// Facts in the form of metav1 conditions.
    #[serde(default)]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// What is under way, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,

    /// What a newer operator would render differently, and has not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,

    /// What speaks against the next upgrade; unset while the catalogue has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,

    /// Finished operations, newest first, at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub history: Vec<HistoryEntry>,
}

/// Host and port of the API.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlaneEndpoint {
    /// Address or host name.
    #[schemars(length(max = 253))]
    pub host: String,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// A Secret in the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
}

/// Workers of a cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// Workers whose node is Ready.
    #[schemars(range(min = 0, max = 100_000))]
    pub ready: i32,
    /// Workers that there should be.
    #[schemars(range(min = 0, max = 100_000))]
    pub desired: i32,
    /// `ready/desired`, for `kubectl get`.
    #[schemars(length(max = 16))]
    pub summary: String,
}

impl Default for Workers {
    fn default() -> Self {
        Workers { ready: 0, desired: 0, summary: "0/0".into() }
    }
}

/// What kind of work an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OperationType {
    /// The control plane comes up for the first time.
    Create,
    /// Pods are replaced or their number changes.
    Roll,
    /// The control plane goes to another version.
    Upgrade,
    /// etcd members are added, removed, replaced or restarted.
    ScaleEtcd,
    /// etcd goes to another minor version.
    UpgradeEtcd,
    /// The cluster goes away.
    Delete,
}

/// What is under way.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// What kind of work.
    #[serde(rename = "type")]
    pub kind: OperationType,
    /// What it leads to, for example a version or a revision.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub target: String,
    /// Where it stands, recomputed from facts.
    #[schemars(length(max = 512))]
    pub step: String,
    /// When it began.
    pub started_at: Time,
    /// What it waits for, if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// A wait with a cause and an owner.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Cause, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Since when.
    pub since: Time,
    /// When it ends by itself, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Who can end it.
    pub owner: Owner,
}

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Owner {
    /// The user of the TenantCluster.
    Tenant,
    /// The people who run the management cluster.
    Platform,
    /// Nobody: it passes by itself.
    Nobody,
}

/// What a newer operator would render differently.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Put this into `spec.acceptRevision` to take it.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// The difference, one line a change.
    #[schemars(length(max = 4096))]
    pub summary: String,
}

/// A finished operation.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// What kind of work.
    #[serde(rename = "type")]
    pub kind: OperationType,
    /// The version that ran at its end.
    #[schemars(length(max = 32))]
    pub version: String,
    /// When it began.
    pub started_at: Time,
    /// When it ended.
    pub ended_at: Time,
    /// How it ended.
    #[schemars(length(max = 256))]
    pub result: String,
    /// What clients of the operator's own saw meanwhile, of an upgrade. Nothing was asked twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Measured>,
}

/// What clients saw through the endpoint.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// Requests on new connections.
    #[schemars(range(min = 0))]
    pub requests: i32,
    /// Those that failed.
    #[schemars(range(min = 0))]
    pub failed: i32,
    /// Requests on a connection that is used again.
    #[schemars(range(min = 0))]
    pub reused_requests: i32,
    /// Those that failed.
    #[schemars(range(min = 0))]
    pub reused_failed: i32,
    /// The longest time between two successes on new connections, in milliseconds.
    #[schemars(range(min = 0))]
    pub longest_gap_milliseconds: i32,
    /// Changes that a watch told.
    #[schemars(range(min = 0))]
    pub watch_events: i32,
    /// Changes that were answered and that the watch missed.
    #[schemars(range(min = 0))]
    pub watch_lost: i32,
    /// Changes that it told twice.
    #[schemars(range(min = 0))]
    pub watch_repeated: i32,
    /// The longest time from the answer to a change until the watch told it, in milliseconds.
    #[schemars(range(min = 0))]
    pub longest_watch_gap_milliseconds: i32,
}

impl Operation {
    /// When the operation began, as a timestamp.
    pub fn started(&self) -> Timestamp {
        self.started_at.0
    }
}
