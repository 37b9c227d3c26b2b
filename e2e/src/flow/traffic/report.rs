//! What the load program says in the end, and what of it must not be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The longest that a watch may take to tell a change that was answered.
const WATCH_WAIT: Duration = Duration::from_secs(1);
/// A server that is told to end serves for ten seconds more, and may be asked in the first two of them still.
const STREAM_LIFE: Duration = Duration::from_secs(8);
/// So many writes of one kind of client may meet a connection of HTTP/1.1 that the server closes at that moment.
const MET: usize = 2;
/// What is told of the failures of one kind.
const TOLD: usize = 5;

/// What one load saw. Times are in seconds.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) begun: String,
    pub(crate) seconds: f64,
    pub(crate) clients: Vec<Clients>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) streams: Vec<Stream>,
}

/// One kind of client over one protocol.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Clients {
    pub(crate) kind: Kind,
    pub(crate) protocol: String,
    pub(crate) requests: u64,
    pub(crate) failed: Failures,
    pub(crate) longest_gap: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// How clients use connections, and whether they try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// Each request on a connection of its own, never tried again.
    Fresh,
    /// One connection, never tried again: what the server cannot move is lost with it.
    Reused,
    /// By client-go's own rules.
    Retried,
    /// Requests of half a minute, each on a connection of its own, never tried again.
    Slow,
}

/// A watch that must miss and repeat nothing.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Watch {
    pub(crate) kind: Kind,
    pub(crate) protocol: String,
    pub(crate) told: u64,
    pub(crate) lost: Names,
    pub(crate) repeated: Names,
    pub(crate) streams: u64,
    pub(crate) expired: u64,
    pub(crate) refused: Failures,
    pub(crate) longest_wait: f64,
}

/// An exec or a log that is opened again whenever it ends.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Stream {
    pub(crate) kind: String,
    pub(crate) opened: u64,
    pub(crate) refused: Failures,
    pub(crate) lives: Vec<Life>,
}

/// How long a stream lived.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Life {
    pub(crate) seconds: f64,
    pub(crate) end: End,
}

/// What ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum End {
    /// Its pod was told to end.
    Pod,
    /// The load was.
    Load,
    /// Something on the way to the pod.
    Way,
}

/// Requests that failed, the first of them in full.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    pub(crate) first: Vec<Failure>,
}

/// One request that failed.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Failure {
    pub(crate) at: String,
    pub(crate) verb: String,
    pub(crate) words: String,
}

/// Changes by name, the first of them.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(crate) struct Names {
    pub(crate) count: u64,
    pub(crate) first: Vec<String>,
}

impl Report {
    /// Reads the last line that a load printed.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .map_err(|error| Error::Invalid(format!("the load said `{line}`, which is no result: {error}")))
    }

    /// Requests of all clients.
    pub(crate) fn requests(&self) -> u64 {
        self.clients.iter().map(|clients| clients.requests).sum()
    }

    /// A line for each kind, for a person.
    pub(crate) fn lines(&self) -> Vec<String> {
        let clients = self.clients.iter().map(|clients| {
            let Clients { kind, protocol, requests, failed, longest_gap, p50, p99 } = clients;
            format!(
                "{kind:?} {protocol}: {} of {requests} failed, longest gap {longest_gap:.2} s, half within {p50:.3} s, \
                 99 of 100 within {p99:.3} s{}",
                failed.count,
                failed.told()
            )
        });
        let watches = self.watches.iter().map(|watch| {
            format!(
                "{:?} watch {}: {} changes told, {} lost, {} repeated, {} streams, {} expired, {} refused, longest wait {:.2} s{}",
                watch.kind, watch.protocol, watch.told, watch.lost.count, watch.repeated.count, watch.streams, watch.expired,
                watch.refused.count, watch.longest_wait, watch.refused.told()
            )
        });
        let streams = self.streams.iter().map(|stream| {
            let lives = |end: End| -> Vec<String> {
                let ended = stream.lives.iter().filter(|life| life.end == end);
                ended.map(|life| format!("{:.0}", life.seconds)).collect()
            };
            format!(
                "{}: opened {} times, {} refused; seconds lived until the pod ended: {}; until cut: {}{}",
                stream.kind,
                stream.opened,
                stream.refused.count,
                lives(End::Pod).join(" "),
                lives(End::Way).join(" "),
                stream.refused.told()
            )
        });
        clients.chain(watches).chain(streams).collect()
    }

    /// What is there that must not be: reused connections that are never tried again are only counted.
    pub(super) fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut never = |broken: bool, what: String| {
            if broken {
                breaches.push(what);
            }
        };
        for Clients { kind, protocol, requests, failed, .. } in &self.clients {
            let name = format!("{kind:?} {protocol}");
            let borne = if *kind == Kind::Retried && protocol == "HTTP/1.1" { failed.met() } else { 0 };
            never(*kind != Kind::Reused && failed.count > borne, format!("{name}: {} failed", failed.count));
            never(*requests == 0, format!("{name} came to a halt"));
        }
        for watch in &self.watches {
            let name = format!("the {:?} watch {}", watch.kind, watch.protocol);
            never(watch.lost.count > 0, format!("{name} lost {:?}", watch.lost.first));
            never(watch.repeated.count > 0, format!("{name} repeated {:?}", watch.repeated.first));
            never(watch.refused.count > 0, format!("{name} was refused {} times", watch.refused.count));
            never(watch.told == 0, format!("{name} told nothing"));
            never(
                watch.longest_wait > WATCH_WAIT.as_secs_f64(),
                format!("{name} told a change after {:.2} s", watch.longest_wait),
            );
        }
        for stream in &self.streams {
            never(
                stream.refused.count > 0,
                format!("{} was refused {} times", stream.kind, stream.refused.count),
            );
            never(stream.opened == 0, format!("{} was never opened", stream.kind));
            let short = |life: &&Life| life.end == End::Way && life.seconds < STREAM_LIFE.as_secs_f64();
            for life in stream.lives.iter().filter(short) {
                never(true, format!("{} was cut after {:.1} s", stream.kind, life.seconds));
            }
        }
        breaches
    }
}

impl Failures {
    /// Writes that met a closing connection. Over HTTP/1.1 a server that ends can only close what is idle, not say that it
    /// will, and client-go, which cannot know what became of a write, does not send it again. Reads it does.
    fn met(&self) -> u64 {
        let closed = |failure: &&Failure| {
            let write = ["create", "update", "patch", "delete"].contains(&failure.verb.as_str());
            write && (failure.words.ends_with(": EOF") || failure.words.ends_with("connection reset by peer"))
        };
        u64::try_from(self.first.iter().filter(closed).take(MET).count()).unwrap_or_default()
    }

    fn told(&self) -> String {
        let first = self.first.iter().take(TOLD);
        first.map(|failure| format!("\n    {} {} {}", failure.at, failure.verb, failure.words)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(change: impl FnOnce(&mut Value)) -> Report {
        let failed = json!({"count": 0, "first": []});
        let clients = |kind: &str| json!({"kind": kind, "protocol": "HTTP/2", "requests": 9, "failed": failed, "longestGap": 0.1, "p50": 0.01, "p99": 0.05});
        let mut value = json!({
            "begun": "2026-01-01T00:00:00Z", "seconds": 2.5,
            "clients": [clients("fresh"), clients("reused"), clients("retried"), clients("slow")],
            "watches": [{
                "kind": "fresh", "protocol": "HTTP/2", "told": 20, "lost": failed, "repeated": failed, "streams": 1, "expired": 0,
                "refused": failed, "cut": failed, "longestWait": 0.3,
            }],
            "streams": [{
                "kind": "exec", "opened": 2, "refused": failed, "ended": failed,
                "lives": [{"seconds": 11.5, "end": "way"}, {"seconds": 0.5, "end": "pod"}, {"seconds": 1, "end": "load"}],
            }],
        });
        change(&mut value);
        Report::parse(&format!("something else\n{value}\n")).unwrap()
    }

    #[test]
    fn only_reused_connections_may_fail() {
        let fails = |index: usize| {
            report(|value| {
                let first = json!([{"at": "2026-01-01T00:00:01Z", "verb": "get", "words": "EOF"}]);
                value["clients"][index]["failed"] = json!({"count": 1, "first": first});
            })
        };
        assert_eq!(report(|_| ()).breaches(), [""; 0]);
        assert_eq!(report(|_| ()).requests(), 36);
        assert_eq!(fails(0).breaches(), ["Fresh HTTP/2: 1 failed"]);
        assert_eq!(fails(1).breaches(), [""; 0]);
        assert_eq!(fails(2).breaches(), ["Retried HTTP/2: 1 failed"]);
        assert_eq!(fails(3).breaches(), ["Slow HTTP/2: 1 failed"]);
        assert!(fails(3).lines().iter().any(|line| line.contains("get EOF")));
    }

    #[test]
    fn a_write_may_meet_a_closing_connection_of_http_1_alone() {
        let meets = |protocol: &str, verb: &str, times: usize| {
            report(|value| {
                let one =
                    json!({"at": "2026-01-01T00:00:01Z", "verb": verb, "words": "Patch \"https://a\": EOF"});
                value["clients"][2]["protocol"] = json!(protocol);
                value["clients"][2]["failed"] = json!({"count": times, "first": vec![one; times]});
            })
        };
        assert_eq!(meets("HTTP/1.1", "patch", 2).breaches(), [""; 0]);
        assert_eq!(meets("HTTP/1.1", "patch", 3).breaches(), ["Retried HTTP/1.1: 3 failed"]);
        assert_eq!(meets("HTTP/1.1", "get", 1).breaches(), ["Retried HTTP/1.1: 1 failed"]);
        assert_eq!(meets("HTTP/2", "patch", 1).breaches(), ["Retried HTTP/2: 1 failed"]);
    }

    #[test]
    fn a_halt_is_no_success() {
        for (pointer, value, breach) in [
            ("/clients/1/requests", json!(0), "Reused HTTP/2 came to a halt"),
            ("/watches/0/longestWait", json!(1.25), "told a change after 1.25 s"),
            ("/watches/0/lost", json!({"count": 1, "first": ["DELETED a"]}), "lost [\"DELETED a\"]"),
            ("/watches/0/refused/count", json!(2), "refused 2 times"),
            ("/streams/0/opened", json!(0), "exec was never opened"),
            ("/streams/0/lives/0/seconds", json!(4), "exec was cut after 4.0 s"),
        ] {
            let report = report(|whole| *whole.pointer_mut(pointer).unwrap() = value);
            let breaches = report.breaches();
            assert!(breaches.len() == 1 && breaches[0].contains(breach), "{breaches:?}");
        }
        assert!(Report::parse("load: it cannot begin").is_err());
    }
}
