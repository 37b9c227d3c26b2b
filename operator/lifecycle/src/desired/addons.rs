//! What runs inside a tenant cluster for its workers: pure builders, one file a part.
//!
//! They decide every field from the tenant's spec, the catalogue entry, the platform's settings and where the API is
//! reached; the order is always the same. What there is and what it is called stands in one list of [`Part`]s, from
//! which the objects, the references that are looked at, and the references of what is switched off all come. A
//! release that names no images for workers has none of it.
//!
//! Nothing here is privileged but what a node cannot be without: kube-proxy, which sets the node's sysctls. Nothing
//! here changes with time, with the number of workers or of API servers.

mod core_dns;
mod document;
mod flannel;
mod join;
mod konnectivity;
mod kube_proxy;
mod kubelet;
mod metrics_server;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use kaas_crds::addons::Addons;
use kaas_crds::kubernetes_release::AddonImages;
use kaas_crds::name::{COMPONENT_LABEL, MANAGED_BY, MANAGED_BY_LABEL};
use serde_json::{Value, json};

pub use self::konnectivity::{AGENT_AUDIENCE, AGENT_PORT, AGENT_SERVICE_ACCOUNT, SERVER_USER};
pub use self::kubelet::{Machine, Settings, kubelet_configuration};
use super::Inputs;
use crate::endpoint::Endpoint;
use crate::object::{Kind, Object, Reference};
use crate::observed::Live;

/// Namespace of everything here that has one, but for what everybody may read.
pub(super) const NAMESPACE: &str = "kube-system";
const PUBLIC_NAMESPACE: &str = "kube-public";

/// What the control plane gave, and builders cannot know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where workers reach the API.
    pub api: Endpoint,
    /// Port at the same host where the tunnel's agents are let in.
    pub tunnel_port: u16,
    /// Certificate of the cluster's authority, PEM.
    pub authority: String,
}

/// Everything that the objects inside are made from.
#[derive(Clone, Copy)]
struct Site<'a> {
    inputs: &'a Inputs<'a>,
    images: &'a AddonImages,
    facts: &'a Facts,
}

/// One object.
struct Part {
    kind: Kind,
    /// `None` for kinds without namespaces.
    namespace: Option<&'static str>,
    name: &'static str,
    /// Everything but kind, name and our labels.
    content: fn(&Site<'_>) -> Value,
}

/// Parts that come and go together.
struct Addon {
    /// Value of the component label.
    name: &'static str,
    enabled: fn(&Addons) -> bool,
    parts: &'static [Part],
}

/// All of them, in the order in which they are applied: what admits workers, then what their readiness waits for.
static ADDONS: [Addon; 6] = [
    Addon { name: "join", enabled: |_| true, parts: join::PARTS },
    Addon { name: flannel::NAME, enabled: |spec| spec.cni.none.is_none(), parts: flannel::PARTS },
    Addon { name: kube_proxy::NAME, enabled: |spec| spec.kube_proxy.enabled, parts: kube_proxy::PARTS },
    Addon { name: konnectivity::AGENT, enabled: |_| true, parts: konnectivity::PARTS },
    Addon { name: core_dns::NAME, enabled: |spec| spec.core_dns.enabled, parts: core_dns::PARTS },
    Addon {
        name: metrics_server::NAME,
        enabled: |spec| spec.metrics_server.enabled,
        parts: metrics_server::PARTS,
    },
];

/// What is to be there. Nothing if the release names no images for workers.
pub fn addons(inputs: &Inputs<'_>, facts: &Facts) -> Vec<Object> {
    let Some(images) = &inputs.release.addons else { return Vec::new() };
    let site = Site { inputs, images, facts };
    chosen(&inputs.spec.addons, true).map(|(addon, part)| part.object(addon, &site)).collect()
}

/// What is switched off, and goes where it is [`ours`].
pub fn unwanted_addons(spec: &Addons) -> Vec<Reference> {
    chosen(spec, false).map(|(_, part)| part.reference()).collect()
}

/// Everything that may be there, whatever is switched on.
pub fn addon_references() -> Vec<Reference> {
    ADDONS.iter().flat_map(|addon| addon.parts).map(Part::reference).collect()
}

/// Whether an object inside a tenant was put there by us: one of the same name that a tenant brought stays.
pub fn ours(live: &Live) -> bool {
    live.get("/metadata/labels").and_then(|labels| labels.get(MANAGED_BY_LABEL))
        == Some(&Value::from(MANAGED_BY))
}

fn chosen(spec: &Addons, enabled: bool) -> impl Iterator<Item = (&'static Addon, &'static Part)> {
    ADDONS
        .iter()
        .filter(move |addon| (addon.enabled)(spec) == enabled)
        .flat_map(|addon| addon.parts.iter().map(move |part| (addon, part)))
}

impl Part {
    /// A part of `kube-system`.
    const fn system(kind: Kind, name: &'static str, content: fn(&Site<'_>) -> Value) -> Self {
        Part { kind, namespace: Some(NAMESPACE), name, content }
    }

    /// A part without a namespace.
    const fn cluster(kind: Kind, name: &'static str, content: fn(&Site<'_>) -> Value) -> Self {
        Part { kind, namespace: None, name, content }
    }

    fn reference(&self) -> Reference {
        Reference {
            kind: self.kind,
            namespace: self.namespace.map(str::to_owned),
            name: self.name.to_owned(),
        }
    }

    fn object(&self, addon: &Addon, site: &Site<'_>) -> Object {
        let mut content = (self.content)(site);
        if let Some(content) = content.as_object_mut()
            && let Some(metadata) = content.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
            && let Some(labels) = metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut()
        {
            labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
            labels.insert(COMPONENT_LABEL.into(), addon.name.into());
        }
        Object::new(self.reference(), content)
    }
}

impl Site<'_> {
    fn image(&self, official: fn(&AddonImages) -> &String) -> String {
        self.inputs.platform.image(official(self.images))
    }

    /// Address of the cluster's DNS, which kubelets write into every pod.
    fn dns(&self) -> String {
        dns_address(&self.inputs.spec.network.service_cidr)
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    /// Leads programs that use a service account to the API from outside, instead of by the `kubernetes` Service:
    /// that one is there only once kube-proxy, or what stands for it, works.
    fn api_variables(&self) -> Vec<Value> {
        vec![
            json!({"name": "KUBERNETES_SERVICE_HOST", "value": self.facts.api.host}),
            json!({"name": "KUBERNETES_SERVICE_PORT", "value": self.facts.api.port.to_string()}),
        ]
    }
}

/// The tenth address of the Services' range, as kubeadm has it.
pub fn dns_address(service_cidr: &str) -> Option<Ipv4Addr> {
    let network: Ipv4Net = service_cidr.parse().ok()?;
    network.network().to_bits().checked_add(10).map(Ipv4Addr::from_bits)
}

/// A ServiceAccount is its name.
fn service_account(_: &Site<'_>) -> Value {
    json!({})
}

/// What binds a role to the service account of that name.
fn binding(role_kind: &str, role: &str, account: &str) -> Value {
    json!({
        "roleRef": role_reference(role_kind, role),
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    })
}

/// What binds a role to a user or a group.
fn binding_to(role_kind: &str, role: &str, subjects: &[(&str, &str)]) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|(kind, name)| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}))
        .collect();
    json!({"roleRef": role_reference(role_kind, role), "subjects": subjects})
}

fn role_reference(kind: &str, name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
}

/// A rule of a role.
fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

/// Label that pods are selected by: the one that people, tools and tests of Kubernetes look for.
const APP_LABEL: &str = "k8s-app";

/// A pod template for each node: in the node's own network, on every node whatever its taints, and among the last to
/// be evicted.
fn node_pod(name: &str, account: &str, grace_seconds: u32, containers: Value, volumes: Value) -> Value {
    json!({
        "metadata": {"labels": {APP_LABEL: name}},
        "spec": {
            "serviceAccountName": account,
            "enableServiceLinks": false,
            "hostNetwork": true,
            "dnsPolicy": "Default",
            "priorityClassName": "system-node-critical",
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": containers,
            "volumes": volumes,
        },
    })
}

/// A DaemonSet. A new pod takes the old one's place on one node in ten at a time: on all of them at once a bad image
/// would take the whole cluster away.
fn daemon_set(name: &str, template: Value) -> Value {
    json!({
        "spec": {
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": {APP_LABEL: name}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "template": template,
        },
    })
}

/// What a container of a node may: nothing but these capabilities.
fn confined(capabilities: &[&str]) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    if let Some(held) = context.pointer_mut("/capabilities").and_then(Value::as_object_mut)
        && !capabilities.is_empty()
    {
        held.insert("add".into(), json!(capabilities));
    }
    context
}

/// Requests of what is used at rest, and a memory limit far above what is ever needed.
fn resources(cpu: &str, memory: &str, memory_limit: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_limit}})
}

fn http_probe(path: &str, port: u16, scheme: &str, host: Option<&str>) -> Value {
    let mut get = json!({"path": path, "port": port, "scheme": scheme});
    if let (Some(get), Some(host)) = (get.as_object_mut(), host) {
        get.insert("host".into(), host.into());
    }
    json!({"httpGet": get, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6})
}
