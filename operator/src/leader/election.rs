//! Who may lead, decided from the Lease as last seen, this process's own clock and its identity.
//!
//! The wall-clock times in a Lease are written for people and never read: clocks of two machines differ. A holder
//! is given up when its record has not changed for the duration that the record itself names, counted on the local
//! monotonic clock from when the record was first seen. A holder stops itself earlier (see [`Timing::deadline`]),
//! counted from before it sent its last successful renewal, so the two can never overlap.
//!
//! Refused: taking a lease without having seen its resourceVersion, and taking over at once from a Lease object
//! that was deleted under its holder.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;

/// The times of an election, all derived from the lease's duration. In brackets: for 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    duration: Duration,
}

impl Timing {
    /// From the lease's duration, which a Lease holds as whole seconds: rounded up, at least one.
    pub fn new(duration: Duration) -> Self {
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        Timing { duration: Duration::from_secs(seconds.clamp(1, i32::MAX as u64)) }
    }

    /// After so long without a change others may take the lease (10 s).
    pub fn duration(self) -> Duration {
        self.duration
    }

    /// After so long without a renewal the holder stops itself (7 s). The rest is for writes that were sent just
    /// before and for clocks that run at different speeds.
    pub fn deadline(self) -> Duration {
        self.duration * 7 / 10
    }

    /// Between two renewals (2 s): three attempts fit before the deadline.
    pub fn period(self) -> Duration {
        self.duration / 5
    }

    /// So long a standby goes without any word of the Lease before it reads it (4 s).
    pub fn silence(self) -> Duration {
        self.period() * 2
    }

    /// Longest wait for one answer (3 s): a hung connection leaves time for a second attempt on a new one.
    pub fn attempt(self) -> Duration {
        self.duration * 3 / 10
    }

    /// Pause after a failed request (0.5 s).
    pub fn retry(self) -> Duration {
        self.duration / 20
    }

    fn seconds(self) -> i32 {
        i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)
    }
}

/// What a candidate does next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Wait for a change of the Lease, but not longer than this.
    Wait(Instant),
    /// Read the Lease.
    Read,
    /// Create it, held by us.
    Create(Box<Lease>),
    /// Replace it by this, held by us.
    Take(Box<Lease>),
}

/// What is known of the Lease.
#[derive(Clone, Debug)]
enum View {
    /// Nothing yet, or something proved it wrong.
    Unknown,
    /// It does not exist. Free from this moment on: a holder whose Lease was deleted may not know it yet.
    Absent { free: Instant },
    /// It was first seen like this at `since`, and still was at `read`.
    Present { lease: Box<Lease>, since: Instant, read: Instant },
}

/// A candidate's knowledge and its rule.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    identity: String,
    timing: Timing,
    view: View,
    /// No request before this, after one that failed.
    pause: Option<Instant>,
}

impl Election {
    pub(crate) fn new(identity: String, timing: Timing) -> Self {
        Election { identity, timing, view: View::Unknown, pause: None }
    }

    /// The next step of a candidate. `wall` only goes into the record.
    pub(crate) fn step(&self, now: Instant, wall: Timestamp) -> Step {
        if let Some(pause) = self.pause.filter(|pause| *pause > now) {
            return Step::Wait(pause);
        }
        match &self.view {
            View::Unknown => Step::Read,
            View::Absent { free } if now < *free => Step::Wait(*free),
            View::Absent { .. } => Step::Create(Box::new(self.taken(None, wall))),
            View::Present { lease, since, read } => {
                let take = || Step::Take(Box::new(self.taken(Some(lease), wall)));
                match holder(lease) {
                    None => take(),
                    // A write of ours whose answer was lost.
                    Some(holder) if holder == self.identity => take(),
                    Some(_) => {
                        let expires = *since + stated_duration(lease).unwrap_or(self.timing.duration);
                        // A live holder is heard of every period. Silence is its death or the watch's: look, so
                        // that a dead watch delays nothing, and look again before taking.
                        let silent = *read + self.timing.silence();
                        if now >= expires && *read >= expires {
                            take()
                        } else if now >= expires.min(silent) {
                            Step::Read
                        } else {
                            Step::Wait(expires.min(silent))
                        }
                    }
                }
            }
        }
    }

    /// A read or a write answered with this (`None`: there is no Lease). It replaces whatever was known.
    pub(crate) fn saw(&mut self, lease: Option<Lease>, now: Instant) {
        self.pause = None;
        self.view = match (lease, &self.view) {
            (Some(lease), View::Present { lease: known, since, .. }) if version(&lease) == version(known) => {
                View::Present { since: *since, lease: Box::new(lease), read: now }
            }
            (Some(lease), _) => View::Present { lease: Box::new(lease), since: now, read: now },
            (None, View::Absent { free }) => View::Absent { free: *free },
            (None, View::Present { lease, .. }) if self.is_held_by_another(lease) => {
                View::Absent { free: now + stated_duration(lease).unwrap_or(self.timing.duration) }
            }
            (None, _) => View::Absent { free: now },
        };
    }

    /// A watch reported this. Late events, older than what a read has shown, are dropped.
    pub(crate) fn heard(&mut self, lease: Option<Lease>, now: Instant) {
        let late = match (&lease, &self.view) {
            (Some(lease), View::Present { lease: known, .. }) => {
                number(lease).zip(number(known)).is_some_and(|(heard, known)| heard < known)
            }
            _ => false,
        };
        if !late {
            self.saw(lease, now);
        }
    }

    /// A write was refused because the Lease is not what we thought.
    pub(crate) fn contradicted(&mut self) {
        self.view = View::Unknown;
    }

    /// A request failed or was not answered in time.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.pause = Some(now + self.timing.retry());
    }

    /// Who holds it, as far as known.
    pub(crate) fn holder(&self) -> Option<&str> {
        match &self.view {
            View::Present { lease, .. } => holder(lease),
            View::Unknown | View::Absent { .. } => None,
        }
    }

    fn is_held_by_another(&self, lease: &Lease) -> bool {
        holder(lease).is_some_and(|holder| holder != self.identity)
    }

    /// The record by which we hold it. leaseTransitions counts changes of the holder.
    fn taken(&self, lease: Option<&Lease>, wall: Timestamp) -> Lease {
        let mut next = lease.cloned().unwrap_or_default();
        let spec = next.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            let transitions = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(if lease.is_some() { transitions.saturating_add(1) } else { 0 });
            spec.acquire_time = Some(MicroTime(wall));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(self.timing.seconds());
        spec.renew_time = Some(MicroTime(wall));
        next
    }
}

/// The same record, renewed.
pub(crate) fn renewed(lease: &Lease, timing: Timing, wall: Timestamp) -> Lease {
    let mut next = lease.clone();
    let spec = next.spec.get_or_insert_default();
    spec.lease_duration_seconds = Some(timing.seconds());
    spec.renew_time = Some(MicroTime(wall));
    next
}

/// The same record, held by nobody.
pub(crate) fn released(lease: &Lease, wall: Timestamp) -> Lease {
    let mut next = lease.clone();
    let spec = next.spec.get_or_insert_default();
    spec.holder_identity = None;
    spec.renew_time = Some(MicroTime(wall));
    next
}

/// An empty Lease of this name, to be completed by [`Election::step`].
pub(crate) fn named(mut lease: Lease, namespace: &str, name: &str) -> Lease {
    lease.metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    lease
}

/// Who holds it; an empty name is nobody.
pub(crate) fn holder(lease: &Lease) -> Option<&str> {
    spec(lease).and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty())
}

fn spec(lease: &Lease) -> Option<&LeaseSpec> {
    lease.spec.as_ref()
}

/// The duration that the holder wrote: its own clockwork follows it, whatever ours is.
fn stated_duration(lease: &Lease) -> Option<Duration> {
    let seconds = spec(lease)?.lease_duration_seconds?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn version(lease: &Lease) -> Option<&str> {
    lease.metadata.resource_version.as_deref()
}

/// resourceVersions of one resource are comparable integers since Kubernetes 1.35.
fn number(lease: &Lease) -> Option<u64> {
    version(lease)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn lease(version: u64, holder: Option<&str>, duration: Option<i32>, transitions: Option<i32>) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_string()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: duration,
                lease_transitions: transitions,
                ..LeaseSpec::default()
            }),
        }
    }

    fn candidate() -> Election {
        Election::new("me".to_owned(), Timing::new(seconds(10)))
    }

    /// What stands in the record that a step writes: holder, duration, transitions.
    fn written(step: &Step) -> (String, i32, i32) {
        let (Step::Create(lease) | Step::Take(lease)) = step else { panic!("{step:?} writes nothing") };
        let spec = lease.spec.clone().unwrap();
        (spec.holder_identity.unwrap(), spec.lease_duration_seconds.unwrap(), spec.lease_transitions.unwrap())
    }

    #[test]
    fn times_of_ten_seconds() {
        let timing = Timing::new(seconds(10));
        assert_eq!(timing.deadline(), seconds(7));
        assert_eq!(timing.period(), seconds(2));
        assert_eq!(timing.silence(), seconds(4));
        assert_eq!(timing.attempt(), seconds(3));
        assert_eq!(timing.retry(), Duration::from_millis(500));
    }

    #[test]
    fn the_holder_stops_before_others_start_and_has_two_attempts() {
        for number in 1..=60 {
            let timing = Timing::new(seconds(number));
            assert!(timing.deadline() < timing.duration());
            assert!(timing.period() + timing.attempt() + timing.retry() < timing.deadline(), "{number} s");
            assert!(timing.silence() < timing.duration());
        }
    }

    #[test]
    fn a_duration_is_whole_seconds_rounded_up() {
        for (given, kept) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (9_500, 10)] {
            assert_eq!(Timing::new(Duration::from_millis(given)).duration(), seconds(kept), "{given} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn first_looks_then_decides() {
        let now = Instant::now();
        type Case = (&'static str, Option<Lease>, fn(&Step) -> bool);
        let table: [Case; 7] = [
            ("no Lease", None, |step| {
                matches!(step, Step::Create(_)) && written(step) == ("me".into(), 10, 0)
            }),
            ("never held", Some(lease(1, None, None, None)), |step| written(step) == ("me".into(), 10, 1)),
            ("released", Some(lease(1, None, Some(10), Some(4))), |step| {
                written(step) == ("me".into(), 10, 5)
            }),
            ("released with an empty name", Some(lease(1, Some(""), Some(1), Some(4))), |step| {
                written(step) == ("me".into(), 10, 5)
            }),
            ("ours: the answer was lost", Some(lease(1, Some("me"), Some(10), Some(4))), |step| {
                written(step) == ("me".into(), 10, 4)
            }),
            ("held", Some(lease(1, Some("other"), Some(10), None)), |step| matches!(step, Step::Wait(_))),
            ("without a spec", Some(Lease::default()), |step| written(step) == ("me".into(), 10, 1)),
        ];
        for (case, found, right) in table {
            let mut election = candidate();
            assert_eq!(election.step(now, WALL), Step::Read, "{case}");
            election.saw(found, now);
            let step = election.step(now, WALL);
            assert!(right(&step), "{case}: {step:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_given_up_after_its_own_duration() {
        let start = Instant::now();
        for (case, stated, expires) in [
            ("as ours", Some(10), 10),
            ("longer than ours", Some(30), 30),
            ("shorter than ours", Some(3), 3),
            ("unsaid", None, 10),
            ("nonsense", Some(0), 10),
            ("nonsense", Some(-5), 10),
        ] {
            let found = lease(7, Some("other"), stated, None);
            let mut election = candidate();
            election.saw(Some(found.clone()), start);
            let mut now = start;
            let mut reads = 0;
            loop {
                match election.step(now, WALL) {
                    Step::Wait(until) => {
                        assert!(until > now, "{case}");
                        now = until;
                    }
                    Step::Read => {
                        reads += 1;
                        election.saw(Some(found.clone()), now);
                    }
                    step => {
                        assert_eq!(now, start + seconds(expires), "{case}");
                        assert_eq!(written(&step).2, 1, "{case}");
                        break;
                    }
                }
            }
            assert!(reads >= 1, "{case}: taken without looking");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_starts_the_count_anew() {
        let start = Instant::now();
        let mut election = candidate();
        for turn in 0..100 {
            let now = start + seconds(2 * turn);
            election.heard(Some(lease(turn + 1, Some("other"), Some(10), None)), now);
            assert_eq!(election.step(now, WALL), Step::Wait(now + seconds(4)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wall_clock_times_are_never_read() {
        let start = Instant::now();
        for wall in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            let mut found = lease(1, Some("other"), Some(10), None);
            found.spec.as_mut().unwrap().renew_time = Some(MicroTime(wall));
            let mut election = candidate();
            election.saw(Some(found), start);
            assert_eq!(election.step(start, Timestamp::MAX), Step::Wait(start + seconds(4)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_watch_delays_nothing() {
        let start = Instant::now();
        let mut election = candidate();
        election.saw(Some(lease(1, Some("other"), Some(10), None)), start);
        assert_eq!(election.step(start + seconds(4), WALL), Step::Read);
        // The holder had renewed, and nothing had told us.
        election.saw(Some(lease(2, Some("other"), Some(10), None)), start + seconds(4));
        assert_eq!(election.step(start + seconds(4), WALL), Step::Wait(start + seconds(8)));
        election.saw(Some(lease(2, Some("other"), Some(10), None)), start + seconds(8));
        assert_eq!(election.step(start + seconds(8), WALL), Step::Wait(start + seconds(12)));
        election.saw(Some(lease(2, Some("other"), Some(10), None)), start + seconds(14));
        assert!(matches!(election.step(start + seconds(14), WALL), Step::Take(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn late_events_are_dropped_and_reads_believed() {
        let start = Instant::now();
        let mut election = candidate();
        election.saw(Some(lease(9, Some("other"), Some(10), None)), start);
        election.heard(Some(lease(8, None, Some(10), None)), start);
        assert_eq!(election.holder(), Some("other"), "version 8 is older than 9, and 10 is newer");
        election.heard(Some(lease(10, None, Some(10), None)), start);
        assert_eq!(election.holder(), None);
        // A restored backup goes back in versions: what is read counts.
        election.saw(Some(lease(3, Some("third"), Some(10), None)), start);
        assert_eq!(election.holder(), Some("third"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_free_only_when_its_holder_must_have_stopped() {
        let start = Instant::now();
        let mut election = candidate();
        election.saw(Some(lease(1, Some("other"), Some(20), None)), start);
        election.heard(None, start + seconds(1));
        assert_eq!(election.step(start + seconds(1), WALL), Step::Wait(start + seconds(21)));
        election.saw(None, start + seconds(5));
        assert_eq!(election.step(start + seconds(5), WALL), Step::Wait(start + seconds(21)), "no new count");
        assert!(matches!(election.step(start + seconds(21), WALL), Step::Create(_)));

        for free in [None, Some("me")] {
            let mut election = candidate();
            election.saw(Some(lease(1, free, Some(20), None)), start);
            election.heard(None, start);
            assert!(matches!(election.step(start, WALL), Step::Create(_)), "nobody else held it: {free:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_write_is_followed_by_a_look_and_a_failed_one_by_a_pause() {
        let now = Instant::now();
        let mut election = candidate();
        election.saw(Some(lease(1, None, None, None)), now);
        election.contradicted();
        assert_eq!(election.step(now, WALL), Step::Read);

        election.failed(now);
        assert_eq!(election.step(now, WALL), Step::Wait(now + Duration::from_millis(500)));
        assert_eq!(election.step(now + Duration::from_millis(500), WALL), Step::Read);
        // A change that arrives meanwhile ends the pause.
        election.failed(now);
        election.heard(Some(lease(2, None, None, None)), now);
        assert!(matches!(election.step(now, WALL), Step::Take(_)));
    }

    #[test]
    fn writes_keep_what_is_not_ours() {
        let mut found = lease(5, Some("other"), Some(10), Some(2));
        found.metadata.labels = Some([("team".to_owned(), "platform".to_owned())].into());
        found.metadata.uid = Some("1234".to_owned());
        let taken = candidate().taken(Some(&found), WALL);
        let again = renewed(&taken, Timing::new(seconds(15)), WALL);
        let free = released(&again, WALL);
        for next in [&taken, &again, &free] {
            assert_eq!(next.metadata, found.metadata, "resourceVersion above all: it is the guard");
        }
        assert_eq!(holder(&taken), Some("me"));
        assert_eq!(stated_duration(&again), Some(seconds(15)));
        assert_eq!(again.spec.unwrap().acquire_time, taken.spec.unwrap().acquire_time);
        assert_eq!(holder(&free), None);
        assert_eq!(free.spec.unwrap().lease_transitions, Some(3), "counted by who takes it next");
    }
}
