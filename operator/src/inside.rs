//! The inside of tenants: what the operator keeps there for their workers, read as seldom as is safe, and written only
//! where it differs.
//!
//! What is to be there is a pure decision; here it is remembered when all of it was last seen to be so. Until something
//! else is wanted, until something was seen to change, or for ten minutes, nothing but the workloads is read again.
//! Between reconciles the tenant's probe takes a glance with each of its requests, at one kind in turn, and wakes the
//! tenant when that has changed: a watch would hold a connection and its memory for each kind and each tenant.
//!
//! What the tenant's API refuses holds up nothing: it is told in status and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{StreamExt, iter};
use kaas_crds::name;
use kaas_lifecycle::action::{Action, Precondition};
use kaas_lifecycle::addons::{WORKLOADS, glimpse};
use kaas_lifecycle::desired::ADDON_NAMESPACE;
use kaas_lifecycle::difference::digest;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::{Addons, Live, Observed};
use kaas_lifecycle::plan::{Plan, addon_outline};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::class::{Class, classify};
use crate::cluster::{self, within};
use crate::leader::Gate;
use crate::metrics::Metrics;
use crate::observe::preflight;

/// A look at everything is good for so long: a little less than the pause between two reconciles of a tenant at rest, so
/// that each of them looks.
const GOOD_FOR: Duration = Duration::from_secs(9 * 60);
/// Kinds that are glanced at, one with each probe.
const GLANCES: [Kind; 3] = [Kind::DaemonSet, Kind::Deployment, Kind::ConfigMap];
/// A glance that takes longer is none: the next probe waits for it.
const GLANCE: Duration = Duration::from_secs(2);
/// So many requests at once. Each opens a connection, which costs both sides more than it saves time.
const AT_ONCE: usize = 4;
/// All of it has to be done in this time: a tenant that takes longer holds up others.
const LIMIT: Duration = Duration::from_secs(20);
/// What was refused is tried again so soon; what did not come through, so soon.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_SOON: Duration = Duration::from_secs(5);

/// What is remembered of the inside of one tenant.
#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    /// What was read for the next upgrade.
    pub(crate) preflight: preflight::Memory,
}

#[derive(Default)]
struct State {
    /// Digest of what is to be there as of the last look.
    wanted: String,
    /// Digest of what was to be there when all of it was, and when that was.
    kept: Option<(String, Instant)>,
    /// Objects of our names without our label: lists do not show them.
    unlabelled: BTreeSet<Reference>,
    refused: Option<String>,
    /// Whether anything runs on workers.
    workers: bool,
    /// What was seen last, by kind.
    seen: BTreeMap<Kind, String>,
    turn: usize,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever is lost here is read again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_kept(&self, wanted: &str) -> bool {
        let state = self.state();
        state.kept.as_ref().is_some_and(|(kept, at)| kept == wanted && at.elapsed() < GOOD_FOR)
    }

    /// Whether anything runs on workers: whether there is something to glance at.
    pub(crate) fn has_workers(&self) -> bool {
        self.state().workers
    }

    /// Looks at one kind; whether it changed since it was last seen.
    pub(crate) async fn glance(&self, client: &kube::Client) -> bool {
        let kind = {
            let mut state = self.state();
            state.turn = state.turn.wrapping_add(1);
            GLANCES.into_iter().cycle().nth(state.turn % GLANCES.len())
        };
        let Some(kind) = kind else { return false };
        let selector = ours();
        let reading = cluster::list_cached(client, kind, Some(ADDON_NAMESPACE), &selector);
        let Ok(found) = within(GLANCE, reading).await else { return false };
        let now = sight(found.iter().map(|(_, live)| live));
        let mut state = self.state();
        let changed = state.seen.insert(kind, now.clone()).is_some_and(|before| before != now);
        if changed && !WORKLOADS.contains(&kind) {
            state.kept = None;
        }
        changed
    }
}

/// Selects what the operator has put into a tenant.
fn ours() -> String {
    format!("{}={}", name::MANAGED_BY_LABEL, name::MANAGED_BY)
}

/// What of these objects is worth a wake, in short.
fn sight<'a>(found: impl Iterator<Item = &'a Live>) -> String {
    let told: Vec<Value> = found
        .map(|live| match live.text("/kind") {
            // A configuration has no status that could make its version move.
            "ConfigMap" => json!([live.uid, live.resource_version]),
            _ => glimpse(live),
        })
        .collect();
    digest(&json!(told))
}

/// Reads what there is reason to read; the tenant's API answers.
pub(crate) async fn observe(
    client: &kube::Client,
    memory: &Memory,
    observed: &mut Observed,
) -> Result<(), kube::Error> {
    let release = observed.catalogue.get(&observed.cluster.spec.version);
    let answered = observed.cluster.status.as_ref().is_some_and(|status| status.version.is_some());
    if !answered || release.is_none_or(|release| release.addons.is_none()) {
        return Ok(());
    }
    let (refused, unlabelled) = {
        let state = memory.state();
        (state.refused.clone(), state.unlabelled.clone())
    };
    let mut workloads = BTreeMap::new();
    for kind in WORKLOADS {
        let found = cluster::list(client, kind, Some(ADDON_NAMESPACE), &ours()).await?;
        memory.state().seen.insert(kind, sight(found.iter().map(|(_, live)| live)));
        workloads.extend(found);
    }
    let mut strays = BTreeMap::new();
    for reference in unlabelled {
        if let Some(live) = cluster::get(client, &reference).await? {
            strays.insert(reference, live);
        }
    }
    let is_workload = |reference: &Reference| WORKLOADS.contains(&reference.kind);
    workloads.extend(strays.extract_if(.., |reference, _| is_workload(reference)));
    observed.addons = Some(Addons { workloads, others: None, refused });
    let outline = addon_outline(observed);
    memory.state().workers = outline.as_ref().is_some_and(|outline| outline.workers);
    let Some(outline) = outline.filter(|outline| !memory.is_kept(&outline.digest)) else { return Ok(()) };
    let mut others = strays;
    for kind in outline.kinds {
        others.extend(cluster::list(client, kind, None, &ours()).await?);
    }
    memory.state().wanted = outline.digest;
    if let Some(addons) = &mut observed.addons {
        addons.others = Some(others);
    }
    Ok(())
}

/// How it went.
pub(crate) enum Kept {
    /// All is as it should be, as far as it was looked at.
    Well,
    /// Something was not as it was seen: to be looked at again at once.
    Changed,
    /// Something failed: to be tried again after this time.
    Later(Duration),
}

/// What it needs besides plan and facts.
pub(crate) struct Tools<'a> {
    pub(crate) client: kube::Client,
    pub(crate) memory: Arc<Memory>,
    pub(crate) gate: &'a Gate,
    pub(crate) metrics: &'a Metrics,
}

/// Applies and takes away what the plan says. What failed is written into the facts, for the report.
pub(crate) async fn keep(tools: &Tools<'_>, plan: &Plan, observed: &mut Observed) -> Kept {
    let looked = observed.addons.as_ref().is_some_and(|addons| addons.others.is_some());
    if plan.addons.is_empty() && !looked {
        return Kept::Well;
    }
    let mut failures = Vec::new();
    let waves = async {
        for wave in &plan.addons {
            let requests: Vec<_> = wave.iter().map(|action| act(tools, action).boxed()).collect();
            let mut results = iter(requests).buffered(AT_ONCE);
            while let Some(result) = results.next().await {
                if let Err(failure) = result {
                    let hopeless = matches!(failure.class, Class::NotLeading | Class::Unreachable);
                    failures.push(failure);
                    if hopeless {
                        return;
                    }
                }
            }
        }
    };
    let late = tokio::time::timeout(LIMIT, waves).await.is_err();
    let mut state = tools.memory.state();
    state.seen.remove(&Kind::ConfigMap);
    if failures.is_empty() && !late {
        state.refused = None;
        state.unlabelled.clear();
        if looked {
            state.kept = Some((state.wanted.clone(), Instant::now()));
        }
        return Kept::Well;
    }
    state.kept = None;
    state.unlabelled.extend(failures.iter().filter_map(|failure| failure.unlabelled.clone()));
    let refusal = failures.iter().find(|failure| failure.refused);
    state.refused = refusal.map(|failure| failure.message.clone());
    if let Some(addons) = &mut observed.addons {
        addons.refused.clone_from(&state.refused);
    }
    match refusal {
        Some(_) => Kept::Later(RETRY),
        None if !late && failures.iter().all(|failure| failure.class == Class::Conflict) => Kept::Changed,
        None => Kept::Later(RETRY_SOON),
    }
}

/// A request that failed.
struct Failure {
    class: Class,
    /// Whether the tenant's API said no, by itself or by a webhook of the tenant's, and not merely "later".
    refused: bool,
    message: String,
    /// An object that a list did not show, and is there.
    unlabelled: Option<Reference>,
}

async fn act(tools: &Tools<'_>, action: &Action) -> Result<(), Failure> {
    let client = &tools.client;
    if tools.gate.check().is_err() {
        let (class, message) = (Class::NotLeading, String::new());
        return Err(Failure { class, refused: false, message, unlabelled: None });
    }
    let (reference, verb, unseen, result) = match action {
        Action::ApplyInside { object, precondition } => {
            tracing::info!(object = %object.reference, "apply inside the tenant");
            let result = cluster::apply(client, object, precondition).await.map(drop);
            (&object.reference, "apply", *precondition == Precondition::Absent, result)
        }
        Action::DeleteInside { reference, uid } => {
            tracing::info!(object = %reference, uid, "delete inside the tenant");
            (reference, "delete", false, cluster::delete(client, reference, uid, None).await)
        }
        // Nothing else is for the inside.
        _ => return Ok(()),
    };
    let class = result.as_ref().err().map(classify);
    let counted = if verb == "apply" { "apply_inside" } else { "delete_inside" };
    tools.metrics.writes.count(reference.kind.to_string(), counted, class.map(Class::as_str));
    result.map_err(|error| {
        let class = classify(&error);
        let (said, refused) = match &error {
            kube::Error::Api(status) => {
                (status.message.clone(), ![404, 409, 429, 503, 504].contains(&status.code))
            }
            other => (other.to_string(), false),
        };
        let message = format!("the cluster refuses to {verb} {reference}: {said}");
        let unlabelled = (unseen && class == Class::Conflict).then(|| reference.clone());
        Failure { class, refused, message: message.chars().take(1000).collect(), unlabelled }
    })
}

#[cfg(test)]
mod tests;
