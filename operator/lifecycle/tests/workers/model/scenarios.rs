//! The worlds that are explored. Each says how many states it has at least, about four fifths of what was seen when it was
//! written, and what it must have come by: an exploration of nothing finds nothing.

use kaas_lifecycle::workers::action::Action;
use kaas_lifecycle::workers::observed::{PoolObserved, WorkerObserved};
use kaas_lifecycle::workers::pool::{self, PoolPlan};
use kaas_lifecycle::workers::worker::{self, WorkerPlan};

use super::{LATE, ORPHAN, RESTS, STALE, Tiny, explore};
use crate::fleet::Fleet;

fn check(tiny: Tiny, least: usize, wanted: &[&'static str]) {
    let states = explore(Tiny { wanted: wanted.to_vec(), ..tiny }).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(states >= least, "{states} instead of {least} states");
}

/// A settled pool whose user has just asked for another number.
fn scaled(from: i32, to: i32) -> Fleet {
    let mut fleet = Fleet::settled(from);
    fleet.edit(|spec| spec.replicas = to);
    fleet
}

/// One whose user has just asked for another kind of machine.
fn rolling(replicas: i32, surge: i32, unavailable: i32) -> Fleet {
    let mut fleet = Fleet::settled(replicas);
    fleet.edit(|spec| {
        spec.instance_types = vec!["large".into()];
        spec.rollout.max_surge = surge;
        spec.rollout.max_unavailable = unavailable;
    });
    fleet
}

fn of(begin: Fleet) -> Tiny {
    Tiny::new(begin)
}

#[test]
fn a_pool_grows() {
    check(Tiny { most: 2, delay: true, ..of(Fleet::new(1)) }, 75, &[RESTS, LATE]);
    check(Tiny { most: 2, lag: true, least_ready: 1, ..of(scaled(1, 2)) }, 53, &[RESTS, STALE]);
}

#[test]
fn a_pool_that_shrinks_loses_no_more_than_asked_for() {
    let begin = || {
        let mut fleet = scaled(3, 1);
        fleet.pod("p-0", "a");
        fleet.pod("p-1", "b");
        fleet
    };
    check(Tiny { delay: true, least: 1, least_ready: 1, most: 1, ..of(begin()) }, 6800, &[RESTS, LATE]);
    check(Tiny { lag: true, least: 1, least_ready: 1, most: 1, ..of(begin()) }, 1950, &[RESTS, STALE]);
}

#[test]
fn a_user_changes_his_mind() {
    let edit: fn(&mut Fleet) = |fleet| fleet.edit(|spec| spec.replicas = 0);
    check(Tiny { edit: Some(edit), delay: true, ..of(Fleet::new(1)) }, 7600, &[RESTS, LATE, ORPHAN]);
}

#[test]
fn a_template_goes_through_with_one_more() {
    check(
        Tiny { lag: true, least: 1, least_ready: 1, most: 2, ..of(rolling(1, 1, 0)) },
        640,
        &[RESTS, STALE],
    );
    check(
        Tiny { delay: true, least: 1, least_ready: 1, most: 2, ..of(rolling(1, 1, 0)) },
        2030,
        &[RESTS, LATE],
    );
    check(
        Tiny { delay: true, least: 2, least_ready: 2, most: 3, ..of(rolling(2, 1, 0)) },
        28000,
        &[RESTS, LATE],
    );
}

#[test]
fn a_template_goes_through_with_one_less() {
    check(
        Tiny { lag: true, least: 1, least_ready: 1, most: 2, ..of(rolling(2, 0, 1)) },
        1600,
        &[RESTS, STALE],
    );
}

#[test]
fn a_pool_goes() {
    let mut fleet = Fleet::settled(1);
    fleet.pod("p-0", "a");
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(fleet.now);
    fleet.pool.as_mut().unwrap().metadata.deletion_timestamp = Some(now);
    check(Tiny { delay: true, ..of(fleet) }, 90, &[RESTS, LATE]);
}

/// What runs ends with the cluster, whatever its API and its pods do.
#[test]
fn a_cluster_goes_and_its_workers_with_it() {
    let edit: fn(&mut Fleet) = |fleet| {
        let cluster = fleet.cluster.as_mut().unwrap();
        (cluster.deleting, cluster.serving) = (true, false);
        // Its nodes and pods are nobody's any more.
        fleet.nodes.clear();
        fleet.pods.clear();
        fleet.spec().replicas = 0;
    };
    check(Tiny { edit: Some(edit), delay: true, ..of(Fleet::new(1)) }, 370, &[RESTS, LATE]);
}

#[test]
fn a_pool_that_forgets_its_choice_is_found() {
    /// Deletes what it chooses, at once.
    fn rash(observed: &PoolObserved) -> PoolPlan {
        let mut plan = pool::plan(observed);
        for action in plan.waves.iter_mut().flatten() {
            if let Action::Record { removals, .. } = action
                && let Some(first) = removals.first()
            {
                *action = Action::Delete { name: first.name.clone(), uid: first.uid.clone() };
            }
        }
        plan
    }
    let mut begin = scaled(3, 2);
    begin.plan_pool = rash;
    // What makes it choose another one.
    let edit: fn(&mut Fleet) = |fleet| fleet.pod("p-0", "a");
    let tiny = Tiny { unlinted: true, delay: true, edit: Some(edit), least: 2, ..of(begin) };
    let found = explore(tiny).expect_err("it found nothing");
    assert!(found.contains("only 1 workers stay"), "{found}");
}

#[test]
fn a_machine_that_goes_too_early_is_found() {
    fn hasty(observed: &WorkerObserved) -> WorkerPlan {
        worker::plan(&WorkerObserved { pods: Some(Vec::new()), ..observed.clone() })
    }
    let mut begin = scaled(1, 0);
    begin.pod("p-0", "a");
    begin.plan_worker = hasty;
    let found = explore(Tiny { unlinted: true, ..of(begin) }).expect_err("it found nothing");
    assert!(found.contains("a machine went with pods on it"), "{found}");
}
