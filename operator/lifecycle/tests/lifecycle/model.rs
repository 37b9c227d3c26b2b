//! Every interleaving of a tiny world: the operator write by write, its death between any two, a write of a former
//! leader that arrives late, reads that lag, controllers, members that die, a user who changes his mind and deletes.
//! Invariants hold in every state that can be reached, and from each of them an undisturbed world comes to rest where
//! it should.
//!
//! What keeps it finite: one tenant of one or three members, one edit, one deletion, one dead member and one
//! lagging read; crashes and late writes as many as there may be, but one late write at a time. Writes of a wave go one
//! after the other.

use std::sync::Arc;

use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::world::{World, told};
use state::{Operator, State};
use steps::{Step, Tiny};

mod invariants;
mod mutants;
mod scenarios;
mod state;
mod steps;
mod ways;

/// What an exploration saw.
#[derive(Debug)]
struct Seen {
    states: usize,
    /// States in which an undisturbed world ends.
    ends: usize,
}

/// Explores everything; a state that cannot be right is told with the way that leads to it.
fn explore(tiny: Tiny) -> Result<Seen, String> {
    let again = Tiny { ways: Arc::default(), wanted: Vec::new(), ..tiny.clone() };
    let checker = tiny.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    if let Some(path) = found.get(invariants::WELL) {
        let breach = path.last_state().breach.clone().unwrap_or_default();
        return Err(format!("{breach}, after\n{}", way(path).join("\n")));
    }
    if let Some(missing) = checker.model().wanted.iter().find(|name| !found.contains_key(*name)) {
        return Err(format!("it never came to this: {missing}"));
    }
    assert!(checker.is_done(), "not everything was explored");
    let ways = std::mem::take(&mut *checker.model().ways.lock().unwrap());
    match ways.follow_all() {
        Ok(ends) => Ok(Seen { states: checker.unique_state_count(), ends }),
        Err((state, wrong)) => {
            let told = explore(Tiny { bad_end: Some(state), ..again });
            Err(format!("{wrong}: {}", told.err().unwrap_or_default()))
        }
    }
}

/// The steps of a way, with the writes.
fn way(path: &Path<State, Step>) -> Vec<String> {
    let next = |state: &State| match &state.operator {
        Operator::Acting(writes) => writes.first().map(|write| told(&write.action)).unwrap_or_default(),
        Operator::Looking => "looks".into(),
        Operator::Resting => "rests".into(),
    };
    let steps = path.clone().into_vec().into_iter();
    let told = steps.filter_map(|(state, step)| {
        Some(match step? {
            Step::Operator => format!("operator: {}", next(&state)),
            Step::Delay => format!("delayed: {}", next(&state)),
            Step::Arrive => format!("arrives: {}", state.late.as_ref().map(|write| told(&write.action))?),
            step => format!("{step:?}"),
        })
    });
    told.collect()
}
