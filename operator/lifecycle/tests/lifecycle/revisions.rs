//! Revisions and consent: a newer operator restarts nothing unasked.

use std::collections::BTreeSet;

use crate::world::World;

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
