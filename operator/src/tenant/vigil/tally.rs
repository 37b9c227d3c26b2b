//! What a vigil counts: requests and their failures, gaps, and changes that the watch missed, repeated or told late.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kaas_lifecycle::observed::{Lately, Vigil};
use kaas_lifecycle::upgrade::gate::{LATELY, SLOW};
use tokio::time::Instant;

/// A change that was answered so long ago and not told is lost.
const LATE: Duration = Duration::from_secs(15);
/// Changes are remembered for so long: a watch that resumes repeats what was told last, if anything.
const MEMORY: Duration = Duration::from_secs(60);

/// Counts so far.
#[derive(Debug)]
pub(super) struct Tally {
    seen: Vigil,
    /// When a request on a new connection succeeded last.
    succeeded: Option<Instant>,
    /// The last requests on new connections, the oldest first.
    lately: VecDeque<Ended>,
    /// Changes by resourceVersion: when each was answered, and when it was told.
    changes: BTreeMap<u64, Change>,
    /// A list was read at this version: what happened until then is told by nobody.
    listed: u64,
}

#[derive(Debug)]
struct Ended {
    at: Instant,
    failed: bool,
    slow: bool,
}

#[derive(Debug, Default)]
struct Change {
    answered: Option<Instant>,
    told: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        let seen = Vigil { since: Timestamp::now(), ..Vigil::default() };
        Tally { seen, succeeded: None, lately: VecDeque::new(), changes: BTreeMap::new(), listed: 0 }
    }
}

impl Tally {
    /// A request was answered, or was not, after so long.
    pub(super) fn note(&mut self, reused: bool, took: Duration, result: Result<(), String>) {
        if !reused {
            let (at, slow) = (Instant::now(), signed(took) > SLOW);
            self.lately.retain(|ended| recent(ended, at));
            self.lately.push_back(Ended { at, failed: result.is_err(), slow });
        }
        let (requests, failures) = match reused {
            true => (&mut self.seen.reused, &mut self.seen.reused_failed),
            false => (&mut self.seen.requests, &mut self.seen.failed),
        };
        *requests = requests.saturating_add(1);
        match result {
            Ok(()) if !reused => {
                let now = Instant::now();
                let gap = self.succeeded.replace(now).map(|before| now.duration_since(before));
                self.seen.gap = self.seen.gap.max(signed(gap.unwrap_or_default()));
                self.seen.failing_since = None;
            }
            Ok(()) => {}
            Err(what) => {
                *failures = failures.saturating_add(1);
                if !reused {
                    self.seen.failing_since.get_or_insert_with(Timestamp::now);
                    self.seen.failure = Some(what.chars().take(200).collect());
                }
            }
        }
    }

    /// A change was answered with this version.
    pub(super) fn written(&mut self, version: u64) {
        let now = Instant::now();
        let change = self.changes.entry(version).or_default();
        change.answered = Some(now);
        self.forget(now);
    }

    /// The watch told the change of this version.
    pub(super) fn told(&mut self, version: u64) {
        let now = Instant::now();
        self.seen.events = self.seen.events.saturating_add(1);
        let change = self.changes.entry(version).or_default();
        if change.told.is_some() {
            self.seen.repeated = self.seen.repeated.saturating_add(1);
            return;
        }
        change.told = Some(now);
        let late = change.answered.map(|answered| now.duration_since(answered)).unwrap_or_default();
        self.seen.watch_gap = self.seen.watch_gap.max(signed(late));
    }

    /// The watch begins anew after this version.
    pub(super) fn listed(&mut self, version: u64) {
        self.listed = version;
    }

    /// What was seen until now.
    pub(super) fn seen(&self) -> Vigil {
        let mut lately = Lately::default();
        let now = Instant::now();
        for ended in self.lately.iter().filter(|ended| recent(ended, now)) {
            lately.requests = lately.requests.saturating_add(1);
            lately.failed = lately.failed.saturating_add(u32::from(ended.failed));
            lately.slow = lately.slow.saturating_add(u32::from(ended.slow));
        }
        Vigil { lately, ..self.seen.clone() }
    }

    fn forget(&mut self, now: Instant) {
        let (seen, listed) = (&mut self.seen, self.listed);
        self.changes.retain(|version, change| {
            let age = |at: Option<Instant>| at.map(|at| now.duration_since(at)).unwrap_or_default();
            let missing = change.told.is_none() && age(change.answered) > LATE;
            if missing && *version > listed {
                seen.lost = seen.lost.saturating_add(1);
            }
            !missing && age(change.told) < MEMORY
        });
    }
}

fn recent(ended: &Ended, now: Instant) -> bool {
    signed(now.duration_since(ended.at)) <= LATELY
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_late_lost_or_repeated() {
        let mut tally = Tally::default();
        tally.written(7);
        advance(Duration::from_millis(300)).await;
        tally.told(7);
        assert_eq!(tally.seen().watch_gap, SignedDuration::from_millis(300));
        tally.told(7);
        // Told before the answer came.
        tally.told(8);
        tally.written(8);
        tally.written(9);
        advance(LATE + Duration::from_secs(1)).await;
        tally.written(10);
        let seen = tally.seen();
        assert_eq!((seen.events, seen.repeated, seen.lost), (3, 1, 1));
        advance(MEMORY).await;
        tally.written(11);
        assert_eq!(tally.changes.keys().copied().collect::<Vec<_>>(), [11], "10 is lost by now");
        assert_eq!(tally.seen().lost, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happened_before_a_list_is_not_lost() {
        let mut tally = Tally::default();
        tally.written(7);
        tally.listed(7);
        advance(LATE + Duration::from_secs(1)).await;
        tally.written(8);
        assert_eq!(tally.seen().lost, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn gaps_and_failures_are_of_new_connections() {
        let mut tally = Tally::default();
        let quick = Duration::from_millis(5);
        tally.note(false, quick, Ok(()));
        advance(Duration::from_secs(2)).await;
        tally.note(false, quick, Err("Get: refused".into()));
        tally.note(true, quick, Err("reset".into()));
        assert!(tally.seen().failing_since.is_some());
        advance(Duration::from_secs(1)).await;
        tally.note(false, quick, Ok(()));
        let seen = tally.seen();
        assert_eq!((seen.requests, seen.failed, seen.reused, seen.reused_failed), (3, 1, 1, 1));
        assert_eq!(seen.gap, SignedDuration::from_secs(3));
        assert_eq!((seen.failing_since, seen.failure.as_deref()), (None, Some("Get: refused")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_ended_long_ago_is_not_lately() {
        let mut tally = Tally::default();
        tally.note(false, Duration::from_secs(3), Err("Get: no answer".into()));
        advance(Duration::from_secs(20)).await;
        tally.note(false, Duration::from_secs(2), Ok(()));
        tally.note(true, Duration::from_secs(3), Err("reset".into()));
        assert_eq!(tally.seen().lately, Lately { requests: 2, failed: 1, slow: 1 });
        advance(Duration::from_secs(11)).await;
        assert_eq!(tally.seen().lately, Lately { requests: 1, failed: 0, slow: 0 });
        assert_eq!((tally.seen().requests, tally.seen().failed), (2, 1));
    }
}
