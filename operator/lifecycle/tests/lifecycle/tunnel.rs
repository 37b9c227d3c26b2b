//! The tunnel: it comes with the release's images for workers, and its certificate follows the endpoint.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use kaas_lifecycle::object::{Kind, Reference};
use serde_json::{Value, json};

use crate::world::{LEAF_LIFETIME, World};

/// Pods by their components.
fn pods(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in &world.pods {
        all.entry(pod.component.clone()).or_default().insert(pod.uid.clone());
    }
    all
}

#[test]
fn its_certificate_names_itself_and_the_endpoint() {
    let names = |world: &World| {
        let certificate = &world.secrets["konnectivity-server"].certificates["konnectivity"];
        (certificate.dns_names.clone(), certificate.ip_addresses.clone())
    };
    let own = "konnectivity-server".to_owned();
    let mut world = World::demo();
    world.gain_images();
    world.settle();
    assert_eq!(world.summary(), "Running");
    assert_eq!(names(&world), (BTreeSet::from([own.clone()]), BTreeSet::new()));
    let client = &world.secrets["konnectivity-server"].certificates["konnectivity-client"];
    assert_eq!(client.common_name, "system:konnectivity-server");
    assert_eq!(client.organizations, BTreeSet::new(), "it has what is bound to its name alone");
    let before = pods(&world);

    world.platform.node_port_host = "api.example".into();
    world.settle();
    assert_eq!(names(&world), (BTreeSet::from([own, "api.example".to_owned()]), BTreeSet::new()));
    let after = pods(&world);
    assert_ne!(after["kube-apiserver"], before["kube-apiserver"], "agents know it by nothing else now");
    assert_eq!((&after["etcd"], &after["kube-controllers"]), (&before["etcd"], &before["kube-controllers"]));
}

#[test]
fn a_renewed_certificate_rolls_the_api_servers_once() {
    let mut world = World::demo();
    world.gain_images();
    world.edit(|spec| spec.control_plane.replicas = 3);
    world.settle();
    let first = pods(&world);
    assert_eq!(world.secrets["konnectivity-server"].renewed, None);
    world.now += LEAF_LIFETIME * 2 / 3 + SignedDuration::from_mins(10);
    world.settle();
    assert_eq!(world.secrets["etcd"].renewed, None, "members read theirs again");
    let second = pods(&world);
    assert!(second["kube-apiserver"].is_disjoint(&first["kube-apiserver"]), "{second:?}");
    assert_eq!((&second["etcd"], &second["kube-controllers"]), (&first["etcd"], &first["kube-controllers"]));
    world.now += SignedDuration::from_hours(1);
    world.settle();
    world.edit(|spec| spec.control_plane.replicas = 1);
    world.settle();
    assert!(pods(&world)["kube-apiserver"].is_subset(&second["kube-apiserver"]), "and stays");
}

/// Objects inside, by kind and name.
fn inside(world: &World) -> BTreeSet<String> {
    world.inside.keys().map(ToString::to_string).collect()
}

fn workloads(world: &World) -> Vec<String> {
    let pods = |text: &&String| text.starts_with("DaemonSet") || text.starts_with("Deployment");
    inside(world).iter().filter(pods).cloned().collect()
}

#[test]
fn addons_come_with_the_first_worker_and_stay() {
    let mut world = World::demo();
    world.gain_images();
    world.settle();
    assert_eq!(workloads(&world), Vec::<String>::new());
    assert!(inside(&world).contains("ConfigMap kube-public/cluster-info"));
    assert_eq!(world.condition("AddonsReady"), ("True".into(), "NoAddons".into()));
    assert_eq!(world.condition("TunnelHealthy"), ("True".into(), "NoWorkers".into()));
    let control_plane = pods(&world);

    (world.workers.desired, world.workers.left) = (2, 2);
    world.settle();
    let all = [
        "DaemonSet kube-system/flannel",
        "DaemonSet kube-system/konnectivity-agent",
        "DaemonSet kube-system/kube-proxy",
        "Deployment kube-system/coredns",
        "Deployment kube-system/metrics-server",
    ];
    assert_eq!(workloads(&world), all);
    assert_eq!(world.condition("AddonsReady"), ("False".into(), "AddonsNotReady".into()));

    world.edit(|spec| spec.addons.metrics_server.enabled = false);
    world.settle();
    assert_eq!(workloads(&world), all[..4]);
    assert!(!inside(&world).iter().any(|name| name.contains("metrics")), "{:?}", inside(&world));
    world.edit(|spec| spec.addons.metrics_server.enabled = true);
    world.settle();
    (world.workers.desired, world.workers.left) = (0, 0);
    world.settle();
    assert_eq!(workloads(&world), all, "who had workers may have some again");
    assert_eq!(pods(&world), control_plane);
}

/// Pods that are ready, and pods that there should be, as the tenant's own controllers say.
fn say(world: &mut World, kind: Kind, name: &str, status: Value) {
    let reference = Reference::namespaced(kind, "kube-system", name);
    std::sync::Arc::make_mut(world.inside.get_mut(&reference).unwrap()).content["status"] = status;
}

/// A DaemonSet on two workers.
fn daemons(ready: i32) -> Value {
    json!({"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": ready})
}

#[test]
fn what_is_said_of_addons_and_tunnel() {
    let mut world = World::demo();
    world.gain_images();
    world.workers.desired = 2;
    world.settle();
    let both = |world: &mut World| {
        world.settle();
        let said = ["AddonsReady", "TunnelHealthy"].map(|kind| {
            let status = world.cluster.status.as_ref().unwrap();
            let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            format!("{} {}: {}", found.status, found.reason, found.message)
        });
        assert_eq!(world.condition("Ready").0, "True", "which is about the control plane alone");
        said.join("\n")
    };
    insta::assert_snapshot!(both(&mut world), @"
    False AddonsNotReady: not ready: coredns 0 of 2, metrics-server 0 of 1
    True NoWorkers: no worker has joined that could be reached
    ");
    for name in ["flannel", "kube-proxy", "konnectivity-agent"] {
        say(&mut world, Kind::DaemonSet, name, daemons(0));
    }
    for (name, pods) in [("coredns", 2), ("metrics-server", 1)] {
        say(
            &mut world,
            Kind::Deployment,
            name,
            json!({"readyReplicas": pods, "updatedReplicas": pods, "replicas": pods}),
        );
    }
    insta::assert_snapshot!(both(&mut world), @"
    False AddonsNotReady: not ready: flannel 0 of 2, konnectivity-agent 0 of 2, kube-proxy 0 of 2
    False AgentsMissing: none of 2 agents is connected: logs, exec, webhooks and aggregated APIs fail
    ");
    for name in ["flannel", "kube-proxy"] {
        say(&mut world, Kind::DaemonSet, name, daemons(2));
    }
    say(&mut world, Kind::DaemonSet, "konnectivity-agent", daemons(1));
    insta::assert_snapshot!(both(&mut world), @"
    False AddonsNotReady: not ready: konnectivity-agent 1 of 2
    True AgentsConnected: 1 of 2 agents are connected
    ");
    say(&mut world, Kind::DaemonSet, "konnectivity-agent", daemons(2));
    insta::assert_snapshot!(both(&mut world), @"
    True AddonsRunning: all addons run
    True AgentsConnected: 2 of 2 agents are connected
    ");
    say(
        &mut world,
        Kind::DaemonSet,
        "kube-proxy",
        json!({"desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberReady": 2}),
    );
    let surging = json!({"readyReplicas": 2, "updatedReplicas": 2, "replicas": 3});
    say(&mut world, Kind::Deployment, "coredns", surging);
    insta::assert_snapshot!(both(&mut world), @"
    False AddonsNotReady: being replaced: coredns, kube-proxy
    True AgentsConnected: 2 of 2 agents are connected
    ");
    let proxy = Reference::namespaced(Kind::DaemonSet, "kube-system", "kube-proxy");
    say(&mut world, Kind::DaemonSet, "kube-proxy", daemons(2));
    say(
        &mut world,
        Kind::Deployment,
        "coredns",
        json!({"readyReplicas": 2, "updatedReplicas": 2, "replicas": 2}),
    );
    let live = std::sync::Arc::make_mut(world.inside.get_mut(&proxy).unwrap());
    live.content["metadata"]["generation"] = json!(2);
    insta::assert_snapshot!(both(&mut world), @"
    False AddonsNotReady: being replaced: kube-proxy
    True AgentsConnected: 2 of 2 agents are connected
    ");
    world.reachable = false;
    world.reconcile();
    assert_eq!(world.condition("TunnelHealthy"), ("Unknown".into(), "NotObserved".into()));
}

#[test]
fn addons_are_kept_as_they_are() {
    let mut world = World::demo();
    world.gain_images();
    world.workers.desired = 1;
    world.settle();
    let wanted = world.inside.clone();
    let content = |world: &World| -> Vec<(Reference, Value)> {
        world.inside.iter().map(|(reference, live)| (reference.clone(), live.content.clone())).collect()
    };
    for reference in wanted.keys() {
        let before = content(&world);
        world.inside.remove(reference);
        world.settle();
        assert_eq!(content(&world), before, "{reference} was removed");
        let live = std::sync::Arc::make_mut(world.inside.get_mut(reference).unwrap());
        live.content["metadata"]["labels"] = json!({});
        live.resource_version = "foreign".into();
        world.settle();
        assert_eq!(content(&world), before, "{reference} lost its labels");
    }
}

#[test]
fn a_newer_operator_restarts_nothing_on_workers() {
    let mut world = World::demo();
    world.gain_images();
    world.workers.desired = 1;
    world.settle();
    let before: BTreeMap<_, _> = world.inside.clone();
    world.platform.registry = "mirror.example".into();
    world.settle();
    assert_eq!(world.inside, before);
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    let line = "DaemonSet kube-proxy: spec.template.spec.containers[kube-proxy].image";
    assert!(pending.summary.contains(line), "{}", pending.summary);
    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world.settle();
    let proxy = Reference::namespaced(Kind::DaemonSet, "kube-system", "kube-proxy");
    assert!(world.inside[&proxy].content.to_string().contains("mirror.example/kube-proxy"));
}

#[test]
fn a_release_that_gains_images_restarts_nothing_unasked() {
    let mut world = World::demo();
    world.settle();
    assert!(!world.secrets.contains_key("konnectivity-server"));
    let before = pods(&world);
    world.gain_images();
    world.settle();
    assert_eq!(pods(&world), before);
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    assert!(pending.summary.contains("+ --egress-selector-config-file="), "{}", pending.summary);

    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world.settle();
    let after = pods(&world);
    assert_ne!(after["kube-apiserver"], before["kube-apiserver"]);
    assert_eq!(after["etcd"], before["etcd"]);
    assert_eq!(after["kube-controllers"], before["kube-controllers"]);
}

#[test]
fn what_runs_on_workers_restarts_no_control_plane() {
    let mut world = World::demo();
    world.gain_images();
    world.settle();
    let before = pods(&world);
    world.edit(|spec| spec.addons.metrics_server.enabled = false);
    world.settle();
    assert_eq!(pods(&world), before);
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
}
