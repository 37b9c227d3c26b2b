//! `KubernetesRelease`: the catalogue. One entry a version; what is set never changes.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// One Kubernetes version that tenants may run, with the images of its components.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kaas.dev",
    version = "v1alpha1",
    kind = "KubernetesRelease",
    plural = "kubernetesreleases",
    shortname = "kr",
    category = "kaas",
    status = "KubernetesReleaseStatus",
    derive = "PartialEq",
    doc = "KubernetesRelease is one version of the catalogue. What is set in it never changes; a newer chart may add what was unset.",
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Etcd", type_ = "string", json_path = ".spec.etcd.version"),
    printcolumn(name = "Used by", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name == self.spec.version").message(Message::Expression(
        "\"metadata.name: '\" + self.metadata.name + \"' must equal spec.version '\" + self.spec.version + \"'\"".into()
    )),
    // Judged here, not on the field: a rule on what is removed is not asked.
    validation = Rule::new("!has(oldSelf.spec.addons) || has(self.spec.addons)").message(
        "spec.addons: what a release says never changes; add another KubernetesRelease"
    ),
    validation = Rule::new("!has(oldSelf.spec.adds) || has(self.spec.adds)").message(
        "spec.adds: what a release says never changes; add another KubernetesRelease"
    ),
    validation = Rule::new("!has(oldSelf.spec.removes) || has(self.spec.removes)").message(
        "spec.removes: what a release says never changes; add another KubernetesRelease"
    ),
)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesReleaseSpec {
    /// Kubernetes version, for example `v1.37.1`; the object has the same name.
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^v1\\\\.[0-9]{1,3}\\\\.[0-9]{1,3}$')").message("spec.version: must look like v1.37.1"),
        validation = Rule::new("self == oldSelf").message("spec.version: what a release says never changes; add another KubernetesRelease")
    )]
    pub version: String,

    /// Images of the control plane, with registry and tag.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.images: what a release says never changes; add another KubernetesRelease"))]
    pub images: Images,

    /// The etcd that new clusters of this version get.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.etcd: what a release says never changes; add another KubernetesRelease"))]
    pub etcd: EtcdRelease,

    /// Images of workers and of what runs on them. Without them the release has no workers; they may be added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.addons: what a release says never changes; add another KubernetesRelease"))]
    pub addons: Option<AddonImages>,

    /// APIs that the minor version before still had: a group and a version, and perhaps a resource, for example
    /// `networking.k8s.io/v1beta1` or `networking.k8s.io/v1beta1/ipaddresses`. Whoever uses them is told before an upgrade.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self == oldSelf").message("spec.removes: what a release says never changes; add another KubernetesRelease"),
        validation = Rule::new("self.all(api, api.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/v[0-9]+((alpha|beta)[0-9]+)?(/[a-z]+)?$'))").message(
            "spec.removes: each must be a group and a version, and perhaps a resource, for example networking.k8s.io/v1beta1/ipaddresses"
        )
    )]
    pub removes: Vec<String>,

    /// Kinds and fields that the minor version before does not have: a group, a version and a resource, and for a field
    /// its path, for example `certificates.k8s.io/v1/clustertrustbundles` or `v1/pods:spec.containers[].newField`; fields of a
    /// pod's spec are meant in templates of pods too. Whoever wants to go back is told which of them are in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self == oldSelf").message("spec.adds: what a release says never changes; add another KubernetesRelease"),
        validation = Rule::new("self.all(api, api.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9]+((alpha|beta)[0-9]+)?/[a-z]+(:[A-Za-z0-9.]+(\\\\[\\\\][A-Za-z0-9.]*)*)?$'))").message(
            "spec.adds: each must be a group, a version and a resource, and perhaps a field, for example v1/pods:spec.containers[].newField"
        )
    )]
    pub adds: Vec<String>,
}

/// Images of the control plane.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// For example `registry.k8s.io/kube-apiserver:v1.37.1`.
    #[schemars(length(min = 1, max = 512))]
    pub kube_apiserver: String,
    /// For example `registry.k8s.io/kube-controller-manager:v1.37.1`.
    #[schemars(length(min = 1, max = 512))]
    pub kube_controller_manager: String,
    /// For example `registry.k8s.io/kube-scheduler:v1.37.1`.
    #[schemars(length(min = 1, max = 512))]
    pub kube_scheduler: String,
}

/// Images of workers and of what runs on them, with registry and tag.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddonImages {
    /// For example `registry.k8s.io/kube-proxy:v1.37.1`.
    #[schemars(length(min = 1, max = 512))]
    pub kube_proxy: String,
    /// For example `registry.k8s.io/coredns/coredns:v1.15.0`.
    #[serde(rename = "coreDNS")]
    #[schemars(length(min = 1, max = 512))]
    pub core_dns: String,
    /// For example `ghcr.io/flannel-io/flannel:v0.28.4`.
    #[schemars(length(min = 1, max = 512))]
    pub flannel: String,
    /// The end of the tunnel beside each API server, for example `registry.k8s.io/kas-network-proxy/proxy-server:v0.36.0`.
    #[schemars(length(min = 1, max = 512))]
    pub konnectivity_server: String,
    /// The end of the tunnel on each worker, for example `registry.k8s.io/kas-network-proxy/proxy-agent:v0.36.0`.
    #[schemars(length(min = 1, max = 512))]
    pub konnectivity_agent: String,
    /// For example `registry.k8s.io/metrics-server/metrics-server:v0.9.0`.
    #[schemars(length(min = 1, max = 512))]
    pub metrics_server: String,
    /// What holds the namespaces of a pod, for example `registry.k8s.io/pause:3.10.2`.
    #[schemars(length(min = 1, max = 512))]
    pub pause: String,
    /// A worker that is a pod, for example `ghcr.io/kaas-dev/kaas-worker:v1.37.1`.
    #[schemars(length(min = 1, max = 512))]
    pub worker: String,
}

/// An etcd version.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdRelease {
    /// For example `3.7.3`.
    #[schemars(length(min = 1, max = 32))]
    pub version: String,
    /// For example `registry.k8s.io/etcd:3.7.3-0`.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
}

/// Who uses the release. Written by the operator; while it names somebody the release cannot be deleted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesReleaseStatus {
    /// Up to ten users as `namespace/name`, in order.
    #[serde(default)]
    #[schemars(length(max = 10), inner(length(max = 128)))]
    pub used_by: Vec<String>,
    /// Number of users.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub users: i32,
    /// One line for `kubectl get`: the number and the first names.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub summary: String,
}
