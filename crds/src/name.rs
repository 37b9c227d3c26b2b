//! Names, labels and annotations: the one place where they are spelled.
//!
//! Everything of a tenant is keyed by the UID of its object, which nobody can choose or change.

/// API group of all kinds.
pub const GROUP: &str = "kaas.dev";
/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "kaas-operator";
/// Finalizer of a TenantCluster.
pub const FINALIZER: &str = "kaas.dev/control-plane";
/// Namespace that the chart installs the operator into by default.
pub const SYSTEM_NAMESPACE: &str = "kaas-system";

/// Label: who manages the object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`] on our objects.
pub const MANAGED_BY: &str = "kaas";
/// Label: the component, for example `etcd`.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/name";
/// Label: UID of the TenantCluster.
pub const TENANT_UID_LABEL: &str = "kaas.dev/tenant-uid";
/// Label: namespace of the TenantCluster. For people and for finding orphans; never an authority.
pub const TENANT_NAMESPACE_LABEL: &str = "kaas.dev/tenant-namespace";
/// Label: name of the TenantCluster. For people and for finding orphans; never an authority.
pub const TENANT_NAME_LABEL: &str = "kaas.dev/tenant-name";
/// Annotation: hash of the content that was applied, so that a removed field counts as a difference.
pub const APPLIED_HASH_ANNOTATION: &str = "kaas.dev/applied-hash";
/// Annotation on an orphaned control-plane namespace, set by the platform: the UID of the TenantCluster that takes it over.
pub const ADOPT_ANNOTATION: &str = "kaas.dev/adopt-by-uid";

/// Group of the admin kubeconfig's user, bound by RBAC inside the tenant cluster.
pub const ADMIN_GROUP: &str = "kaas:cluster-admins";
/// Key of the kubeconfig in its Secret.
pub const KUBECONFIG_KEY: &str = "value";

/// Component names: of workloads, Services and the [`COMPONENT_LABEL`].
pub mod component {
    /// etcd members.
    pub const ETCD: &str = "etcd";
    /// API servers, and their Service.
    pub const KUBE_APISERVER: &str = "kube-apiserver";
    /// controller-manager and scheduler, which share a pod.
    pub const KUBE_CONTROLLERS: &str = "kube-controllers";
}

/// Namespace of the control plane of the TenantCluster with this UID.
pub fn control_plane_namespace(uid: &str) -> String {
    format!("kaas-{uid}")
}

/// Secret with the admin kubeconfig, beside the TenantCluster.
pub fn kubeconfig_secret(cluster: &str) -> String {
    format!("{cluster}-kubeconfig")
}
