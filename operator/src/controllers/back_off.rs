//! Pauses after failures: each object's grow by themselves, and hold up no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;

use crate::class::Class;
use crate::metrics::Metrics;

/// First and last pause after failures.
pub(super) const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// After a conflict the world is read again at once, unless that happens again and again.
const CONFLICT: (u32, Duration) = (5, Duration::from_millis(20));

/// Failures in a row, by UID of the object.
pub(super) struct Attempts {
    counts: Mutex<BTreeMap<String, u32>>,
    metrics: Arc<Metrics>,
}

impl Attempts {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Attempts { counts: Mutex::default(), metrics }
    }

    /// Failures in a row of one object.
    pub(super) fn count(&self, uid: &str) -> u32 {
        self.counts().get(uid).copied().unwrap_or_default()
    }

    /// The last turn for it went well.
    pub(super) fn end(&self, uid: &str) {
        let mut counts = self.counts();
        if counts.remove(uid).is_some() {
            self.metrics.queue.backing_off(counts.len());
        }
    }

    /// One more failure: how many there are in a row, and when the next turn is.
    pub(super) fn add(&self, uid: &str, class: Class) -> (u32, Action) {
        self.metrics.queue.retried(class.as_str());
        if class == Class::NotLeading {
            return (0, Action::await_change());
        }
        let mut counts = self.counts();
        let count = counts.entry(uid.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        let count = *count;
        self.metrics.queue.backing_off(counts.len());
        if class == Class::Conflict && count < CONFLICT.0 {
            return (count, Action::requeue(CONFLICT.1));
        }
        let pause = BACK_OFF.0.saturating_mul(2_u32.saturating_pow((count - 1).min(10))).min(BACK_OFF.1);
        (count, Action::requeue(pause))
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        // Counters cannot be left half-changed.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to look again although nothing happened.
pub(super) fn until(wake_at: Option<Timestamp>) -> Action {
    pause(wake_at).map_or_else(Action::await_change, Action::requeue)
}

/// The pause until then.
pub(super) fn pause(wake_at: Option<Timestamp>) -> Option<Duration> {
    let pause = wake_at?.duration_since(Timestamp::now());
    Some(Duration::try_from(pause).unwrap_or_default().max(BACK_OFF.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_last_one_and_begin_anew() {
        let attempts = Attempts::new(Arc::new(Metrics::new()));
        let pauses: Vec<Action> = (0..12).map(|_| attempts.add("a", Class::Transient).1).collect();
        assert_eq!(pauses[0], Action::requeue(Duration::from_millis(250)));
        assert_eq!(pauses[1], Action::requeue(Duration::from_millis(500)));
        assert_eq!(pauses[11], Action::requeue(Duration::from_secs(60)));
        assert_eq!(attempts.add("b", Class::Transient), (1, Action::requeue(Duration::from_millis(250))));
        attempts.end("a");
        assert_eq!(attempts.count("a"), 0);
        assert_eq!(attempts.add("a", Class::Conflict).1, Action::requeue(CONFLICT.1));
        assert_eq!(attempts.add("a", Class::NotLeading).1, Action::await_change());
    }
}
