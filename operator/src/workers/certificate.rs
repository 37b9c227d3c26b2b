//! Certificate requests of kubelets: read, judged by `kaas_lifecycle::workers::join` on facts read just now, and answered.
//! Nothing else in a tenant approves them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::worker_pool::InfrastructureKind;
use kaas_crds::{TenantCluster, Worker, name};
use kaas_lifecycle::workers::join::{
    self, BOOTSTRAP_USER, CLIENT_SIGNER, Candidate, Judgement, NODE_USER, Request,
};
use kaas_lifecycle::workers::worker::token_id;
use kaas_pki::SigningRequest;
use kube::api::{Api, ListParams, PostParams};
use tracing::{info, warn};

use crate::class::classify;
use crate::cluster::{DEADLINE, within};
use crate::tenant::Access;
use crate::workers::observe::place;
use crate::workers::{Yard, bootstrap, node};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is answered, or nobody's here.
    Done,
    /// It cannot be answered yet.
    Later,
}

/// Why it was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("a fact could not be read: {0}")]
    Read(#[from] kube::Error),
    #[error("the machine was not read: {0}")]
    Machine(String),
    #[error("no longer leading")]
    NotLeading,
}

/// Judges a request of a tenant's kubelet, and answers it.
pub(super) async fn attend(
    yard: &Yard,
    access: &Access,
    cluster: &TenantCluster,
    csr: &CertificateSigningRequest,
) -> Result<Outcome, Error> {
    let request = request(csr);
    if request.decided || ![CLIENT_SIGNER, join::SERVING_SIGNER].contains(&request.signer.as_str()) {
        return Ok(Outcome::Done);
    }
    let uid = cluster.metadata.uid.as_deref().unwrap_or_default();
    let workers = yard.fleet.workers_of(uid);
    let mut candidates = Vec::with_capacity(workers.len());
    for worker in &workers {
        let candidate =
            if concerns(&request, worker) { live(yard, access, csr, worker).await? } else { known(worker) };
        candidates.push(candidate);
    }
    let reserved = reserved(cluster, access);
    let judgement = join::judge(&request, &candidates, &reserved, Timestamp::now());
    let own = csr.metadata.name.as_deref().unwrap_or_default();
    let (kind, reason, message) = match judgement {
        Judgement::Ignore => return Ok(Outcome::Done),
        Judgement::Wait(why) => {
            tracing::debug!(request = own, why, "a certificate request waits");
            return Ok(Outcome::Later);
        }
        Judgement::Approve(worker) => ("Approved", "OfWorker", format!("it is of worker {worker}")),
        Judgement::Deny(why) => ("Denied", "NotOfWorker", why),
    };
    if kind == "Denied" {
        warn!(request = own, user = request.username, why = message, "a certificate is denied");
    } else {
        info!(request = own, signer = request.signer, message, "a certificate is approved");
    }
    yard.context.gate.check().map_err(|_| Error::NotLeading)?;
    let written = decide(&access.client, csr, kind, reason, message).await;
    let failure = written.as_ref().err().map(|error| classify(error).as_str());
    yard.context.metrics.writes.count("CertificateSigningRequest", "approval", failure);
    match written {
        Ok(()) => Ok(Outcome::Done),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Done),
        // The watch tells of a change. Should there have been none, the same request is judged again.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Later),
        Err(error) => Err(error.into()),
    }
}

/// Whether a request is by the token or in the name of a worker.
fn concerns(request: &Request, worker: &Worker) -> bool {
    let own = worker.metadata.name.as_deref().unwrap_or_default();
    let token = token_id(worker.metadata.uid.as_deref().unwrap_or_default());
    request.username.strip_prefix(BOOTSTRAP_USER) == Some(token.as_str())
        || request.username.strip_prefix(NODE_USER) == Some(own)
        || request.common_names.iter().any(|name| name.strip_prefix(NODE_USER) == Some(own))
}

/// A worker as its status tells it: enough for requests that are not about it.
fn known(worker: &Worker) -> Candidate {
    let status = worker.status.as_ref();
    let addresses = status.map(|status| {
        status
            .addresses
            .iter()
            .filter_map(|address| address.address.parse().ok())
            .collect::<BTreeSet<IpAddr>>()
    });
    Candidate {
        name: worker.metadata.name.clone().unwrap_or_default(),
        going: worker.metadata.deletion_timestamp.is_some(),
        token_id: Some(token_id(worker.metadata.uid.as_deref().unwrap_or_default())),
        token_expires: None,
        token_used: true,
        addresses: addresses.filter(|addresses| !addresses.is_empty()),
        dns_names: BTreeSet::new(),
    }
}

/// A worker with everything about it that was read just now.
async fn live(
    yard: &Yard,
    access: &Access,
    csr: &CertificateSigningRequest,
    worker: &Worker,
) -> Result<Candidate, Error> {
    let place = place(worker);
    let workers: Api<Worker> = Api::namespaced(yard.context.client.clone(), place.namespace);
    let there = within(DEADLINE, workers.get_opt(place.worker)).await?;
    let going = there.is_none_or(|there| {
        there.metadata.deletion_timestamp.is_some() || there.metadata.uid.as_deref() != Some(place.worker_uid)
    });
    let token = token_id(place.worker_uid);
    let nodes: Api<Node> = Api::all(access.client.clone());
    let node = within(DEADLINE, nodes.get_opt(place.worker)).await?;
    let addresses = match worker.spec.infrastructure.kind() {
        Some(InfrastructureKind::External) => {
            // Nobody but the machine itself knows them; what is another's or reserved is refused all the same.
            node.as_ref().map(|node| node::addresses(node).collect())
        }
        Some(InfrastructureKind::Pod) | None => {
            let machine =
                yard.pods.observe(place).await.map_err(|refusal| Error::Machine(refusal.message))?;
            machine.map(|machine| {
                machine.addresses.iter().filter_map(|address| address.address.parse().ok()).collect()
            })
        }
    };
    let used = node.is_some() || used(access, csr, &token).await?;
    Ok(Candidate {
        name: place.worker.to_owned(),
        going,
        token_expires: bootstrap::token_expires(access, &token, place.worker_uid).await?,
        token_id: Some(token),
        token_used: used,
        addresses: addresses.filter(|addresses: &BTreeSet<IpAddr>| !addresses.is_empty()),
        dns_names: BTreeSet::new(),
    })
}

/// Whether another request by this token was approved.
async fn used(access: &Access, csr: &CertificateSigningRequest, token: &str) -> Result<bool, Error> {
    let holder = format!("{BOOTSTRAP_USER}{token}");
    let requests: Api<CertificateSigningRequest> = Api::all(access.client.clone());
    let params = ListParams::default().fields(&format!("spec.signerName={CLIENT_SIGNER}"));
    let all = within(DEADLINE, requests.list(&params)).await?;
    Ok(all.items.iter().any(|other| {
        other.spec.username.as_deref() == Some(&holder)
            && other.metadata.uid != csr.metadata.uid
            && conditions(other).any(|kind| kind == "Approved")
    }))
}

fn conditions(csr: &CertificateSigningRequest) -> impl Iterator<Item = &str> {
    let conditions = csr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.map(|condition| condition.type_.as_str())
}

fn request(csr: &CertificateSigningRequest) -> Request {
    let (read, more) = match SigningRequest::parse(&csr.spec.request.0) {
        Ok(read) => (read, None),
        Err(error) => (SigningRequest::default(), Some(error.to_string())),
    };
    Request {
        signer: csr.spec.signer_name.clone(),
        username: csr.spec.username.clone().unwrap_or_default(),
        groups: csr.spec.groups.iter().flatten().cloned().collect(),
        created: csr.metadata.creation_timestamp.as_ref().map(|time| time.0),
        decided: conditions(csr).next().is_some(),
        usages: csr.spec.usages.iter().flatten().cloned().collect(),
        common_names: read.common_names,
        organizations: read.organizations,
        dns_names: read.dns_names.into_iter().collect(),
        addresses: read.ip_addresses.into_iter().collect(),
        more: read.more.into_iter().chain(more).collect(),
    }
}

/// Addresses that no machine has: those of pods and Services, and the API's own.
fn reserved(cluster: &TenantCluster, access: &Access) -> Vec<IpNet> {
    let network = &cluster.spec.network;
    let networks = [&network.pod_cidr, &network.service_cidr];
    let mut reserved: Vec<IpNet> = networks.into_iter().filter_map(|network| network.parse().ok()).collect();
    let host = access.server.parse::<http::Uri>().ok();
    let host = host.as_ref().and_then(http::Uri::host).map(|host| host.trim_matches(['[', ']']));
    reserved.extend(host.and_then(|host| host.parse::<IpAddr>().ok()).map(IpNet::from));
    reserved
}

/// Writes the answer, on the version that was judged.
async fn decide(
    client: &kube::Client,
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: String,
) -> Result<(), kube::Error> {
    let mut whole = csr.clone();
    let now = Some(Time(Timestamp::now()));
    let condition = CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    };
    whole.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let own = csr.metadata.name.clone().unwrap_or_default();
    let params = PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
    within(DEADLINE, requests.replace_subresource("approval", &own, &params, &whole)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_and_never_approved() {
        let csr: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "x", "creationTimestamp": "2026-06-01T00:00:00Z"},
            "spec": {
                "request": "bm9uc2Vuc2U=", "signerName": CLIENT_SIGNER, "username": "system:node:p-0",
                "groups": ["system:nodes", "system:authenticated"], "usages": ["digital signature", "client auth"],
            },
        }))
        .unwrap();
        let request = request(&csr);
        assert_eq!(request.more.len(), 1, "{:?}", request.more);
        let worker = Candidate { name: "p-0".into(), ..Candidate::default() };
        let judgement = join::judge(&request, &[worker], &[], "2026-06-01T00:00:01Z".parse().unwrap());
        assert!(matches!(judgement, Judgement::Deny(_)), "{judgement:?}");
    }
}
