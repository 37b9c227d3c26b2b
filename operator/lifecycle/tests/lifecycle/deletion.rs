//! Deletion always ends and leaves nothing.

use jiff::SignedDuration;
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::plan::plan;
use kaas_lifecycle::workers::report::Tally;

use crate::world::World;

#[test]
fn a_running_cluster_goes() {
    let mut world = World::demo();
    world.settle();
    world.delete();
    world.settle();
    assert!(
        world.gone && world.namespaces.is_empty() && world.objects.is_empty() && world.kubeconfig.is_none()
    );
}

#[test]
fn deletion_ends_from_every_moment_of_a_creation() {
    for steps in 0..8 {
        let mut world = World::demo();
        for _ in 0..steps {
            world.reconcile();
            world.controllers();
        }
        world.delete();
        world.delete();
        world.settle();
        assert!(world.gone && world.namespaces.is_empty(), "after {steps} steps");
    }
}

#[test]
fn deletion_ends_from_every_write_of_a_creation() {
    // The operator dies after its k-th write; whoever takes over sees a deletion.
    for limit in 1.. {
        let mut world = World::demo();
        let done = crate::safety::crash_after(&mut world, limit);
        world.delete();
        world.settle();
        assert!(world.gone && world.namespaces.is_empty(), "after {limit} writes");
        if done {
            break;
        }
    }
}

#[test]
fn it_waits_for_its_workers_and_says_so() {
    let mut world = World::demo();
    world.settle();
    world.workers = Tally { desired: 2, ready: 2, left: 2, ..Tally::default() };
    world.reconcile();
    assert_eq!(world.condition("WorkersReady"), ("True".into(), "AllReady".into()));
    assert_eq!(world.cluster.status.as_ref().unwrap().workers.summary, "2/2");
    world.delete();
    world.settle();
    assert!(!world.gone && world.namespaces.is_empty());
    assert_eq!(world.summary(), "Deleting: waiting for 2 workers");
    world.workers.blocked = Some("Worker p-0: its machine stays".into());
    world.reconcile();
    assert_eq!(world.summary(), "Deleting: waiting for 2 workers; Worker p-0: its machine stays");
    world.now += SignedDuration::from_mins(3);
    world.reconcile();
    assert_eq!(world.condition("Stalled"), ("True".into(), "DeletionBlocked".into()));
    // What was not read is not gone.
    let observed = Observed { workers: None, ..world.observe() };
    assert!(plan(&observed).is_empty());
    world.workers = Tally::default();
    world.settle();
    assert!(world.gone);
}

#[test]
fn a_paused_cluster_can_be_deleted() {
    let mut world = World::demo();
    world.settle();
    world.edit(|spec| spec.paused = true);
    world.delete();
    world.settle();
    assert!(world.gone);
}

#[test]
fn somebody_elses_secret_survives() {
    let mut world = World::demo();
    world.kubeconfig = Some(kaas_lifecycle::observed::Secret { uid: "theirs".into(), ..Default::default() });
    world.settle();
    assert_eq!(world.condition("Stalled"), ("True".into(), "SecretNameTaken".into()));
    assert!(
        world.summary().starts_with("Running, but stalled: Secret demo/blue-kubeconfig"),
        "{}",
        world.summary()
    );
    world.delete();
    world.settle();
    assert!(world.gone && world.kubeconfig.is_some());
}
