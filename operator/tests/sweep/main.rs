//! The fault sweep: at every write of an operation everything goes wrong that can, and the world ends the same.
//!
//! The management cluster is a real API server with the chart's schema and the chart's permissions; the tenant is a
//! second one. The test plays who is missing between: workload controllers, kubelets, kube-proxy, the namespace
//! controller; for workers also their machines and what runs on them. Each run has a tenant, an operator with its own
//! caches and a wire of its own.
#![cfg(test)]

#[path = "../common/crds.rs"]
mod crds;
mod door;
mod equal;
mod etcd;
mod forbidden;
mod kubelets;
mod lag;
mod life;
mod machines;
mod player;
mod plot;
mod record;
mod wire;
mod workers;
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::iter;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::life::{Life, Measures, Operation, Outcome};
use crate::plot::{Fault, Planted, Strike, Target, draw};
use crate::world::World;

/// So many lives are on their way at once: as many as there are tenants' servers.
const AT_ONCE: usize = 9;

/// So many writes of one operation go wrong.
const TOGETHER: usize = 4;

/// All tests share one world, whose connections live in one runtime.
fn run(test: impl Future<Output = ()>) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
    RUNTIME.block_on(test);
}

/// Says it even when the test succeeds.
fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
}

/// An operation in which nothing goes wrong.
async fn undisturbed(life: &mut Life, operation: Operation) -> Outcome {
    let outcome = life.perform(operation, &[], &Measures::new()).await;
    assert_eq!(outcome.wrong, None, "{operation}, undisturbed");
    if [Operation::Restart, Operation::PoolRestart].contains(&operation) {
        assert_eq!(outcome.writes, [], "an operator that starts into a settled world writes nothing");
    }
    outcome
}

/// One undisturbed life: the measure for all others, and the writes of each operation.
async fn measure(world: &Arc<World>, team: &str) -> (Measures, BTreeMap<Operation, Vec<Target>>) {
    let mut life = Life::begin(world, team, None).await;
    let (mut measures, mut writes) = (Measures::new(), BTreeMap::new());
    for operation in Operation::ALL.into_iter().filter(|operation| *operation != Operation::EarlyDeletion) {
        let outcome = undisturbed(&mut life, operation).await;
        measures.insert(operation, outcome.picture);
        // What happens inside is the workers' part.
        let managed = outcome.writes.into_iter().filter(|target| !target.what.ends_with(" inside"));
        writes.insert(operation, managed.collect());
    }
    assert_eq!(life.judge().await, Vec::<String>::new(), "undisturbed");
    // However far a creation came, its deletion leaves the same: nothing.
    measures.insert(Operation::EarlyDeletion, measures[&Operation::Deletion].clone());
    (measures, writes)
}

/// Every fault at every write. With `SWEEP_ONLY` those alone whose description has that text in it.
fn strikes(operation: Operation, writes: &[Target]) -> Vec<Strike> {
    let only = std::env::var("SWEEP_ONLY").unwrap_or_default();
    let strikes = Fault::ALL
        .into_iter()
        .flat_map(|fault| writes.iter().map(move |target| Strike { target: target.clone(), fault }));
    strikes.filter(|strike| format!("{operation}: {strike}").contains(&only)).collect()
}

/// What happens in one life.
struct Course {
    /// The creation's operator dies here, and nobody goes on.
    broken_off: Option<Strike>,
    operations: Vec<(Operation, Vec<Strike>)>,
}

/// Deals out all strikes to as few lives as will hold them: an operation ends in the measured world or the life ends,
/// so that each starts as if nothing had gone wrong before.
fn courses(writes: &BTreeMap<Operation, Vec<Target>>) -> Vec<Course> {
    use Operation::{Creation, Deletion, EarlyDeletion, Growth, Renewal, Shrinking};
    let mut waiting: BTreeMap<Operation, Vec<Strike>> =
        writes.iter().map(|(operation, writes)| (*operation, strikes(*operation, writes))).collect();
    let mut courses = Vec::new();
    while waiting.values().any(|strikes| !strikes.is_empty()) {
        let mut next =
            |operation| waiting.get_mut(&operation).map_or(Vec::new(), |left| draw(left, TOGETHER, |_| true));
        let mut operations = vec![(Creation, next(Creation))];
        let (growth, shrinking) = (next(Growth), next(Shrinking));
        if !growth.is_empty() || !shrinking.is_empty() {
            operations.extend([(Growth, growth), (Shrinking, shrinking)]);
        }
        let rest = [Renewal, Deletion].map(|operation| (operation, next(operation)));
        operations.extend(rest.into_iter().filter(|(_, strikes)| !strikes.is_empty()));
        courses.push(Course { broken_off: None, operations });
    }
    // From each point of a creation; the faults of the deletion take turns.
    let crashes = strikes(EarlyDeletion, &writes[&Creation]).into_iter();
    let mut faults = Fault::ALL.into_iter().cycle();
    let mut targets = writes[&Deletion].iter().cycle();
    for crash in crashes.filter(|strike| strike.fault == Fault::Crash) {
        let strike =
            targets.next().cloned().zip(faults.next()).map(|(target, fault)| Strike { target, fault });
        let strikes = strike.into_iter().collect();
        courses.push(Course { broken_off: Some(crash), operations: vec![(EarlyDeletion, strikes)] });
    }
    courses
}

/// One life, and what was wrong in it.
struct Ended {
    course: Course,
    outcomes: Vec<Outcome>,
    forbidden: Vec<String>,
}

async fn live(world: &Arc<World>, team: &str, course: Course, measures: &Measures) -> Ended {
    let mut life = Life::begin(world, team, None).await;
    if let Some(strike) = course.broken_off.clone() {
        life.half(Operation::Creation, strike).await;
    }
    let mut outcomes = Vec::new();
    for (operation, strikes) in &course.operations {
        let outcome = life.perform(*operation, strikes, measures).await;
        let stop = outcome.wrong.is_some();
        outcomes.push(outcome);
        if stop {
            break;
        }
    }
    let forbidden = life.judge().await;
    Ended { course, outcomes, forbidden }
}

#[test]
fn every_fault_at_every_write_ends_in_the_same_world() {
    run(async {
        let begin = Instant::now();
        let world = World::shared().await;
        tell(&format!("sweep: the management cluster is up after {:.1} s", begin.elapsed().as_secs_f32()));
        let (measures, writes) = measure(&world, "measure").await;
        tell(&format!("sweep: measured after {:.1} s", begin.elapsed().as_secs_f32()));
        let ended = live_all(&world, "life", courses(&writes), &measures, begin).await;
        report(&ended, &Operation::ALL, Fault::ALL.len(), &writes);
        assert_right(&ended);
    });
}

/// All courses, so many at once as there are tenants' servers.
async fn live_all(
    world: &Arc<World>,
    team: &str,
    courses: Vec<Course>,
    measures: &Measures,
    begin: Instant,
) -> Vec<Ended> {
    let total = courses.len();
    let verbose = std::env::var("SWEEP_TELL").is_ok();
    let ended: Vec<Ended> = iter(courses.into_iter().enumerate())
        .map(async |(number, course)| {
            let ended = live(world, &format!("{team}-{number}"), course, measures).await;
            if verbose {
                let after = begin.elapsed().as_secs_f32();
                tell(&format!("{team} {number} of {total}, {after:.1} s: {:?}", ended.wrong()));
                for outcome in &ended.outcomes {
                    let took = outcome.took.as_secs_f32();
                    tell(&format!("  {} {took:.2} s: {}", outcome.operation, told(&outcome.strikes)));
                }
            }
            ended
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    tell(&format!("sweep: {team}: {total} in {:.1} s", begin.elapsed().as_secs_f32()));
    ended
}

fn assert_right(ended: &[Ended]) {
    let wrong: Vec<String> = ended.iter().flat_map(Ended::wrong).collect();
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn planted_bugs_are_found() {
    run(async {
        let world = World::shared().await;
        let at = |what: &str, fault| Strike { target: Target { what: what.into(), earlier: 0 }, fault };

        // Applies without preconditions: a former leader's late write replaces the authorities under a running cluster.
        let mut life = Life::begin(&world, "unconditional", Some(Planted::Unconditional)).await;
        let strike = at("apply secrets/authority", Fault::LateWrite);
        let outcome = life.perform(Operation::Creation, &[strike], &Measures::new()).await;
        assert_eq!((outcome.missed.len(), outcome.wrong), (0, None));
        let found = life.judge().await;
        assert!(found.iter().any(|what| what.contains("the authorities were made anew")), "{found:?}");

        // No finalizer: the object could go and leave its namespace behind.
        let mut life = Life::begin(&world, "no-finalizer", Some(Planted::NoFinalizer)).await;
        let strike = at("apply namespaces/kaas-UID", Fault::Crash);
        assert!(life.half(Operation::Creation, strike).await.is_some());
        let found = life.judge().await;
        assert!(found.iter().any(|what| what.contains("finalizer")), "{found:?}");
    });
}

#[test]
fn a_secret_of_somebody_else_is_not_overwritten() {
    run(async {
        let world = World::shared().await;
        let mut life = Life::begin(&world, "taken", None).await;
        let target = Target { what: "apply secrets/blue-kubeconfig of the team".into(), earlier: 0 };
        let strike = Strike { target, fault: Fault::Taken };
        let outcome = life.perform(Operation::Creation, &[strike], &Measures::new()).await;
        assert!(outcome.missed.is_empty());
        assert_eq!(outcome.wrong, None);
        let secret = world.record.get(&life.scope().team, "Secret", "blue-kubeconfig").unwrap();
        let entries: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
        assert_eq!(entries, ["whose"]);
        let cluster = &outcome.picture["TenantCluster blue"];
        assert!(cluster.contains("SecretNameTaken"), "{cluster}");
        assert_eq!(life.judge().await, Vec::<String>::new());
    });
}

fn told(strikes: &[Strike]) -> String {
    let told: Vec<String> = strikes.iter().map(ToString::to_string).collect();
    if told.is_empty() { "undisturbed".to_owned() } else { told.join(" and ") }
}

impl Ended {
    /// What is wrong with it, each with all that was done to it.
    fn wrong(&self) -> Vec<String> {
        let mut wrong: Vec<String> = self
            .outcomes
            .iter()
            .filter_map(|outcome| {
                let what = outcome.wrong.as_ref()?;
                Some(format!("{}: {}: {what}", outcome.operation, told(&outcome.strikes)))
            })
            .collect();
        if !self.forbidden.is_empty() {
            let broken_off = self.course.broken_off.iter().map(|strike| format!("broken off: {strike}"));
            let rest = self
                .outcomes
                .iter()
                .map(|outcome| format!("{}: {}", outcome.operation, told(&outcome.strikes)));
            let story: Vec<String> = broken_off.chain(rest).collect();
            wrong.push(format!("forbidden in [{}]: {}", story.join("; "), self.forbidden.join("; ")));
        }
        wrong
    }
}

/// A line for each operation.
fn report(
    ended: &[Ended],
    operations: &[Operation],
    faults: usize,
    writes: &BTreeMap<Operation, Vec<Target>>,
) {
    for operation in operations {
        let outcomes = ended.iter().flat_map(|ended| &ended.outcomes);
        let of: Vec<&Outcome> = outcomes.filter(|outcome| outcome.operation == *operation).collect();
        let strikes: usize = of.iter().map(|outcome| outcome.strikes.len()).sum();
        if strikes == 0 {
            continue;
        }
        let missed: Vec<String> =
            of.iter().flat_map(|outcome| &outcome.missed).map(ToString::to_string).collect();
        let mean = of.iter().map(|outcome| outcome.took).sum::<Duration>() / u32::try_from(of.len()).unwrap();
        let slowest = of.iter().max_by_key(|outcome| outcome.took);
        let points = if *operation == Operation::EarlyDeletion { &Operation::Creation } else { operation };
        tell(&format!(
            "sweep: {operation:<14} k = 1..{}, {faults} faults, {strikes} of them in {} runs, mean {:.2} s, longest {:.2} s \
             ({}), not reached: {}",
            writes[points].len(),
            of.len(),
            mean.as_secs_f32(),
            slowest.map_or(0.0, |outcome| outcome.took.as_secs_f32()),
            slowest.map_or(String::new(), |outcome| told(&outcome.strikes)),
            if missed.is_empty() { "none".to_owned() } else { missed.join(", ") },
        ));
    }
}
