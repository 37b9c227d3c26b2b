//! Execution: the plan's waves one after the other, each action under its own precondition, until one fails.
//!
//! What failed is not repeated here: the next observation decides anew.

use std::sync::Arc;

use futures::FutureExt;
use futures::stream::{StreamExt, iter};
use k8s_openapi::api::core::v1::Pod;
use kaas_crds::{TenantCluster, name};
use kaas_lifecycle::action::{Action, EtcdOrder};
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::plan::Plan;
use kaas_lifecycle::report::Failure;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::class::{Class, classify};
use crate::cluster::{self, DEADLINE, within};
use crate::etcd;
use crate::keyring::Keyring;
use crate::leader::Gate;
use crate::metrics::Metrics;
use crate::tenant::Tenants;

mod issue;

/// So many actions of a wave run at once.
const AT_ONCE: usize = 8;

/// An action that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A write to an API server.
    #[error("{what}: {source}")]
    Write {
        /// What was done to what.
        what: String,
        /// Why it failed.
        source: kube::Error,
    },
    /// Key material.
    #[error("{what}: {source}")]
    KeyMaterial {
        /// For which Secret.
        what: String,
        /// Why it failed.
        source: kaas_pki::Error,
    },
    /// The authorities are not where they should be.
    #[error("{0}: the tenant's authorities are not there")]
    NoAuthority(String),
    /// An order to etcd.
    #[error("etcd, {what}: {message}")]
    Etcd {
        /// The order.
        what: String,
        /// Why it failed.
        message: String,
    },
    /// Inside a tenant whose client is gone.
    #[error("the tenant's API has no client")]
    NoClient,
    /// What it was decided on is no longer so.
    #[error("{0}: what it was decided on has changed")]
    Changed(String),
    /// A plan of another kind of object: a defect.
    #[error("{0}: this is no action for such an object; this is a defect of the operator")]
    Misplaced(String),
    /// No secret can be drawn.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// Another operator leads.
    #[error("no longer leading")]
    NotLeading,
}

impl Error {
    /// What kind of failure it is.
    pub(crate) fn class(&self) -> Class {
        match self {
            Error::Write { source, .. } => classify(source),
            Error::KeyMaterial { .. } | Error::Misplaced(_) | Error::NoRandomness => Class::Bug,
            Error::Changed(_) => Class::Conflict,
            Error::NoAuthority(_) | Error::NoClient | Error::Etcd { .. } => Class::Transient,
            Error::NotLeading => Class::NotLeading,
        }
    }

    /// What failed, without what changes from try to try.
    pub(crate) fn told(&self) -> String {
        match self {
            Error::Write { what, source: kube::Error::Api(status) } => format!("{what}: {}", status.message),
            other => other.to_string(),
        }
    }

    /// As it is told in a status.
    pub(crate) fn failure(&self) -> Failure {
        let class = self.class();
        Failure { reason: class.reason(), message: self.told(), transient: class.is_transient() }
    }
}

/// What execution needs besides the plan.
pub(crate) struct Tools<'a> {
    pub(crate) client: &'a kube::Client,
    pub(crate) gate: &'a Gate,
    pub(crate) metrics: &'a Metrics,
    pub(crate) tenants: &'a Arc<Tenants>,
    pub(crate) lifetimes: Lifetimes,
}

/// How long what is issued lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    pub(crate) leaf: jiff::SignedDuration,
    pub(crate) authority: jiff::SignedDuration,
}

/// Executes a plan. Key material that it makes is added to the keyring.
pub(crate) async fn execute(
    tools: &Tools<'_>,
    plan: &Plan,
    observed: &Observed,
    keyring: &mut Keyring,
) -> Result<(), Error> {
    for wave in &plan.waves {
        let ring = &*keyring;
        let actions: Vec<_> =
            wave.iter().map(|action| guarded(tools, action, observed, ring).boxed()).collect();
        let results: Vec<Result<Option<issue::Made>, Error>> =
            iter(actions).buffer_unordered(AT_ONCE).collect().await;
        for result in results {
            if let Some(made) = result? {
                keyring.put(&made.secret, made.entries);
            }
        }
    }
    Ok(())
}

/// One action, if this operator still leads; counted either way.
async fn guarded(
    tools: &Tools<'_>,
    action: &Action,
    observed: &Observed,
    keyring: &Keyring,
) -> Result<Option<issue::Made>, Error> {
    tools.gate.check().map_err(|_| Error::NotLeading)?;
    let result = act(tools, action, observed, keyring).await;
    let (kind, verb) = label(action);
    tools.metrics.writes.count(kind, verb, result.as_ref().err().map(|error| error.class().as_str()));
    result
}

async fn act(
    tools: &Tools<'_>,
    action: &Action,
    observed: &Observed,
    keyring: &Keyring,
) -> Result<Option<issue::Made>, Error> {
    let client = tools.client;
    match action {
        Action::AddFinalizer { resource_version } => {
            finalizer(client, observed, resource_version, true).await?
        }
        Action::RemoveFinalizer { resource_version } => {
            finalizer(client, observed, resource_version, false).await?
        }
        Action::Apply { object, precondition } => {
            tracing::info!(object = %object.reference, "apply");
            cluster::apply(client, object, precondition)
                .await
                .map(drop)
                .map_err(failed("apply", &object.reference))?;
        }
        Action::Delete { reference, uid, grace } => {
            tracing::info!(object = %reference, uid, "delete");
            cluster::delete(client, reference, uid, *grace).await.map_err(failed("delete", reference))?;
        }
        Action::Issue(issue) => {
            tracing::info!(object = %issue.reference, why = issue.why, "issue");
            let made = issue::make(issue, keyring, tools.lifetimes, observed.now)?;
            cluster::apply(client, &made.object, &issue.precondition)
                .await
                .map_err(failed("apply", &issue.reference))?;
            return Ok(Some(made));
        }
        Action::ApplyInside { object, precondition } => {
            tracing::info!(object = %object.reference, "apply inside the tenant");
            let inside = tools.tenants.client(observed, keyring).ok_or(Error::NoClient)?;
            cluster::apply(&inside, object, precondition)
                .await
                .map_err(failed("apply inside the tenant", &object.reference))?;
        }
        // What is switched off goes with the addons, after everything else.
        Action::DeleteInside { .. } => {}
        Action::Etcd(order) => {
            tracing::info!(?order, "etcd");
            order_etcd(client, order, observed, keyring).await?;
        }
    }
    Ok(None)
}

fn failed(verb: &str, reference: &Reference) -> impl FnOnce(kube::Error) -> Error {
    let what = format!("{verb} {reference}");
    move |source| Error::Write { what, source }
}

/// Kind and verb for the metric of writes.
fn label(action: &Action) -> (String, &'static str) {
    match action {
        Action::AddFinalizer { .. } | Action::RemoveFinalizer { .. } => ("TenantCluster".into(), "apply"),
        Action::Apply { object, .. } => (object.reference.kind.to_string(), "apply"),
        Action::Issue(issue) => (issue.reference.kind.to_string(), "apply"),
        Action::Delete { reference, .. } => (reference.kind.to_string(), "delete"),
        Action::ApplyInside { object, .. } => (object.reference.kind.to_string(), "apply_inside"),
        Action::DeleteInside { reference, .. } => (reference.kind.to_string(), "delete_inside"),
        Action::Etcd(_) => ("Etcd".into(), "order"),
    }
}

/// Sets or clears our finalizer by server-side apply: other finalizers are not ours to know.
async fn finalizer(
    client: &kube::Client,
    observed: &Observed,
    version: &str,
    present: bool,
) -> Result<(), Error> {
    let tenant = &observed.tenant;
    let clusters: Api<TenantCluster> = Api::namespaced(client.clone(), &tenant.namespace);
    let finalizers: &[&str] = if present { &[name::FINALIZER] } else { &[] };
    let patch = json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "TenantCluster",
        "metadata": {"name": tenant.name, "resourceVersion": version, "uid": tenant.uid, "finalizers": finalizers},
    });
    let params = PatchParams::apply(name::FIELD_MANAGER).force();
    match within(DEADLINE, clusters.patch(&tenant.name, &params, &Patch::Apply(&patch))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 && !present => Ok(()),
        Err(source) => Err(Error::Write {
            what: format!("finalizer of TenantCluster {}/{}", tenant.namespace, tenant.name),
            source,
        }),
    }
}

/// Sends an order to the leader: leadership can only be given away by the leader itself, and a learner refuses all of them.
async fn order_etcd(
    client: &kube::Client,
    order: &EtcdOrder,
    observed: &Observed,
    keyring: &Keyring,
) -> Result<(), Error> {
    let what = format!("{order:?}");
    let home = observed.tenant.control_plane_namespace();
    let selector = format!("{}={}", name::COMPONENT_LABEL, name::component::ETCD);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &home);
    let found = within(DEADLINE, pods.list(&ListParams::default().labels(&selector)))
        .await
        .map_err(failed("list", &Reference::namespaced(Kind::Pod, &home, "etcd")))?;
    let etcd = observed.etcd.as_ref();
    let leader = etcd.and_then(|etcd| etcd.members.iter().find(|member| member.id == etcd.leader));
    let addresses: Vec<String> = found
        .items
        .iter()
        .filter_map(etcd::member_address)
        .filter(|(name, _)| leader.is_some_and(|leader| leader.name == *name))
        .map(|(_, address)| address)
        .collect();
    let mut connection = etcd::connect(&observed.tenant, &addresses, keyring)
        .await
        .ok_or_else(|| Error::Etcd { what: what.clone(), message: "no leader answers".into() })?;
    connection.order(order).await.map_err(|error| Error::Etcd { what, message: error.to_string() })
}
