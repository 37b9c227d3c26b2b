//! NetworkPolicies of a control-plane namespace: nobody reaches anybody, but for what is written here.
//!
//! Probes need no rule: traffic from the node that a pod runs on is always allowed. API servers have no way to
//! workers, webhooks or aggregated APIs: what runs there is reached by the tunnel, whose agents dial in.

use kaas_crds::name::component::{
    ETCD, ETCD_SNAPSHOT, KUBE_APISERVER, KUBE_APISERVER_CANARY, KUBE_CONTROLLERS,
};
use serde_json::{Value, json};

use super::addons::AGENT_PORT;
use super::audit::{Audit, CALLERS_PORT};
use super::etcd::{CLIENT_PORT, PEER_PORT};
use super::tunnel::Tunnel;
use super::{Inputs, selector};
use crate::endpoint::PORT;
use crate::object::{Kind, Object};

/// Label that Kubernetes itself sets on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Where NodeLocal DNSCache listens on every node that has it.
const NODE_LOCAL_DNS: &str = "169.254.20.10/32";

/// All policies of the namespace.
pub(super) fn policies(inputs: &Inputs<'_>) -> Vec<Object> {
    let operator = &inputs.platform.operator_namespace;
    // An empty name must not become a peer that selects more than meant.
    let operator = (!operator.is_empty())
        .then(|| json!({"namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: operator}}}));
    let mut etcd_clients = vec![pods(ETCD), pods(KUBE_APISERVER)];
    if inputs.canary {
        etcd_clients.push(pods(KUBE_APISERVER_CANARY));
    }
    // It asks a member for its data, and serves nobody.
    let snapshot = inputs.snapshot.then(|| {
        etcd_clients.push(pods(ETCD_SNAPSHOT));
        let spec = json!({
            "podSelector": {"matchLabels": selector(ETCD_SNAPSHOT)},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [{"to": [pods(ETCD)], "ports": [tcp(CLIENT_PORT)]}, dns()],
        });
        policy(inputs, ETCD_SNAPSHOT, ETCD_SNAPSHOT, spec)
    });
    etcd_clients.extend(operator.clone());
    // Beside the API agents of workers come in, from anywhere too. The tunnel's servers ask the API whose a token is:
    // any API server that is ready, as their own is not when they start.
    let mut entrances = vec![tcp(PORT)];
    let mut apiserver_egress = vec![json!({"to": [pods(ETCD)], "ports": [tcp(CLIENT_PORT)]}), dns()];
    if Tunnel::of(inputs).is_some() {
        entrances.push(tcp(AGENT_PORT));
        apiserver_egress.push(json!({"to": [pods(KUBE_APISERVER)], "ports": [tcp(PORT)]}));
    }
    // Nobody but the operator asks it anything.
    let canary = operator.clone().filter(|_| inputs.canary).map(|operator| {
        let spec = json!({
            "podSelector": {"matchLabels": selector(KUBE_APISERVER_CANARY)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [operator], "ports": [tcp(PORT)]}],
            "egress": apiserver_egress.clone(),
        });
        policy(inputs, KUBE_APISERVER_CANARY, KUBE_APISERVER_CANARY, spec)
    });
    // It is the endpoint: clients, workers and the operator come from anywhere and show who they are.
    let mut apiserver_ingress = vec![json!({"ports": entrances})];
    if let (Some(_), Some(operator)) = (Audit::of(inputs), operator) {
        apiserver_ingress.push(json!({"from": [operator], "ports": [tcp(CALLERS_PORT)]}));
    }
    let mut policies = vec![
        policy(
            inputs,
            "deny",
            "control-plane",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
        policy(
            inputs,
            ETCD,
            ETCD,
            json!({
                "podSelector": {"matchLabels": selector(ETCD)},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {"from": etcd_clients, "ports": [tcp(CLIENT_PORT)]},
                    {"from": [pods(ETCD)], "ports": [tcp(PEER_PORT)]},
                ],
                "egress": [
                    {"to": [pods(ETCD)], "ports": [tcp(CLIENT_PORT), tcp(PEER_PORT)]},
                    dns(),
                ],
            }),
        ),
        policy(
            inputs,
            KUBE_APISERVER,
            KUBE_APISERVER,
            json!({
                "podSelector": {"matchLabels": selector(KUBE_APISERVER)},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": apiserver_ingress,
                "egress": apiserver_egress,
            }),
        ),
        policy(
            inputs,
            KUBE_CONTROLLERS,
            KUBE_CONTROLLERS,
            json!({
                "podSelector": {"matchLabels": selector(KUBE_CONTROLLERS)},
                "policyTypes": ["Ingress", "Egress"],
                "egress": [{"to": [pods(KUBE_APISERVER)], "ports": [tcp(PORT)]}, dns()],
            }),
        ),
    ];
    policies.extend(canary);
    policies.extend(snapshot);
    policies
}

fn policy(inputs: &Inputs<'_>, name: &str, component: &str, spec: Value) -> Object {
    inputs.object(Kind::NetworkPolicy, name, component, json!({"spec": spec}))
}

/// Pods of a component of the same namespace.
fn pods(component: &str) -> Value {
    json!({"podSelector": {"matchLabels": selector(component)}})
}

fn tcp(port: u16) -> Value {
    json!({"protocol": "TCP", "port": port})
}

/// The management cluster's DNS: by the labels that every distribution keeps, and through the cache on the node.
fn dns() -> Value {
    json!({
        "to": [
            {
                "namespaceSelector": {"matchLabels": {NAMESPACE_NAME_LABEL: "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            },
            {"ipBlock": {"cidr": NODE_LOCAL_DNS}},
        ],
        "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
    })
}
