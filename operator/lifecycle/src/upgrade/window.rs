//! Maintenance windows: whether an operation may begin now, and if not, when.
//!
//! Decided from `spec.maintenance` and the moment alone, with time zone tables that are part of the program: the same
//! on every machine. It says when work may *begin*; what is under way goes on. What it cannot understand is a problem
//! with an owner, and holds work back: nobody knows what was meant to be spared.
//!
//! A window opens at the first moment at which the clock of its zone shows the start or a later time: one that the clock
//! leaves out is when the clock goes on, one that it shows twice is the first. Its duration is a length of time, whatever
//! the clock does meanwhile. Exclusions begin by the same rule and end late: at the second of two equal times.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan};
use kaas_crds::Maintenance;
use kaas_crds::condition::Reason;
use kaas_crds::maintenance::{Exclusion, Window};
use kaas_crds::status::Owner;

use crate::validated::Problem;

/// Whether an operation may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Open,
    /// Not now.
    Closed {
        /// The first moment at which it may; `None` when there is none, or none is known.
        until: Option<Timestamp>,
        /// The same in words.
        words: String,
    },
}

/// Whether an operation may begin at this moment.
pub fn admission(maintenance: Option<&Maintenance>, now: Timestamp) -> Admission {
    let Some(maintenance) = maintenance else { return Admission::Open };
    match Schedule::read(maintenance) {
        Ok(schedule) => schedule.admission(now),
        Err(faults) => {
            let first = faults.first().map_or("", String::as_str);
            Admission::Closed {
                until: None,
                words: format!("waiting for a window that can be understood: {first}"),
            }
        }
    }
}

/// What of it cannot be understood.
pub fn problems(maintenance: Option<&Maintenance>) -> Vec<Problem> {
    let faults = maintenance.and_then(|maintenance| Schedule::read(maintenance).err());
    let problem = |message| Problem { reason: Reason::MaintenanceInvalid, message, owner: Owner::Tenant };
    faults.into_iter().flatten().map(problem).collect()
}

/// Windows and exclusions, understood.
struct Schedule {
    openings: Vec<Opening>,
    closures: Vec<Closure>,
}

/// A window.
struct Opening {
    days: Vec<Weekday>,
    start: Time,
    duration: SignedDuration,
    zone: Zone,
}

/// An exclusion.
struct Closure {
    from: Timestamp,
    to: Timestamp,
    /// Its end as the user wrote it.
    end: String,
    zone: Zone,
}

/// A time zone, and its name as the user wrote it.
#[derive(Clone)]
struct Zone {
    name: String,
    clock: TimeZone,
}

impl Schedule {
    /// Everything that is wrong, or the schedule.
    fn read(maintenance: &Maintenance) -> Result<Schedule, Vec<String>> {
        let mut faults = Vec::new();
        let openings: Vec<Opening> = maintenance
            .windows
            .iter()
            .enumerate()
            .filter_map(|(at, window)| {
                Opening::read(window, &format!("spec.maintenance.windows[{at}]"), &mut faults)
            })
            .collect();
        let closures = maintenance
            .exclusions
            .iter()
            .enumerate()
            .filter_map(|(at, exclusion)| {
                Closure::read(exclusion, &format!("spec.maintenance.exclusions[{at}]"), &mut faults)
            })
            .collect();
        if faults.is_empty() { Ok(Schedule { openings, closures }) } else { Err(faults) }
    }

    fn admission(&self, now: Timestamp) -> Admission {
        let until = self.first_open(now);
        if until == Some(now) {
            return Admission::Open;
        }
        Admission::Closed { until, words: self.words(now, until) }
    }

    /// The first open moment from this one on.
    fn first_open(&self, now: Timestamp) -> Option<Timestamp> {
        let mut at = now;
        // Each turn leaves an exclusion for good, or goes to an opening, which only an exclusion can close.
        for _ in 0..=self.closures.len().saturating_mul(2).saturating_add(2) {
            let excluded =
                self.closures.iter().filter(|closure| closure.contains(at)).map(|closure| closure.to);
            if let Some(end) = excluded.max() {
                at = end;
            } else if self.openings.is_empty() || self.openings.iter().any(|opening| opening.contains(at)) {
                return Some(at);
            } else {
                at = self.openings.iter().filter_map(|opening| opening.next(at)).min()?;
            }
        }
        None
    }

    fn words(&self, now: Timestamp, until: Option<Timestamp>) -> String {
        let closed =
            self.closures.iter().filter(|closure| closure.contains(now)).max_by_key(|closure| closure.to);
        let what = if self.openings.is_empty() { "the end of an exclusion" } else { "window" };
        let Some(until) = until else { return format!("waiting for {what}, which never comes") };
        let opening =
            self.openings.iter().find(|opening| opening.contains(until)).map(|opening| &opening.zone);
        let ended = self.closures.iter().find(|closure| closure.to == until).map(|closure| &closure.zone);
        let when = opening.or(ended).map_or_else(|| until.to_string(), |zone| zone.tell(until, now));
        match closed.filter(|_| !self.openings.is_empty()) {
            Some(Closure { end, zone, .. }) => {
                format!("waiting for {what} until {when}, upgrades are excluded until {end} {}", zone.name)
            }
            None => format!("waiting for {what} until {when}"),
        }
    }
}

impl Opening {
    fn read(window: &Window, field: &str, faults: &mut Vec<String>) -> Option<Opening> {
        let zone = Zone::read(&window.time_zone, field, faults);
        let start: Option<Time> = window.start.parse().ok();
        if start.is_none() {
            let way = "write hours and minutes such as 02:00";
            faults.push(fault(field, "start", &window.start, "no time of day", way));
        }
        let days: Vec<Weekday> = window.days.iter().map(|day| Weekday::from(*day)).collect();
        Some(Opening { days, start: start?, duration: window.duration.duration(), zone: zone? })
    }

    /// Whether it is open.
    fn contains(&self, at: Timestamp) -> bool {
        // A day more than it lasts: days are of the clock's, durations are not.
        let back = self.duration.as_hours() / 24 + 2;
        self.starts(at, -back, 1)
            .any(|start| start <= at && start.checked_add(self.duration).is_ok_and(|end| at < end))
    }

    /// When it opens next.
    fn next(&self, at: Timestamp) -> Option<Timestamp> {
        self.starts(at, -1, 9).filter(|start| *start > at).min()
    }

    /// When it opens on the days around a moment.
    fn starts(&self, around: Timestamp, first: i64, last: i64) -> impl Iterator<Item = Timestamp> {
        let today = self.zone.clock.to_datetime(around).date();
        let dates = (first..=last).filter_map(move |days| today.checked_add(days.days()).ok());
        let dates =
            dates.filter(move |date: &Date| self.days.is_empty() || self.days.contains(&date.weekday()));
        dates.filter_map(move |date| self.zone.first(date.to_datetime(self.start)))
    }
}

impl Closure {
    fn read(exclusion: &Exclusion, field: &str, faults: &mut Vec<String>) -> Option<Closure> {
        let zone = Zone::read(&exclusion.time_zone, field, faults);
        let mut moment = |name: &str, text: &str| {
            let parsed: Option<DateTime> = text.parse().ok();
            if parsed.is_none() {
                let way = "write one such as 2026-12-20T00:00";
                faults.push(fault(field, name, text, "no date and time that there is", way));
            }
            parsed
        };
        let (from, to) = (moment("from", &exclusion.from), moment("to", &exclusion.to));
        let (zone, from, to) = (zone?, from?, to?);
        // A time that is too far away to be a moment is never reached.
        let from = zone.first(from).unwrap_or(Timestamp::MAX);
        let to = zone.last(to).unwrap_or(Timestamp::MAX);
        Some(Closure { from, to, end: exclusion.to.clone(), zone })
    }

    fn contains(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.to
    }
}

impl Zone {
    fn read(name: &str, field: &str, faults: &mut Vec<String>) -> Option<Zone> {
        let found = TimeZoneDatabase::bundled().get(name).ok().filter(|clock| !clock.is_unknown());
        if found.is_none() {
            let way = "write a name of the IANA database such as Asia/Tokyo or UTC";
            faults.push(fault(field, "timeZone", name, "no time zone that is known", way));
        }
        Some(Zone { name: name.to_owned(), clock: found? })
    }

    /// The first moment at which the clock shows this time or a later one.
    fn first(&self, time: DateTime) -> Option<Timestamp> {
        let moment = self.clock.to_ambiguous_timestamp(time);
        let early = moment.earlier().ok()?;
        match moment.offset() {
            // Counted from the time after the gap, it lies before the gap: the change of the clock comes next.
            AmbiguousOffset::Gap { .. } => Some(self.clock.following(early).next()?.timestamp()),
            AmbiguousOffset::Fold { .. } | AmbiguousOffset::Unambiguous { .. } => Some(early),
        }
    }

    /// The same, but of two equal times the second.
    fn last(&self, time: DateTime) -> Option<Timestamp> {
        let moment = self.clock.to_ambiguous_timestamp(time);
        match moment.offset() {
            AmbiguousOffset::Fold { .. } => moment.later().ok(),
            AmbiguousOffset::Gap { .. } | AmbiguousOffset::Unambiguous { .. } => self.first(time),
        }
    }

    /// A moment by this clock. The day of the week is enough for the days that are next.
    fn tell(&self, at: Timestamp, now: Timestamp) -> String {
        let near = at.duration_since(now) < NEAR;
        let form = if near { "%a %H:%M" } else { "%a %Y-%m-%d %H:%M" };
        let time = at.to_zoned(self.clock.clone()).strftime(form).to_string();
        let info = self.clock.to_offset_info(at);
        // Where a zone has no letters of its own, tables give it numbers that nobody knows it by.
        let letters = info.abbreviation();
        let zone = if letters.starts_with(|c: char| c.is_ascii_alphabetic()) { letters } else { &self.name };
        format!("{time} {zone}")
    }
}

/// For so long a day of the week names one day.
const NEAR: SignedDuration = SignedDuration::from_hours(6 * 24);

fn fault(field: &str, name: &str, value: &str, what: &str, way: &str) -> String {
    format!("{field}.{name}: '{value}' is {what}; {way}")
}

#[cfg(test)]
mod tests;
