//! Revisions and consent: a newer operator restarts nothing unasked.

use std::collections::BTreeSet;

use kaas_lifecycle::object::Kind;

use crate::world::{World, release};

fn pods(world: &World) -> BTreeSet<String> {
    world.pods.iter().map(|pod| pod.uid.clone()).collect()
}

/// Another registry renders other pod templates, as another operator version would.
fn newer_operator(world: &mut World) {
    world.platform.registry = "mirror.example".into();
}

#[test]
fn a_newer_rendering_waits_for_consent() {
    let mut world = World::demo();
    world.settle();
    let before = pods(&world);
    newer_operator(&mut world);
    world.settle();
    assert_eq!(pods(&world), before, "nothing restarts");
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    assert!(
        pending
            .summary
            .contains("registry.k8s.io/kube-apiserver:v1.37.1 -> mirror.example/kube-apiserver:v1.37.1"),
        "{}",
        pending.summary
    );
    assert_eq!(world.condition("UpToDate"), ("False".into(), "RevisionPending".into()));
    assert_eq!(world.condition("Ready").0, "True");

    world.edit(|spec| spec.accept_revision = Some("something else".into()));
    world.settle();
    assert_eq!(pods(&world), before, "only the revision that is shown counts as consent");

    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world.settle();
    assert!(pods(&world).is_disjoint(&before), "everything was replaced");
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
    assert_eq!(world.condition("UpToDate"), ("True".into(), "RevisionCurrent".into()));
}

#[test]
fn a_change_of_the_spec_takes_what_is_pending() {
    let mut world = World::demo();
    world.settle();
    newer_operator(&mut world);
    world.settle();
    world.edit(|spec| spec.control_plane.replicas = 2);
    world.settle();
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
    assert_eq!(world.summary(), "Running");
}

#[test]
fn pausing_is_no_change_of_intent() {
    let mut world = World::demo();
    world.settle();
    let before = pods(&world);
    newer_operator(&mut world);
    world.edit(|spec| spec.paused = true);
    world.settle();
    world.edit(|spec| spec.paused = false);
    world.settle();
    assert_eq!(pods(&world), before);
    assert!(world.cluster.status.as_ref().unwrap().pending.is_some());
}

#[test]
fn switching_an_api_on_and_off_is_asked_for() {
    let mut world = World::demo();
    world.settle();
    let of = |world: &World, component: &str| -> BTreeSet<String> {
        world.pods.iter().filter(|pod| pod.component == component).map(|pod| pod.uid.clone()).collect()
    };
    let before = pods(&world);
    let revisions = |world: &World| -> Vec<(i64, i64)> {
        let kept = world.objects.iter().filter(|(reference, _)| reference.kind == Kind::ControllerRevision);
        let mut kept: Vec<_> =
            kept.map(|(_, live)| (live.count("/revision"), live.count("/data/hashVersion"))).collect();
        kept.sort_unstable();
        kept
    };
    assert_eq!(revisions(&world), [(1, 1)]);
    world.edit(|spec| {
        spec.control_plane.runtime_config.0.insert("resource.k8s.io/v1beta1".into(), true);
    });
    world.settle();
    assert!(of(&world, "kube-apiserver").is_disjoint(&before), "API servers restart");
    assert!(of(&world, "etcd").is_subset(&before) && of(&world, "kube-controllers").is_subset(&before));
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
    assert_eq!(revisions(&world), [(1, 1), (2, 2)]);

    let switched = of(&world, "kube-apiserver");
    world.edit(|spec| spec.control_plane.runtime_config.0.clear());
    world.settle();
    assert!(of(&world, "kube-apiserver").is_disjoint(&switched));
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
    assert_eq!(revisions(&world).last(), Some(&(3, 1)));
}

#[test]
fn a_catalogue_that_learns_what_goes_restarts_nothing_unasked() {
    let mut world = World::demo();
    world.platform.operator_image = "operator:1".into();
    world.edit(|spec| {
        spec.control_plane.runtime_config.0.insert("resource.k8s.io/v1beta1".into(), true);
    });
    world.settle();
    let before = pods(&world);
    let mut next = release("v1.38.0");
    next.removes = vec!["resource.k8s.io/v1beta1".into()];
    world.catalogue.insert("v1.38.0".into(), next);
    world.settle();
    assert_eq!(pods(&world), before);
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    assert!(pending.summary.contains("audit"), "{}", pending.summary);
    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world.settle();
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
    assert_ne!(pods(&world), before);
}

#[test]
fn scaling_api_servers_restarts_none() {
    let mut world = World::demo();
    world.settle();
    let before = pods(&world);
    for replicas in [3, 1] {
        world.edit(|spec| spec.control_plane.replicas = replicas);
        world.settle();
        let running = world.pods.iter().filter(|pod| pod.component == "kube-apiserver").count();
        assert_eq!(running, usize::try_from(replicas).unwrap());
    }
    assert!(
        before.iter().filter(|uid| pods(&world).contains(*uid)).count() >= 2,
        "etcd and controllers stayed"
    );
}

#[test]
fn a_release_that_left_the_catalogue_keeps_its_clusters() {
    let mut world = World::demo();
    world.settle();
    let before = pods(&world);
    world.catalogue.clear();
    world.settle();
    assert_eq!(pods(&world), before);
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.condition("Stalled"), ("True".into(), "VersionNotInCatalogue".into()));
}

#[test]
fn etcd_api_servers_and_controllers_change_one_after_the_other() {
    let mut world = World::demo();
    world.settle();
    newer_operator(&mut world);
    world.settle();
    let revision = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
    world.edit(|spec| spec.accept_revision = Some(revision));
    for _ in 0..60 {
        world.reconcile();
        let changing: BTreeSet<&str> = world
            .pods
            .iter()
            .filter(|pod| pod.terminating || !pod.ready)
            .map(|pod| pod.component.as_str())
            .collect();
        assert!(changing.len() <= 1, "{changing:?} change together");
        world.controllers();
    }
    assert_eq!(world.summary(), "Running");
}
