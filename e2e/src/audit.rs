//! The API server's audit log as evidence: who wrote what, how often, and when. Only complete lines count.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::Error;
use crate::kubectl::at;

const CONFLICT: i64 = 409;

/// A place in the log: what comes after it is what is judged.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    log: PathBuf,
    offset: u64,
    /// What was asked for earlier may be logged later.
    since: Timestamp,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) user: String,
    /// The pod of a service account's token; empty for others.
    pub(crate) pod: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) code: i64,
    pub(crate) received: Timestamp,
    pub(crate) answered: Timestamp,
}

impl Mark {
    /// The end of the log as it is now.
    pub(crate) fn now(log: &Path) -> Result<Self, Error> {
        let offset = std::fs::metadata(log).map_err(Error::io("read", log))?.len();
        Ok(Self { log: log.to_owned(), offset, since: Timestamp::now() })
    }

    /// Every write since.
    pub(crate) fn writes(&self) -> Result<Vec<Event>, Error> {
        Ok(self.requests()?.into_iter().filter(Event::is_write).collect())
    }

    /// Every request since.
    pub(crate) fn requests(&self) -> Result<Vec<Event>, Error> {
        let mut file = std::fs::File::open(&self.log).map_err(Error::io("read", &self.log))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(Error::io("read", &self.log))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", &self.log))?;
        let text = String::from_utf8_lossy(&bytes);
        let events = text.lines().filter_map(Event::parse);
        Ok(events.filter(|event| event.received >= self.since).collect())
    }

    /// Writes of the operator since, without Leases and Events, which are not about a tenant.
    pub(crate) fn operator_writes(&self) -> Result<Vec<Event>, Error> {
        let counted = |event: &Event| !matches!(event.resource.as_str(), "leases" | "events");
        Ok(self.writes()?.into_iter().filter(|event| event.is_of_operator() && counted(event)).collect())
    }
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |pointer: &str| at(&event, pointer).as_str().unwrap_or_default().to_owned();
        Some(Self {
            user: text("/user/username"),
            pod: text("/user/extra/authentication.kubernetes.io~1pod-name/0"),
            verb: text("/verb"),
            resource: text("/objectRef/resource"),
            subresource: text("/objectRef/subresource"),
            namespace: text("/objectRef/namespace"),
            name: text("/objectRef/name"),
            code: at(&event, "/responseStatus/code").as_i64().unwrap_or(0),
            received: text("/requestReceivedTimestamp").parse().ok()?,
            answered: text("/stageTimestamp").parse().ok()?,
        })
    }

    pub(crate) fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    pub(crate) fn is_of_operator(&self) -> bool {
        self.user.ends_with(":kaas-operator")
    }

    pub(crate) fn is_conflict(&self) -> bool {
        self.code == CONFLICT
    }

    /// `patch secrets` or `patch tenantclusters/status`.
    pub(crate) fn kind(&self) -> String {
        match self.subresource.as_str() {
            "" => format!("{} {}", self.verb, self.resource),
            subresource => format!("{} {}/{subresource}", self.verb, self.resource),
        }
    }
}

/// How often each kind of write occurs.
pub(crate) fn tally(events: &[Event]) -> BTreeMap<String, usize> {
    events.iter().fold(BTreeMap::new(), |mut counts, event| {
        *counts.entry(event.kind()).or_default() += 1;
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    const LATER: &str = "2999-01-01T00:00:00.000001Z";
    const EARLIER: &str = "2026-01-01T00:00:00.000001Z";

    fn line(user: &str, verb: &str, resource: &str, received: &str) -> String {
        json!({
            "user": {"username": user},
            "verb": verb,
            "objectRef": {"resource": resource, "name": "x"},
            "responseStatus": {"code": 409},
            "requestReceivedTimestamp": received,
            "stageTimestamp": "2999-01-01T00:00:00.000002Z",
        })
        .to_string()
    }

    #[test]
    fn only_the_operators_writes_since_the_mark_count() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        let operator = "system:serviceaccount:kaas-system:kaas-operator";
        std::fs::write(&log, line(operator, "patch", "services", LATER) + "\n").unwrap();
        let mark = Mark::now(&log).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        for text in [
            line(operator, "get", "secrets", LATER),
            line(operator, "patch", "secrets", LATER),
            line(operator, "patch", "namespaces", EARLIER),
            line(operator, "update", "leases", LATER),
            line("somebody", "patch", "secrets", LATER),
            "{\"half".to_owned(),
        ] {
            writeln!(file, "{text}").unwrap();
        }
        let writes = mark.operator_writes().unwrap();
        assert_eq!(tally(&writes), BTreeMap::from([("patch secrets".to_owned(), 1)]));
        assert!(writes.iter().all(Event::is_conflict));
    }
}
