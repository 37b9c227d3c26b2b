//! `TenantCluster`: one Kubernetes cluster as its tenant asks for it.
//!
//! Whatever can be judged from the object alone is judged by the API server, with CEL rules that name the field,
//! the value and what would be accepted. What needs more knowledge becomes a condition.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::addons::Addons;
use crate::maintenance::Maintenance;
use crate::period::Period;
use crate::quantity::Quantity;
use crate::runtime_config::RuntimeConfig;
use crate::status::TenantClusterStatus;

/// A Kubernetes cluster whose control plane runs as pods of the management cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kaas.dev",
    version = "v1alpha1",
    kind = "TenantCluster",
    plural = "tenantclusters",
    shortname = "tc",
    category = "kaas",
    namespaced,
    status = "TenantClusterStatus",
    derive = "PartialEq",
    doc = "TenantCluster is one Kubernetes cluster: its hosted control plane, its etcd and its network.",
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Workers", type_ = "string", json_path = ".status.workers.summary"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')").message(Message::Expression(
        "\"metadata.name: '\" + self.metadata.name + \"' must be at most 50 lower-case letters, digits and '-', starting with a letter and ending with a letter or digit\"".into()
    )),
    // From what runs, not from what was asked for before: whoever asked for too much may take it back.
    validation = Rule::new(
        "self.spec.version == oldSelf.spec.version || !has(self.status) || !has(self.status.version) || !self.status.version.matches('^v1[.][0-9]{1,3}[.][0-9]{1,3}$') || !self.spec.version.matches('^v1[.][0-9]{1,3}[.][0-9]{1,3}$') || int(self.spec.version.split('.')[1]) - int(self.status.version.split('.')[1]) in [-1, 0, 1]"
    ).message(Message::Expression(
        "\"spec.version: \" + self.spec.version + \" is more than one minor version away from \" + self.status.version + \", which runs; a control plane goes one minor version at a time\"".into()
    )),
)]
#[serde(rename_all = "camelCase")]
pub struct TenantClusterSpec {
    /// Kubernetes version, for example `v1.37.1`. It must be in the catalogue: `kubectl get kubernetesreleases`.
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^v1\\\\.[0-9]{1,3}\\\\.[0-9]{1,3}$')").message(Message::Expression(
            "\"spec.version: '\" + self + \"' must look like v1.37.1; kubectl get kubernetesreleases lists what there is\"".into()
        ))
    )]
    pub version: String,

    /// The control plane: API servers, controller-manager and scheduler.
    #[serde(default)]
    pub control_plane: ControlPlane,

    /// The cluster's own etcd.
    #[serde(default)]
    pub etcd: Etcd,

    /// Networks of the cluster. They can never change.
    #[serde(default)]
    pub network: Network,

    /// Parts of the cluster that run on its workers.
    #[serde(default)]
    pub addons: Addons,

    /// How an upgrade to another version goes.
    #[serde(default)]
    pub upgrade: Upgrade,

    /// When operations may begin. Without it, at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,

    /// While true nothing of this cluster is changed; status is still kept up to date. Deletion is not held up.
    #[serde(default)]
    pub paused: bool,

    /// Takes what a newer operator would render differently: copy `status.pending.revision` here.
    /// Any other value, or none, changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub accept_revision: Option<String>,
}

/// How an upgrade to another version goes. On the way to the next minor version new binaries emulate the old one first.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// When the new binaries begin to serve their own version; until then the way back is a mere roll.
    #[serde(default)]
    pub finalize: Finalize,

    /// The new binaries must have been well for so long before that, for example `90s`, `10m` or `2h`; at most 168h.
    #[serde(default = "default_soak")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,6}[smh]$') && duration(self) <= duration('168h')").message(Message::Expression(
        "\"spec.upgrade.soak: '\" + self + \"' must be a number and a unit of at most 168h, for example 90s, 10m or 2h\"".into()
    )))]
    pub soak: Period,

    /// Findings of `status.preflight`, by `id`, in spite of which an upgrade begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ignore: Vec<String>,
}

/// When new binaries begin to serve their own version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Finalize {
    /// When they have been well for the time of the soak.
    #[default]
    AfterSoak,
    /// When this is set to AfterSoak: binaries that emulate are a state that one may rest in.
    Manual,
}

fn default_soak() -> Period {
    Period::minutes(10)
}

impl Default for Upgrade {
    fn default() -> Self {
        Upgrade { finalize: Finalize::default(), soak: default_soak(), ignore: Vec::new() }
    }
}

/// The hosted control plane.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Number of API servers; controller-manager and scheduler follow with at most two. 1 to 5.
    #[serde(default = "default_api_servers")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: i32,

    /// How clients reach the API.
    #[serde(default)]
    pub endpoint: Endpoint,

    /// Alpha and beta APIs that are served, or are not, by group and version: `{networking.k8s.io/v1beta1: true}`. What the
    /// version that runs does not have any more is left out. A change restarts the API servers, one after the other.
    #[serde(default, skip_serializing_if = "RuntimeConfig::is_empty")]
    pub runtime_config: RuntimeConfig,
}

fn default_api_servers() -> i32 {
    2
}

impl Default for ControlPlane {
    fn default() -> Self {
        ControlPlane {
            replicas: default_api_servers(),
            endpoint: Endpoint::default(),
            runtime_config: RuntimeConfig::default(),
        }
    }
}

/// How clients reach the API.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.nodePort) || self.type == 'NodePort'").message(Message::Expression(
        "\"spec.controlPlane.endpoint.nodePort: only goes with type NodePort, the type is \" + self.type".into()
    )),
    // Judged here, not on the port: a rule on what is removed is not asked.
    validation = Rule::new(
        "(has(self.nodePort) && has(self.nodePort.port) ? self.nodePort.port : 0) == (has(oldSelf.nodePort) && has(oldSelf.nodePort.port) ? oldSelf.nodePort.port : 0)"
    ).message(Message::Expression(
        "has(oldSelf.nodePort) && has(oldSelf.nodePort.port) ? \"spec.controlPlane.endpoint.nodePort.port: cannot be changed, every kubeconfig names it; it stays %d\".format([oldSelf.nodePort.port]) : 'spec.controlPlane.endpoint.nodePort.port: cannot be set later, every kubeconfig names the port that was chosen'".into()
    )),
)]
pub struct Endpoint {
    /// Kind of the Service in front of the API servers.
    #[serde(rename = "type", default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message(Message::Expression(
        "\"spec.controlPlane.endpoint.type: cannot be changed yet, it stays \" + oldSelf".into()
    )))]
    pub kind: EndpointType,

    /// Settings of type NodePort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<NodePort>,
}

/// Kind of the Service in front of the API servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EndpointType {
    /// Reachable inside the management cluster only.
    #[default]
    ClusterIP,
    /// A port of the management cluster's nodes; the host name comes from the platform's settings.
    NodePort,
    /// A load balancer of the management cluster's infrastructure.
    LoadBalancer,
}

/// Settings of type NodePort.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePort {
    /// A free port of the management cluster's node port range; chosen by Kubernetes when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// The cluster's own etcd.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Etcd {
    /// Number of members: 1, 3 or 5.
    #[serde(default = "default_members")]
    #[x_kube(
        validation = Rule::new("self in [1, 3, 5]").message(Message::Expression(
            "\"spec.etcd.replicas: %d must be 1, 3 or 5; an even number would add a member without bearing one more failure\".format([self])".into()
        )),
    )]
    pub replicas: i32,

    /// Version, for example `3.7.3`: one that a KubernetesRelease has. Unset, a new cluster gets that of its release, and
    /// one that runs keeps its minor version. It can be changed to the next minor version, and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{1,3}[.][0-9]{1,3}[.][0-9]{1,3}$')").message(Message::Expression(
        "\"spec.etcd.version: '\" + self + \"' must look like 3.7.3; kubectl get kubernetesreleases lists what there is\"".into()
    )))]
    pub version: Option<String>,

    /// Where members keep their data.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.etcd.storage: cannot be changed yet; create a second TenantCluster and move over"))]
    pub storage: Storage,
}

fn default_members() -> i32 {
    3
}

impl Default for Etcd {
    fn default() -> Self {
        Etcd { replicas: default_members(), version: None, storage: Storage::default() }
    }
}

/// Where etcd members keep their data: exactly one of the two.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistent) != has(self.ephemeral)").message(
    "spec.etcd.storage: set exactly one of persistent and ephemeral"
))]
pub struct Storage {
    /// One PersistentVolumeClaim a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<PersistentStorage>,

    /// The pod's own disk. A member that is moved or deleted loses its data; with one member that is the
    /// whole cluster. For trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralStorage>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage { persistent: Some(PersistentStorage::default()), ephemeral: None }
    }
}

/// One PersistentVolumeClaim a member.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistentStorage {
    /// Size of each member's volume, for example `8Gi`; at least 512Mi: the log alone has segments of
    /// 64 MiB, and a quarter of the volume is the data's quota.
    #[serde(default = "default_size")]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$') && isQuantity(self) && !quantity(self).isLessThan(quantity('512Mi')) && !quantity(self).isGreaterThan(quantity('1Ti'))"
    ).message(Message::Expression(
        "\"spec.etcd.storage.persistent.size: '\" + self + \"' must be a whole quantity from 512Mi to 1Ti, for example 8Gi\"".into()
    )))]
    pub size: Quantity,

    /// StorageClass of the management cluster; its default one when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

fn default_size() -> Quantity {
    Quantity::gibibytes(8)
}

impl Default for PersistentStorage {
    fn default() -> Self {
        PersistentStorage { size: default_size(), storage_class_name: None }
    }
}

/// The pod's own disk.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EphemeralStorage {}

/// Networks of the cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.podCIDR == oldSelf.podCIDR").message(Message::Expression(
        "\"spec.network.podCIDR: can never change, running pods have addresses of \" + oldSelf.podCIDR".into()
    )),
    validation = Rule::new("self.serviceCIDR == oldSelf.serviceCIDR").message(Message::Expression(
        "\"spec.network.serviceCIDR: can never change, Services have addresses of \" + oldSelf.serviceCIDR".into()
    )),
    validation = Rule::new("self.domain == oldSelf.domain").message(Message::Expression(
        "\"spec.network.domain: can never change, certificates and resolvers name \" + oldSelf.domain".into()
    )),
    validation = Rule::new(
        "!isCIDR(self.podCIDR) || !isCIDR(self.serviceCIDR) || !(cidr(self.podCIDR).containsCIDR(self.serviceCIDR) || cidr(self.serviceCIDR).containsCIDR(self.podCIDR))"
    ).message(Message::Expression(
        "\"spec.network: podCIDR \" + self.podCIDR + \" and serviceCIDR \" + self.serviceCIDR + \" overlap; choose two that do not\"".into()
    )),
)]
pub struct Network {
    /// Addresses of pods, an IPv4 network from /8 to /24.
    #[serde(rename = "podCIDR", default = "default_pod_cidr")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = Rule::new(
        "isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).masked() == cidr(self) && cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 24"
    ).message(Message::Expression(
        "\"spec.network.podCIDR: '\" + self + \"' must be an IPv4 network from /8 to /24 without host bits, for example 100.96.0.0/16\"".into()
    )))]
    pub pod_cidr: String,

    /// Addresses of Services, an IPv4 network from /12 to /24.
    #[serde(rename = "serviceCIDR", default = "default_service_cidr")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = Rule::new(
        "isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).masked() == cidr(self) && cidr(self).prefixLength() >= 12 && cidr(self).prefixLength() <= 24"
    ).message(Message::Expression(
        "\"spec.network.serviceCIDR: '\" + self + \"' must be an IPv4 network from /12 to /24 without host bits, for example 100.64.0.0/16\"".into()
    )))]
    pub service_cidr: String,

    /// DNS domain of Services.
    #[serde(default = "default_domain")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(Message::Expression(
        "\"spec.network.domain: '\" + self + \"' must be a DNS name in lower case, for example cluster.local\"".into()
    )))]
    pub domain: String,
}

fn default_pod_cidr() -> String {
    "100.96.0.0/16".into()
}

fn default_service_cidr() -> String {
    "100.64.0.0/16".into()
}

fn default_domain() -> String {
    "cluster.local".into()
}

impl Default for Network {
    fn default() -> Self {
        Network {
            pod_cidr: default_pod_cidr(),
            service_cidr: default_service_cidr(),
            domain: default_domain(),
        }
    }
}
