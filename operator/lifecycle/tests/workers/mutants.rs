//! Planted mistakes, each of which a property or the model must find.

use kaas_lifecycle::workers::action::Action;
use kaas_lifecycle::workers::observed::{PoolObserved, Readiness, WorkerObserved};
use kaas_lifecycle::workers::pool::{self, PoolPlan};
use kaas_lifecycle::workers::worker::{self, WorkerPlan};
use proptest::test_runner::{Config, TestError, TestRunner};

use crate::anything;
use crate::fleet::Fleet;
use crate::properties::{config, pool_breaches, pools, worker_breaches, workers};

fn failed<T>(result: Result<(), TestError<T>>) -> String {
    match result {
        Err(TestError::Fail(why, _)) => why.to_string(),
        Err(TestError::Abort(why)) => panic!("it was not judged: {why}"),
        Ok(()) => String::new(),
    }
}

fn runner() -> TestRunner {
    // It ends when something is found, which need not be small.
    TestRunner::new(Config { max_shrink_iters: 0, ..config(4000) })
}

/// What the property of plans says of this planner.
fn of_pools(planner: fn(&PoolObserved) -> PoolPlan) -> String {
    failed(runner().run(&pools(), |(replicas, facts)| {
        let observed = anything::pool(replicas, &facts);
        pool_breaches(&observed, &planner(&observed))
    }))
}

fn of_workers(planner: fn(&WorkerObserved) -> WorkerPlan) -> String {
    failed(runner().run(&workers(), |facts| {
        let observed = anything::worker(&facts);
        worker_breaches(&observed, &planner(&observed))
    }))
}

fn delete_of(member: &kaas_lifecycle::workers::observed::Member) -> Action {
    Action::Delete { name: member.name().into(), uid: member.uid().into() }
}

#[test]
fn a_roll_that_takes_all_old_ones_at_once_is_found() {
    fn hasty(observed: &PoolObserved) -> PoolPlan {
        let mut plan = pool::plan(observed);
        let old = observed.members().filter(|member| !observed.is_current(&member.worker));
        let deletes: Vec<Action> = old.filter(|member| !member.going()).map(delete_of).collect();
        if !deletes.is_empty() && observed.live {
            plan.waves = vec![deletes];
        }
        plan
    }
    let found = of_pools(hasty);
    assert!(found.contains("Budget: ") || found.contains("Choice: "), "{found}");
}

#[test]
fn a_silent_node_that_is_taken_for_a_dead_one_is_found() {
    fn nervous(observed: &PoolObserved) -> PoolPlan {
        let mut plan = pool::plan(observed);
        let silent =
            observed.members().find(|member| member.readiness == Readiness::Silent && !member.going());
        plan.waves.extend(silent.map(|member| vec![delete_of(member)]));
        plan
    }
    let found = of_pools(nervous);
    assert!(found.contains("Choice: delete Worker"), "{found}");
}

#[test]
fn names_that_are_never_used_again_are_found_to_double_workers() {
    /// Counts on: the next number instead of the lowest free one.
    fn counting(observed: &PoolObserved) -> PoolPlan {
        let mut plan = pool::plan(observed);
        let next = observed.workers.len();
        for action in plan.waves.iter_mut().flatten() {
            if let Action::Create { worker, .. } = action {
                worker.metadata.name = Some(format!("p-{next}"));
            }
        }
        plan
    }
    let found = of_pools(counting);
    assert!(found.contains("Count: create Worker"), "{found}");
}

#[test]
fn one_worker_too_many_is_found() {
    fn generous(observed: &PoolObserved) -> PoolPlan {
        let mut more = observed.clone();
        more.pool.spec.replicas += 1;
        pool::plan(&more)
    }
    let found = of_pools(generous);
    assert!(found.contains("there would be more workers than asked for"), "{found}");
}

#[test]
fn a_list_that_lags_and_is_believed_is_found() {
    fn trusting(observed: &PoolObserved) -> PoolPlan {
        pool::plan(&PoolObserved { live: true, ..observed.clone() })
    }
    let found = of_pools(trusting);
    assert!(found.contains("the list of workers may lag"), "{found}");
}

#[test]
fn a_machine_that_goes_before_its_pods_is_found() {
    fn hasty(observed: &WorkerObserved) -> WorkerPlan {
        worker::plan(&WorkerObserved { pods: Some(Vec::new()), ..observed.clone() })
    }
    let found = of_workers(hasty);
    assert!(found.contains("Drain: delete the machine: pods are left"), "{found}");
}

#[test]
fn a_finalizer_that_goes_although_the_infrastructure_says_nothing_is_found() {
    fn hopeful(observed: &WorkerObserved) -> WorkerPlan {
        use kaas_lifecycle::workers::observed::Fact;
        let machine = match &observed.machine {
            Fact::Unread => Fact::Absent,
            seen => seen.clone(),
        };
        worker::plan(&WorkerObserved { machine, ..observed.clone() })
    }
    let found = of_workers(hopeful);
    assert!(found.contains("is not known to be gone") || found.contains("it may have a machine"), "{found}");
}

#[test]
fn a_node_of_another_machine_that_is_deleted_is_found() {
    fn careless(observed: &WorkerObserved) -> WorkerPlan {
        let mut plan = worker::plan(observed);
        if let (true, Some(node)) = (observed.deleting(), observed.node.found()) {
            plan.waves = vec![vec![Action::DeleteNode { uid: node.uid.clone() }]];
        }
        plan
    }
    let found = of_workers(careless);
    assert!(
        found.contains("delete the Node: it is not guarded")
            || found.contains("delete the Node: its machine"),
        "{found}"
    );
}

#[test]
fn a_planner_that_forgets_the_node_is_found() {
    /// Ends a worker when its machine is gone.
    fn forgetful(observed: &WorkerObserved) -> WorkerPlan {
        let mut plan = worker::plan(observed);
        for action in plan.waves.iter_mut().flatten() {
            if matches!(action, Action::DeleteNode { .. }) {
                let resource_version = observed.worker.metadata.resource_version.clone().unwrap();
                *action = Action::RemoveFinalizer { resource_version };
            }
        }
        plan
    }
    // The search for orphans would find that node in a while: until then the next worker of its name could not join.
    let found = of_workers(forgetful);
    assert!(found.contains("remove the finalizer: its node is not known to be gone"), "{found}");
}

#[test]
fn a_planner_that_never_rests_is_found() {
    /// Stores the choice again and again, in another order.
    fn restless(observed: &PoolObserved) -> PoolPlan {
        let mut plan = pool::plan(observed);
        if plan.is_empty() && observed.pool.spec.replicas > 1 {
            let resource_version = observed.pool.metadata.resource_version.clone().unwrap();
            plan.waves = vec![vec![Action::Record { resource_version, removals: Vec::new() }]];
        }
        plan
    }
    let found = std::panic::catch_unwind(|| {
        let mut fleet = Fleet::settled(2);
        fleet.plan_pool = restless;
        fleet.settle();
    });
    assert!(found.is_err(), "it came to rest");
}
