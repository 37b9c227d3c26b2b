//! The fault sweep: at every write of an operation everything goes wrong that can, and the world ends the same.
//!
//! The management cluster is a real API server with the chart's schema and the chart's permissions; the tenant is a
//! second one. The test plays who is missing between: workload controllers, kubelets, kube-proxy, the namespace
//! controller. Each run has a tenant, an operator with its own caches and a wire of its own.
#![cfg(test)]

mod door;
mod equal;
mod etcd;
mod fault;
mod forbidden;
mod life;
mod player;
mod record;
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::iter;
use tokio::time::Instant;

use crate::fault::{Fault, Planted, Strike, Target};
use crate::life::{Life, Measures, Operation, Outcome};
use crate::world::World;

/// So many lives are on their way at once: as many as there are tenants' servers.
const AT_ONCE: usize = 4;

/// Says it even when the test succeeds.
fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
}

/// One undisturbed life: the measure for all others, and the writes of each operation.
async fn measure(world: &Arc<World>, team: &str) -> (Measures, BTreeMap<Operation, Vec<Target>>) {
    let mut life = Life::begin(world, team, None).await;
    let (mut measures, mut writes) = (Measures::new(), BTreeMap::new());
    for operation in Operation::ALL {
        let outcome = life.perform(operation, None, &Measures::new()).await;
        assert_eq!(outcome.wrong, None, "{operation}, undisturbed");
        measures.insert(operation, outcome.picture);
        writes.insert(operation, outcome.writes);
    }
    assert_eq!(life.judge(), Vec::<String>::new(), "undisturbed");
    (measures, writes)
}

/// Each fault at each write; with `SWEEP_ONLY` those alone whose description has that text in it.
fn strikes(operation: Operation, writes: &[Target]) -> Vec<Strike> {
    let at = |fault| writes.iter().map(move |target| Strike { target: target.clone(), fault });
    let only = std::env::var("SWEEP_ONLY").unwrap_or_default();
    Fault::ALL.into_iter().flat_map(at).filter(|strike| format!("{operation}: {strike}").contains(&only)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_at_every_write_ends_in_the_same_world() {
    let begin = Instant::now();
    let world = World::shared().await;
    tell(&format!("sweep: the management cluster is up after {:.1} s", begin.elapsed().as_secs_f32()));
    let (measures, writes) = measure(&world, "measure").await;
    for (operation, writes) in &writes {
        let list: Vec<String> = writes.iter().map(ToString::to_string).collect();
        tell(&format!("sweep: {operation} writes {}", list.join(", ")));
    }
    tell(&format!("sweep: measured after {:.1} s", begin.elapsed().as_secs_f32()));
    let mut waiting: BTreeMap<Operation, Vec<Strike>> =
        writes.iter().map(|(operation, writes)| (*operation, strikes(*operation, writes))).collect();
    let mut lives: Vec<Vec<(Operation, Option<Strike>)>> = Vec::new();
    while waiting.values().any(|strikes| !strikes.is_empty()) {
        let mut next = |operation| waiting.get_mut(&operation).and_then(Vec::pop);
        let mut plan: Vec<(Operation, Option<Strike>)> =
            vec![(Operation::Creation, next(Operation::Creation))];
        let (growth, shrinking) = (next(Operation::Growth), next(Operation::Shrinking));
        if growth.is_some() || shrinking.is_some() {
            plan.extend([(Operation::Growth, growth), (Operation::Shrinking, shrinking)]);
        }
        plan.extend(next(Operation::Renewal).map(|strike| (Operation::Renewal, Some(strike))));
        plan.push((Operation::Deletion, next(Operation::Deletion)));
        lives.push(plan);
    }
    let limit: usize =
        std::env::var("SWEEP_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    lives.truncate(limit);
    let total = lives.len();
    let (world, measures) = (&world, &measures);
    let all: Vec<(Vec<Outcome>, Vec<String>)> = iter(lives.into_iter().enumerate())
        .map(async |(number, plan)| {
            let mut life = Life::begin(world, &format!("life-{number}"), None).await;
            let mut outcomes = Vec::new();
            for (operation, strike) in plan {
                let outcome = life.perform(operation, strike, measures).await;
                let stop = outcome.wrong.is_some();
                if let (Ok(_), Some(wrong)) = (std::env::var("SWEEP_TELL"), &outcome.wrong) {
                    tell(&format!("{} {:?} {wrong}", outcome.operation, outcome.strike.as_ref().map(ToString::to_string)));
                }
                outcomes.push(outcome);
                if stop {
                    break;
                }
            }
            let forbidden = life.judge();
            (outcomes, forbidden)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    report(&all, total, begin);
}

fn report(all: &[(Vec<Outcome>, Vec<String>)], total: usize, begin: Instant) {
    let mut wrong = Vec::new();
    for operation in Operation::ALL {
        let of: Vec<&Outcome> = all
            .iter()
            .flat_map(|(outcomes, _)| outcomes)
            .filter(|outcome| outcome.operation == operation)
            .collect();
        let struck: Vec<&&Outcome> = of.iter().filter(|outcome| outcome.strike.is_some()).collect();
        let missed: Vec<String> = struck
            .iter()
            .filter(|outcome| !outcome.fired)
            .filter_map(|outcome| outcome.strike.as_ref().map(ToString::to_string))
            .collect();
        let mean =
            of.iter().map(|outcome| outcome.took).sum::<Duration>() / u32::try_from(of.len().max(1)).unwrap();
        let slowest = of.iter().max_by_key(|outcome| outcome.took);
        tell(&format!(
            "sweep: {operation:<14} {} runs, {} not reached {missed:?}, mean {:.2} s, longest {:.2} s ({})",
            struck.len(),
            missed.len(),
            mean.as_secs_f32(),
            slowest.map_or(0.0, |outcome| outcome.took.as_secs_f32()),
            slowest
                .and_then(|outcome| outcome.strike.as_ref())
                .map_or("undisturbed".to_owned(), ToString::to_string),
        ));
        for outcome in of.iter().filter(|outcome| outcome.wrong.is_some()) {
            let strike = outcome.strike.as_ref().map_or("undisturbed".to_owned(), ToString::to_string);
            wrong.push(format!("{operation}, {strike}: {}", outcome.wrong.as_deref().unwrap_or_default()));
        }
    }
    for (outcomes, forbidden) in all.iter().filter(|(_, forbidden)| !forbidden.is_empty()) {
        let strikes: Vec<String> = outcomes
            .iter()
            .map(|outcome| {
                let strike = outcome.strike.as_ref().map_or("undisturbed".to_owned(), ToString::to_string);
                format!("{}: {strike}", outcome.operation)
            })
            .collect();
        wrong.push(format!("forbidden in [{}]: {forbidden:?}", strikes.join("; ")));
    }
    tell(&format!("sweep: {total} lives in {:.1} s", begin.elapsed().as_secs_f32()));
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}
