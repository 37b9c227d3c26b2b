//! Facts about workers: what was seen of a pool, or of one worker, and how.
//!
//! A fact that could not be obtained is [`Fact::Unread`]. It permits nothing: what must be absent for an action has to
//! be [`Fact::Absent`], which an API server or the infrastructure itself said just now.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use kaas_crds::worker::Address;
use kaas_crds::{InstanceTypeSpec, Maintenance, Worker, WorkerPool};

use crate::drain;
use crate::workers::template;

/// Something that is looked up.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Fact<T> {
    /// It was not read, or what was read is too old.
    #[default]
    Unread,
    /// It does not exist.
    Absent,
    /// It exists.
    Found(T),
}

impl<T> Fact<T> {
    /// The thing, if it was found.
    pub const fn found(&self) -> Option<&T> {
        match self {
            Fact::Found(thing) => Some(thing),
            Fact::Unread | Fact::Absent => None,
        }
    }

    /// Whether it is known not to exist.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Fact::Absent)
    }
}

/// What the platform offers to pools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Whether workers may be pods of the management cluster.
    pub pods: bool,
    /// Networks of the management cluster by what they are for: pods, Services, nodes.
    pub networks: Vec<(String, IpNet)>,
}

/// The TenantCluster of a pool, as far as workers depend on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its UID.
    pub uid: String,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether its spec says that nothing is changed.
    pub paused: bool,
    /// The version that workers get: the last one that the control plane completed.
    pub version: String,
    /// Its networks by field.
    pub networks: Vec<(String, String)>,
    /// Whether its endpoint is reachable from inside the management cluster only.
    pub internal: bool,
    /// Whether a request through the endpoint succeeded just now.
    pub serving: bool,
    /// When work may begin.
    pub maintenance: Option<Maintenance>,
    /// What its add-ons lack, if they are known not to be ready.
    pub addons: Option<Unready>,
}

/// Add-ons that are not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// Since when.
    pub since: Timestamp,
    /// Which ones.
    pub message: String,
}

/// Everything known about one pool at one moment.
#[derive(Clone, Debug)]
pub struct PoolObserved {
    /// The moment.
    pub now: Timestamp,
    /// The pool as the API server has it, read just now: its status holds the choice of what goes.
    pub pool: WorkerPool,
    /// Its cluster.
    pub cluster: Fact<Cluster>,
    /// Its InstanceType.
    pub instance_type: Fact<InstanceTypeSpec>,
    /// Names of all InstanceTypes.
    pub instance_types: BTreeSet<String>,
    /// Versions of the catalogue.
    pub catalogue: BTreeSet<String>,
    /// What the platform offers.
    pub offer: Offer,
    /// Workers whose names or labels are of this pool.
    pub workers: Vec<Member>,
    /// Whether the list of workers was read from the API server itself just now. A list from a watch may lag: it may
    /// ask for workers that are there already, which their names refuse, but never for one to go.
    pub live: bool,
}

/// A worker of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The object.
    pub worker: Worker,
    /// How its node stands.
    pub readiness: Readiness,
    /// Pods on its node that would have to move.
    pub pods: usize,
}

/// How the node of a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It has not joined, or says that it is not Ready.
    NotReady,
    /// Its kubelet does not report, or nobody could ask.
    Silent,
    /// It is Ready.
    Ready,
}

/// Everything known about one worker at one moment.
#[derive(Clone, Debug)]
pub struct WorkerObserved {
    /// The moment.
    pub now: Timestamp,
    /// The worker as the API server has it.
    pub worker: Worker,
    /// Its cluster.
    pub cluster: Fact<Cluster>,
    /// Its pool.
    pub pool: Fact<WorkerPool>,
    /// Its InstanceType.
    pub instance_type: Fact<InstanceTypeSpec>,
    /// Its machine, as the infrastructure says it.
    pub machine: Fact<Machine>,
    /// Its bootstrap material.
    pub bootstrap: Fact<Bootstrap>,
    /// The node of its name in the tenant cluster.
    pub node: Fact<Node>,
    /// Pods on the node; `None` when they were not read.
    pub pods: Option<Vec<drain::Pod>>,
    /// Whether no other worker of its cluster stays. A list that lags may say it of one that was the last just now.
    pub last: bool,
    /// What the API server said to the last evictions, by UID of the pod. Nothing is lost with it.
    pub answers: BTreeMap<String, drain::Answer>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What the infrastructure knows it by; a machine that was made again has another.
    pub id: String,
    /// How it stands.
    pub state: MachineState,
    /// Since when.
    pub since: Timestamp,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Why it does not run, in the infrastructure's words.
    pub trouble: Option<String>,
}

/// How a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MachineState {
    /// It is being made.
    Starting,
    /// It runs.
    Running,
    /// It is going.
    Stopping,
}

/// Bootstrap material of a worker: a token in the tenant cluster, and where the machine finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Public part of the token.
    pub token_id: String,
    /// When the token ends.
    pub expires: Timestamp,
    /// UID of the Secret that the machine, or its user, reads it from.
    pub uid: String,
    /// resourceVersion of that Secret.
    pub resource_version: String,
}

/// A node of the tenant cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// `spec.providerID`; empty when it has none.
    pub provider_id: String,
    /// Status of its Ready condition: True, False or Unknown.
    pub ready: String,
    /// Message of its Ready condition.
    pub message: String,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its taints, as `key:Effect` and value.
    pub taints: BTreeMap<String, String>,
    /// Its capacity of extended resources.
    pub extended_resources: BTreeMap<String, i64>,
    /// Statuses of upstream's conditions for drain and maintenance.
    pub conditions: BTreeMap<String, String>,
    /// Version of the kubelet.
    pub version: String,
}

impl PoolObserved {
    /// Name of the pool.
    pub fn name(&self) -> &str {
        self.pool.metadata.name.as_deref().unwrap_or_default()
    }

    /// Workers that this pool made for the cluster that there is now: the others have names that are taken, nothing else.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        let uid = self.pool.metadata.uid.as_deref().unwrap_or_default();
        let cluster = self.cluster.found().map(|cluster| cluster.uid.as_str());
        self.workers.iter().filter(move |member| {
            member.owner() == Some(uid)
                && cluster.is_none_or(|cluster| member.worker.spec.cluster_uid == cluster)
        })
    }

    /// The version that workers are to have; empty as long as the control plane has completed none.
    pub fn version<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        match &self.pool.spec.version {
            Some(pinned) if !cluster.version.is_empty() => pinned,
            _ => &cluster.version,
        }
    }

    /// Whether a worker is as its pool and its cluster want it now.
    pub fn is_current(&self, worker: &Worker) -> bool {
        let version = self.cluster.found().map_or("", |cluster| self.version(cluster));
        template::is_current(&self.pool.spec, version, worker)
    }

    /// Workers of this pool that were made for a cluster that is not the one that there is now.
    pub fn strangers(&self) -> impl Iterator<Item = &Member> {
        let uid = self.pool.metadata.uid.as_deref().unwrap_or_default();
        let cluster = match &self.cluster {
            Fact::Found(cluster) => Some(cluster.uid.as_str()),
            Fact::Absent => Some(""),
            Fact::Unread => None,
        };
        self.workers.iter().filter(move |member| {
            member.owner() == Some(uid)
                && cluster.is_some_and(|cluster| member.worker.spec.cluster_uid != cluster)
        })
    }

    /// Whether the deletion of the pool has begun.
    pub fn deleting(&self) -> bool {
        self.pool.metadata.deletion_timestamp.is_some()
    }
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &str {
        self.worker.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        self.worker.metadata.uid.as_deref().unwrap_or_default()
    }

    /// What it says of itself.
    pub(super) fn summary(&self) -> &str {
        let said = self.worker.status.as_ref().map(|status| status.summary.as_str());
        said.filter(|text| !text.is_empty()).unwrap_or("just made")
    }

    /// When it was made.
    pub(super) fn created(&self) -> Timestamp {
        self.worker.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
    }

    /// Whether its deletion has begun.
    pub fn going(&self) -> bool {
        self.worker.metadata.deletion_timestamp.is_some()
    }

    /// UID of the pool that made it.
    pub fn owner(&self) -> Option<&str> {
        let owners = self.worker.metadata.owner_references.iter().flatten();
        owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str()).next()
    }
}

impl WorkerObserved {
    /// Name of the worker, and of its node.
    pub fn name(&self) -> &str {
        self.worker.metadata.name.as_deref().unwrap_or_default()
    }

    /// UID of the worker.
    pub fn uid(&self) -> &str {
        self.worker.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether the deletion of the worker has begun.
    pub fn deleting(&self) -> bool {
        self.worker.metadata.deletion_timestamp.is_some()
    }

    /// Whether the worker ends without anybody to move its pods to: its cluster is deleted or gone.
    pub fn forsaken(&self) -> bool {
        match &self.cluster {
            Fact::Unread => false,
            Fact::Absent => true,
            Fact::Found(cluster) => cluster.deleting || cluster.uid != self.worker.spec.cluster_uid,
        }
    }
}
