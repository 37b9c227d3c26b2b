//! The gate before every write: open while the lease is certainly ours, judged by the clock alone.
//!
//! It decides from one number, the local moment up to which nobody else can have taken the lease. No task has to
//! run for it to close: a process that was paused, or whose threads are stuck, finds it closed when it wakes.
//! Once closed it stays closed; the next term of office gets a gate of its own, so that work left over from an
//! earlier term can never write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// The lease is no longer held, so nothing may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease is no longer held: nothing is written by this process until it leads again")]
pub struct Lost;

/// Asked before every write. Clones share one state.
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    origin: Instant,
    /// Nanoseconds after `origin` at which the gate closes.
    until: AtomicU64,
}

const CLOSED: u64 = 0;
const UNGUARDED: u64 = u64::MAX;

impl Gate {
    /// A gate that is open until `deadline`.
    pub(crate) fn until(deadline: Instant) -> Self {
        let origin = Instant::now();
        let until = nanoseconds(origin, deadline);
        Gate { state: Arc::new(State { origin, until: AtomicU64::new(until) }) }
    }

    /// A gate that only [`Gate::close`] closes, for tests that run without a lease.
    pub fn unguarded() -> Self {
        Gate { state: Arc::new(State { origin: Instant::now(), until: AtomicU64::new(UNGUARDED) }) }
    }

    /// Whether a write may be sent now.
    pub fn open(&self) -> bool {
        self.is_open_at(self.state.until.load(Ordering::Acquire))
    }

    /// [`Gate::open`] for the `?` operator.
    pub fn check(&self) -> Result<(), Lost> {
        if self.open() { Ok(()) } else { Err(Lost) }
    }

    /// Closes it for good.
    pub fn close(&self) {
        self.state.until.store(CLOSED, Ordering::Release);
    }

    /// Moves the deadline on. False if the gate had closed before: what has closed is never opened again.
    pub(crate) fn extend(&self, deadline: Instant) -> bool {
        let next = nanoseconds(self.state.origin, deadline);
        self.state
            .until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |until| {
                self.is_open_at(until).then_some(until.max(next))
            })
            .is_ok()
    }

    fn is_open_at(&self, until: u64) -> bool {
        until == UNGUARDED || nanoseconds(self.state.origin, Instant::now()) < until
    }
}

/// From `origin` to `moment`; 0 if it lies before. 64 bits hold 584 years, and the last value is never reached.
fn nanoseconds(origin: Instant, moment: Instant) -> u64 {
    let elapsed = moment.saturating_duration_since(origin).as_nanos();
    u64::try_from(elapsed).unwrap_or(UNGUARDED - 1).min(UNGUARDED - 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closes_by_the_clock_alone() {
        let gate = Gate::until(Instant::now() + Duration::from_secs(7));
        let other = gate.clone();
        assert!(gate.open());
        tokio::time::advance(Duration::from_millis(6_999)).await;
        assert!(other.open());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!gate.open());
        assert_eq!(other.check(), Err(Lost));
    }

    #[tokio::test(start_paused = true)]
    async fn extends_only_while_open_and_never_backwards() {
        let gate = Gate::until(Instant::now() + Duration::from_secs(7));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(gate.extend(Instant::now() + Duration::from_secs(7)));
        assert!(gate.extend(Instant::now()), "an older reply is no harm");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(gate.open());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!gate.extend(Instant::now() + Duration::from_secs(7)), "what has closed stays closed");
        assert!(!gate.open());
    }

    #[tokio::test(start_paused = true)]
    async fn close_is_final() {
        for gate in [Gate::until(Instant::now() + Duration::from_secs(7)), Gate::unguarded()] {
            assert!(gate.check().is_ok());
            gate.close();
            assert!(!gate.open());
            assert!(!gate.extend(Instant::now() + Duration::from_secs(7)));
            assert!(!gate.open());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_is_closed() {
        let past = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!Gate::until(past).open());
    }
}
