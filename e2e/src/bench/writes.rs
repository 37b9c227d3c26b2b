//! What the operator writes, from the audit log of the management API server: every request that changes something
//! and was sent by the operator's service account, also one that failed. Leases and Events are told apart, because
//! they are not about a tenant's state.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::audit::{self, Event};

/// Writes beyond one for each object: the finalizer, and status at the begin, when it serves and when it settled.
pub(super) const MORE: usize = 4;

/// The operator's part in a stretch of the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Writes {
    /// By verb and resource.
    pub(super) kinds: BTreeMap<String, usize>,
    /// Objects that it made or keeps: not the TenantCluster, not the catalogue.
    pub(super) objects: BTreeSet<(String, String, String)>,
    pub(super) conflicts: usize,
    /// Neither conflicts nor successes.
    pub(super) refused: usize,
    pub(super) leases: usize,
    pub(super) events: usize,
    /// Requests that change nothing; watches are not among them.
    pub(super) reads: usize,
    /// Reads of TenantClusters by name: one for each look of the operator at a tenant.
    pub(super) looks: BTreeMap<String, usize>,
}

impl Writes {
    /// Counts what the operator sent.
    pub(super) fn count(requests: &[Event]) -> Self {
        let mut found = Self::default();
        for event in requests.iter().filter(|event| event.is_of_operator()) {
            match (event.is_write(), event.resource.as_str()) {
                (true, "leases") => found.leases += 1,
                (true, "events") => found.events += 1,
                (true, resource) => {
                    *found.kinds.entry(event.kind()).or_default() += 1;
                    found.conflicts += usize::from(event.is_conflict());
                    found.refused += usize::from(event.code >= 400 && !event.is_conflict());
                    if !matches!(resource, "tenantclusters" | "kubernetesreleases") {
                        let key = (resource.to_owned(), event.namespace.clone(), event.name.clone());
                        found.objects.insert(key);
                    }
                }
                (false, resource) if event.verb != "watch" && resource != "leases" => {
                    found.reads += 1;
                    if resource == "tenantclusters" && event.verb == "get" {
                        *found.looks.entry(event.name.clone()).or_default() += 1;
                    }
                }
                (false, _) => {}
            }
        }
        found
    }

    pub(super) fn total(&self) -> usize {
        self.kinds.values().sum()
    }

    pub(super) fn allowed(&self) -> usize {
        self.objects.len() + MORE
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "writes": self.total(), "objects": self.objects.len(), "conflicts": self.conflicts,
            "refused": self.refused, "leases": self.leases, "events": self.events, "reads": self.reads,
            "looks": self.looks, "kinds": self.kinds,
        })
    }
}

/// One line for each kind: how often in the median creation, and in the most and least of all.
pub(super) fn lines(all: &[Writes]) -> Vec<String> {
    let kinds: BTreeSet<&String> = all.iter().flat_map(|writes| writes.kinds.keys()).collect();
    let line = |title: &str, counts: Vec<usize>| {
        let samples: Vec<f64> = counts.into_iter().map(|count| count as f64).collect();
        let [median, min, max] =
            [50, 0, 100].map(|percent| super::table::nearest_rank(&samples, percent).unwrap_or(0.0));
        let spread = if min < max { format!("  ({min:.0} to {max:.0})") } else { String::new() };
        format!("  {median:>4.0}  {title}{spread}")
    };
    let of = |pick: &dyn Fn(&Writes) -> usize| all.iter().map(pick).collect::<Vec<_>>();
    let mut lines: Vec<String> = kinds
        .into_iter()
        .map(|kind| line(kind, of(&|writes| writes.kinds.get(kind).copied().unwrap_or(0))))
        .collect();
    lines.push(line("Events", of(&|writes| writes.events)));
    lines.push(line("Leases", of(&|writes| writes.leases)));
    lines.push(line("reads, beside them", of(&|writes| writes.reads)));
    lines.push(line("looks at the tenant, beside them", of(&|writes| writes.looks.values().sum())));
    lines
}

/// What was written in a stretch in which nothing should be.
pub(super) fn told(events: &[Event]) -> String {
    audit::tally(events).iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(user: &str, verb: &str, resource: &str, name: &str, code: i64) -> Event {
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        Event {
            user: format!("system:serviceaccount:kaas-system:{user}"),
            pod: String::new(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            subresource: String::new(),
            namespace: "kaas-1".to_owned(),
            name: name.to_owned(),
            code,
            received: time,
            answered: time,
        }
    }

    #[test]
    fn writes_are_counted_by_kind_and_object() {
        let operator = "kaas-operator";
        let found = Writes::count(&[
            event(operator, "patch", "secrets", "a", 201),
            event(operator, "patch", "secrets", "a", 409),
            event(operator, "patch", "secrets", "b", 201),
            event(operator, "patch", "tenantclusters", "blue", 200),
            event(operator, "patch", "services", "s", 500),
            event(operator, "update", "leases", "l", 200),
            event(operator, "create", "events", "e", 201),
            event(operator, "get", "tenantclusters", "blue", 200),
            event(operator, "list", "pods", "", 200),
            event(operator, "watch", "pods", "", 200),
            event("somebody", "patch", "secrets", "c", 200),
        ]);
        assert_eq!((found.total(), found.objects.len(), found.allowed()), (5, 3, 7));
        assert_eq!((found.conflicts, found.refused, found.leases, found.events), (1, 1, 1, 1));
        assert_eq!((found.reads, found.looks.get("blue")), (2, Some(&1)));
        let text = lines(&[found, Writes::default()]).join("\n");
        assert!(text.contains("patch secrets  (0 to 3)"), "{text}");
    }
}
