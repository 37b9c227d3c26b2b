//! Who may reach whom: evaluates NetworkPolicies for a pair of parties and a port.
//!
//! The rules are those of `networking.k8s.io/v1`: a pod that no policy selects for a direction is open in it, a pod
//! that some policy selects is closed but for the union of their rules, and a connection needs the sender's egress
//! and the receiver's ingress. What cannot be judged from the objects alone allows nothing here: a named port, a
//! document that is no NetworkPolicy. Traffic from the node that a pod runs on, which is always allowed, is not
//! asked about.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::object::{Kind, Object};

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// Somebody who may send or receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Where it is.
    pub address: IpAddr,
    /// Which pod of the management cluster it is, if it is one.
    pub pod: Option<Pod>,
}

/// What policies know a pod by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Labels of the namespace.
    pub namespace_labels: Labels,
    /// Its own labels.
    pub labels: Labels,
}

impl Party {
    /// A pod in a namespace that has only the label that every namespace has.
    pub fn pod(address: IpAddr, namespace: &str, labels: Labels) -> Self {
        let namespace_labels =
            BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
        Party { address, pod: Some(Pod { namespace: namespace.to_owned(), namespace_labels, labels }) }
    }

    /// An address that is no pod's.
    pub fn outside(address: IpAddr) -> Self {
        Party { address, pod: None }
    }
}

/// A port of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// TCP.
    Tcp(u16),
    /// UDP.
    Udp(u16),
}

/// Direction of a policy's rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Whether these policies let `from` open a connection to this port of `to`. Other kinds of objects are passed over.
pub fn allowed(policies: &[Object], from: &Party, to: &Party, port: Port) -> bool {
    sends(policies, from, to, port) && receives(policies, from, to, port)
}

/// Whether the policies of the sender's namespace agree.
pub fn sends(policies: &[Object], from: &Party, to: &Party, port: Port) -> bool {
    open(&read(policies), Direction::Egress, from, to, port)
}

/// Whether the policies of the receiver's namespace agree.
pub fn receives(policies: &[Object], from: &Party, to: &Party, port: Port) -> bool {
    open(&read(policies), Direction::Ingress, to, from, port)
}

fn read(objects: &[Object]) -> Vec<NetworkPolicy> {
    objects
        .iter()
        .filter(|object| object.reference.kind == Kind::NetworkPolicy)
        .map(|object| serde_json::from_value(object.content.clone()).unwrap_or_else(|_| closed(object)))
        .collect()
}

/// What stands for a document that cannot be read: a policy that closes its whole namespace.
fn closed(object: &Object) -> NetworkPolicy {
    let mut policy = NetworkPolicy {
        spec: Some(NetworkPolicySpec {
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ..NetworkPolicySpec::default()
        }),
        ..NetworkPolicy::default()
    };
    policy.metadata.namespace = object.reference.namespace.clone();
    policy
}

/// Whether `party` is open in this direction for `other`; the port is the receiver's, whoever that is.
fn open(policies: &[NetworkPolicy], direction: Direction, party: &Party, other: &Party, port: Port) -> bool {
    let Some(Pod { namespace, labels, .. }) = &party.pod else { return true };
    let mut isolated = false;
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        let here = policy.metadata.namespace.as_deref() == Some(namespace.as_str());
        let selected = spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, labels));
        if !here || !selected || !applies(spec, direction) {
            continue;
        }
        isolated = true;
        if rules(spec, direction)
            .iter()
            .any(|rule| names_port(rule.ports, port) && names_peer(rule.peers, namespace, other))
        {
            return true;
        }
    }
    !isolated
}

/// Without types a policy is about ingress, and about egress if it has rules for it.
fn applies(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    let name = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|kind| kind == name),
        _ => direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// A rule of either direction.
struct Rule<'a> {
    peers: Option<&'a [NetworkPolicyPeer]>,
    ports: Option<&'a [NetworkPolicyPort]>,
}

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .map(|rule| Rule { peers: rule.from.as_deref(), ports: rule.ports.as_deref() })
            .collect(),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .map(|rule| Rule { peers: rule.to.as_deref(), ports: rule.ports.as_deref() })
            .collect(),
    }
}

/// No list, or an empty one, means every port.
fn names_port(ports: Option<&[NetworkPolicyPort]>, wanted: Port) -> bool {
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else { return true };
    let (protocol, number) = match wanted {
        Port::Tcp(number) => ("TCP", i32::from(number)),
        Port::Udp(number) => ("UDP", i32::from(number)),
    };
    ports.iter().any(|port| {
        port.protocol.as_deref().unwrap_or("TCP") == protocol
            && match &port.port {
                None => true,
                Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&number),
                Some(IntOrString::String(_)) => false,
            }
    })
}

/// No list, or an empty one, means everybody. A block of addresses names the pods in it too, as most networks have it.
fn names_peer(peers: Option<&[NetworkPolicyPeer]>, own_namespace: &str, other: &Party) -> bool {
    let Some(peers) = peers.filter(|peers| !peers.is_empty()) else { return true };
    peers.iter().any(|peer| match (&peer.ip_block, &other.pod) {
        (Some(block), _) => {
            let inside = |cidr: &String| cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&other.address));
            inside(&block.cidr) && !block.except.iter().flatten().any(inside)
        }
        (None, Some(Pod { namespace, namespace_labels, labels })) => {
            let in_namespace = match &peer.namespace_selector {
                Some(selector) => matches(selector, namespace_labels),
                None => namespace == own_namespace,
            };
            in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, labels))
        }
        (None, None) => false,
    })
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|requirement| satisfies(requirement, labels))
}

fn satisfies(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|other| other == value));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object::Reference;

    fn policy(spec: Value) -> Object {
        Object::new(Reference::namespaced(Kind::NetworkPolicy, "a", "p"), json!({"spec": spec}))
    }

    fn pod(namespace: &str, app: &str) -> Party {
        let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        Party::pod("192.168.0.1".parse().unwrap(), namespace, labels)
    }

    fn address(text: &str) -> Party {
        Party::outside(text.parse().unwrap())
    }

    #[test]
    fn without_a_policy_everything_is_open() {
        assert!(allowed(&[], &pod("a", "x"), &pod("a", "y"), Port::Tcp(1)));
        let elsewhere = [policy(json!({"podSelector": {}}))];
        assert!(
            allowed(&elsewhere, &pod("b", "x"), &pod("b", "y"), Port::Tcp(1)),
            "policies are of a namespace"
        );
    }

    #[test]
    fn a_selected_pod_is_closed_but_for_the_union_of_the_rules() {
        let x_only = policy(
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]}),
        );
        let port_only = policy(
            json!({"podSelector": {"matchLabels": {"app": "y"}}, "ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}),
        );
        let both = [x_only.clone(), port_only];
        for (policies, from, to, port, expected) in [
            (&both[..1], pod("a", "x"), pod("a", "y"), Port::Tcp(1), true),
            (&both[..1], pod("a", "z"), pod("a", "y"), Port::Tcp(1), false),
            (&both[..1], pod("b", "x"), pod("a", "y"), Port::Tcp(1), false),
            (&both[..1], pod("a", "z"), pod("b", "y"), Port::Tcp(1), true),
            (&both[..], pod("a", "z"), pod("a", "y"), Port::Tcp(85), true),
            (&both[..], pod("a", "z"), pod("a", "y"), Port::Udp(85), false),
            (&both[..], pod("a", "z"), pod("a", "y"), Port::Tcp(91), false),
            (&both[..], pod("a", "z"), pod("a", "w"), Port::Tcp(85), false),
            (&both[..], address("1.2.3.4"), pod("a", "y"), Port::Tcp(80), true),
            (&both[..], address("1.2.3.4"), pod("a", "y"), Port::Tcp(1), false),
        ] {
            assert_eq!(allowed(policies, &from, &to, port), expected, "{from:?} -> {to:?} {port:?}");
        }
    }

    #[test]
    fn both_ends_must_agree() {
        let policies = [
            policy(
                json!({"podSelector": {"matchLabels": {"app": "x"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "y"}}}]}]}),
            ),
            policy(
                json!({"podSelector": {"matchLabels": {"app": "y"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 1}]}]}),
            ),
        ];
        assert!(allowed(&policies, &pod("a", "x"), &pod("a", "y"), Port::Tcp(1)));
        assert!(!allowed(&policies, &pod("a", "x"), &pod("a", "y"), Port::Tcp(2)), "the receiver is closed");
        assert!(!allowed(&policies, &pod("a", "x"), &pod("a", "z"), Port::Tcp(1)), "the sender is closed");
    }

    #[test]
    fn namespaces_blocks_and_expressions_select() {
        let policies = [policy(json!({
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}, {"key": "gone", "operator": "DoesNotExist"}]},
            "policyTypes": ["Egress"],
            "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}, "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["w"]}]}}]},
                {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
            ],
        }))];
        for (from, to, expected) in [
            (pod("a", "x"), pod("b", "v"), true),
            (pod("a", "x"), pod("b", "w"), false),
            (pod("a", "x"), pod("c", "v"), false),
            (pod("a", "z"), pod("c", "v"), true),
            (pod("a", "x"), address("10.2.0.1"), true),
            (pod("a", "x"), address("10.1.0.1"), false),
            (pod("a", "x"), address("11.0.0.1"), false),
            (pod("a", "x"), Party { address: "10.2.0.1".parse().unwrap(), ..pod("c", "v") }, true),
        ] {
            assert_eq!(allowed(&policies, &from, &to, Port::Tcp(1)), expected, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_closed() {
        let named = [policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": "https"}]}]}))];
        assert!(!allowed(&named, &pod("a", "x"), &pod("a", "y"), Port::Tcp(443)));
        let broken = [policy(json!({"podSelector": "everything", "ingress": [{}]}))];
        assert!(!allowed(&broken, &pod("a", "x"), &pod("a", "y"), Port::Tcp(443)));
    }
}
