//! Upgrades: from which version to which, in which steps, when the next one may begin, and when the way is back.
//!
//! The control plane goes first, its binaries as one change and what they serve as another: new binaries emulate the
//! version before until they have proved themselves. Until then the way back is a roll, and is taken unasked when
//! something breaks. Every step is recomputed from facts; what cannot be observed again (which release a rendering
//! was made from, and what was tried and refused) is stored with the revision, where no tenant can write.

use std::collections::BTreeSet;

use self::stage::Turn;
use crate::observed::Observed;
use crate::revision;

pub mod canary;
pub mod gate;
pub mod path;
pub mod preflight;
pub mod stage;
pub mod step;
pub mod window;

/// Whether an upgrade has begun and is not over, or begins now.
pub fn under_way(observed: &Observed) -> bool {
    let Some(record) = revision::current(observed).map(|current| current.record) else { return false };
    let begun =
        record.stage.emulates.is_some() || record.before.is_some() || canary::live(observed).is_some();
    begun || matches!(stage::next(observed, &record), Turn::Go { .. })
}

/// The version that a control plane goes back to, from the moment on at which its way back begins.
pub(crate) fn lowered(observed: &Observed) -> Option<String> {
    let record = revision::current(observed)?.record;
    record.back.then(|| record.stage.serves().to_owned())
}

/// The catalogue entries that a cluster needs: of the version that is asked for, and of those that run.
pub fn releases(observed: &Observed) -> BTreeSet<String> {
    let stage = revision::current(observed).map(|current| current.record.stage);
    let running = stage.into_iter().flat_map(|stage| [Some(stage.version), stage.emulates]).flatten();
    running.chain([observed.cluster.spec.version.clone()]).collect()
}
