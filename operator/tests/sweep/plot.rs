//! What goes wrong, and where.
//!
//! A write is known by what it does ("apply secrets/etcd") and how often that was done before, not by a bare number:
//! writes of one wave run at once, and a number alone would hit another one of them in each run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

/// What goes wrong at one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The write is done; the operator dies before it hears so.
    Crash,
    /// The write is done and answered; the operator dies before its next request.
    CrashAnswered,
    /// The write is done; the connection breaks instead of an answer.
    ReplyLost,
    /// 409 instead of the write.
    Conflict,
    /// 429 instead of the write.
    TooManyRequests,
    /// 500 instead of the write.
    InternalError,
    /// The write is done; the next read that covers it answers from before it.
    StaleRead,
    /// The operator freezes before the write and another one takes over; when all is done the write arrives.
    LateWrite,
    /// Somebody else is faster: a Secret of that name is there when the write arrives.
    Taken,
    /// The write is done; for a while the watches that tell of it are silent, and whoever asks for a machine is told
    /// what was before.
    Lag,
}

impl Fault {
    pub(crate) const ALL: [Fault; 8] = [
        Fault::Crash,
        Fault::CrashAnswered,
        Fault::ReplyLost,
        Fault::Conflict,
        Fault::TooManyRequests,
        Fault::InternalError,
        Fault::StaleRead,
        Fault::LateWrite,
    ];

    /// For what infrastructures do, too: theirs is a world that is told late.
    pub(crate) fn of_workers() -> Vec<Fault> {
        Fault::ALL.into_iter().chain([Fault::Lag]).collect()
    }
}

/// Defects for the test of the test: what an operator would do that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Applies carry no preconditions.
    Unconditional,
    /// The finalizer is never set.
    NoFinalizer,
    /// Machines are made with a name of their own each time.
    DrawnNames,
}

/// One write of an operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) what: String,
    /// How many of the same were before it.
    pub(crate) earlier: usize,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.earlier {
            0 => write!(f, "{}", self.what),
            earlier => write!(f, "{} ({})", self.what, earlier + 1),
        }
    }
}

/// What goes wrong where.
#[derive(Clone, Debug)]
pub(crate) struct Strike {
    pub(crate) target: Target,
    pub(crate) fault: Fault,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.fault, self.target)
    }
}

/// What goes wrong in one operation, whichever operator is there: it is shared by their wires.
#[derive(Default)]
pub(crate) struct Plot {
    strikes: Vec<Strike>,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    counts: BTreeMap<String, usize>,
    fired: BTreeSet<usize>,
}

impl Plot {
    pub(crate) fn new(strikes: &[Strike]) -> Arc<Self> {
        Arc::new(Plot { strikes: strikes.to_vec(), noted: Mutex::default() })
    }

    /// Counts a write, and tells what goes wrong with it.
    pub(crate) fn note(&self, what: String) -> (Target, Option<Fault>) {
        let mut noted = self.noted.lock().unwrap();
        let count = noted.counts.entry(what.clone()).or_default();
        let target = Target { what, earlier: *count };
        *count += 1;
        let at = self.strikes.iter().position(|strike| strike.target == target);
        let fault = at.filter(|at| noted.fired.insert(*at)).map(|at| self.strikes[at].fault);
        (target, fault)
    }

    /// Those whose write never came.
    pub(crate) fn missed(&self) -> Vec<Strike> {
        let noted = self.noted.lock().unwrap();
        let all = self.strikes.iter().enumerate().filter(|(at, _)| !noted.fired.contains(at));
        all.map(|(_, strike)| strike.clone()).collect()
    }
}

/// Takes strikes that can go together in one operation: at different writes, and one late write at most.
pub(crate) fn draw(left: &mut Vec<Strike>, most: usize, fits: impl Fn(&Strike) -> bool) -> Vec<Strike> {
    let mut drawn: Vec<Strike> = Vec::new();
    let mut at = 0;
    while at < left.len() && drawn.len() < most {
        let strike = &left[at];
        let together = drawn.iter().all(|other| {
            let both_late = (other.fault, strike.fault) == (Fault::LateWrite, Fault::LateWrite);
            other.target != strike.target && !both_late
        });
        if together && fits(strike) {
            drawn.push(left.remove(at));
        } else {
            at += 1;
        }
    }
    drawn
}
