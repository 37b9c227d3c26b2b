//! Who may reach whom: the rendered NetworkPolicies against a matrix that is written down.

use std::collections::BTreeMap;

use super::super::reach::{Party, Port, allowed, receives, sends};
use super::*;

/// Ports that anything of a control plane listens on, DNS, and some that a stranger might try.
const PORTS: [Port; 14] = [
    Port::Tcp(22),
    Port::Tcp(53),
    Port::Udp(53),
    Port::Tcp(443),
    Port::Tcp(2379),
    Port::Tcp(2380),
    Port::Tcp(2381),
    Port::Tcp(6443),
    Port::Tcp(8132),
    Port::Tcp(8133),
    Port::Tcp(8134),
    Port::Tcp(8448),
    Port::Tcp(10257),
    Port::Tcp(10259),
];

/// Ours first, then everybody else. A neighbour's pods have the same labels in another namespace.
fn parties(world: &World) -> Vec<(&'static str, Party)> {
    let own = world.tenant.control_plane_namespace();
    let component = |name: &str| {
        world.tenant.labels(name).into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    };
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let mut last = 0;
    let mut pod = |namespace: &str, labels| {
        last += 1;
        Party::pod(format!("10.244.0.{last}").parse().unwrap(), namespace, labels)
    };
    let outside = |address: &str| Party::outside(address.parse().unwrap());
    vec![
        ("etcd", pod(&own, component("etcd"))),
        ("kube-apiserver", pod(&own, component("kube-apiserver"))),
        ("kube-controllers", pod(&own, component("kube-controllers"))),
        ("stray pod", pod(&own, label("app", "stray"))),
        ("operator", pod("kaas-system", label("app.kubernetes.io/name", "kaas-operator"))),
        ("neighbour etcd", pod("kaas-other", component("etcd"))),
        ("neighbour kube-apiserver", pod("kaas-other", component("kube-apiserver"))),
        ("neighbour kube-controllers", pod("kaas-other", component("kube-controllers"))),
        ("team pod", pod("demo", component("kube-apiserver"))),
        ("DNS", pod("kube-system", label("k8s-app", "kube-dns"))),
        ("false DNS", pod("demo", label("k8s-app", "kube-dns"))),
        ("system pod", pod("kube-system", label("k8s-app", "metrics-server"))),
        ("DNS on the node", outside("169.254.20.10")),
        ("cloud metadata", outside("169.254.169.254")),
        ("internet", outside("192.0.2.1")),
    ]
}

/// How many of the parties are in the control plane's namespace.
const OURS: usize = 4;

type Judge = fn(&[Object], &Party, &Party, Port) -> bool;

/// One line for each pair of parties that may talk; pairs without one of ours are nobody's business.
fn matrix(judge: Judge, world: &World, policies: &[Object]) -> String {
    let parties = parties(world);
    let mut lines = Vec::new();
    for (at, (from, sender)) in parties.iter().enumerate() {
        for (to_at, (to, receiver)) in parties.iter().enumerate() {
            let open: Vec<String> = PORTS
                .into_iter()
                .filter(|port| (at < OURS || to_at < OURS) && judge(policies, sender, receiver, *port))
                .map(|port| match port {
                    Port::Tcp(number) => number.to_string(),
                    Port::Udp(number) => format!("{number}/udp"),
                })
                .collect();
            if !open.is_empty() {
                lines.push(format!("{from} -> {to}: {}", open.join(" ")));
            }
        }
    }
    lines.join("\n")
}

fn policies(world: &World) -> Vec<Object> {
    world.surroundings().into_iter().filter(|object| object.reference.kind == Kind::NetworkPolicy).collect()
}

const MATRIX: &str = "\
etcd -> etcd: 2379 2380
etcd -> DNS: 53 53/udp
etcd -> DNS on the node: 53 53/udp
kube-apiserver -> etcd: 2379
kube-apiserver -> kube-apiserver: 6443
kube-apiserver -> DNS: 53 53/udp
kube-apiserver -> DNS on the node: 53 53/udp
kube-controllers -> kube-apiserver: 6443
kube-controllers -> DNS: 53 53/udp
kube-controllers -> DNS on the node: 53 53/udp
operator -> etcd: 2379
operator -> kube-apiserver: 6443 8132
neighbour etcd -> kube-apiserver: 6443 8132
neighbour kube-apiserver -> kube-apiserver: 6443 8132
neighbour kube-controllers -> kube-apiserver: 6443 8132
team pod -> kube-apiserver: 6443 8132
DNS -> kube-apiserver: 6443 8132
false DNS -> kube-apiserver: 6443 8132
system pod -> kube-apiserver: 6443 8132
DNS on the node -> kube-apiserver: 6443 8132
cloud metadata -> kube-apiserver: 6443 8132
internet -> kube-apiserver: 6443 8132";

#[test]
fn who_may_reach_whom() {
    for world in [World::small(), World::large()] {
        assert_eq!(matrix(allowed, &world, &policies(&world)), MATRIX);
    }
}

#[test]
fn an_unknown_operator_opens_nothing() {
    let world = World::small().with(|world| world.platform.operator_namespace.clear());
    let without: Vec<&str> = MATRIX.lines().filter(|line| *line != "operator -> etcd: 2379").collect();
    assert_eq!(matrix(allowed, &world, &policies(&world)), without.join("\n"));
}

#[test]
fn the_operator_alone_asks_who_called() {
    let world = super::audit::watching(&["networking.k8s.io/v1beta1"]);
    let servers = "operator -> kube-apiserver: 6443 8132";
    let expected = MATRIX.replacen(servers, &format!("{servers} 8448"), 1);
    assert_eq!(matrix(allowed, &world, &policies(&world)), expected);
}

/// Every policy with one thing changed: itself gone, a rule gone, a rule for everybody, a rule for every port.
fn mutants(policies: &[Object]) -> Vec<(String, Vec<Object>)> {
    let mut mutants = Vec::new();
    for (at, policy) in policies.iter().enumerate() {
        let name = &policy.reference.name;
        let mut without = policies.to_vec();
        without.remove(at);
        mutants.push((format!("{name} gone"), without));
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            let rules = policy.content["spec"][direction].as_array().map_or(0, Vec::len);
            for rule in 0..rules {
                let mut change = |what: &str, change: &dyn Fn(&mut Value)| {
                    let mut changed = policies.to_vec();
                    change(&mut changed[at].content["spec"][direction]);
                    if changed != policies {
                        mutants.push((format!("{name}, {direction} {rule}: {what}"), changed));
                    }
                };
                change("gone", &|rules| drop(rules.as_array_mut().unwrap().remove(rule)));
                change("for everybody", &|rules| drop(rules[rule].as_object_mut().unwrap().remove(peers)));
                change("every port", &|rules| drop(rules[rule].as_object_mut().unwrap().remove("ports")));
            }
        }
    }
    mutants
}

/// Each end by itself: what one end opens too much the other may hide.
fn both_ends(world: &World, policies: &[Object]) -> [String; 2] {
    [matrix(sends, world, policies), matrix(receives, world, policies)]
}

#[test]
fn each_end_opens_only_what_the_matrix_needs() {
    let world = World::small();
    let policies = policies(&world);
    let [sends, receives] = both_ends(&world, &policies);
    let of_ours = |line: &&str| {
        parties(&world)[..OURS].iter().any(|(name, _)| line.starts_with(&format!("{name} -> ")))
    };
    let to_ours =
        |line: &&str| parties(&world)[..OURS].iter().any(|(name, _)| line.contains(&format!(" -> {name}: ")));
    let lines = |text: &str, ours: &dyn Fn(&&str) -> bool| -> Vec<String> {
        text.lines().filter(ours).map(str::to_owned).collect()
    };
    assert_eq!(lines(&sends, &of_ours), lines(MATRIX, &of_ours));
    // API servers alone receive from anybody, those who do not send to them too.
    let received: Vec<String> = lines(&receives, &to_ours);
    let needed = lines(MATRIX, &to_ours);
    let more: Vec<&String> = received.iter().filter(|line| !needed.contains(line)).collect();
    assert!(more.iter().all(|line| line.ends_with(" -> kube-apiserver: 6443 8132")), "{more:?}");
    assert!(needed.iter().all(|line| received.iter().any(|other| other.starts_with(line.as_str()))));
}

#[test]
fn every_change_of_a_policy_is_seen() {
    let world = World::small();
    let policies = policies(&world);
    let right = both_ends(&world, &policies);
    let mutants = mutants(&policies);
    assert!(mutants.len() > 20, "{}", mutants.len());
    for (name, mutant) in mutants {
        assert_ne!(both_ends(&world, &mutant), right, "{name}");
    }
}
