//! What a tenant's control plane is made of: pure builders, one file a component.
//!
//! They decide every field of every object from the tenant's identity, its spec, the catalogue entry and the
//! platform's settings, and from nothing else: the same inputs give the same bytes. Only fields that we mean are
//! set, because server-side apply owns exactly these. Nothing is refused here: what cannot be built is a problem
//! that is found before.
//!
//! Two rules hold for all pod templates. The number of replicas is nowhere in them, so that scaling restarts nothing;
//! only the list of etcd members is, in the API servers' flags, where it follows the members later, and whether a
//! member was ever one of several. And no
//! template has a checksum of a Secret or ConfigMap, so that renewal restarts nothing.

mod addons;
mod apiserver;
mod audit;
mod controllers;
mod etcd;
mod inside;
mod pod;
mod policy;
pub mod reach;
mod snapshot;
#[cfg(test)]
mod tests;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::name::{COMPONENT_LABEL, MANAGED_BY, MANAGED_BY_LABEL};
use kaas_crds::{KubernetesReleaseSpec, TenantClusterSpec};
use serde_json::{Value, json};

pub use self::addons::{
    AGENT, AGENT_AUDIENCE, AGENT_PORT, AGENT_SERVICE_ACCOUNT, Facts, Machine, NAMESPACE as ADDON_NAMESPACE,
    SERVER_USER, Settings, addon_references, addons, dns_address, early_network, fill, is_addon,
    kubelet_configuration, ours, revised, unwanted_addons,
};
pub use self::audit::CALLERS_PORT;
pub(crate) use self::etcd::{ETCD_SERVERS_FLAG, etcd_lone_host, etcd_servers};
pub use self::etcd::{
    EtcdBootstrap, EtcdIdentity, SEVERAL_ELECTION_TIMEOUT, etcd_client_url, etcd_member_name, etcd_peer_url,
};
pub use self::inside::{tenant_objects, tenant_references};
pub(crate) use self::snapshot::etcd_snapshot;
pub(crate) use self::tunnel::{CLIENT, SERVER, SERVER_NAME};
use crate::object::{Kind, Object, Reference};
use crate::tenant::{Platform, Tenant};
use crate::upgrade::path::Version;

/// Common name of the client certificate that API servers show to aggregated APIs; they accept no other.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// Everything that a control plane is made from.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Whose it is.
    pub tenant: &'a Tenant,
    /// What the tenant asks for.
    pub spec: &'a TenantClusterSpec,
    /// The catalogue entry of the control plane's binaries.
    pub release: &'a KubernetesReleaseSpec,
    /// The one whose API they serve and whose addons run, while they emulate it.
    pub emulated: Option<&'a KubernetesReleaseSpec>,
    /// Image of etcd, whole: it has a version of its own.
    pub etcd_image: String,
    /// Whether one API server proves the next stage of an upgrade.
    pub canary: bool,
    /// Whether a snapshot of etcd's data is taken.
    pub snapshot: bool,
    /// APIs whose callers are to be known, see [`crate::upgrade::preflight::watched`].
    pub watched: BTreeSet<String>,
    /// What the platform sets for all tenants.
    pub platform: &'a Platform,
    /// Whether etcd has, and always had, but one member: its timings follow.
    pub alone: bool,
}

impl Inputs<'_> {
    /// The catalogue entry of what is served.
    fn served(&self) -> &KubernetesReleaseSpec {
        self.emulated.unwrap_or(self.release)
    }

    /// The flag that makes control-plane binaries serve another version than their own.
    fn emulation(&self) -> Option<String> {
        let version: Version = self.emulated?.version.parse().ok()?;
        Some(format!("--emulated-version={}", version.series()))
    }

    /// An object of the control-plane namespace with its labels.
    fn object(&self, kind: Kind, name: &str, component: &str, content: Value) -> Object {
        let reference = Reference::namespaced(kind, self.tenant.control_plane_namespace(), name);
        labelled(reference, self.tenant, component, content)
    }
}

/// Refuses pods that are not under the restricted standard, and says so to whoever tries.
const POD_SECURITY: [(&str, &str); 6] = [
    ("pod-security.kubernetes.io/enforce", "restricted"),
    ("pod-security.kubernetes.io/enforce-version", "latest"),
    ("pod-security.kubernetes.io/audit", "restricted"),
    ("pod-security.kubernetes.io/audit-version", "latest"),
    ("pod-security.kubernetes.io/warn", "restricted"),
    ("pod-security.kubernetes.io/warn-version", "latest"),
];

/// The namespace of the control plane. Only pods under the restricted standard may run in it.
pub fn namespace(tenant: &Tenant) -> Object {
    let mut labels: BTreeMap<&str, String> = tenant.labels("control-plane");
    labels.extend(POD_SECURITY.map(|(label, value)| (label, value.to_owned())));
    let reference = Reference::cluster(Kind::Namespace, tenant.control_plane_namespace());
    Object::new(reference, json!({"metadata": {"labels": labels}}))
}

/// What a stored revision holds: everything whose change restarts something, on workers too.
pub fn rendering(inputs: &Inputs<'_>) -> Vec<Object> {
    let mut objects = workloads(inputs);
    objects.extend(addons::addon_templates(inputs));
    objects
}

/// What runs the control plane's pods.
pub fn workloads(inputs: &Inputs<'_>) -> Vec<Object> {
    vec![etcd::stateful_set(inputs), apiserver::deployment(inputs), controllers::deployment(inputs)]
}

/// What surrounds the pods: Services, NetworkPolicies, disruption budgets and the configuration that is read when a
/// pod starts. It may be applied at any time, before the workloads best, and restarts nothing.
pub fn surroundings(
    inputs: &Inputs<'_>,
    bootstrap: &EtcdBootstrap,
    identity: Option<&EtcdIdentity>,
) -> Vec<Object> {
    let mut objects = vec![
        etcd::service(inputs),
        apiserver::service(inputs),
        etcd::bootstrap(inputs, bootstrap),
        apiserver::configuration(inputs),
    ];
    objects.extend(etcd::lone_services(inputs));
    objects.extend(apiserver::agent_service(inputs));
    objects.extend(identity.map(|identity| etcd::identity(inputs, identity)));
    objects.extend(policy::policies(inputs));
    objects.extend(
        [etcd::budget(inputs), apiserver::budget(inputs), controllers::budget(inputs)].into_iter().flatten(),
    );
    objects
}

/// Selects the pods of a component. Only the component: a selector can never change, a tenant's UID can (adoption).
fn selector(component: &str) -> Value {
    json!({COMPONENT_LABEL: component})
}

fn labelled(reference: Reference, tenant: &Tenant, component: &str, mut content: Value) -> Object {
    if let Some(content) = content.as_object_mut() {
        content.insert("metadata".into(), json!({"labels": tenant.labels(component)}));
    }
    Object::new(reference, content)
}

/// Labels of what outlives a change of the tenant's identity.
fn stable_labels(component: &str) -> Value {
    json!({MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: component})
}
