//! What clients went through, and how it is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::flow) enum Client {
    /// Each request on a connection of its own.
    Fresh,
    /// One connection of HTTP/1.1, dropped when it is old.
    Kept,
    /// One connection of HTTP/2 for as long as the server lets it live.
    Multiplexed,
    /// The watch's own requests.
    Watch,
}

/// A request that failed.
#[derive(Debug, Clone)]
pub(in crate::flow) struct Failure {
    pub(in crate::flow) at: Instant,
    pub(in crate::flow) what: String,
}

/// What one kind of client went through.
#[derive(Debug, Clone, Default)]
pub(in crate::flow) struct Count {
    pub(in crate::flow) requests: u64,
    pub(in crate::flow) failures: Vec<Failure>,
    /// Requests that were not sent any more, or that a server refused before it looked at them, by HTTP/2's own word
    /// for it. The protocol says that they may be sent again, and they are.
    pub(in crate::flow) moved: u64,
    /// Requests on a connection of before that a server refused with 429 and a time after which they may be sent again;
    /// they are, on a new connection, as client-go does.
    pub(in crate::flow) delayed: u64,
    /// The longest time between two answers.
    pub(in crate::flow) gap: Duration,
    /// Times without a success between failures.
    pub(in crate::flow) outages: Vec<Outage>,
    pub(super) last: Option<Instant>,
}

/// From the first failed request to the next that succeeded.
#[derive(Debug, Clone)]
pub(in crate::flow) struct Outage {
    pub(in crate::flow) begin: Instant,
    /// None while it lasts.
    pub(in crate::flow) end: Option<Instant>,
}

impl Outage {
    /// How long, or how long until now.
    pub(in crate::flow) fn lasted(&self) -> Duration {
        self.end.unwrap_or_else(Instant::now).duration_since(self.begin)
    }
}

/// What the load saw.
#[derive(Debug, Clone, Default)]
pub(in crate::flow) struct Outcome {
    pub(in crate::flow) clients: BTreeMap<Client, Count>,
    /// Changes that were answered with success and that the watch never told.
    pub(in crate::flow) lost: Vec<String>,
    /// Changes that it told twice.
    pub(in crate::flow) repeated: Vec<String>,
    /// How often the watch's stream ended and was opened again where it had ended.
    pub(in crate::flow) streams: u64,
    /// How often the server no longer had what came after the last change that was told (410), and a list was read
    /// instead, as clients do: what happened before it is then told by nobody.
    pub(in crate::flow) lists: u64,
}

impl Outcome {
    /// Nobody asks any more: what failed last was seen to fail until now.
    pub(super) fn close(&mut self, now: Instant) {
        for outage in self.clients.values_mut().filter_map(|count| count.outages.last_mut()) {
            outage.end.get_or_insert(now);
        }
    }

    /// What one kind of client went through.
    pub(in crate::flow) fn of(&self, client: Client) -> Count {
        self.clients.get(&client).cloned().unwrap_or_default()
    }

    /// Every failure, in order of time.
    pub(in crate::flow) fn failures(&self) -> Vec<Failure> {
        let mut all: Vec<Failure> = self.clients.values().flat_map(|count| count.failures.clone()).collect();
        all.sort_by_key(|failure| failure.at);
        all
    }

    /// One line, for a person.
    pub(in crate::flow) fn line(&self) -> String {
        let clients = self.clients.iter().map(|(client, count)| {
            let told = |number: u64, word: &str| match number {
                0 => String::new(),
                _ => format!(", {number} {word}"),
            };
            format!(
                "{client:?} {} of {} failed{}{}, longest gap {:.2} s",
                count.failures.len(),
                count.requests,
                told(count.moved, "moved"),
                told(count.delayed, "asked to come later"),
                count.gap.as_secs_f32()
            )
        });
        let clients: Vec<String> = clients.collect();
        format!(
            "{}; watch: {} lost, {} repeated, {} streams, {} lists",
            clients.join("; "),
            self.lost.len(),
            self.repeated.len(),
            self.streams,
            self.lists
        )
    }

    /// The first failures in full.
    pub(in crate::flow) fn details(&self) -> String {
        let failures = self.failures();
        let first = failures.first().map(|failure| failure.at);
        let lines = failures.iter().take(12).map(|failure| {
            let since = first.map(|first| failure.at.duration_since(first)).unwrap_or_default();
            format!("+{:.2} s {}", since.as_secs_f32(), failure.what)
        });
        let others = self.lost.iter().map(|what| format!("lost: {what}"));
        let others = others.chain(self.repeated.iter().map(|what| format!("repeated: {what}")));
        lines.chain(others.take(12)).collect::<Vec<_>>().join("\n  ")
    }
}
