//! What holds of every plan and every report, for any facts.

use std::sync::LazyLock;

use kaas_crds::name::worker_ordinal;
use kaas_lifecycle::workers::action::{Action, tell};
use kaas_lifecycle::workers::lint::{check_pool, check_worker};
use kaas_lifecycle::workers::observed::{PoolObserved, Readiness, WorkerObserved};
use kaas_lifecycle::workers::pool::{self, PoolPlan};
use kaas_lifecycle::workers::report::{pool_status, worker_status};
use kaas_lifecycle::workers::worker::{self, WorkerPlan};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::json;

use crate::anything::{Found, Sight, fact, found, pool, worker};
use crate::fleet::Fleet;
use crate::schema::Schema;

/// Read once: thousands of reports are compared with them.
static POOLS: LazyLock<Schema> = LazyLock::new(|| Schema::of("workerpools", "status"));
static WORKERS: LazyLock<Schema> = LazyLock::new(|| Schema::of("workers", "status"));

/// The same worlds in every run, so that a red run is the change's doing; `PROPTEST_RNG_SEED` asks for others.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(37),
        asked => asked,
    };
    ProptestConfig { cases, failure_persistence: None, rng_seed, ..default }
}

pub(crate) fn pools() -> impl Strategy<Value = (i32, Vec<Sight>)> {
    (0..6i32, prop::collection::vec(fact(), 0..10))
}

pub(crate) fn workers() -> impl Strategy<Value = Vec<Found>> {
    prop::collection::vec(found(), 0..8)
}

/// What the linter says, and what the same facts say by themselves.
pub(crate) fn pool_breaches(observed: &PoolObserved, plan: &PoolPlan) -> Result<(), TestCaseError> {
    let breaches: Vec<String> = check_pool(observed, plan).iter().map(ToString::to_string).collect();
    let actions: Vec<String> = plan.waves.iter().flatten().map(tell).collect();
    prop_assert!(breaches.is_empty(), "{breaches:#?} in {actions:#?}");
    Ok(())
}

pub(crate) fn worker_breaches(observed: &WorkerObserved, plan: &WorkerPlan) -> Result<(), TestCaseError> {
    let breaches: Vec<String> = check_worker(observed, plan).iter().map(ToString::to_string).collect();
    let actions: Vec<String> = plan.waves.iter().flatten().map(tell).collect();
    prop_assert!(breaches.is_empty(), "{breaches:#?} in {actions:#?}");
    Ok(())
}

/// What the user does to a pool whose workers go on.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    Replicas(i32),
    Type(&'static str),
    Rollout(i32, i32),
    MaxPods(i32),
    Label(bool),
    Pod(usize),
    DeleteWorker(usize),
    Serving(bool),
    Paused(bool),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        3 => (0..5i32).prop_map(Turn::Replicas),
        2 => prop::sample::select(vec!["small", "large"]).prop_map(Turn::Type),
        2 => prop::sample::select(vec![(1, 0), (0, 1), (2, 1), (1, 2)]).prop_map(|(surge, least)| Turn::Rollout(surge, least)),
        1 => (50..53i32).prop_map(Turn::MaxPods),
        1 => any::<bool>().prop_map(Turn::Label),
        2 => (0..5usize).prop_map(Turn::Pod),
        2 => (0..5usize).prop_map(Turn::DeleteWorker),
        1 => any::<bool>().prop_map(Turn::Serving),
        1 => any::<bool>().prop_map(Turn::Paused),
    ]
}

pub(crate) fn lives() -> impl Strategy<Value = (i32, Vec<(Turn, usize)>)> {
    (0..5i32, prop::collection::vec((turn(), 0..5usize), 0..8))
}

fn take(fleet: &mut Fleet, turn: &Turn, number: usize) {
    match turn {
        Turn::Replicas(replicas) => fleet.edit(|spec| spec.replicas = *replicas),
        Turn::Type(name) => fleet.edit(|spec| spec.instance_types = vec![(*name).into()]),
        Turn::Rollout(surge, unavailable) => fleet.edit(|spec| {
            spec.rollout.max_surge = *surge;
            spec.rollout.max_unavailable = *unavailable;
        }),
        Turn::MaxPods(pods) => fleet.edit(|spec| spec.template.kubelet.max_pods = *pods),
        Turn::Label(set) => fleet.edit(|spec| {
            spec.template.labels.0.remove("example.com/x");
            if *set {
                spec.template.labels.0.insert("example.com/x".into(), "y".into());
            }
        }),
        Turn::Pod(at) => {
            if let Some(name) = fleet.nodes.keys().nth(*at).cloned() {
                fleet.pod(&name, &format!("pod-{number}"));
            }
        }
        Turn::DeleteWorker(at) => {
            if let Some((name, worker)) = fleet.workers.iter().nth(*at) {
                let delete = Action::Delete { name: name.clone(), uid: worker.metadata.uid.clone().unwrap() };
                fleet.act("", &delete).unwrap();
            }
        }
        Turn::Serving(serving) => fleet.cluster.as_mut().unwrap().serving = *serving,
        Turn::Paused(paused) => fleet.cluster.as_mut().unwrap().paused = *paused,
    }
}

/// Lives through these turns, then comes to rest with what was asked for.
pub(crate) fn lives_well(mut fleet: Fleet, turns: &[(Turn, usize)]) -> Result<(), TestCaseError> {
    for (number, (turn, steps)) in turns.iter().enumerate() {
        take(&mut fleet, turn, number);
        for _ in 0..*steps {
            fleet.turn();
            let wanted = usize::try_from(fleet.spec().replicas).unwrap();
            let surge = usize::try_from(fleet.spec().rollout.max_surge).unwrap();
            let going = fleet.workers.len() - fleet.staying().len();
            // Each step leads there: none makes more than may be there.
            let made = fleet.incarnations.values().sum::<u32>();
            fleet.turn();
            let more = fleet.incarnations.values().sum::<u32>() > made;
            prop_assert!(
                !more || fleet.staying().len() <= wanted + surge,
                "{} workers and {going} that go, of {wanted}",
                fleet.staying().len()
            );
            fleet.go_on();
        }
    }
    let cluster = fleet.cluster.as_mut().unwrap();
    (cluster.serving, cluster.paused) = (true, false);
    fleet.settle();
    let spec = fleet.spec().clone();
    prop_assert_eq!(fleet.ready(), usize::try_from(spec.replicas).unwrap());
    prop_assert_eq!(fleet.workers.len(), fleet.ready());
    prop_assert_eq!(
        (fleet.machines.len(), fleet.nodes.len()),
        (fleet.ready(), fleet.ready()),
        "something is left"
    );
    for (name, worker) in &fleet.workers {
        prop_assert_eq!(&worker.spec.instance_type, &spec.instance_types[0]);
        prop_assert_eq!(worker.spec.kubelet.max_pods, spec.template.kubelet.max_pods);
        prop_assert_eq!(
            fleet.nodes[name].labels.contains_key("example.com/x"),
            spec.template.labels.0.contains_key("example.com/x")
        );
    }
    prop_assert!(!fleet.turn(), "at rest something is written");
    Ok(())
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn no_plan_for_a_pool_breaks_an_invariant((replicas, facts) in pools()) {
        let observed = pool(replicas, &facts);
        pool_breaches(&observed, &pool::plan(&observed))?;
    }

    #[test]
    fn no_plan_for_a_worker_breaks_an_invariant(facts in workers()) {
        let observed = worker(&facts);
        worker_breaches(&observed, &worker::plan(&observed))?;
    }

    #[test]
    fn the_same_facts_give_the_same_plan((replicas, facts) in pools(), found in workers()) {
        let observed = pool(replicas, &facts);
        let mut shuffled = observed.clone();
        shuffled.workers.reverse();
        prop_assert_eq!(format!("{:?}", pool::plan(&observed)), format!("{:?}", pool::plan(&observed.clone())));
        // Neither does the order of a list matter.
        let (one, other) = (pool::plan(&observed), pool::plan(&shuffled));
        prop_assert_eq!(one.waves, other.waves);
        let observed = worker(&found);
        prop_assert_eq!(format!("{:?}", worker::plan(&observed)), format!("{:?}", worker::plan(&observed.clone())));
    }

    #[test]
    fn a_report_fits_the_schema_and_says_the_same_twice((replicas, facts) in pools(), found in workers()) {
        let mut observed = pool(replicas, &facts);
        let status = pool_status(&observed, &pool::plan(&observed), None);
        prop_assert_eq!(POOLS.violations(&json!(status)), Vec::<String>::new());
        let removing = observed.pool.status.take().unwrap_or_default().removing;
        observed.pool.status = Some(status.clone());
        observed.pool.status.as_mut().unwrap().removing = removing;
        let again = pool_status(&observed, &pool::plan(&observed), None);
        prop_assert_eq!(again, status);

        let mut observed = worker(&found);
        let status = worker_status(&observed, &worker::plan(&observed), None, None);
        prop_assert_eq!(WORKERS.violations(&json!(status)), Vec::<String>::new());
        observed.worker.status = Some(status.clone());
        let settled = worker_status(&observed, &worker::plan(&observed), None, None);
        observed.worker.status = Some(settled.clone());
        // That it has joined is news once.
        let again = worker_status(&observed, &worker::plan(&observed), None, None);
        prop_assert_eq!(again, settled);
    }

    /// A list of workers as it was before: what it makes is refused by its name or was asked for.
    #[test]
    fn a_list_that_lags_makes_no_more_than_was_asked_for(begin in 0..4i32, then in 0..5i32, went in prop::collection::vec(0..4usize, 0..3)) {
        let mut fleet = Fleet::settled(begin);
        let stale = fleet.workers.clone();
        for at in went {
            if let Some((name, worker)) = fleet.workers.iter().nth(at) {
                let delete = Action::Delete { name: name.clone(), uid: worker.metadata.uid.clone().unwrap() };
                fleet.act("", &delete).unwrap();
            }
        }
        fleet.edit(|spec| spec.replicas = then);
        fleet.settle();
        let plan = pool::plan(&fleet.observe_pool_with(&stale, false));
        for action in plan.waves.iter().flatten() {
            prop_assert!(matches!(action, Action::Create { .. }), "{}", tell(action));
            let _ = fleet.act("", action);
        }
        prop_assert!(fleet.staying().len() <= usize::try_from(then).unwrap(), "{:?} of {then}", fleet.staying());
        prop_assert!(fleet.workers.keys().all(|name| worker_ordinal("p", name).is_some()));
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn whatever_happens_a_pool_comes_to_rest((replicas, turns) in lives()) {
        lives_well(Fleet::settled(replicas), &turns)?;
    }

    /// Of one template to another, with any budget: never fewer Ready workers than it allows, never more than it allows.
    #[test]
    fn a_roll_keeps_its_budget(replicas in 1..6i32, surge in 0..3i32, unavailable in 0..3i32, kept in 0..6usize) {
        prop_assume!(surge + unavailable > 0);
        let mut fleet = Fleet::settled(replicas);
        if let Some(name) = fleet.nodes.keys().nth(kept).cloned() {
            fleet.pod(&name, "a");
        }
        fleet.edit(|spec| {
            spec.instance_types = vec!["large".into()];
            spec.rollout.max_surge = surge;
            spec.rollout.max_unavailable = unavailable;
        });
        let (least, most) = (usize::try_from(replicas - unavailable).unwrap_or(0), usize::try_from(replicas + surge).unwrap());
        for _ in 0..100 {
            let wrote = fleet.turn();
            let ready = fleet.observe_pool().workers.iter().filter(|member| !member.going() && member.readiness == Readiness::Ready).count();
            prop_assert!(ready >= least, "{ready} are Ready, {least} must be");
            prop_assert!(fleet.machines.len() <= most, "{} machines, {most} may be", fleet.machines.len());
            let before = fleet.digest();
            fleet.go_on();
            if !wrote && fleet.digest() == before {
                break;
            }
        }
        prop_assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
        prop_assert_eq!(fleet.ready(), usize::try_from(replicas).unwrap());
    }
}
