//! What keeps a tenant cluster from being built as asked: problems that only the whole picture shows.
//!
//! A problem is a condition with an owner and a way out, never an error. What runs already is left running.

use kaas_crds::status::Owner;
use kaas_crds::tenant_cluster::EndpointType;
use kaas_crds::{Reason, name};

use crate::etcd::{self, Health};
use crate::key_material;
use crate::observed::Observed;
use crate::upgrade::window;

/// Something that must be put right before work can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: Reason,
    /// The object, the fact and the next step.
    pub message: String,
    /// Who can do it.
    pub owner: Owner,
}

impl Problem {
    /// Whether no step at all may be taken. The others hold up only what they are about: what runs is kept running.
    pub fn blocks_everything(&self) -> bool {
        matches!(
            self.reason,
            Reason::AdoptionNeeded
                | Reason::EndpointHostMissing
                | Reason::NamespaceTerminating
                | Reason::DataLost
        )
    }

    /// Whether a control plane cannot come up for the first time.
    pub fn blocks_creation(&self) -> bool {
        self.blocks_everything()
            || matches!(
                self.reason,
                Reason::VersionNotInCatalogue
                    | Reason::EtcdVersionUnknown
                    | Reason::EtcdVersionUnsupported
                    | Reason::AuthorityLost
            )
    }
}

/// What stands in the way.
pub fn validate(observed: &Observed) -> Vec<Problem> {
    let spec = &observed.cluster.spec;
    let mut problems = Vec::new();
    if !observed.catalogue.contains_key(&spec.version) {
        let known: Vec<&str> = observed.catalogue.keys().map(String::as_str).collect();
        problems.push(Problem {
            reason: Reason::VersionNotInCatalogue,
            message: format!(
                "spec.version: {} is not in the catalogue, which has {}",
                spec.version,
                if known.is_empty() {
                    "no versions at all; install a KubernetesRelease".to_owned()
                } else {
                    known.join(", ")
                }
            ),
            owner: if known.is_empty() { Owner::Platform } else { Owner::Tenant },
        });
    }
    problems.extend(etcd::problem(observed));
    if spec.control_plane.endpoint.kind == EndpointType::NodePort
        && observed.platform.node_port_host.is_empty()
    {
        problems.push(Problem {
            reason: Reason::EndpointHostMissing,
            message:
                "spec.controlPlane.endpoint.type: NodePort needs a host that this platform has not set; \
                      set the chart value endpoint.nodePort.host, or choose ClusterIP or LoadBalancer"
                    .into(),
            owner: Owner::Platform,
        });
    }
    if key_material::kubeconfig_foreign(observed) {
        problems.push(Problem {
            reason: Reason::SecretNameTaken,
            message: format!(
                "Secret {}/{} is not of this TenantCluster and stays untouched; rename or delete it to get the kubeconfig",
                observed.tenant.namespace,
                name::kubeconfig_secret(&observed.tenant.name)
            ),
            owner: Owner::Tenant,
        });
    }
    if key_material::authority_lost(observed) {
        problems.push(Problem {
            reason: Reason::AuthorityLost,
            message: format!(
                "Secret {}/{} with the cluster's authorities is gone and cannot be made again; restore it from a backup",
                observed.tenant.control_plane_namespace(),
                key_material::AUTHORITY_SECRET
            ),
            owner: Owner::Platform,
        });
    }
    problems.extend(window::problems(spec.maintenance.as_ref()));
    problems.extend(adoption(observed));
    problems.extend(namespace(observed));
    if let Health::DataLost(fact) = etcd::health(observed) {
        problems.push(Problem {
            reason: Reason::DataLost,
            message: data_lost(&fact),
            owner: Owner::Platform,
        });
    }
    problems
}

/// A namespace of an earlier object of this name holds that object's data. Building an empty control plane beside it
/// would look like success.
fn adoption(observed: &Observed) -> Option<Problem> {
    if observed.own_namespace().is_some() || observed.adoptable().is_some() {
        return None;
    }
    let orphan = observed.namespaces.iter().find(|namespace| !namespace.terminating)?;
    Some(Problem {
        reason: Reason::AdoptionNeeded,
        message: format!(
            "Namespace {0} holds the control plane of an earlier TenantCluster {1}/{2} (UID {3}), and no second one is \
             built beside it; to take it over: kubectl annotate namespace {0} {4}={5}; to start empty: delete it",
            orphan.name,
            observed.tenant.namespace,
            observed.tenant.name,
            orphan.tenant_uid,
            name::ADOPT_ANNOTATION,
            observed.tenant.uid
        ),
        owner: Owner::Platform,
    })
}

/// The namespace went away without the TenantCluster: whoever did that took the data with it. An empty cluster of the
/// same name would look like success.
fn namespace(observed: &Observed) -> Option<Problem> {
    let name = observed.tenant.control_plane_namespace();
    let ran = observed.cluster.status.as_ref().is_some_and(|status| status.version.is_some());
    match observed.own_namespace() {
        Some(namespace) if namespace.terminating => Some(Problem {
            reason: Reason::NamespaceTerminating,
            message: format!(
                "Namespace {name} is being deleted, and the control plane and its data with it, although the                  TenantCluster is not; nothing can be done until it is gone"
            ),
            owner: Owner::Platform,
        }),
        None if ran => Some(Problem {
            reason: Reason::DataLost,
            message: format!(
                "Namespace {name} with the control plane and its data is gone; nothing is made anew unasked: restore it \
                 from a backup, or delete this TenantCluster and create it again"
            ),
            owner: Owner::Platform,
        }),
        _ => None,
    }
}

/// What is said of data that is not the data that was, wherever it is said.
pub(crate) fn data_lost(fact: &str) -> String {
    format!(
        "{fact}; nothing is made anew unasked: restore a snapshot, or delete this TenantCluster and create it again"
    )
}
