use jiff::tz::TimeZone;
use kaas_crds::maintenance::{Day, Scope};
use proptest::prelude::*;

use super::*;

fn clock(name: &str) -> TimeZone {
    TimeZoneDatabase::bundled().get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window(days: &[Day], start: &str, duration: &str, zone: &str) -> Window {
    Window {
        days: days.to_vec(),
        start: start.into(),
        duration: duration.parse().unwrap(),
        time_zone: zone.into(),
    }
}

fn exclusion(from: &str, to: &str, zone: &str) -> Exclusion {
    Exclusion { from: from.into(), to: to.into(), time_zone: zone.into(), scope: Scope::NoUpgrades }
}

fn windows(windows: &[Window]) -> Maintenance {
    Maintenance { windows: windows.to_vec(), exclusions: Vec::new() }
}

fn until(maintenance: &Maintenance, now: &str) -> (Option<Timestamp>, String) {
    match admission(Some(maintenance), at(now)) {
        Admission::Open => panic!("open at {now}"),
        Admission::Closed { until, words } => (until, words),
    }
}

fn is_open(maintenance: &Maintenance, now: &str) -> bool {
    admission(Some(maintenance), at(now)) == Admission::Open
}

#[test]
fn without_windows_it_is_open_but_for_exclusions() {
    assert_eq!(admission(None, at("2026-06-01T00:00Z")), Admission::Open);
    assert!(is_open(&Maintenance::default(), "2026-06-01T00:00Z"));
    let spared = Maintenance {
        windows: Vec::new(),
        exclusions: vec![exclusion("2026-12-20T00:00", "2027-01-05T00:00", "Asia/Tokyo")],
    };
    assert!(is_open(&spared, "2026-12-19T14:59:59Z"));
    assert_eq!(
        until(&spared, "2026-12-19T15:00Z"),
        (
            Some(at("2027-01-04T15:00Z")),
            "waiting for the end of an exclusion until Tue 2027-01-05 00:00 JST".into()
        )
    );
    assert!(!is_open(&spared, "2027-01-04T14:59:59Z"));
    assert!(is_open(&spared, "2027-01-04T15:00Z"), "to is exclusive");
}

#[test]
fn a_person_reads_when() {
    let mut weekend = windows(&[window(&[Day::Sat, Day::Sun], "02:00", "4h", "Asia/Tokyo")]);
    let wednesday = "2026-06-03T00:00Z";
    let saturday = at("2026-06-05T17:00Z");
    assert_eq!(until(&weekend, wednesday), (Some(saturday), "waiting for window until Sat 02:00 JST".into()));
    assert!(is_open(&weekend, "2026-06-05T17:00Z") && is_open(&weekend, "2026-06-05T20:59:59Z"));
    assert!(!is_open(&weekend, "2026-06-05T21:00Z"));
    weekend.exclusions.push(exclusion("2026-06-01T00:00", "2026-06-14T03:00", "Asia/Tokyo"));
    assert_eq!(
        until(&weekend, wednesday),
        (
            Some(at("2026-06-13T18:00Z")),
            "waiting for window until Sun 2026-06-14 03:00 JST, upgrades are excluded until 2026-06-14T03:00 Asia/Tokyo"
                .into()
        )
    );
    // Zones without letters have the name that the user gave.
    let dubai = windows(&[window(&[Day::Fri], "02:00", "4h", "Asia/Dubai")]);
    assert_eq!(until(&dubai, wednesday).1, "waiting for window until Fri 02:00 Asia/Dubai");
    let ever = Maintenance {
        windows: Vec::new(),
        exclusions: vec![exclusion("2026-01-01T00:00", "9999-12-31T23:59", "Pacific/Kiritimati")],
    };
    assert!(!is_open(&ever, wednesday));
}

/// Window on one day, and moments at which it opens and closes.
#[test]
fn clocks_that_change() {
    for (day, start, duration, zone, opens, closes) in [
        // Spring in Berlin: 02:00 is 03:00.
        (Day::Sun, "01:00", "3h", "Europe/Berlin", "2026-03-29T00:00Z", "2026-03-29T03:00Z"),
        (Day::Sun, "02:00", "1h", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-29T02:00Z"),
        (Day::Sun, "02:30", "1h", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-29T02:00Z"),
        (Day::Sun, "03:00", "1h", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-29T02:00Z"),
        (Day::Sat, "23:00", "6h", "Europe/Berlin", "2026-03-28T22:00Z", "2026-03-29T04:00Z"),
        // Autumn: 03:00 is 02:00 again.
        (Day::Sun, "02:00", "1h", "Europe/Berlin", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
        (Day::Sun, "02:30", "2h", "Europe/Berlin", "2026-10-25T00:30Z", "2026-10-25T02:30Z"),
        (Day::Sun, "03:00", "1h", "Europe/Berlin", "2026-10-25T02:00Z", "2026-10-25T03:00Z"),
        // New York: both at 02:00.
        (Day::Sun, "02:15", "1h", "America/New_York", "2026-03-08T07:00Z", "2026-03-08T08:00Z"),
        (Day::Sat, "22:00", "8h", "America/New_York", "2026-03-08T03:00Z", "2026-03-08T11:00Z"),
        (Day::Sun, "01:30", "1h", "America/New_York", "2026-11-01T05:30Z", "2026-11-01T06:30Z"),
        (Day::Sun, "02:00", "1h", "America/New_York", "2026-11-01T07:00Z", "2026-11-01T08:00Z"),
        // Lord Howe: half an hour, at 02:00.
        (Day::Sun, "02:10", "1h", "Australia/Lord_Howe", "2026-10-03T15:30Z", "2026-10-03T16:30Z"),
        (Day::Sun, "02:30", "1h", "Australia/Lord_Howe", "2026-10-03T15:30Z", "2026-10-03T16:30Z"),
        (Day::Sun, "01:45", "1h", "Australia/Lord_Howe", "2026-04-04T14:45Z", "2026-04-04T15:45Z"),
        (Day::Sun, "02:00", "1h", "Australia/Lord_Howe", "2026-04-04T15:30Z", "2026-04-04T16:30Z"),
        // Tokyo: never.
        (Day::Sun, "02:30", "1h", "Asia/Tokyo", "2026-03-28T17:30Z", "2026-03-28T18:30Z"),
        // A day that there is in leap years, and one of a hundred that is none.
        (Day::Tue, "12:00", "1h", "UTC", "2028-02-29T12:00Z", "2028-02-29T13:00Z"),
        (Day::Sun, "23:30", "2h", "UTC", "2100-02-28T23:30Z", "2100-03-01T01:30Z"),
    ] {
        let schedule = windows(&[window(&[day], start, duration, zone)]);
        let (opens, closes) = (at(opens), at(closes));
        let minute = SignedDuration::from_mins(1);
        let admitted = |moment| admission(Some(&schedule), moment);
        let what = format!("{start} {zone} {opens}");
        assert!(
            matches!(admitted(opens - minute), Admission::Closed { until, .. } if until == Some(opens)),
            "{what}: {:?}",
            admitted(opens - minute)
        );
        assert_eq!(admitted(opens), Admission::Open, "{what}");
        assert_eq!(admitted(closes - minute), Admission::Open, "{what}");
        assert_ne!(admitted(closes), Admission::Open, "{what}");
    }
}

#[test]
fn an_exclusion_ends_with_the_second_of_two_equal_times_and_begins_with_the_first() {
    for (from, to, zone, begins, ends) in [
        ("2026-10-25T02:30", "2026-10-26T00:00", "Europe/Berlin", "2026-10-25T00:30Z", "2026-10-25T23:00Z"),
        ("2026-10-24T00:00", "2026-10-25T02:30", "Europe/Berlin", "2026-10-23T22:00Z", "2026-10-25T01:30Z"),
        ("2026-03-29T02:30", "2026-03-30T00:00", "Europe/Berlin", "2026-03-29T01:00Z", "2026-03-29T22:00Z"),
        ("2026-03-28T00:00", "2026-03-29T02:30", "Europe/Berlin", "2026-03-27T23:00Z", "2026-03-29T01:00Z"),
        ("2028-02-29T00:00", "2028-03-01T00:00", "UTC", "2028-02-29T00:00Z", "2028-03-01T00:00Z"),
    ] {
        let spared = Maintenance { windows: Vec::new(), exclusions: vec![exclusion(from, to, zone)] };
        let second = SignedDuration::from_secs(1);
        let open = |moment| admission(Some(&spared), moment) == Admission::Open;
        let (begins, ends) = (at(begins), at(ends));
        assert!(
            open(begins - second) && !open(begins) && !open(ends - second) && open(ends),
            "{from} {to} {zone}"
        );
    }
}

#[test]
fn what_does_not_exist_is_named_and_holds_back() {
    let maintenance = Maintenance {
        windows: vec![
            window(&[], "02:00", "4h", "Europe/Atlantis"),
            window(&[], "25:00", "4h", "UTC"),
            window(&[], "02:00", "4h", "Etc/Unknown"),
        ],
        exclusions: vec![
            exclusion("2026-02-30T00:00", "2027-02-29T00:00", "UTC"),
            exclusion("2026-02-01T00:00", "2026-02-02T00:00", ""),
        ],
    };
    let problems = problems(Some(&maintenance));
    let said: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        said,
        [
            "spec.maintenance.windows[0].timeZone: 'Europe/Atlantis' is no time zone that is known; write a name of the IANA database such as Asia/Tokyo or UTC",
            "spec.maintenance.windows[1].start: '25:00' is no time of day; write hours and minutes such as 02:00",
            "spec.maintenance.windows[2].timeZone: 'Etc/Unknown' is no time zone that is known; write a name of the IANA database such as Asia/Tokyo or UTC",
            "spec.maintenance.exclusions[0].from: '2026-02-30T00:00' is no date and time that there is; write one such as 2026-12-20T00:00",
            "spec.maintenance.exclusions[0].to: '2027-02-29T00:00' is no date and time that there is; write one such as 2026-12-20T00:00",
            "spec.maintenance.exclusions[1].timeZone: '' is no time zone that is known; write a name of the IANA database such as Asia/Tokyo or UTC",
        ]
    );
    assert!(problems.iter().all(|problem| problem.owner == Owner::Tenant && !problem.blocks_everything()));
    let (until, words) = until(&maintenance, "2026-06-01T00:00Z");
    assert_eq!(until, None);
    assert!(words.contains("windows[0].timeZone: 'Europe/Atlantis'"), "{words}");
}

/// Changes of clocks, and a day that not every year has.
const TURNS: [(&str, &str); 8] = [
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00Z"),
    ("America/New_York", "2026-03-08T07:00Z"),
    ("America/New_York", "2026-11-01T06:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
    ("Asia/Tokyo", "2026-12-31T15:00Z"),
    ("UTC", "2028-02-29T12:00Z"),
];

const DAYS: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];

/// Minutes that are looked at one by one, before and after.
const BEFORE: i64 = 10 * 24 * 60;
const AFTER: i64 = 10 * 24 * 60;

/// The same question by looking at every minute, with clocks alone.
fn by_minutes(maintenance: &Maintenance, now: Timestamp) -> Option<Timestamp> {
    let minute = |index: i64| now + SignedDuration::from_mins(index);
    let length = usize::try_from(BEFORE + AFTER).unwrap();
    let shown = |zone: &str| -> Vec<DateTime> {
        let clock = clock(zone);
        (-BEFORE..AFTER).map(|index| clock.to_datetime(minute(index))).collect()
    };
    let mut open = vec![maintenance.windows.is_empty(); length];
    for window in &maintenance.windows {
        let shown = shown(&window.time_zone);
        let start: Time = window.start.parse().unwrap();
        let lasts = usize::try_from(window.duration.duration().as_mins()).unwrap();
        let mut date = shown[0].date();
        while date < shown[length - 1].date() {
            date = date.tomorrow().unwrap();
            let named = window.days.iter().any(|day| Weekday::from(*day) == date.weekday());
            if !(named || window.days.is_empty()) {
                continue;
            }
            let begin = date.to_datetime(start);
            if let Some(first) = shown.iter().position(|time| *time >= begin) {
                open[first..].iter_mut().take(lasts).for_each(|minute| *minute = true);
            }
        }
    }
    for exclusion in &maintenance.exclusions {
        let shown = shown(&exclusion.time_zone);
        let (from, to): (DateTime, DateTime) =
            (exclusion.from.parse().unwrap(), exclusion.to.parse().unwrap());
        let first = shown.iter().position(|time| *time >= from).unwrap_or(length);
        let end = shown
            .iter()
            .rposition(|time| *time == to)
            .or_else(|| shown.iter().position(|time| *time > to))
            .unwrap_or(length);
        open.iter_mut().take(end).skip(first).for_each(|minute| *minute = false);
    }
    let first = open.iter().skip(usize::try_from(BEFORE).unwrap()).position(|open| *open)?;
    Some(minute(i64::try_from(first).unwrap()))
}

fn any_window() -> impl Strategy<Value = Window> {
    let days = proptest::collection::vec(0usize..7, 0..3);
    // Often near the changes of clocks.
    let hour = prop_oneof![0u32..4, 0u32..24];
    let zone = proptest::sample::select(TURNS.map(|(zone, _)| zone).to_vec());
    (days, hour, 0u32..60, 60u32..=168 * 60, any::<bool>(), zone).prop_map(
        |(days, hour, minute, duration, long, zone)| Window {
            days: days.into_iter().map(|index| DAYS[index]).collect(),
            start: format!("{hour:02}:{minute:02}"),
            duration: format!("{}m", if long { duration } else { 60 + duration % 300 }).parse().unwrap(),
            time_zone: zone.into(),
        },
    )
}

fn any_case() -> impl Strategy<Value = (Maintenance, Timestamp)> {
    let turn = proptest::sample::select(TURNS.to_vec());
    let spared = proptest::collection::vec((-7i64 * 24 * 60..7 * 24 * 60, 1i64..5 * 24 * 60), 0..3);
    let off = -4i64 * 24 * 60..4 * 24 * 60;
    (turn, off, proptest::collection::vec(any_window(), 0..4), spared).prop_map(
        |((zone, turn), off, windows, spared)| {
            let turn = at(turn);
            let shown = |minutes: i64| {
                let time = clock(zone).to_datetime(turn + SignedDuration::from_mins(minutes));
                time.strftime("%Y-%m-%dT%H:%M").to_string()
            };
            let exclusions = spared
                .into_iter()
                .map(|(from, lasts)| exclusion(&shown(from), &shown(from + lasts), zone))
                .filter(|exclusion| exclusion.from < exclusion.to)
                .collect();
            (Maintenance { windows, exclusions }, turn + SignedDuration::from_mins(off))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_opens_at_the_first_open_minute((maintenance, now) in any_case()) {
        let first = by_minutes(&maintenance, now);
        match admission(Some(&maintenance), now) {
            Admission::Open => prop_assert_eq!(first, Some(now)),
            Admission::Closed { until, .. } => {
                prop_assert_ne!(first, Some(now));
                let end = now + SignedDuration::from_mins(AFTER);
                prop_assert_eq!(until.filter(|until| *until < end), first);
            }
        }
    }
}
