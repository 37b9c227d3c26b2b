//! Names, labels and annotations: the one place where they are spelled.
//!
//! Everything of a tenant is keyed by the UID of its object, which nobody can choose or change.

/// API group of all kinds.
pub const GROUP: &str = "kaas.dev";
/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "kaas-operator";
/// Finalizer of a TenantCluster.
pub const FINALIZER: &str = "kaas.dev/control-plane";
/// Finalizer of a WorkerPool: its workers go first.
pub const POOL_FINALIZER: &str = "kaas.dev/worker-pool";
/// Finalizer of a Worker: its node and its machine go first.
pub const WORKER_FINALIZER: &str = "kaas.dev/worker";
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
/// Label on Workers: name of the cluster.
pub const CLUSTER_LABEL: &str = "kaas.dev/cluster";
/// Label on Workers and Nodes: name of the pool. [`pool_selector`] selects by it.
pub const POOL_LABEL: &str = "kaas.dev/pool";
/// Label on what is a worker's outside of its team's namespace: UID of the Worker.
pub const WORKER_UID_LABEL: &str = "kaas.dev/worker-uid";
/// Annotation on the Secret with a worker's bootstrap material: public part of the token in it.
pub const TOKEN_ANNOTATION: &str = "kaas.dev/token-id";
/// Annotation on the Secret with a worker's bootstrap material: when the token in it ends.
pub const TOKEN_EXPIRES_ANNOTATION: &str = "kaas.dev/token-expires";
/// Annotation on a Worker, set by its user: of several that may go this one goes first.
pub const DELETE_FIRST_ANNOTATION: &str = "kaas.dev/delete-first";
/// Annotation on a Node: keys of those labels that are the pool's, so that no others are ever removed.
pub const OWN_LABELS_ANNOTATION: &str = "kaas.dev/pool-labels";
/// Annotation on a Node: as [`OWN_LABELS_ANNOTATION`], for taints, as `key:Effect`.
pub const OWN_TAINTS_ANNOTATION: &str = "kaas.dev/pool-taints";
/// Annotation: hash of the content that was applied, so that a removed field counts as a difference.
pub const APPLIED_HASH_ANNOTATION: &str = "kaas.dev/applied-hash";
/// Annotation on the Secret of the tunnel's server, and on the pods of API servers that read it: when it was made anew.
pub const RENEWED_ANNOTATION: &str = "kaas.dev/tunnel-renewed";
/// Annotation on an orphaned control-plane namespace, set by the platform: the UID of the TenantCluster that takes it over.
pub const ADOPT_ANNOTATION: &str = "kaas.dev/adopt-by-uid";

/// Group of the admin kubeconfig's user, bound by RBAC inside the tenant cluster.
pub const ADMIN_GROUP: &str = "kaas:cluster-admins";
/// Group that the bootstrap tokens of workers give. It may ask for certificates and read what `kubeadm join` reads;
/// nothing approves what it asks for but the operator.
pub const BOOTSTRAP_GROUP: &str = "system:bootstrappers:kaas";
/// Key of the kubeconfig in its Secret.
pub const KUBECONFIG_KEY: &str = "value";

/// Component names: of workloads, Services and the [`COMPONENT_LABEL`].
pub mod component {
    /// etcd members.
    pub const ETCD: &str = "etcd";
    /// API servers, and their Service.
    pub const KUBE_APISERVER: &str = "kube-apiserver";
    /// The one API server that proves the next stage of an upgrade, outside of the endpoint.
    pub const KUBE_APISERVER_CANARY: &str = "kube-apiserver-canary";
    /// What saves a snapshot of etcd's data before another minor version takes its place.
    pub const ETCD_SNAPSHOT: &str = "etcd-snapshot";
    /// What counts the callers of APIs that go, beside an API server, in its pod.
    pub const AUDIT_CALLERS: &str = "audit-callers";
    /// The tunnel's end beside each API server, in its pod.
    pub const KONNECTIVITY_SERVER: &str = "konnectivity-server";
    /// controller-manager and scheduler, which share a pod.
    pub const KUBE_CONTROLLERS: &str = "kube-controllers";
    /// Machines of workers that are pods.
    pub const WORKER: &str = "worker";
}

/// Namespace of the control plane of the TenantCluster with this UID.
pub fn control_plane_namespace(uid: &str) -> String {
    format!("kaas-{uid}")
}

/// Secret with the admin kubeconfig, beside the TenantCluster.
pub fn kubeconfig_secret(cluster: &str) -> String {
    format!("{cluster}-kubeconfig")
}

/// Namespace of the machines of a tenant that are pods. Never the team's, never the control plane's.
pub fn workers_namespace(uid: &str) -> String {
    format!("kaas-workers-{uid}")
}

/// Worker of a pool, and its node.
pub fn worker(pool: &str, ordinal: u32) -> String {
    format!("{pool}-{ordinal}")
}

/// Ordinal of a worker of this pool; `None` for names that [`worker`] does not make.
pub fn worker_ordinal(pool: &str, worker: &str) -> Option<u32> {
    let ordinal: u32 = worker.strip_prefix(pool)?.strip_prefix('-')?.parse().ok()?;
    (self::worker(pool, ordinal) == worker).then_some(ordinal)
}

/// Secret beside a Worker whose machine the user joins: the command to do it with.
pub fn join_secret(worker: &str) -> String {
    format!("{worker}-join")
}

/// Selects the Workers of a pool, as the `scale` subresource wants it.
pub fn pool_selector(pool: &str) -> String {
    format!("{POOL_LABEL}={pool}")
}

/// What a kubelet says of the machine that it is on: the infrastructure, and the UID of the Worker.
pub fn provider_id(infrastructure: &str, worker_uid: &str) -> String {
    format!("kaas://{infrastructure}/{worker_uid}")
}
