//! Actions: the closed list of things that a plan may ask for, as plain data.
//!
//! Each carries its own precondition, so that a late write of a former leader, or of a reconcile that saw an old
//! world, is refused by the API server instead of doing harm.

use std::net::IpAddr;

use crate::object::{Object, Reference};

/// How much an action can hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disruption {
    /// Nobody notices.
    None,
    /// Noticed by nobody if it is the only one of its kind under way.
    Reversible,
    /// Takes capacity away for a while.
    Disruptive,
    /// Cannot be taken back.
    Irreversible,
}

/// What must be true of the object for a write to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// It did not exist when the plan was made. The name is derived from the UID, so that a second creation is the same object.
    Absent,
    /// It is still the version that the plan saw.
    Version(String),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put our finalizer on the TenantCluster.
    AddFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Take our finalizer off the TenantCluster: the last action of its life.
    RemoveFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Apply an object of the management cluster.
    Apply {
        /// What.
        object: Object,
        /// Under which condition.
        precondition: Precondition,
    },
    /// Delete an object of the management cluster.
    Delete {
        /// What.
        reference: Reference,
        /// Exactly this one.
        uid: String,
        /// Grace period for a pod, in seconds; the object's own when `None`.
        grace: Option<u32>,
    },
    /// Make key material and store it.
    Issue(Box<Issue>),
    /// Apply an object inside the tenant cluster.
    ApplyInside {
        /// What.
        object: Object,
        /// Under which condition.
        precondition: Precondition,
    },
    /// Delete an object inside the tenant cluster.
    DeleteInside {
        /// What.
        reference: Reference,
        /// Exactly this one.
        uid: String,
    },
    /// An order to etcd.
    Etcd(EtcdOrder),
}

/// An order to etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtcdOrder {
    /// Hand the leadership to this member.
    MoveLeader {
        /// Its ID.
        to: u64,
    },
    /// Add a member that does not vote yet.
    AddLearner {
        /// Its peer URL.
        peer_url: String,
    },
    /// Let a learner vote.
    Promote {
        /// Its ID.
        id: u64,
    },
    /// Remove a member.
    Remove {
        /// Its ID.
        id: u64,
    },
    /// Lower the format of the data, so that an older version starts on it.
    EnableDowngrade {
        /// Its minor version, for example `3.6`.
        version: String,
    },
    /// Raise it again.
    CancelDowngrade,
}

/// A Secret to make. It is always made as a whole; what it held before is replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Issue {
    /// Which Secret.
    pub reference: Reference,
    /// Labels, annotations and owner as a document without data.
    pub frame: Object,
    /// Under which condition.
    pub precondition: Precondition,
    /// What goes into it.
    pub material: Material,
    /// Why, for the log.
    pub why: String,
}

/// What goes into a Secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Material {
    /// The tenant's authorities and its service account key: made once in its life.
    Authorities,
    /// Leaf certificates, and files that are no secret.
    Leaves {
        /// The certificates; each gives `<name>.crt` and `<name>.key`.
        certificates: Vec<CertificateRequest>,
        /// Further keys with fixed content.
        files: Vec<(String, String)>,
    },
    /// A kubeconfig that carries its own client certificate.
    Kubeconfig {
        /// The certificate.
        certificate: CertificateRequest,
        /// URL of the API.
        server: String,
        /// Name of cluster, user and context.
        name: String,
    },
}

/// The authorities of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Authority {
    /// Signs the API server and its clients.
    Cluster,
    /// Signs etcd members and their clients.
    Etcd,
    /// Signs the front proxy.
    FrontProxy,
}

impl Authority {
    /// All of them.
    pub const ALL: [Authority; 3] = [Authority::Cluster, Authority::Etcd, Authority::FrontProxy];

    /// Its files are `<name>.crt` and `<name>.key`.
    pub const fn file(self) -> &'static str {
        match self {
            Authority::Cluster => "cluster-ca",
            Authority::Etcd => "etcd-ca",
            Authority::FrontProxy => "front-proxy-ca",
        }
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Proves a server.
    Server,
    /// Proves a client.
    Client,
    /// Proves both.
    Both,
}

/// A certificate that should exist.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateRequest {
    /// Its files are `<name>.crt` and `<name>.key`.
    pub name: String,
    /// Who signs it.
    pub authority: Authority,
    /// Common name.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// What for.
    pub usage: Usage,
}

impl Action {
    /// How much it can hurt.
    pub fn disruption(&self) -> Disruption {
        match self {
            Action::AddFinalizer { .. } | Action::Issue(_) | Action::ApplyInside { .. } => Disruption::None,
            // What is switched off can be switched on again.
            Action::Apply { .. } | Action::DeleteInside { .. } => Disruption::Reversible,
            Action::Etcd(
                EtcdOrder::MoveLeader { .. }
                | EtcdOrder::AddLearner { .. }
                | EtcdOrder::Promote { .. }
                | EtcdOrder::EnableDowngrade { .. }
                | EtcdOrder::CancelDowngrade,
            ) => Disruption::Reversible,
            Action::Delete { reference, .. } => match reference.kind {
                crate::object::Kind::Namespace | crate::object::Kind::PersistentVolumeClaim => {
                    Disruption::Irreversible
                }
                _ => Disruption::Disruptive,
            },
            Action::Etcd(EtcdOrder::Remove { .. }) | Action::RemoveFinalizer { .. } => {
                Disruption::Irreversible
            }
        }
    }
}
