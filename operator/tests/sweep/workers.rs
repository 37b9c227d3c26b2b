//! The sweep of what happens to workers: pools are made, scaled, drained, replaced and deleted, and at every write
//! everything goes wrong that can. Where it costs little, several writes of one operation go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::life::{Life, Measures, Operation};
use crate::plot::{Fault, Planted, Strike, Target, draw};
use crate::world::World;
use crate::{Course, assert_right, live_all, report, run, tell, undisturbed};

/// So many writes of one operation go wrong.
const TOGETHER: usize = 5;
/// So many faults at a write whose like was met in another operation before.
const AGAIN: usize = 2;
/// So many pools come and go in the life of one cluster.
const POOLS: usize = 3;

type Writes = BTreeMap<Operation, Vec<Target>>;

/// One undisturbed life: the measure for all others, and the writes of each operation.
async fn measure(world: &Arc<World>, team: &str) -> (Measures, Writes) {
    let mut life = Life::begin(world, team, None).await;
    let (mut measures, mut writes) = (Measures::new(), Writes::new());
    let last = [Operation::PoolCreation, Operation::DeletionWithPool];
    let all = [Operation::Creation].into_iter().chain(Operation::POOL).chain(last);
    for operation in all {
        let outcome = undisturbed(&mut life, operation).await;
        measures.entry(operation).or_insert(outcome.picture);
        writes.entry(operation).or_insert(outcome.writes);
    }
    assert_eq!(life.judge().await, Vec::<String>::new(), "undisturbed");
    writes.remove(&Operation::Creation);
    writes.remove(&Operation::PoolRestart);
    for (operation, targets) in &mut writes {
        *targets = distinct(*operation, targets);
    }
    (measures, writes)
}

/// A write without the number of the worker that it is for.
fn alike(target: &Target) -> String {
    (0..4).fold(target.what.clone(), |what, ordinal| what.replace(&format!("p-{ordinal}"), "p-N"))
}

/// Of writes that are the same for one worker and the next, and of those that are repeated, the first. Those for the
/// control plane that goes with its workers have a sweep of their own.
fn distinct(operation: Operation, targets: &[Target]) -> Vec<Target> {
    let mut seen = BTreeSet::new();
    targets
        .iter()
        .filter(|target| target.earlier == 0)
        .filter(|target| operation == Operation::PoolCreation || !target.what.contains("events"))
        .filter(|target| {
            operation != Operation::DeletionWithPool
                || ["worker", "p-", "tenantclusters"].iter().any(|word| target.what.contains(word))
        })
        .filter(|target| seen.insert(alike(target)))
        .cloned()
        .collect()
}

/// What is left to deal out.
struct Deck(BTreeMap<Operation, Vec<Strike>>);

impl Deck {
    fn new(writes: &Writes) -> Self {
        let only = std::env::var("SWEEP_ONLY").unwrap_or_default();
        let all = Fault::of_workers();
        let (mut seen, mut turn) = (BTreeSet::new(), 0);
        let mut deck = BTreeMap::new();
        for (operation, targets) in writes {
            let mut strikes = Vec::new();
            for target in targets {
                // Every fault where such a write is met first, some of them where it is met again: they take turns.
                let count = if seen.insert(alike(target)) { all.len() } else { AGAIN };
                let faults = all.iter().copied().cycle().skip(turn % all.len()).take(count);
                strikes.extend(faults.map(|fault| Strike { target: target.clone(), fault }));
                turn += count;
            }
            strikes.retain(|strike| format!("{operation}: {strike}").contains(&only));
            // Those of one write apart from each other, as one operation has one of them at most.
            strikes.sort_by_key(|strike| strike.fault);
            deck.insert(*operation, strikes);
        }
        Deck(deck)
    }

    fn is_left(&self, operations: &[Operation]) -> bool {
        operations.iter().any(|operation| self.0.get(operation).is_some_and(|strikes| !strikes.is_empty()))
    }

    /// Strikes for one operation: at different writes, and of those that only the first pool of a life has, if it is that.
    fn deal(&mut self, operation: Operation, first: bool) -> (Operation, Vec<Strike>) {
        let left = self.0.entry(operation).or_default();
        let dealt = draw(left, TOGETHER, |strike| {
            let what = &strike.target.what;
            let once = what.contains("namespaces/") || what.contains("networkpolicies/");
            first || !once || operation != Operation::PoolCreation
        });
        (operation, dealt)
    }
}

/// Deals out all strikes to as few lives as will hold them.
fn courses(writes: &Writes) -> Vec<Course> {
    use Operation::{
        ByHand, Creation, DeletionWithPool, Draining, PoolCreation, PoolDeletion, PoolGrowth, PoolShrinking,
        Replacement,
    };
    let mut deck = Deck::new(writes);
    let mut courses = Vec::new();
    while deck.is_left(&Operation::POOL) || deck.is_left(&[DeletionWithPool]) {
        let mut operations = vec![(Creation, Vec::new())];
        for pool in 0..POOLS {
            let first = pool == 0;
            if !deck.is_left(&Operation::POOL) {
                break;
            }
            operations.push(deck.deal(PoolCreation, first));
            if deck.is_left(&[PoolGrowth, Draining]) {
                operations.extend([PoolGrowth, Draining].map(|operation| deck.deal(operation, first)));
            }
            if deck.is_left(&[PoolShrinking, Replacement, ByHand]) {
                operations.push(deck.deal(PoolShrinking, first));
            }
            if deck.is_left(&[Replacement, ByHand]) {
                operations.extend([Replacement, ByHand].map(|operation| deck.deal(operation, first)));
            }
            operations.push(deck.deal(PoolDeletion, first));
        }
        if deck.is_left(&[DeletionWithPool]) {
            let first = operations.len() == 1;
            operations.extend([PoolCreation, DeletionWithPool].map(|operation| deck.deal(operation, first)));
        }
        courses.push(Course { broken_off: None, operations });
    }
    courses
}

#[test]
fn every_fault_at_every_write_for_workers_ends_in_the_same_world() {
    run(async {
        let begin = Instant::now();
        let world = World::shared().await;
        let (measures, writes) = measure(&world, "pools").await;
        tell(&format!("sweep: workers measured after {:.1} s", begin.elapsed().as_secs_f32()));
        let ended = live_all(&world, "pools", courses(&writes), &measures, begin).await;
        let operations: Vec<Operation> = writes.keys().copied().collect();
        report(&ended, &operations, Fault::of_workers().len(), &writes);
        assert_right(&ended);
    });
}

fn at(what: &str, earlier: usize, fault: Fault) -> Strike {
    Strike { target: Target { what: what.into(), earlier }, fault }
}

#[test]
fn a_machine_that_comes_after_its_worker_is_gone_is_taken_away() {
    run(async {
        let world = World::shared().await;
        let mut life = Life::begin(&world, "late-machine", None).await;
        undisturbed(&mut life, Operation::Creation).await;
        let settled = undisturbed(&mut life, Operation::PoolCreation).await.picture;
        let strike = at("create pods of machines", 0, Fault::LateWrite);
        let wire = life.half(Operation::PoolGrowth, strike).await.unwrap();
        // The worker goes before it has a machine, and leaves nothing.
        let measures = Measures::from(
            [Operation::Withdrawal, Operation::PoolRestart].map(|operation| (operation, settled.clone())),
        );
        let outcome = life.perform(Operation::Withdrawal, &[], &measures).await;
        assert_eq!(outcome.wrong, None);
        assert_eq!(wire.deliver().await, Some((201, false)));
        let outcome = life.perform(Operation::PoolRestart, &[], &measures).await;
        assert_eq!(outcome.wrong, None);
        assert_eq!(life.judge().await, ["machine p-2 has no worker"]);
    });
}

#[test]
fn a_second_machine_is_found() {
    run(async {
        let world = World::shared().await;
        // Whoever looks for a machine by its name finds none, and asks for another one.
        let mut life = Life::begin(&world, "drawn-names", Some(Planted::DrawnNames)).await;
        undisturbed(&mut life, Operation::Creation).await;
        let strike = at("create pods of machines", 3, Fault::Crash);
        assert!(life.half(Operation::PoolCreation, strike).await.is_some());
        let found = life.judge().await;
        assert!(found.iter().any(|what| what.contains("two machines of one worker")), "{found:?}");
    });
}
