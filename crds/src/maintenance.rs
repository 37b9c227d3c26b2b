//! When operations may begin: windows and exclusions, in the words of the clock on the user's wall.
//!
//! The API server judges their form. Whether a time zone or a date exists only the operator's tables tell.

use jiff::civil::Weekday;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::period::Period;

/// When operations may begin. One that began goes on when a window closes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Maintenance {
    /// Operations begin in one of these windows only; without any they begin at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub windows: Vec<Window>,

    /// Nothing begins in these times, whatever the windows say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub exclusions: Vec<Exclusion>,
}

/// A time that comes again each week.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Days on which it opens; every day when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub days: Vec<Day>,

    /// When it opens, for example `02:00`. When the clock leaves this time out, it opens as the clock goes on; when the
    /// clock shows it twice, the first time.
    #[schemars(length(max = 5))]
    #[x_kube(validation = Rule::new("self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')").message(Message::Expression(
        "\"start: '\" + self + \"' must be hours and minutes from 00:00 to 23:59, for example 02:00\"".into()
    )))]
    pub start: String,

    /// How long it stays open, from 1h to 168h, over midnight and over a change of the clock.
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9]{1,6}[smh]$') && duration(self) >= duration('1h') && duration(self) <= duration('168h')"
    ).message(Message::Expression(
        "\"duration: '\" + self + \"' must be a number and a unit from 1h to 168h, for example 4h or 90m\"".into()
    )))]
    pub duration: Period,

    /// Time zone by its name in the IANA database, for example `Asia/Tokyo`.
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl From<Day> for Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Mon => Weekday::Monday,
            Day::Tue => Weekday::Tuesday,
            Day::Wed => Weekday::Wednesday,
            Day::Thu => Weekday::Thursday,
            Day::Fri => Weekday::Friday,
            Day::Sat => Weekday::Saturday,
            Day::Sun => Weekday::Sunday,
        }
    }
}

/// A time in which nothing begins.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from < self.to").message(Message::Expression(
    "\"to: '\" + self.to + \"' must be later than from '\" + self.from + \"'\"".into()
)))]
pub struct Exclusion {
    /// The first moment of it, for example `2026-12-20T00:00`.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}$')").message(Message::Expression(
        "\"from: '\" + self + \"' must be a date and a time without a zone, for example 2026-12-20T00:00\"".into()
    )))]
    pub from: String,

    /// The first moment after it. When the clock shows this time twice, the second one.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}$')").message(Message::Expression(
        "\"to: '\" + self + \"' must be a date and a time without a zone, for example 2027-01-05T00:00\"".into()
    )))]
    pub to: String,

    /// Time zone by its name in the IANA database, for example `Asia/Tokyo`.
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// What does not begin.
    #[serde(default)]
    pub scope: Scope,
}

/// What an exclusion is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// Upgrades: a change of version.
    #[default]
    NoUpgrades,
}
