//! The operator's memory and processor time with many tenants whose pods are played.
//!
//! No time is taken here: nothing starts.

use std::path::Path;
use std::time::Instant;

use super::Results;
use super::player::{Tenant, at_once};
use super::stage::{Stage, at_rest};
use super::table::{Figure, Of, Unit};
use crate::Error;
use crate::layout::Repository;
use crate::terminal::say;

/// What the product promises for so many tenants.
const PROMISED: usize = 1000;
const MIB_PER_TENANT: f64 = 0.25;
const PERCENT: f64 = 50.0;

/// Plays tenants up to `count`, and looks at the operator on the way.
pub(super) fn measure(
    count: usize,
    operator: &Path,
    repository: &Repository,
    results: &mut Results,
) -> Result<(), Error> {
    say(format!("{count} tenants with played pods:"));
    let stage = Stage::start(operator, repository)?;
    let told = |tenants: usize| format!("{tenants} played tenants");
    let empty = stage.look(&told(0), results)?.memory;
    let (mut before, mut there) = (empty, 0);
    let mut tenants: Vec<Tenant> = Vec::new();
    for goal in steps(count) {
        let begun = Instant::now();
        tenants.extend(
            at_once(there..goal, |number| stage.player.play(number)).map_err(|error| stage.explain(error))?,
        );
        say(format!(
            "  {goal} tenants are Ready, the last {} after {} s",
            goal - there,
            begun.elapsed().as_secs()
        ));
        let promised = goal == count && count >= PROMISED;
        let look = stage.look(&told(goal), results)?;
        results.add(at_rest(&told(goal), &look, promised.then_some(PERCENT)))?;
        let each = (look.memory - empty) / goal as f64;
        let figure = Figure::new(format!("  each of {goal} tenants adds"), Unit::Mebibytes, vec![each]);
        results.add(if promised { figure.at_most(Of::Max, MIB_PER_TENANT) } else { figure })?;
        if there > 0 {
            let each = (look.memory - before) / (goal - there) as f64;
            let title = format!("  each of the last {} adds", goal - there);
            results.add(Figure::new(title, Unit::Mebibytes, vec![each]))?;
        }
        (before, there) = (look.memory, goal);
    }
    // The operator before the tenants that it asks.
    drop(stage);
    Ok(())
}

/// Numbers of tenants at which memory is looked at.
fn steps(count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = [count / 10, count / 2, count].into_iter().filter(|step| *step > 0).collect();
    steps.dedup();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_is_what_was_asked_for() {
        assert_eq!(steps(1000), [100, 500, 1000]);
        assert_eq!(steps(1), [1]);
        assert!(steps(0).is_empty());
    }
}
