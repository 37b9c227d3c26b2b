//! Findings about APIs that the target does not have: that they are served, what is stored by them alone, and who calls
//! them. Callers are known where API servers watch for them, see [`watched`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;
use kaas_crds::{KubernetesReleaseSpec, TenantClusterSpec};

use super::Finding;
use super::facts::{Caller, Callers, Facts, Removed};
use crate::observed::Observed;
use crate::upgrade::path::{Way, way};

/// A caller counts for so long after it was last seen. With the pause between two looks it is forgotten within ten
/// minutes of its last call; a client that asks again less often is a warning.
const QUIET: SignedDuration = SignedDuration::from_mins(9);

/// APIs, as a release names what it removes, whose callers are to be known: those that the spec switches on, and that a
/// release does not have to which there is a way from this version.
pub fn watched(
    spec: &TenantClusterSpec,
    catalogue: &BTreeMap<String, KubernetesReleaseSpec>,
    version: &str,
) -> BTreeSet<String> {
    let Ok(from) = version.parse() else { return BTreeSet::new() };
    let next = catalogue
        .values()
        .filter(|release| release.version.parse().is_ok_and(|to| matches!(way(from, to), Ok(Way::Minor))));
    let removed = next.flat_map(|release| &release.removes);
    removed.filter(|entry| is_on(spec, api(entry))).cloned().collect()
}

/// Group and version of what a release removes.
pub fn api(entry: &str) -> &str {
    match entry.match_indices('/').nth(1) {
        Some((end, _)) => entry.get(..end).unwrap_or(entry),
        None => entry,
    }
}

/// Whether the spec switches this group and version on.
fn is_on(spec: &TenantClusterSpec, api: &str) -> bool {
    spec.control_plane.runtime_config.0.get(api) == Some(&true)
}

pub(super) fn findings(observed: &Observed, facts: &Facts, target: &KubernetesReleaseSpec) -> Vec<Finding> {
    let mut by_api: BTreeMap<&str, Vec<&Removed>> = BTreeMap::new();
    for removed in &facts.removed {
        by_api.entry(&removed.api).or_default().push(removed);
    }
    let mut found = Vec::new();
    for (api, resources) in by_api {
        let subject =
            Subject { api, resources, target: &target.version, on: is_on(&observed.cluster.spec, api) };
        found.extend(subject.unreachable());
        found.extend(subject.callers(facts.callers.as_ref(), observed.now));
        found.push(subject.served(facts.callers.as_ref()));
    }
    found
}

/// A group and version that the target does not have.
struct Subject<'a> {
    api: &'a str,
    resources: Vec<&'a Removed>,
    target: &'a str,
    /// The spec switches it on.
    on: bool,
}

impl Subject<'_> {
    fn finding(&self, reason: Reason, severity: Severity, message: String) -> Finding {
        Finding {
            reason,
            subject: self.api.to_owned(),
            severity,
            message,
            evidence: String::new(),
            owner: Owner::Tenant,
            fix: String::new(),
        }
    }

    fn unreachable(&self) -> impl Iterator<Item = Finding> {
        let lost = self.resources.iter().filter(|removed| removed.elsewhere.is_none() && removed.stored > 0);
        lost.map(move |removed| {
            let Removed { resource, stored, .. } = removed;
            let (api, target) = (self.api, self.target);
            Finding {
                subject: format!("{api}/{resource}"),
                evidence: format!("{stored} {resource} are stored, and no other version of them is served"),
                fix: format!("save and delete them, or make them anew in an API that {target} has"),
                ..self.finding(
                    Reason::ObjectsUnreachable,
                    Severity::Error,
                    format!("{resource} of {api} are stored, and {target} has no API for them"),
                )
            }
        })
    }

    /// Each user who calls it, or that nobody knows.
    fn callers(&self, callers: Option<&Callers>, now: Timestamp) -> Vec<Finding> {
        let (api, target) = (self.api, self.target);
        let unknown = |evidence: String, fix: &str| {
            // Where nobody can watch it is said, and left to the user.
            let severity = if self.on { Severity::Error } else { Severity::Warning };
            let message = format!("nobody knows yet who calls {api}, which {target} does not have");
            let finding = self.finding(Reason::CallersUnknown, severity, message);
            vec![Finding { evidence, fix: fix.into(), ..finding }]
        };
        let watched = |callers: &&Callers| {
            let covers = |removed: &&Removed| {
                callers.watched.contains(api)
                    || callers.watched.contains(&format!("{api}/{}", removed.resource))
            };
            self.resources.iter().all(covers)
        };
        // Those that were made before the target was known may watch for less.
        let Some(callers) = callers.filter(watched) else {
            return unknown(
                "the API servers do not watch for all of its callers, or did not answer".into(),
                "take a pending revision (spec.acceptRevision), or wait until all API servers run",
            );
        };
        let mut users: BTreeMap<&str, &Caller> = BTreeMap::new();
        for caller in callers.seen.iter().filter(|caller| caller.api == api && is_recent(caller, now)) {
            let last = users.entry(&caller.user).or_insert(caller);
            if caller.last > last.last {
                *last = caller;
            }
        }
        if users.is_empty() && now.duration_since(callers.since) < QUIET {
            return unknown(
                format!("watched since {}", minute(callers.since)),
                "wait: what nobody calls for nine minutes counts as not called",
            );
        }
        let fix = match self.resources.iter().find_map(|removed| removed.elsewhere.as_ref()) {
            Some(stays) => format!("let it use {stays}, which {target} has"),
            None => format!("let it use an API that {target} has"),
        };
        users
            .into_iter()
            .map(|(user, caller)| Finding {
                subject: format!("{api}/{user}"),
                evidence: told(caller),
                fix: fix.clone(),
                ..self.finding(
                    Reason::RemovedApiCalled,
                    Severity::Error,
                    format!("{user} calls {api}, which {target} does not have"),
                )
            })
            .collect()
    }

    fn served(&self, callers: Option<&Callers>) -> Finding {
        let (api, target) = (self.api, self.target);
        let last = callers.and_then(|callers| {
            callers.seen.iter().filter(|caller| caller.api == api).max_by_key(|caller| caller.last)
        });
        let resources: Vec<&str> = self.resources.iter().map(|removed| removed.resource.as_str()).collect();
        let called = last.map(|last| format!("; last called by {}: {}", last.user, told(last)));
        let fix = if self.on {
            format!(
                "take it out of spec.controlPlane.runtimeConfig when nobody needs it; {target} ignores it"
            )
        } else {
            "make sure that nobody needs it".into()
        };
        Finding {
            evidence: format!("serves {}{}", resources.join(", "), called.unwrap_or_default()),
            fix,
            ..self.finding(
                Reason::ApiRemoved,
                Severity::Warning,
                format!("{api} is served, and {target} does not have it"),
            )
        }
    }
}

fn is_recent(caller: &Caller, now: Timestamp) -> bool {
    now.duration_since(caller.last) < QUIET
}

fn told(caller: &Caller) -> String {
    let Caller { resource, agent, verb, last, .. } = caller;
    // Not every client says what it is.
    let agent = if agent.is_empty() { String::new() } else { format!(", user agent {agent}") };
    format!("{verb} {resource}, last seen {}{agent}", minute(*last))
}

/// To the minute: what is seen again and again is not said anew each time.
fn minute(time: Timestamp) -> String {
    let seconds = time.as_second();
    let whole = Timestamp::from_second(seconds.saturating_sub(seconds.rem_euclid(60))).unwrap_or(time);
    whole.to_string()
}

/// The next moment at which somebody who called is forgotten, or the watch has been long enough.
pub(super) fn clears(facts: &Facts, now: Timestamp) -> Option<Timestamp> {
    let callers = facts.callers.as_ref().filter(|_| !facts.removed.is_empty())?;
    let times = callers.seen.iter().map(|caller| caller.last).chain([callers.since]);
    times.filter_map(|time| time.checked_add(QUIET).ok()).filter(|time| *time > now).min()
}
