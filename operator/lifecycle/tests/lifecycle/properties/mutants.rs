//! Planted mistakes, each of which the property of the same subject must find.

use kaas_lifecycle::action::{Action, EtcdOrder};
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::plan::{Plan, plan};
use proptest::test_runner::{TestError, TestRunner};

use super::{breaches, comes_to_rest, config, found, life};
use crate::anything::{on_its_way, seen};

/// Why a property does not hold; nothing if it holds.
fn failed<T>(result: Result<(), TestError<T>>) -> String {
    match result {
        Err(TestError::Fail(why, _)) => why.to_string(),
        Err(TestError::Abort(why)) => panic!("it was not judged: {why}"),
        Ok(()) => String::new(),
    }
}

fn runner() -> TestRunner {
    // It ends when something is found, which need not be small.
    TestRunner::new(proptest::test_runner::Config { max_shrink_iters: 0, ..config(4000) })
}

/// What the property of plans says of this planner.
fn breach(planner: fn(&Observed) -> Plan) -> String {
    failed(runner().run(&found(), |(spec, steps, facts)| {
        let observed = seen(&on_its_way(spec, steps), &facts);
        breaches(&observed, planner(&observed))
    }))
}

#[test]
fn a_member_that_goes_without_a_look_at_the_quorum_is_found() {
    /// Restarts the first member that runs an earlier template, whatever the others do.
    fn blind(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let asked = !observed.deleting() && !observed.cluster.spec.paused;
        if let (true, Some(pod)) = (asked, kaas_lifecycle::etcd::outdated(observed).first()) {
            let home = observed.tenant.control_plane_namespace();
            let reference = Reference::namespaced(Kind::Pod, home, &pod.name);
            plan.waves = vec![vec![Action::Delete { reference, uid: pod.uid.clone(), grace: None }]];
        }
        plan
    }
    let found = breach(blind);
    assert!(found.contains("Quorum: delete Pod") || found.contains("Budget: delete Pod"), "{found}");
}

#[test]
fn a_member_that_is_removed_because_another_is_dead_is_found() {
    /// Takes a healthy member for the dead one.
    fn mistaken(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
        let (well, dead): (Vec<_>, Vec<_>) = members.partition(|member| member.healthy);
        if let (true, Some(member), false) = (plan.is_empty(), well.last(), dead.is_empty()) {
            plan.waves = vec![vec![Action::Etcd(EtcdOrder::Remove { id: member.id })]];
        }
        plan
    }
    let found = breach(mistaken);
    assert!(found.contains("Quorum: remove etcd member"), "{found}");
}

#[test]
fn actions_that_come_twice_are_found() {
    fn twice(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        plan.waves = plan.waves.iter().flat_map(|wave| [wave.clone(), wave.clone()]).collect();
        plan
    }
    let found = breach(twice);
    assert!(found.contains("it is not the only one in the plan"), "{found}");
}

#[test]
fn a_uid_that_is_forgotten_is_found() {
    fn forgetful(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        for action in plan.waves.iter_mut().flatten() {
            if let Action::Delete { uid, .. } = action {
                uid.clear();
            }
        }
        plan
    }
    let found = breach(forgetful);
    assert!(found.contains("Precondition: delete"), "{found}");
}

#[test]
fn a_planner_without_patience_is_found() {
    /// Does not wait for the leadership to move: it takes the leader away at once, which etcd refuses.
    fn impatient(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let leader = observed.etcd.as_ref().map_or(0, |etcd| etcd.leader);
        for action in plan.waves.iter_mut().flatten() {
            if matches!(action, Action::Etcd(EtcdOrder::MoveLeader { .. })) {
                *action = Action::Etcd(EtcdOrder::Remove { id: leader });
            }
        }
        plan
    }
    let found = failed(runner().run(&life(), |((spec, steps), turns)| {
        let mut world = on_its_way(spec, steps);
        world.planner = impatient;
        comes_to_rest(world, &turns)
    }));
    assert!(found.contains("the leadership moves away first"), "{found}");
}
