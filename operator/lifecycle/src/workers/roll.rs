//! Whether a roll may take the next worker that is well, and if not, what it waits for.
//!
//! A roll begins in a maintenance window of its cluster and then goes on to its end. It takes no worker that is well
//! while one of the new template is not Ready, so that a bad template stops after the first worker that has it; and none
//! while add-ons are being replaced or moved, because each worker that goes takes some of their pods along, or while they
//! do not run since there is a worker of the new template. What is not well goes without waiting: nothing is lost with it.

use jiff::{SignedDuration, Timestamp};
use kaas_crds::Reason;
use kaas_crds::condition::ConditionType;

use crate::upgrade::window::{Admission, admission};
use crate::workers::observed::{Member, PoolObserved, Readiness};

/// Add-ons that are not ready for longer hold up nothing, if they were not before there was a worker of the new template:
/// new workers may be what they need.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// What a roll waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// Whether it has not begun: then nothing is made for it either.
    pub(super) before_it: bool,
    pub(super) reason: Reason,
    pub(super) words: String,
    /// When it is over by itself, if that is known.
    pub(super) until: Option<Timestamp>,
}

/// What the next worker that is well waits for; `None` where there is no roll either.
pub(super) fn wait(observed: &PoolObserved) -> Option<Wait> {
    let cluster = observed.cluster.found()?;
    let staying = || observed.members().filter(|member| !member.going());
    if !staying().any(|member| !observed.is_current(&member.worker)) {
        return None;
    }
    let wait = |words, until| Some(Wait { before_it: false, reason: Reason::Rolling, words, until });
    if let Admission::Closed { until, words } = admission(cluster.maintenance.as_ref(), observed.now)
        && !begun(observed)
    {
        return Some(Wait { before_it: true, reason: Reason::WaitingForWindow, words, until });
    }
    let unproven = staying().filter(|member| observed.is_current(&member.worker));
    if let Some(member) =
        unproven.filter(|member| member.readiness != Readiness::Ready).min_by_key(|member| member.name())
    {
        return wait(
            format!("{} of the new template is not Ready: {}", member.name(), member.summary()),
            None,
        );
    }
    let unready = cluster.addons.as_ref()?;
    let new = staying().filter(|member| observed.is_current(&member.worker)).map(Member::created).min();
    let until = unready.since.checked_add(PATIENCE).ok();
    let passes = new.is_none_or(|new| unready.since < new);
    if passes && until.is_none_or(|until| observed.now >= until) {
        return None;
    }
    wait(format!("add-ons have to be ready first: {}", unready.message), until.filter(|_| passes))
}

/// By what was said of it last: what is seen of workers does not tell a roll from a pool that grew.
fn begun(observed: &PoolObserved) -> bool {
    let conditions = observed.pool.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| {
        condition.type_ == ConditionType::UpToDate.to_string() && condition.reason == Reason::Rolling.as_str()
    })
}
