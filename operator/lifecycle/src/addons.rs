//! Addons: what is applied inside a tenant for its workers and what is taken away there, now; and how it stands.
//!
//! What restarts something comes from the stored revision, as the control plane does, so that a newer operator restarts
//! nothing on workers either; the rest is as it would be rendered now. What runs on workers comes with the first of
//! them and stays when the last is gone. Nothing is decided on what was not looked at, and nothing before the cluster
//! was Ready once: its creation does not wait for this.

use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::name;
use serde_json::{Value, json};

use crate::action::{Action, Precondition};
use crate::desired::{self, Facts, Inputs};
use crate::difference::{covers, digest, stamp};
use crate::endpoint;
use crate::object::{Kind, Object, Reference};
use crate::observed::{Addons, Live, Observed};
use crate::revision::{self, Revision};
use crate::verdict::{Is, Verdict};

/// Kinds that are looked at each time: what happens to them is seen at once, and they say how they are.
pub const WORKLOADS: [Kind; 2] = [Kind::DaemonSet, Kind::Deployment];

/// What is to be inside, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Changes with anything that is to be there or to go.
    pub digest: String,
    /// Kinds to look at, besides [`WORKLOADS`].
    pub kinds: Vec<Kind>,
    /// Whether something of it runs on workers.
    pub workers: bool,
}

/// Whether the tenant has, or had, workers.
fn for_workers(observed: &Observed, revision: &Revision) -> bool {
    let asked = observed.workers.as_ref().is_some_and(|tally| tally.desired > 0 || tally.left > 0);
    (asked || agents(observed).is_some()) && stored(revision, &agent_reference()).is_some()
}

fn agent_reference() -> Reference {
    Reference::namespaced(Kind::DaemonSet, desired::ADDON_NAMESPACE, desired::AGENT)
}

/// The agents' DaemonSet.
fn agents(observed: &Observed) -> Option<&Live> {
    observed.addons.as_ref()?.workloads.get(&agent_reference()).filter(|live| desired::ours(live))
}

fn stored<'a>(revision: &'a Revision, reference: &Reference) -> Option<&'a Object> {
    revision.objects.iter().find(|object| object.reference == *reference)
}

fn facts(observed: &Observed) -> Option<Facts> {
    Some(Facts {
        api: endpoint::endpoint(observed)?,
        tunnel: endpoint::tunnel(observed)?,
        authority: observed.authority.clone()?,
    })
}

/// Whether its time has come.
fn due(observed: &Observed) -> bool {
    observed.cluster.status.as_ref().is_some_and(|status| status.version.is_some())
        && observed.serving()
        && !observed.deleting()
        && !observed.cluster.spec.paused
}

/// Everything that is to be there, in order.
fn wanted(observed: &Observed, inputs: &Inputs<'_>, revision: &Revision) -> Vec<Object> {
    let Some(facts) = facts(observed).filter(|_| due(observed)) else { return Vec::new() };
    desired::addons(inputs, for_workers(observed, revision))
        .into_iter()
        .filter_map(|fresh| match desired::revised(&fresh.reference) {
            true => stored(revision, &fresh.reference).cloned(),
            false => Some(fresh),
        })
        .map(|object| stamp(desired::fill(object, &facts)))
        .collect()
}

/// What is switched off, while there is something that runs on workers.
fn unwanted(observed: &Observed, revision: &Revision) -> Vec<Reference> {
    if !due(observed) || !for_workers(observed, revision) {
        return Vec::new();
    }
    desired::unwanted_addons(&observed.cluster.spec.addons)
}

/// In short what [`plan`] would want; `None` when it wants nothing now.
pub(crate) fn outline(observed: &Observed, inputs: &Inputs<'_>, revision: &Revision) -> Option<Outline> {
    let (wanted, unwanted) = (wanted(observed, inputs, revision), unwanted(observed, revision));
    if wanted.is_empty() {
        return None;
    }
    let references = wanted.iter().map(|object| &object.reference).chain(&unwanted);
    let mut kinds: Vec<Kind> =
        references.map(|reference| reference.kind).filter(|kind| !WORKLOADS.contains(kind)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let away: Vec<String> = unwanted.iter().map(ToString::to_string).collect();
    let workers = wanted.iter().any(|object| WORKLOADS.contains(&object.reference.kind));
    Some(Outline { digest: digest(&json!([wanted, away])), kinds, workers })
}

/// What to do inside, in waves: what pods refer to, the pods, and then what is switched off.
pub(crate) fn plan(observed: &Observed, inputs: &Inputs<'_>, revision: &Revision) -> Vec<Vec<Action>> {
    let Some(addons) = &observed.addons else { return Vec::new() };
    let seen = |reference: &Reference| match &addons.others {
        _ if WORKLOADS.contains(&reference.kind) => Some(addons.workloads.get(reference)),
        others => others.as_ref().map(|others| others.get(reference)),
    };
    // What is there is of the version that the whole control plane has completed, and waits for it.
    let completed = observed.cluster.status.as_ref().and_then(|status| status.version.as_deref());
    let early = completed.is_some_and(|version| version != revision.record.stage.serves());
    let (mut first, mut pods) = (Vec::new(), Vec::new());
    for object in wanted(observed, inputs, revision) {
        let precondition = match seen(&object.reference) {
            None => continue,
            Some(Some(live)) if live.terminating || covers(&live.content, &object.content) => continue,
            Some(Some(_)) if desired::revised(&object.reference) && early => continue,
            Some(Some(live)) => Precondition::Version(live.resource_version.clone()),
            Some(None) => Precondition::Absent,
        };
        let wave = if WORKLOADS.contains(&object.reference.kind) { &mut pods } else { &mut first };
        wave.push(Action::ApplyInside { object, precondition });
    }
    let off = unwanted(observed, revision).into_iter().filter_map(|reference| {
        let live = seen(&reference).flatten().filter(|live| desired::ours(live) && !live.terminating)?;
        Some(Action::DeleteInside { uid: live.uid.clone(), reference })
    });
    let mut waves = vec![first, pods, off.collect()];
    waves.retain(|wave: &Vec<Action>| !wave.is_empty());
    waves
}

/// How addons and tunnel stand, when `completed` is the version that the control plane has completed.
pub(crate) fn verdicts(observed: &Observed, pending: bool, completed: Option<&str>) -> [Verdict; 2] {
    let addons = |is, reason, message: String| Verdict::new(ConditionType::AddonsReady, is, reason, message);
    let tunnel =
        |is, reason, message: String| Verdict::new(ConditionType::TunnelHealthy, is, reason, message);
    let workers = observed.workers.as_ref().is_some_and(|tally| tally.desired > 0 || tally.left > 0);
    let concerned = workers || agents(observed).is_some();
    let found = observed.addons.as_ref().filter(|found| concerned || found.refused.is_some());
    let Some(found) = found else {
        let release = observed.catalogue.get(&observed.cluster.spec.version);
        if workers && release.is_none_or(|release| release.addons.is_some()) {
            let message = "what is inside the cluster was not read";
            return [
                addons(Is::Unknown, Reason::NotObserved, message.into()),
                tunnel(Is::Unknown, Reason::NotObserved, message.into()),
            ];
        }
        return [
            addons(Is::True, Reason::NoAddons, "there are no workers, or no images for them".into()),
            tunnel(Is::True, Reason::NoWorkers, "there are no workers to reach".into()),
        ];
    };
    let agents = agents(observed);
    let lagging = lagging(found.workloads.values());
    let old = outdated(observed, found, completed);
    let addons = match (&found.refused, agents) {
        (Some(refused), _) => addons(Is::False, Reason::AddonsRefused, refused.clone()),
        (None, None) if pending => addons(
            Is::False,
            Reason::RevisionPending,
            "the revision that runs has no addons: set spec.acceptRevision to the pending one".into(),
        ),
        (None, None) => addons(Is::False, Reason::AddonsNotReady, "they are being applied".into()),
        (None, Some(_)) if !lagging.is_empty() => {
            addons(Is::False, Reason::AddonsNotReady, format!("not ready: {}", lagging.join(", ")))
        }
        (None, Some(_)) if !old.is_empty() => {
            addons(Is::False, Reason::AddonsNotReady, format!("being replaced: {}", old.join(", ")))
        }
        (None, Some(_)) => addons(Is::True, Reason::AddonsRunning, "all addons run".into()),
    };
    let (ready, desired) = agents.map_or((0, 0), ready_of);
    let tunnel = match agents {
        None if !concerned => tunnel(Is::True, Reason::NoWorkers, "there are no workers to reach".into()),
        None => tunnel(Is::False, Reason::AgentsMissing, "no agent was started yet".into()),
        Some(_) if desired == 0 => {
            tunnel(Is::True, Reason::NoWorkers, "no worker has joined that could be reached".into())
        }
        Some(_) if ready == 0 => tunnel(
            Is::False,
            Reason::AgentsMissing,
            format!("none of {desired} agents is connected: logs, exec, webhooks and aggregated APIs fail"),
        ),
        Some(_) => {
            tunnel(Is::True, Reason::AgentsConnected, format!("{ready} of {desired} agents are connected"))
        }
    };
    [addons, tunnel]
}

/// Pods that are ready, and pods that there should be.
fn ready_of(live: &Live) -> (i64, i64) {
    match live.text("/kind") {
        "DaemonSet" => (live.count("/status/numberReady"), live.count("/status/desiredNumberScheduled")),
        _ => (live.count("/status/readyReplicas"), live.count("/spec/replicas")),
    }
}

/// Workloads that are not as they are to be, or have pods that are not.
fn outdated(observed: &Observed, found: &Addons, completed: Option<&str>) -> Vec<String> {
    let Some((facts, revision)) = facts(observed).zip(revision::current(observed)) else { return Vec::new() };
    let early = completed != Some(revision.record.stage.serves());
    let named = found.workloads.iter().filter(|(_, live)| desired::ours(live) && !live.terminating);
    named
        .filter(|(reference, live)| {
            let wanted = stored(&revision, reference).filter(|_| !early);
            let wanted = wanted.map(|object| stamp(desired::fill(object.clone(), &facts)));
            wanted.is_some_and(|wanted| !covers(&live.content, &wanted.content)) || rolling(live)
        })
        .map(|(reference, _)| reference.name.clone())
        .collect()
}

/// Whether its controller has pods left to replace, or has not looked at the last change yet.
fn rolling(live: &Live) -> bool {
    let (updated, desired) = updated_of(live);
    live.count("/status/observedGeneration") < live.count("/metadata/generation") || updated < desired
}

/// Pods that are of the newest template, and pods that there should be.
fn updated_of(live: &Live) -> (i64, i64) {
    match live.text("/kind") {
        "DaemonSet" => {
            (live.count("/status/updatedNumberScheduled"), live.count("/status/desiredNumberScheduled"))
        }
        _ => (
            live.count("/status/updatedReplicas"),
            live.count("/status/replicas").max(live.count("/spec/replicas")),
        ),
    }
}

/// Workloads of ours without all their pods, and how many they have.
fn lagging<'a>(workloads: impl Iterator<Item = &'a Live>) -> Vec<String> {
    let ours = workloads.filter(|live| desired::ours(live));
    ours.filter_map(|live| {
        let (ready, desired) = ready_of(live);
        (ready < desired).then(|| format!("{} {ready} of {desired}", live.text("/metadata/name")))
    })
    .collect()
}

/// What of a workload's life is worth a look of the operator: that it is there, as it was, and how many pods it has.
pub fn glimpse(live: &Live) -> Value {
    let (ready, desired) = ready_of(live);
    let updated = !rolling(live);
    json!([
        live.text("/metadata/name"),
        live.uid,
        live.count("/metadata/generation"),
        live.get("/metadata/labels"),
        live.get("/metadata/annotations").and_then(|all| all.get(name::APPLIED_HASH_ANNOTATION)),
        ready,
        desired,
        updated,
    ])
}
