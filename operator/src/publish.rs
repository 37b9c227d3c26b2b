//! Publishing: the report goes to status as a whole, to events on transitions, to metrics by reason.
//!
//! What is already written is not written again.

use k8s_openapi::api::core::v1::ObjectReference;
use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::{TenantCluster, TenantClusterStatus, name};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::report;
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder};

use crate::class::{Class, classify};
use crate::cluster::{DEADLINE, within};
use crate::execute::Tools;

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
    for event in transitions(before, status) {
        let about = ObjectReference {
            api_version: Some("kaas.dev/v1alpha1".into()),
            kind: Some("TenantCluster".into()),
            namespace: Some(tenant.namespace.clone()),
            name: Some(tenant.name.clone()),
            uid: Some(tenant.uid.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = within(DEADLINE, recorder.publish(&event, &about)).await {
            // An event is a courtesy: status says the same.
            tracing::debug!(%error, "event was not written");
        }
    }
    Ok(())
}

fn fact(
    condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition,
) -> Option<(ConditionType, &'static str, Reason)> {
    let kind = ConditionType::ALL.iter().find(|kind| kind.to_string() == condition.type_)?;
    let reason = Reason::ALL.iter().find(|reason| reason.as_str() == condition.reason)?;
    let status = ["True", "False", "Unknown"].into_iter().find(|status| *status == condition.status)?;
    Some((*kind, status, *reason))
}

/// Conditions whose turns are events.
const TOLD: [ConditionType; 3] = [ConditionType::Ready, ConditionType::EtcdHealthy, ConditionType::Stalled];

fn transitions(before: Option<&TenantClusterStatus>, after: &TenantClusterStatus) -> Vec<Event> {
    let told = after
        .conditions
        .iter()
        .filter(|condition| TOLD.iter().any(|kind| kind.to_string() == condition.type_));
    told.filter_map(|condition| {
        let last = before
            .and_then(|status| status.conditions.iter().find(|other| other.type_ == condition.type_))
            .map_or("", |last| last.status.as_str());
        // Stalled is bad when True, the others when False; what is good from the start is no news.
        let bad = (condition.status == "True") == (condition.type_ == ConditionType::Stalled.to_string());
        let news = last != condition.status
            && !(last.is_empty() && (!bad || condition.reason == Reason::Creating.as_str()));
        news.then(|| Event {
            type_: if bad { EventType::Warning } else { EventType::Normal },
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
