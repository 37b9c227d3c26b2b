//! `WorkerPool`: a set of equal workers of one cluster, as its tenant asks for it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::node::{Labels, Taint};
use crate::period::Period;
use crate::quantity::Quantity;

/// Most workers of one pool.
pub const MOST_REPLICAS: i32 = 1000;
/// Most workers that are chosen to go at one time.
pub const MOST_REMOVALS: usize = 100;

/// Equal workers of one cluster. A worker is named after the pool, and its node after the worker.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kaas.dev",
    version = "v1alpha1",
    kind = "WorkerPool",
    plural = "workerpools",
    shortname = "wp",
    category = "kaas",
    namespaced,
    status = "WorkerPoolStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    derive = "PartialEq",
    doc = "WorkerPool is a set of equal workers of one TenantCluster of the same namespace.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterName"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.instanceTypes[0]"),
    printcolumn(name = "Workers", type_ = "string", json_path = ".status.workers"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,55}[a-z0-9])?$')").message(Message::Expression(
        "\"metadata.name: '\" + self.metadata.name + \"' must be at most 57 lower-case letters, digits and '-', starting with a letter and ending with a letter or digit: with a number after it, it is the name of a node\"".into()
    )),
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolSpec {
    /// The TenantCluster of this namespace that the workers belong to.
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = Rule::new("self == oldSelf").message(Message::Expression(
        "\"spec.clusterName: workers cannot move, it stays \" + oldSelf + \"; make another WorkerPool\"".into()
    )))]
    pub cluster_name: String,

    /// Number of workers.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// What the workers are: the name of one InstanceType (`kubectl get instancetypes`). Another one replaces the workers.
    #[schemars(length(min = 1, max = 1), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub instance_types: Vec<String>,

    /// Kubernetes version of the workers, for example `v1.36.3`: of the catalogue, not newer than the control plane and at
    /// most three minor versions older. Without it they follow each version that the control plane has completed.
    /// Another one replaces the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^v1\\\\.[0-9]{1,3}\\\\.[0-9]{1,3}$')").message(Message::Expression(
            "\"spec.version: '\" + self + \"' must look like v1.37.1; kubectl get kubernetesreleases lists what there is\"".into()
        ))
    )]
    pub version: Option<String>,

    /// Where the machines come from.
    pub infrastructure: Infrastructure,

    /// What the workers have in common.
    #[serde(default)]
    pub template: Template,

    /// How workers are replaced.
    #[serde(default)]
    pub rollout: Rollout,
}

fn default_replicas() -> i32 {
    1
}

/// Where machines come from: exactly one of these, for ever.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.pod) != has(self.external)").message(
        "spec.infrastructure: set exactly one of pod and external"
    ),
    validation = Rule::new("has(self.pod) == has(oldSelf.pod)").message(
        "spec.infrastructure: cannot be changed; make another WorkerPool and scale this one down"
    ),
)]
pub struct Infrastructure {
    /// Privileged pods of the management cluster. For trials and trusted tenants; the platform must have switched it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodInfrastructure>,

    /// Machines of your own: each Worker waits for one that joins with the command in the Secret `<worker>-join`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalInfrastructure>,
}

/// Pods of the management cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfrastructure {}

/// Machines of the user's own.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalInfrastructure {}

/// The kinds of infrastructure, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InfrastructureKind {
    /// Pods of the management cluster.
    Pod,
    /// Machines of the user's own.
    External,
}

impl InfrastructureKind {
    /// The word in the spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            InfrastructureKind::Pod => "pod",
            InfrastructureKind::External => "external",
        }
    }
}

impl Infrastructure {
    /// Pods.
    pub fn pods() -> Self {
        Infrastructure { pod: Some(PodInfrastructure {}), external: None }
    }

    /// Machines of the user's own.
    pub fn external() -> Self {
        Infrastructure { pod: None, external: Some(ExternalInfrastructure {}) }
    }

    /// Which one it is; `None` for what the schema does not let in.
    pub fn kind(&self) -> Option<InfrastructureKind> {
        match (&self.pod, &self.external) {
            (Some(_), None) => Some(InfrastructureKind::Pod),
            (None, Some(_)) => Some(InfrastructureKind::External),
            _ => None,
        }
    }
}

/// What workers have in common.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Labels of the nodes. A change is made in place.
    #[serde(default)]
    pub labels: Labels,

    /// Taints of the nodes. A change is made in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["key".into(), "effect".into()]))]
    pub taints: Vec<Taint>,

    /// Settings of the kubelets. A change replaces the workers.
    #[serde(default)]
    pub kubelet: Kubelet,
}

/// Settings of a kubelet.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubelet {
    /// Most pods on a worker.
    #[serde(default = "default_max_pods")]
    #[schemars(range(min = 5, max = 500))]
    pub max_pods: i32,

    /// Most processes of one pod; without it as many as the machine bears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 4_000_000))]
    pub pod_pids_limit: Option<i32>,

    /// A container's log file is rotated when it has this size; from 1Mi to 10Gi, the kubelet's default is 10Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9]{1,15}(Ki|Mi|Gi|k|M|G)?$') && isQuantity(self) && !quantity(self).isLessThan(quantity('1Mi')) && !quantity(self).isGreaterThan(quantity('10Gi'))"
    ).message(Message::Expression(
        "\"spec.template.kubelet.containerLogMaxSize: '\" + self + \"' must be a whole quantity from 1Mi to 10Gi, for example 10Mi\"".into()
    )))]
    pub container_log_max_size: Option<Quantity>,
}

fn default_max_pods() -> i32 {
    110
}

impl Default for Kubelet {
    fn default() -> Self {
        Kubelet { max_pods: default_max_pods(), pod_pids_limit: None, container_log_max_size: None }
    }
}

/// How workers are replaced.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.maxSurge + self.maxUnavailable > 0").message(
    "spec.rollout: maxSurge and maxUnavailable cannot both be 0, no worker could ever be replaced"
))]
pub struct Rollout {
    /// So many workers more than asked for while they are replaced.
    #[serde(default = "default_surge")]
    #[schemars(range(min = 0, max = 100))]
    pub max_surge: i32,

    /// So many workers fewer than asked for while they are replaced.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub max_unavailable: i32,

    /// How pods are moved away before a worker goes.
    #[serde(default)]
    pub drain: Drain,
}

fn default_surge() -> i32 {
    1
}

impl Default for Rollout {
    fn default() -> Self {
        Rollout { max_surge: default_surge(), max_unavailable: 0, drain: Drain::default() }
    }
}

/// How pods are moved away.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// So long a worker waits for its pods; then it goes with what is left on it. From 0s to 24h.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,5}[smh]$') && duration(self) <= duration('24h')").message(Message::Expression(
        "\"spec.rollout.drain.timeout: '\" + self + \"' must be a number and a unit of at most 24h, for example 90s, 10m or 2h\"".into()
    )))]
    pub timeout: Period,
}

fn default_timeout() -> Period {
    Period::minutes(10)
}

impl Default for Drain {
    fn default() -> Self {
        Drain { timeout: default_timeout() }
    }
}

/// State of a pool, as observed.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolStatus {
    /// The generation of the spec that the rest speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Workers that there are, but for those that go.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,

    /// Those whose node is Ready.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub ready_replicas: i32,

    /// Those of the newest template.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub updated_replicas: i32,

    /// Selects the Workers of the pool.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub selector: String,

    /// `ready/desired`, for `kubectl get`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub workers: String,

    /// One sentence: what is going on.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub summary: String,

    /// Facts in the form of metav1 conditions.
    #[serde(default)]
    #[schemars(length(max = 24))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Workers that were chosen to go, and why. Written before the first of them is deleted, so that no second look
    /// chooses others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub removing: Vec<Removal>,
}

/// A worker that was chosen to go.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its UID: another worker of that name is not meant.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Why this one.
    #[schemars(length(max = 256))]
    pub why: String,
}
