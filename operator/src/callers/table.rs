//! The table of callers: who called what when, from audit events. Bounded, whatever comes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kaas_lifecycle::upgrade::preflight::facts::{Caller, Callers};
use serde::Deserialize;

/// Callers that are kept; the one that was seen longest ago goes first.
const MOST: usize = 256;
/// Open watches that are kept apart.
const MOST_OPEN: usize = 1024;
/// API servers end a watch after an hour at the latest; one that is open longer ended unheard.
const LONGEST_WATCH: SignedDuration = SignedDuration::from_mins(61);
/// A caller of so long ago is no news.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(24);
/// Texts of clients are cut here.
const LONGEST: usize = 128;

/// Kubernetes' own, and ours: they go with the version.
const OWN: [&str; 4] =
    ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "kaas-operator"];

/// A list of audit events (audit.k8s.io/v1), as far as it is of interest.
#[derive(Debug, Deserialize)]
pub(super) struct EventList {
    #[serde(default)]
    pub(super) items: Vec<Event>,
}

/// An audit event.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Event {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    verb: String,
    user: User,
    user_agent: String,
    object_ref: ObjectRef,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    api_group: String,
    api_version: String,
}

/// Who, and what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    user: String,
    agent: String,
    api: String,
    resource: String,
}

/// Who called what when.
#[derive(Debug)]
pub(super) struct Table {
    watched: Vec<String>,
    since: Timestamp,
    /// The last verb and when.
    callers: BTreeMap<Key, (String, Timestamp)>,
    /// Watches that have begun and not ended, by audit ID: who it was, and since when.
    open: BTreeMap<String, (Key, Timestamp)>,
}

impl Table {
    /// An empty one for these APIs.
    pub(super) fn new(watched: Vec<String>, now: Timestamp) -> Self {
        Table { watched, since: now, callers: BTreeMap::new(), open: BTreeMap::new() }
    }

    /// Takes up an event.
    pub(super) fn note(&mut self, event: Event, now: Timestamp) {
        let ObjectRef { resource, api_group, api_version } = event.object_ref;
        let api = format!("{api_group}/{api_version}");
        let is_watched = |entry: &String| *entry == api || *entry == format!("{api}/{resource}");
        if !self.watched.iter().any(is_watched) || is_own(&event.user.username, &event.user_agent) {
            return;
        }
        let key = Key {
            user: tidy(&event.user.username),
            agent: tidy(&event.user_agent),
            api: tidy(&api),
            resource: tidy(&resource),
        };
        if event.stage == "ResponseStarted" && event.verb == "watch" {
            if self.open.len() < MOST_OPEN {
                self.open.insert(tidy(&event.audit_id), (key.clone(), now));
            }
        } else {
            self.open.remove(&tidy(&event.audit_id));
        }
        self.callers.insert(key, (tidy(&event.verb), now));
        if self.callers.len() > MOST {
            let oldest = self.callers.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| key.clone());
            oldest.map(|key| self.callers.remove(&key));
        }
    }

    /// Who was seen. A watch that is open is being called.
    pub(super) fn seen(&mut self, now: Timestamp) -> Callers {
        self.open.retain(|_, (_, began)| now.duration_since(*began) < LONGEST_WATCH);
        for (key, _) in self.open.values() {
            if let Some((_, last)) = self.callers.get_mut(key) {
                *last = now;
            }
        }
        self.callers.retain(|_, (_, last)| now.duration_since(*last) < FORGOTTEN);
        let seen = self.callers.iter().map(|(key, (verb, last))| Caller {
            api: key.api.clone(),
            resource: key.resource.clone(),
            user: key.user.clone(),
            agent: key.agent.clone(),
            verb: verb.clone(),
            last: *last,
        });
        Callers { since: self.since, watched: self.watched.iter().cloned().collect(), seen: seen.collect() }
    }
}

fn is_own(user: &str, agent: &str) -> bool {
    let controller = user.starts_with("system:serviceaccount:kube-system:")
        && agent.starts_with("kube-controller-manager/");
    OWN.contains(&user) || controller
}

/// What clients say of themselves is shown to people.
fn tidy(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-22T03:00:00Z";

    fn at(seconds: i64) -> Timestamp {
        NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    fn event(user: &str, verb: &str, stage: &str, id: &str) -> Value {
        json!({
            "level": "Metadata", "auditID": id, "stage": stage, "verb": verb, "requestURI": "/apis/x",
            "user": {"username": user, "groups": ["system:authenticated"]}, "userAgent": "lister/v1",
            "objectRef": {"resource": "ipaddresses", "apiGroup": "networking.k8s.io", "apiVersion": "v1beta1"},
            "responseStatus": {"code": 200}, "annotations": {"k8s.io/deprecated": "true"},
        })
    }

    fn read(events: Value) -> Vec<Event> {
        serde_json::from_value::<EventList>(json!({"kind": "EventList", "items": events})).unwrap().items
    }

    fn table() -> Table {
        Table::new(vec!["networking.k8s.io/v1beta1/ipaddresses".into()], at(0))
    }

    #[test]
    fn callers_are_known_by_user_and_agent() {
        let mut table = table();
        let lister = event("system:serviceaccount:demo:lister", "list", "ResponseComplete", "1");
        let mut other = lister.clone();
        other["objectRef"]["apiVersion"] = "v1".into();
        let mut range = lister.clone();
        range["objectRef"]["resource"] = "servicecidrs".into();
        for event in read(json!([lister, other, range, {}])) {
            table.note(event, at(5));
        }
        let seen = table.seen(at(6));
        assert_eq!(seen.since, at(0));
        assert_eq!(
            seen.seen,
            [Caller {
                api: "networking.k8s.io/v1beta1".into(),
                resource: "ipaddresses".into(),
                user: "system:serviceaccount:demo:lister".into(),
                agent: "lister/v1".into(),
                verb: "list".into(),
                last: at(5),
            }]
        );
        assert!(table.seen(at(24 * 3600 + 6)).seen.is_empty());
    }

    #[test]
    fn an_open_watch_is_a_call_that_goes_on() {
        let mut table = table();
        let [begin, end] = ["ResponseStarted", "ResponseComplete"]
            .map(|stage| read(json!([event("a", "watch", stage, "7")])));
        begin.into_iter().for_each(|event| table.note(event, at(0)));
        assert_eq!(table.seen(at(1800)).seen[0].last, at(1800));
        end.into_iter().for_each(|event| table.note(event, at(2000)));
        assert_eq!(table.seen(at(3000)).seen[0].last, at(2000));
        // One whose end was not heard.
        read(json!([event("b", "watch", "ResponseStarted", "8")]))
            .into_iter()
            .for_each(|event| table.note(event, at(0)));
        table.seen(at(61 * 60));
        assert_eq!(table.seen(at(2 * 3600)).seen[1].last, at(0));
    }

    #[test]
    fn what_goes_with_the_version_is_no_caller() {
        let mut table = table();
        for user in OWN {
            read(json!([event(user, "list", "ResponseComplete", "1")]))
                .into_iter()
                .for_each(|event| table.note(event, at(0)));
        }
        let mut controller = event("system:serviceaccount:kube-system:gc", "list", "ResponseComplete", "1");
        controller["userAgent"] = "kube-controller-manager/v1.36.3".into();
        read(json!([controller])).into_iter().for_each(|event| table.note(event, at(0)));
        assert!(table.seen(at(1)).seen.is_empty());
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let mut table = table();
        for index in 0..3000_i64 {
            // In no order, and some of them again.
            let user = format!("{}{}", index * 7919 % 1500, "\u{7}x".repeat(100));
            let watch = read(json!([event(&user, "watch", "ResponseStarted", &index.to_string())]));
            watch.into_iter().for_each(|event| table.note(event, at(index)));
            assert!(table.callers.len() <= MOST && table.open.len() <= MOST_OPEN);
            let newest = tidy(&user);
            assert!(table.callers.keys().any(|key| key.user == newest && !key.user.contains('\u{7}')));
        }
        assert_eq!(table.seen(at(3000)).seen.len(), MOST);
        assert!(table.seen(at(3000)).seen.iter().all(|caller| caller.user.len() <= LONGEST));
    }
}
