//! Actions on workers: the closed list of things that a plan for a pool or for a worker may ask for, as plain data.
//!
//! Each carries its own precondition. A creation is guarded by its name, which is the same whoever asks for it; a deletion
//! by the UID, and by the choice that was stored before it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kaas_crds::worker_pool::{InfrastructureKind, Kubelet, Removal};
use kaas_crds::{InstanceTypeSpec, Worker};

use crate::action::{Disruption, Precondition};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put our finalizer on the WorkerPool.
    AddPoolFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Take our finalizer off the WorkerPool: it has no workers any more.
    RemovePoolFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Make a Worker. That it exists already is a success: the list that was seen lagged.
    Create {
        /// The whole object.
        worker: Box<Worker>,
        /// The pool must still be of this generation, by a read just before.
        pool_generation: i64,
    },
    /// Store in the pool's status which workers go, and why: before the first of them is deleted, so that whoever looks
    /// next sticks to it.
    Record {
        /// The pool's resourceVersion.
        resource_version: String,
        /// The whole choice.
        removals: Vec<Removal>,
    },
    /// Begin the deletion of a Worker.
    Delete {
        /// Its name.
        name: String,
        /// Exactly this one.
        uid: String,
    },
    /// Put our finalizer on the Worker.
    AddFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Take our finalizer off the Worker: the last action of its life.
    RemoveFinalizer {
        /// Its resourceVersion.
        resource_version: String,
    },
    /// Make a bootstrap token in the tenant cluster, and put it where the machine or its user reads it.
    IssueBootstrap {
        /// Public part of the token: the same for the same worker.
        token_id: String,
        /// When it ends.
        expires: Timestamp,
        /// Of the Secret that it is read from.
        precondition: Precondition,
    },
    /// Take the token and the Secret with it away.
    RevokeBootstrap {
        /// Public part of the token.
        token_id: String,
    },
    /// Ask the infrastructure for the worker's machine. Asking twice gives one machine.
    EnsureMachine(Box<MachineRequest>),
    /// Have the infrastructure take the machine away.
    DeleteMachine {
        /// Exactly this one.
        id: String,
    },
    /// Bring what is the pool's on the node to what the pool says.
    ConfigureNode(Box<NodeChange>),
    /// Let no more pods come to the node, and say so in its conditions.
    MarkNode {
        /// UID of the node.
        uid: String,
        /// resourceVersion of the node.
        resource_version: String,
        /// Whether to cordon it.
        cordon: bool,
        /// Conditions to set, by type: status, reason and message.
        conditions: BTreeMap<String, NodeCondition>,
    },
    /// Evict a pod.
    Evict {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Exactly this one.
        uid: String,
    },
    /// Delete the object of a pod whose machine is gone, so that its controller makes another at once: Kubernetes itself
    /// looks for such pods after a minute.
    DeletePod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Exactly this one.
        uid: String,
    },
    /// Delete the node object.
    DeleteNode {
        /// Exactly this one.
        uid: String,
    },
}

/// A condition of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// True or False.
    pub status: &'static str,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// A machine that should exist.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRequest {
    /// Name of the worker: of the machine, where the infrastructure has names.
    pub name: String,
    /// UID of the worker: what the infrastructure is to know the machine by, so that it is never made twice.
    pub worker_uid: String,
    /// UID of the tenant cluster.
    pub cluster_uid: String,
    /// Where it comes from.
    pub infrastructure: InfrastructureKind,
    /// What it is.
    pub instance_type: InstanceTypeSpec,
    /// Version of the kubelet.
    pub version: String,
    /// The zone that it is wanted in.
    pub zone: Option<String>,
    /// Settings of the kubelet.
    pub kubelet: Kubelet,
    /// Labels that the kubelet registers with.
    pub labels: BTreeMap<String, String>,
    /// Taints that the kubelet registers with, as `key:Effect` and value.
    pub taints: BTreeMap<String, String>,
    /// What the kubelet says of its machine.
    pub provider_id: String,
}

/// What changes on a node; everything else of it stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// UID of the node.
    pub uid: String,
    /// resourceVersion of the node.
    pub resource_version: String,
    /// Labels to set.
    pub set_labels: BTreeMap<String, String>,
    /// Labels to remove: keys.
    pub remove_labels: Vec<String>,
    /// Taints to set, as `key:Effect` and value.
    pub set_taints: BTreeMap<String, String>,
    /// Taints to remove, as `key:Effect`.
    pub remove_taints: Vec<String>,
    /// Annotations to set: what of the above is the pool's.
    pub set_annotations: BTreeMap<String, String>,
    /// Extended resources to advertise.
    pub set_extended_resources: BTreeMap<String, i64>,
    /// `spec.providerID` to set; only a node without one gets one.
    pub set_provider_id: Option<String>,
}

impl Action {
    /// How much it can hurt.
    pub fn disruption(&self) -> Disruption {
        match self {
            Action::AddPoolFinalizer { .. }
            | Action::AddFinalizer { .. }
            | Action::Record { .. }
            | Action::IssueBootstrap { .. }
            | Action::RevokeBootstrap { .. } => Disruption::None,
            Action::Create { .. }
            | Action::EnsureMachine(_)
            | Action::ConfigureNode(_)
            | Action::MarkNode { .. } => Disruption::Reversible,
            Action::Evict { .. } | Action::DeletePod { .. } | Action::DeleteNode { .. } => {
                Disruption::Disruptive
            }
            Action::Delete { .. }
            | Action::DeleteMachine { .. }
            | Action::RemovePoolFinalizer { .. }
            | Action::RemoveFinalizer { .. } => Disruption::Irreversible,
        }
    }
}

/// An action in a few words that are the same for the same action.
pub fn tell(action: &Action) -> String {
    match action {
        Action::AddPoolFinalizer { .. } => "add the pool's finalizer".into(),
        Action::RemovePoolFinalizer { .. } => "remove the pool's finalizer".into(),
        Action::Create { worker, .. } => {
            format!("create Worker {}", worker.metadata.name.as_deref().unwrap_or_default())
        }
        Action::Record { removals, .. } => {
            let names: Vec<&str> = removals.iter().map(|removal| removal.name.as_str()).collect();
            format!("record that these go: {}", names.join(", "))
        }
        Action::Delete { name, .. } => format!("delete Worker {name}"),
        Action::AddFinalizer { .. } => "add the finalizer".into(),
        Action::RemoveFinalizer { .. } => "remove the finalizer".into(),
        Action::IssueBootstrap { .. } => "issue bootstrap material".into(),
        Action::RevokeBootstrap { .. } => "revoke bootstrap material".into(),
        Action::EnsureMachine(request) => format!("ensure machine {}", request.name),
        Action::DeleteMachine { .. } => "delete the machine".into(),
        Action::ConfigureNode(_) => "configure the node".into(),
        Action::MarkNode { cordon: true, .. } => "cordon the node".into(),
        Action::MarkNode { .. } => "mark the node".into(),
        Action::Evict { namespace, name, .. } => format!("evict Pod {namespace}/{name}"),
        Action::DeletePod { namespace, name, .. } => format!("delete Pod {namespace}/{name}"),
        Action::DeleteNode { .. } => "delete the Node".into(),
    }
}
