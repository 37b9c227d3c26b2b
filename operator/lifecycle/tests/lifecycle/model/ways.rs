//! The way of an undisturbed world: from every state that was reached to where it ends, and whether it ends well.
//!
//! The checker judges states and cannot judge ways that meet, so that each state's one next state is noted while it
//! explores, and followed afterwards.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Operator, State};
use super::steps::Step;

#[derive(Default)]
pub(super) struct Ways {
    next: BTreeMap<u64, u64>,
    ends: BTreeMap<u64, Result<(), String>>,
}

impl Ways {
    /// An undisturbed world lets the operator act while it has something to do, then the controllers.
    pub(super) fn note(&mut self, last: &State, step: &Step, next: &State) {
        let busy = last.operator != Operator::Resting && !last.world.gone;
        let undisturbed = match step {
            Step::Operator => busy,
            Step::Controllers => !busy,
            _ => false,
        };
        if !undisturbed {
            return;
        }
        if next.digest != last.digest {
            self.next.insert(last.digest, next.digest);
        } else {
            self.ends.insert(last.digest, last.verdict());
        }
    }

    /// Follows every state's way to its end. Gives how many ends there are, or one that is not as it should be: the
    /// state, and what is wrong with it.
    pub(super) fn follow_all(&self) -> Result<usize, (u64, String)> {
        let mut known: BTreeSet<u64> = BTreeSet::new();
        for begin in self.next.keys() {
            let (mut at, mut path) = (*begin, BTreeSet::new());
            while !known.contains(&at) {
                if !path.insert(at) {
                    return Err((at, "it goes in a circle".into()));
                }
                match (self.next.get(&at), self.ends.get(&at)) {
                    (Some(next), _) => at = *next,
                    (None, Some(Ok(()))) => break,
                    (None, Some(Err(end))) => return Err((at, end.clone())),
                    (None, None) => return Err((at, "it was not followed".into())),
                }
            }
            known.append(&mut path);
        }
        Ok(self.ends.len())
    }
}
