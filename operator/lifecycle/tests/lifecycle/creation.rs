//! From nothing to Ready, in as few writes as possible, and then quiet.

use kaas_lifecycle::plan::{Plan, plan};
use serde_json::json;

use crate::world::{World, told};

fn script(plans: &[Plan]) -> String {
    let waves = plans.iter().flat_map(|plan| plan.waves.iter());
    let lines = waves.map(|wave| {
        let mut wave: Vec<String> = wave.iter().map(told).collect();
        wave.sort();
        wave.join(" | ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_demo_comes_up() {
    let mut world = World::demo();
    let mut story = vec![script(&world.reconcile())];
    for _ in 0..6 {
        world.controllers();
        let plans = world.reconcile();
        if !plans.is_empty() {
            story.push(script(&plans));
        }
    }
    insta::assert_snapshot!(story.join("\n--\n"));
    assert_eq!(world.summary(), "Running");
    assert_eq!(world.condition("Ready"), ("True".into(), "Serving".into()));
    assert_eq!(world.condition("Reconciling"), ("False".into(), "Settled".into()));
    assert_eq!(world.condition("Stalled"), ("False".into(), "Settled".into()));
    let status = world.cluster.status.as_ref().unwrap();
    assert_eq!(status.endpoint.as_deref(), Some("https://10.77.0.1:30443"));
    assert_eq!(status.version.as_deref(), Some("v1.37.1"));
    assert_eq!(status.history.len(), 1);
    assert!(status.operation.is_none());
}

#[test]
fn a_settled_world_is_left_alone() {
    for (replicas, members, endpoint) in
        [(1, 1, "ClusterIP"), (1, 1, "NodePort"), (3, 3, "ClusterIP"), (2, 5, "NodePort")]
    {
        let mut world = World::new(json!({
            "version": "v1.37.1",
            "controlPlane": {"replicas": replicas, "endpoint": {"type": endpoint}},
            "etcd": {"replicas": members, "storage": {"persistent": {"size": "1024Mi"}}},
        }));
        world.settle();
        assert_eq!(world.summary(), "Running", "{replicas} {members} {endpoint}");
        let (writes, status_writes) = (world.writes, world.status_writes);
        for _ in 0..5 {
            world.now += jiff::SignedDuration::from_hours(1);
            assert!(plan(&world.observe()).is_empty());
            world.reconcile();
        }
        assert_eq!(
            (world.writes, world.status_writes),
            (writes, status_writes),
            "{replicas} {members} {endpoint}"
        );
    }
}

#[test]
fn a_creation_takes_no_more_writes_than_objects_and_four() {
    let mut world = World::demo();
    world.settle();
    let secrets = world.secrets.len() + usize::from(world.kubeconfig.is_some());
    let objects = world.objects.len() + world.namespaces.len() + secrets + world.inside.len();
    // `writes` counts the finalizer too.
    let extra = world.writes + world.status_writes - u64::try_from(objects).unwrap();
    assert!(extra <= 4, "{extra} writes beyond {objects} objects");
}

#[test]
fn an_unknown_version_is_a_condition_that_lists_what_there_is() {
    let mut world = World::demo();
    world.cluster.spec.version = "v1.40.0".into();
    world.settle();
    assert_eq!(world.summary(), "Stalled: spec.version: v1.40.0 is not in the catalogue, which has v1.37.1");
    assert_eq!(world.condition("Stalled"), ("True".into(), "VersionNotInCatalogue".into()));
    assert!(world.namespaces.is_empty());
    world.catalogue.insert("v1.40.0".into(), crate::world::release("v1.40.0"));
    world.settle();
    assert_eq!(world.summary(), "Running");
}

#[test]
fn a_node_port_without_a_host_is_the_platforms_to_solve() {
    let mut world = World::demo();
    world.platform.node_port_host.clear();
    world.settle();
    assert_eq!(world.condition("Ready"), ("False".into(), "EndpointHostMissing".into()));
    assert!(world.objects.is_empty());
}

#[test]
fn a_pod_that_cannot_start_is_named() {
    let mut world = World::demo();
    for _ in 0..2 {
        world.reconcile();
        world.controllers();
    }
    let pod = world.pods.iter_mut().find(|pod| pod.component == "kube-apiserver").unwrap();
    pod.trouble = Some(kaas_lifecycle::observed::Trouble {
        reason: "ImagePullBackOff".into(),
        message: "no such image".into(),
    });
    world.now += jiff::SignedDuration::from_secs(30);
    world.reconcile();
    assert!(world.summary().starts_with("Creating: Pod "), "{}", world.summary());
    assert!(world.summary().ends_with("ImagePullBackOff: no such image"), "{}", world.summary());
    assert_eq!(world.condition("ControlPlaneAvailable"), ("False".into(), "PodsFailing".into()));
}

#[test]
fn api_servers_wait_until_etcd_has_a_place() {
    let mut world = World::demo();
    world.reconcile();
    world.controllers();
    world.pods.iter_mut().for_each(|pod| pod.placed = false);
    assert!(world.reconcile().is_empty(), "a volume is still being made");
    world.pods.iter_mut().filter(|pod| pod.component == "etcd").for_each(|pod| pod.placed = true);
    let applied = format!("{:?}", world.reconcile());
    assert!(applied.contains("Deployment") && applied.contains("kube-apiserver"), "{applied}");
}

#[test]
fn an_endpoint_that_does_not_resolve_keeps_nobody_from_his_rights() {
    let mut world = World::demo();
    world.reconcile();
    while world.observe().inside.is_none() {
        world.controllers();
        world.reconcile();
    }
    world.inside.clear();
    let mut observed = world.observe();
    observed.addresses.clear();
    let actions = format!("{:?}", kaas_lifecycle::plan::plan(&observed).waves);
    assert!(actions.contains("ClusterRoleBinding") && !actions.contains("EndpointSlice"), "{actions}");
}
