//! What runs inside a tenant cluster for its workers: pure builders, one file a part.
//!
//! They decide every field from the tenant's spec, the catalogue entry and the platform's settings; the order is always
//! the same. What only the running control plane knows, such as where its API is reached, stands in them as a word that
//! [`fill`] replaces: a stored revision holds what restarts something ([`revised`]) before there is an endpoint. What
//! there is and what it is called stands in one list of [`Part`]s, from which the objects, the references that are
//! looked at, and the references of what is switched off all come. A release that names no images for workers has none
//! of it.
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

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use kaas_crds::addons::Addons;
use kaas_crds::kubernetes_release::AddonImages;
use kaas_crds::name::component::KONNECTIVITY_SERVER;
use kaas_crds::name::{COMPONENT_LABEL, MANAGED_BY, MANAGED_BY_LABEL};
use serde_json::{Value, json};

pub use self::konnectivity::{AGENT, AGENT_AUDIENCE, AGENT_PORT, AGENT_SERVICE_ACCOUNT, SERVER_USER};
pub use self::kubelet::{Machine, Settings, kubelet_configuration};
use super::Inputs;
use super::tunnel::SERVER_NAME;
use crate::endpoint::Endpoint;
use crate::object::{Kind, Object, Reference};
use crate::observed::Live;

/// Namespace of everything here that has one, but for what everybody may read.
pub const NAMESPACE: &str = "kube-system";
const PUBLIC_NAMESPACE: &str = "kube-public";

/// What the control plane gave, and builders cannot know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where workers reach the API.
    pub api: Endpoint,
    /// Where the tunnel's agents are let in.
    pub tunnel: Endpoint,
    /// Certificate of the cluster's authority, PEM.
    pub authority: String,
}

/// Words that stand for [`Facts`].
const API_URL: &str = "@API_URL@";
const API_ADDRESS: &str = "@API_ADDRESS@";
const API_HOST: &str = "@API_HOST@";
const API_PORT: &str = "@API_PORT@";
const AUTHORITY: &str = "@AUTHORITY@";
/// What the tunnel's servers are called by; their certificate names it.
const TUNNEL_NAME: &str = "@TUNNEL_NAME@";
/// The address that this name has, where it is not a name that everybody knows.
const TUNNEL_ADDRESS: &str = "@TUNNEL_ADDRESS@";
const TUNNEL_PORT: &str = "@TUNNEL_PORT@";

/// Everything that the objects inside are made from.
#[derive(Clone, Copy)]
struct Site<'a> {
    inputs: &'a Inputs<'a>,
    images: &'a AddonImages,
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
    /// Whether it is there before the first worker: it costs nothing, and the first need not wait for it.
    ahead: bool,
    enabled: fn(&Addons) -> bool,
    parts: &'static [Part],
}

/// All of them, in the order in which they are applied: what admits workers, then what their readiness waits for.
static ADDONS: [Addon; 7] = [
    Addon { name: "join", ahead: true, enabled: |_| true, parts: join::PARTS },
    Addon { name: KONNECTIVITY_SERVER, ahead: true, enabled: |_| true, parts: konnectivity::SERVER_PARTS },
    Addon {
        name: flannel::NAME,
        ahead: false,
        enabled: |spec| spec.cni.none.is_none(),
        parts: flannel::PARTS,
    },
    Addon {
        name: kube_proxy::NAME,
        ahead: false,
        enabled: |spec| spec.kube_proxy.enabled,
        parts: kube_proxy::PARTS,
    },
    Addon { name: konnectivity::AGENT, ahead: false, enabled: |_| true, parts: konnectivity::AGENT_PARTS },
    Addon {
        name: core_dns::NAME,
        ahead: false,
        enabled: |spec| spec.core_dns.enabled,
        parts: core_dns::PARTS,
    },
    Addon {
        name: metrics_server::NAME,
        ahead: false,
        enabled: |spec| spec.metrics_server.enabled,
        parts: metrics_server::PARTS,
    },
];

/// What is to be there, with or without what runs on workers. Nothing if the release names no images for workers.
pub fn addons(inputs: &Inputs<'_>, workers: bool) -> Vec<Object> {
    let Some(images) = &inputs.served().addons else { return Vec::new() };
    let site = Site { inputs, images };
    chosen(&inputs.spec.addons, true)
        .filter(|(addon, _)| workers || addon.ahead)
        .map(|(addon, part)| part.object(addon, &site))
        .collect()
}

/// What of them a revision holds, whatever is switched on: a switch is no new revision.
pub(super) fn addon_templates(inputs: &Inputs<'_>) -> Vec<Object> {
    let Some(images) = &inputs.served().addons else { return Vec::new() };
    let site = Site { inputs, images };
    let all = ADDONS.iter().flat_map(|addon| addon.parts.iter().map(move |part| (addon, part)));
    all.filter(|(addon, part)| !addon.ahead && restarts(part.kind))
        .map(|(addon, part)| part.object(addon, &site))
        .collect()
}

/// Whether it restarts something when it changes: pods, or programs that read their configuration. A revision has it.
pub fn revised(reference: &Reference) -> bool {
    let mut later = ADDONS.iter().filter(|addon| !addon.ahead).flat_map(|addon| addon.parts);
    restarts(reference.kind) && later.any(|part| part.reference() == *reference)
}

fn restarts(kind: Kind) -> bool {
    matches!(kind, Kind::DaemonSet | Kind::Deployment | Kind::ConfigMap)
}

/// The object with the facts in the places of the words.
pub fn fill(mut object: Object, facts: &Facts) -> Object {
    let tunnel = &facts.tunnel;
    // The servers are called by the name that their certificate always has; an endpoint that is itself a name cannot be
    // given another.
    let address: Option<IpAddr> = tunnel.host.parse().ok();
    let url = facts.api.url();
    let words = [
        (API_ADDRESS, url.trim_start_matches("https://").to_owned()),
        (API_URL, url),
        (API_HOST, facts.api.host.clone()),
        (API_PORT, facts.api.port.to_string()),
        (AUTHORITY, STANDARD.encode(&facts.authority)),
        (TUNNEL_NAME, if address.is_some() { SERVER_NAME.to_owned() } else { tunnel.host.clone() }),
        (TUNNEL_ADDRESS, tunnel.host.clone()),
        (TUNNEL_PORT, tunnel.port.to_string()),
    ];
    replace(&mut object.content, &words);
    if address.is_none()
        && let Some(pod) = object.content.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut)
    {
        pod.retain(|field, _| field != "hostAliases");
    }
    object
}

fn replace(value: &mut Value, words: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (word, fact) in words.iter().filter(|(word, _)| text.contains(word)).collect::<Vec<_>>() {
                *text = text.replace(word, fact);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, words)),
        Value::Object(map) => map.values_mut().for_each(|value| replace(value, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The network of the pods on a worker that is a pod, for its container runtime to begin with; `None` where the tenant
/// brings its own.
pub fn early_network(spec: &Addons) -> Option<String> {
    spec.cni.none.is_none().then(flannel::early_plugins)
}

/// What is switched off, and goes where it is [`ours`].
pub fn unwanted_addons(spec: &Addons) -> Vec<Reference> {
    chosen(spec, false).map(|(_, part)| part.reference()).collect()
}

/// Everything that may be there, whatever is switched on.
pub fn addon_references() -> Vec<Reference> {
    ADDONS.iter().flat_map(|addon| addon.parts).map(Part::reference).collect()
}

/// Whether a pod of this namespace with these labels is one of an add-on that runs on some nodes and not on every.
pub fn is_addon(spec: &Addons, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    namespace == NAMESPACE
        && match labels.get(APP_LABEL).map(String::as_str) {
            Some(core_dns::SERVICE) => spec.core_dns.enabled,
            Some(metrics_server::NAME) => spec.metrics_server.enabled,
            _ => false,
        }
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
    fn api_variables() -> Vec<Value> {
        vec![
            json!({"name": "KUBERNETES_SERVICE_HOST", "value": API_HOST}),
            json!({"name": "KUBERNETES_SERVICE_PORT", "value": API_PORT}),
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
