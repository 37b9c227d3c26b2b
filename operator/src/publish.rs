//! Publishing: the report goes to status as a whole, to events on transitions, to metrics by reason.
//!
//! What is already written is not written again.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::{TenantCluster, TenantClusterStatus, name};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::report;
use kube::Resource;
use kube::api::{Api, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType, Recorder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::class::{Class, classify};
use crate::cluster::{DEADLINE, within};
use crate::execute::Tools;
use crate::run::Context;

/// A status that could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused it or did not answer.
    #[error("cannot write status: {0}")]
    Write(#[source] kube::Error),
    /// Another operator leads.
    #[error("no longer leading")]
    NotLeading,
}

impl Error {
    /// What kind of failure it is.
    pub(crate) fn class(&self) -> Class {
        match self {
            Error::Write(source) => classify(source),
            Error::NotLeading => Class::NotLeading,
        }
    }
}

/// Writes the status if it says something new, and an event for each transition that people wait for.
pub(crate) async fn publish(
    tools: &Tools<'_>,
    recorder: &Recorder,
    observed: &Observed,
    status: &TenantClusterStatus,
) -> Result<(), Error> {
    let tenant = &observed.tenant;
    let facts = status.conditions.iter().filter_map(fact);
    tools.metrics.tenants.observe(&tenant.uid, facts);
    let before = observed.cluster.status.as_ref();
    if !report::worth_writing(observed, before, status) {
        return Ok(());
    }
    tools.gate.check().map_err(|_| Error::NotLeading)?;
    let clusters: Api<TenantCluster> = Api::namespaced(tools.client.clone(), &tenant.namespace);
    // Replaced as a whole, with the resourceVersion that was read: status is the operator's alone, and an apply would
    // leave a field that somebody else set and we do not.
    let whole = TenantCluster { status: Some(status.clone()), ..observed.cluster.clone() };
    let params = PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
    let written = within(DEADLINE, clusters.replace_status(&tenant.name, &params, &whole)).await;
    tools.metrics.writes.count(
        "TenantCluster",
        "status",
        written.as_ref().err().map(|error| classify(error).as_str()),
    );
    match written {
        Ok(_) => {}
        // It is gone: nobody is left to tell.
        Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
        Err(error) => return Err(Error::Write(error)),
    }
    let conditions = before.map_or(&[][..], |before| &before.conditions);
    tell(recorder, "TenantCluster", &observed.cluster.metadata, conditions, &status.conditions).await;
    Ok(())
}

/// Writes the status of a pool or a worker as a whole, on the version that was read, and tells its turns.
pub(crate) async fn publish_whole<K>(
    context: &Context,
    recorder: &Recorder,
    kind: &'static str,
    whole: &K,
    (before, after): (&[Condition], &[Condition]),
) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    context.gate.check().map_err(|_| Error::NotLeading)?;
    let metadata = whole.meta();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let params = PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
    let own = metadata.name.as_deref().unwrap_or_default();
    let written = within(DEADLINE, api.replace_status(own, &params, whole)).await;
    let failure = written.as_ref().err().map(|error| classify(error).as_str());
    context.metrics.writes.count(kind, "status", failure);
    match written {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
        Err(error) => return Err(Error::Write(error)),
    }
    tell(recorder, kind, metadata, before, after).await;
    Ok(())
}

/// An event for each transition that people wait for.
async fn tell(
    recorder: &Recorder,
    kind: &str,
    metadata: &ObjectMeta,
    before: &[Condition],
    after: &[Condition],
) {
    for event in transitions(before, after) {
        let about = ObjectReference {
            api_version: Some("kaas.dev/v1alpha1".into()),
            kind: Some(kind.into()),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        };
        if let Err(error) = within(DEADLINE, recorder.publish(&event, &about)).await {
            // An event is a courtesy: status says the same.
            tracing::debug!(%error, "event was not written");
        }
    }
}

fn fact(condition: &Condition) -> Option<(ConditionType, &'static str, Reason)> {
    let kind = ConditionType::ALL.iter().find(|kind| kind.to_string() == condition.type_)?;
    let reason = Reason::ALL.iter().find(|reason| reason.as_str() == condition.reason)?;
    let status = ["True", "False", "Unknown"].into_iter().find(|status| *status == condition.status)?;
    Some((*kind, status, *reason))
}

/// Conditions whose turns are events.
const TOLD: [ConditionType; 3] = [ConditionType::Ready, ConditionType::EtcdHealthy, ConditionType::Stalled];

/// Reasons for not being Ready that are nobody's worry: somebody asked for it, and it goes on.
const ON_ITS_WAY: [Reason; 8] = [
    Reason::Creating,
    Reason::WaitingForCluster,
    Reason::WaitingForMachine,
    Reason::Provisioning,
    Reason::Joining,
    Reason::Draining,
    Reason::Deleting,
    Reason::NotObserved,
];

fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let told = after.iter().filter(|condition| TOLD.iter().any(|kind| kind.to_string() == condition.type_));
    told.filter_map(|condition| {
        let last = before
            .iter()
            .find(|other| other.type_ == condition.type_)
            .map_or("", |last| last.status.as_str());
        // Stalled is bad when True, the others when False.
        let bad = (condition.status == "True") == (condition.type_ == ConditionType::Stalled.to_string());
        let on_its_way = ON_ITS_WAY.iter().any(|reason| reason.as_str() == condition.reason);
        // What is good, or on its way, from the start is no news.
        let just_made = on_its_way || condition.reason == Reason::WorkersNotReady.as_str();
        let news = last != condition.status && !(last.is_empty() && (!bad || just_made));
        news.then(|| Event {
            type_: if bad && !on_its_way { EventType::Warning } else { EventType::Normal },
            reason: condition.reason.clone(),
            note: Some(
                format!("{} is {}: {}", condition.type_, condition.status, condition.message)
                    .chars()
                    .take(1000)
                    .collect(),
            ),
            action: "Reconcile".into(),
            secondary: None,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(status: &str, reason: Reason) -> Vec<Condition> {
        let condition = json!({
            "type": "Ready", "status": status, "reason": reason.as_str(), "message": "", "lastTransitionTime": "2026-06-01T00:00:00Z",
        });
        vec![serde_json::from_value(condition).unwrap()]
    }

    #[test]
    fn what_is_on_its_way_worries_nobody() {
        let event = |before: &[Condition], after: &[Condition]| transitions(before, after).pop();
        let (ready, lost) = (said("True", Reason::AllReady), said("False", Reason::WorkersNotReady));
        assert!(event(&[], &said("False", Reason::Provisioning)).is_none());
        assert!(event(&[], &lost).is_none());
        assert!(event(&[], &ready).is_none());
        assert!(event(&ready, &ready).is_none());
        assert!(matches!(event(&ready, &lost).unwrap().type_, EventType::Warning));
        assert!(matches!(event(&ready, &said("False", Reason::Draining)).unwrap().type_, EventType::Normal));
        assert!(matches!(event(&lost, &ready).unwrap().type_, EventType::Normal));
        assert!(matches!(event(&[], &said("False", Reason::JoinOverdue)).unwrap().type_, EventType::Warning));
    }
}
