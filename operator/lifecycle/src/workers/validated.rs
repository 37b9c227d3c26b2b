//! What keeps a pool from getting its workers as asked: problems that only the whole picture shows, each with an owner
//! and a way out. They hold up what they are about; workers that there are run on.

use ipnet::IpNet;
use kaas_crds::status::Owner;
use kaas_crds::worker_pool::InfrastructureKind;
use kaas_crds::{InstanceTypeSpec, Reason};

use crate::upgrade::path::{KUBELET_LAG, Version, kubelet_fits};
use crate::validated::Problem;
use crate::workers::observed::{Cluster, Fact, PoolObserved};

/// What workers are made from.
#[derive(Clone, Copy, Debug)]
pub struct Validated<'a> {
    /// Their cluster.
    pub cluster: &'a Cluster,
    /// What they are.
    pub instance_type: &'a InstanceTypeSpec,
}

/// What workers can be made from, or what stands in the way. Both are empty while something was not read.
pub fn validate(observed: &PoolObserved) -> (Option<Validated<'_>>, Vec<Problem>) {
    let mut problems = Vec::new();
    problems.extend(cluster(observed));
    problems.extend(strangers(observed));
    // Types for what the platform does not offer are not there either.
    problems.extend(infrastructure(observed));
    problems.extend(instance_type(observed));
    problems.extend(version(observed));
    let made = match (&observed.cluster, &observed.instance_type) {
        (Fact::Found(cluster), Fact::Found(instance_type)) if problems.is_empty() => {
            Some(Validated { cluster, instance_type })
        }
        _ => None,
    };
    (made, problems)
}

fn problem(reason: Reason, owner: Owner, message: String) -> Option<Problem> {
    Some(Problem { reason, message, owner })
}

fn cluster(observed: &PoolObserved) -> Option<Problem> {
    let name = &observed.pool.spec.cluster_name;
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    match &observed.cluster {
        Fact::Absent => problem(
            Reason::ClusterNotFound,
            Owner::Tenant,
            format!(
                "spec.clusterName: there is no TenantCluster {name} in namespace {namespace}; create it, or delete this pool"
            ),
        ),
        Fact::Found(cluster) if cluster.deleting => problem(
            Reason::ClusterDeleting,
            Owner::Nobody,
            format!("TenantCluster {name} is being deleted, and its workers with it; delete this pool too"),
        ),
        Fact::Found(_) | Fact::Unread => None,
    }
}

/// Workers of an earlier cluster of this name are neither counted nor swept: with them goes what runs on them.
fn strangers(observed: &PoolObserved) -> Option<Problem> {
    let stranger = observed.strangers().find(|member| !member.going())?;
    problem(
        Reason::AdoptionNeeded,
        Owner::Platform,
        format!(
            "Worker {} is of an earlier TenantCluster (UID {}) that is gone, and is left alone; restore that cluster, or \
             delete the Worker",
            stranger.name(),
            stranger.worker.spec.cluster_uid
        ),
    )
}

fn instance_type(observed: &PoolObserved) -> Option<Problem> {
    if !observed.instance_type.is_absent() {
        return None;
    }
    let wanted = observed.pool.spec.instance_types.join(", ");
    let known: Vec<&str> = observed.instance_types.iter().take(20).map(String::as_str).collect();
    if known.is_empty() {
        return problem(
            Reason::InstanceTypeNotFound,
            Owner::Platform,
            format!("spec.instanceTypes: there is no InstanceType {wanted}, and no other one; install some"),
        );
    }
    problem(
        Reason::InstanceTypeNotFound,
        Owner::Tenant,
        format!("spec.instanceTypes: there is no InstanceType {wanted}; there are {}", known.join(", ")),
    )
}

fn infrastructure(observed: &PoolObserved) -> Option<Problem> {
    let cluster = observed.cluster.found();
    match observed.pool.spec.infrastructure.kind() {
        Some(InfrastructureKind::Pod) if !observed.offer.pods => problem(
            Reason::InfrastructureDisabled,
            Owner::Platform,
            "spec.infrastructure: this platform does not offer pods as workers; set the chart value \
             workers.pod.enabled if its tenants are trusted, or choose external"
                .into(),
        ),
        Some(InfrastructureKind::Pod) => overlap(observed, cluster?),
        Some(InfrastructureKind::External) if cluster?.internal => problem(
            Reason::EndpointInternal,
            Owner::Tenant,
            "spec.infrastructure: machines outside the management cluster cannot reach the endpoint, which is of type \
             ClusterIP; use a TenantCluster with an endpoint of type NodePort or LoadBalancer"
                .into(),
        ),
        Some(InfrastructureKind::External) => None,
        None => problem(
            Reason::RequestInvalid,
            Owner::Tenant,
            "spec.infrastructure: set exactly one of pod and external".into(),
        ),
    }
}

/// A worker that is a pod has its pods' and Services' addresses beside those of the management cluster: with the same
/// ones it would lose its API server.
fn overlap(observed: &PoolObserved, cluster: &Cluster) -> Option<Problem> {
    let pairs =
        cluster.networks.iter().flat_map(|own| observed.offer.networks.iter().map(move |other| (own, other)));
    let overlapping = pairs.into_iter().find(|((_, own), (_, other))| {
        // What is no network was refused by the API server.
        own.parse::<IpNet>().is_ok_and(|own| own.contains(other) || other.contains(&own))
    });
    let ((field, own), (what, other)) = overlapping?;
    problem(
        Reason::NetworkOverlap,
        Owner::Tenant,
        format!(
            "{field} {own} of TenantCluster {} overlaps {other}, the management cluster's network of {what}: pods as workers \
             would lose their API server; use a TenantCluster with other networks, or machines of your own",
            observed.pool.spec.cluster_name
        ),
    )
}

fn version(observed: &PoolObserved) -> Option<Problem> {
    let cluster = observed.cluster.found()?;
    let version = &cluster.version;
    if version.is_empty() {
        return None;
    }
    if let Some(pinned) = &observed.pool.spec.version {
        return pinned_version(observed, pinned, cluster);
    }
    if observed.catalogue.contains(version) {
        return None;
    }
    problem(
        Reason::VersionNotInCatalogue,
        Owner::Platform,
        format!(
            "version {version} of TenantCluster {} is not in the catalogue any more, which has the images of workers; add it again",
            observed.pool.spec.cluster_name
        ),
    )
}

/// A version that the pool asks for itself.
fn pinned_version(observed: &PoolObserved, pinned: &str, cluster: &Cluster) -> Option<Problem> {
    let serves: Version = cluster.version.parse().ok()?;
    let fits = |text: &str| text.parse().is_ok_and(|kubelet| kubelet_fits(kubelet, serves));
    let fitting: Vec<&str> =
        observed.catalogue.iter().map(String::as_str).filter(|version| fits(version)).collect();
    let way_out = match fitting.as_slice() {
        [] => "leave it out to follow the control plane".to_owned(),
        fitting => format!("leave it out to follow the control plane, or choose from {}", fitting.join(", ")),
    };
    if !fits(pinned) {
        return problem(
            Reason::VersionSkew,
            Owner::Tenant,
            format!(
                "spec.version: workers of {pinned} do not fit to a control plane of {serves}: they may be up to {KUBELET_LAG} \
                 minor versions older, and never newer; {way_out}"
            ),
        );
    }
    if observed.catalogue.contains(pinned) {
        return None;
    }
    problem(
        Reason::VersionNotInCatalogue,
        Owner::Tenant,
        format!("spec.version: {pinned} is not in the catalogue of workers' images; {way_out}"),
    )
}
