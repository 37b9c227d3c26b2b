//! What was seen inside the tenant before an upgrade: only what could speak against one.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::core::Selector;
use serde::{Deserialize, Serialize};

/// Everything that was read at one moment. Something that could not be read leaves no facts at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The version that they were read for.
    pub target: String,
    /// Nodes by the version of their kubelet.
    pub kubelets: BTreeMap<String, Nodes>,
    /// PodDisruptionBudgets that allow no disruption now.
    pub budgets: Vec<Budget>,
    /// Webhooks without whose answer nothing is written.
    pub webhooks: Vec<Webhook>,
    /// Labels of the namespace `kube-system`.
    pub system_labels: BTreeMap<String, String>,
    /// Resources that are served and that the target does not have.
    pub removed: Vec<Removed>,
    /// Where the target is older than the version that serves: what is new in that and in use ...
    pub added: Vec<Added>,
    /// ... of so many kinds and fields that were looked for.
    pub looked_for: usize,
    /// Who called them; `None` when nobody watches, or one of the watchers did not answer.
    pub callers: Option<Callers>,
}

/// Nodes of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// How many.
    pub count: usize,
    /// Names of the first few.
    pub names: Vec<String>,
}

/// A PodDisruptionBudget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it asks for, as the user wrote it, for example `minAvailable: 1`.
    pub rule: String,
    /// Pods that it is about.
    pub expected: i32,
    /// Of them healthy.
    pub healthy: i32,
    /// So many must be.
    pub desired: i32,
    /// Why its controller cannot judge it, if it cannot.
    pub failed: Option<String>,
}

/// A webhook with `failurePolicy: Fail`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Webhook {
    /// Kind of the configuration that it is in.
    pub kind: String,
    /// Name of that configuration.
    pub configuration: String,
    /// Its own name.
    pub name: String,
    /// Namespace and name of the Service that answers; `None` for one that is called by URL.
    pub service: Option<(String, String)>,
    /// Whether that Service has a ready endpoint.
    pub answered: bool,
    /// What it is asked about.
    pub rules: Vec<Rule>,
    /// Namespaces that it is asked about; an empty one selects all.
    pub namespaces: Selector,
    /// It is asked about some objects of these only.
    pub picky: bool,
}

/// What a webhook is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// API groups; `*` is all.
    pub groups: BTreeSet<String>,
    /// Resources; `*` is all.
    pub resources: BTreeSet<String>,
    /// Operations; `*` is all.
    pub operations: BTreeSet<String>,
    /// `Cluster`, `Namespaced` or `*`.
    pub scope: String,
}

/// A resource that is served and will not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Group and version, for example `networking.k8s.io/v1beta1`.
    pub api: String,
    /// For example `ipaddresses`.
    pub resource: String,
    /// Another version by which the same objects are reached, and which stays.
    pub elsewhere: Option<String>,
    /// Objects that are stored; counted only where there is no other version.
    pub stored: u64,
}

/// A kind or a field that the target does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// As the release of the version that serves names it, for example `v1/pods:spec.newField`.
    pub what: String,
    /// Objects that are of it, or have it.
    pub stored: u64,
    /// Names of the first few.
    pub names: Vec<String>,
    /// Whether all objects were looked at.
    pub all: bool,
}

/// Who called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// Since when every API server watches.
    pub since: Timestamp,
    /// For what all of them do: groups and versions, and perhaps resources.
    pub watched: BTreeSet<String>,
    /// Each caller once for each resource.
    pub seen: Vec<Caller>,
}

/// Somebody who called an API that will go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Group and version.
    pub api: String,
    /// Resource.
    pub resource: String,
    /// User name, as the API server authenticated it.
    pub user: String,
    /// User agent, as the client calls itself.
    pub agent: String,
    /// The last verb.
    pub verb: String,
    /// When it was last seen.
    pub last: Timestamp,
}
