//! The worlds that are explored. Each says how many states it has at least, about four fifths of what was seen when it
//! was written, and what it must have come by: an exploration of nothing finds nothing.

use serde_json::{Value, json};

use super::invariants::{GONE, GROWN, LATE, LEADERLESS, LOST, RUNS};
use super::steps::{May, Tiny};
use super::{World, explore};

pub(super) fn world(members: i32, storage: Value) -> World {
    World::new(json!({
        "version": "v1.37.1",
        "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
        "etcd": {"replicas": members, "storage": storage},
    }))
}

pub(super) fn settled(members: i32) -> World {
    let mut world = world(members, persistent());
    world.settle();
    world
}

pub(super) fn persistent() -> Value {
    json!({"persistent": {"size": "1Gi"}})
}

/// A settled world whose user has just asked for another number of members.
pub(super) fn resized(from: i32, to: i32) -> World {
    let mut world = settled(from);
    world.edit(|spec| spec.etcd.replicas = to);
    world
}

/// Three members, and consent to restart them one after the other.
pub(super) fn rolling() -> World {
    let mut world = settled(3);
    world.platform.registry = "mirror.example".into();
    world.reconcile();
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world
}

/// Explores a world, and sees whether it was large enough and came by what it should.
fn check(begin: World, may: May, least: usize, wanted: &[&'static str]) {
    let seen = explore(Tiny::new(begin, may).wants(wanted)).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(seen.states >= least && seen.ends > 0, "{seen:?} instead of {least} states");
}

const MAY: May = May { delay: false, lag: false, lose: false, edit: None, delete: false };

#[test]
fn a_creation_that_is_given_up() {
    check(world(1, persistent()), May { delete: true, ..MAY }, 1800, &[RUNS, GONE]);
}

#[test]
fn a_creation_with_late_writes() {
    check(world(1, persistent()), May { delay: true, ..MAY }, 3000, &[RUNS, LATE]);
}

#[test]
fn one_member_becomes_three() {
    let begin = resized(1, 3);
    check(begin.clone(), May { delay: true, ..MAY }, 700, &[RUNS, GROWN, LATE]);
    check(begin.clone(), May { lag: true, ..MAY }, 600, &[RUNS, GROWN]);
    check(begin, May { lose: true, ..MAY }, 1200, &[RUNS, GROWN, LOST, LEADERLESS]);
}

#[test]
fn three_members_become_one() {
    let begin = resized(3, 1);
    check(begin.clone(), May { delay: true, ..MAY }, 370, &[RUNS, LATE]);
    check(begin.clone(), May { lag: true, ..MAY }, 600, &[RUNS]);
    check(begin, May { lose: true, ..MAY }, 1100, &[RUNS, LOST, LEADERLESS]);
}

#[test]
fn a_change_of_mind() {
    let back = May { edit: Some(|world| world.edit(|spec| spec.etcd.replicas = 1)), ..MAY };
    check(resized(1, 3), back, 2600, &[RUNS, GROWN]);
}

#[test]
fn members_are_restarted() {
    let begin = rolling();
    check(begin.clone(), May { delay: true, ..MAY }, 400, &[RUNS, LATE]);
    check(begin.clone(), May { lag: true, ..MAY }, 600, &[RUNS]);
    check(begin, May { lose: true, ..MAY }, 900, &[RUNS, LOST, LEADERLESS]);
}

#[test]
fn a_member_without_a_volume_dies() {
    let mut begin = world(3, json!({"ephemeral": {}}));
    begin.settle();
    check(begin.clone(), May { lose: true, delay: true, ..MAY }, 200, &[RUNS, LOST, LEADERLESS, LATE]);
    check(begin, May { lose: true, lag: true, ..MAY }, 380, &[RUNS, LOST, LEADERLESS]);
}

#[test]
fn a_deletion_with_late_writes_and_late_reads() {
    check(settled(1), May { delete: true, delay: true, lag: true, ..MAY }, 1500, &[RUNS, GONE]);
}
