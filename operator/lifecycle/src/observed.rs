//! Facts: what was seen of one tenant cluster and when. Filled by the shell, read by every decision.
//!
//! Nothing here is inferred and nothing is remembered: a fact that could not be obtained is absent, and an absent
//! fact never permits an action.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::{KubernetesReleaseSpec, TenantCluster};
use serde_json::Value;

use crate::object::{Kind, Reference};
use crate::tenant::{Platform, Tenant};
use crate::upgrade::canary::Trial;
use crate::upgrade::preflight::Facts;
use crate::workers::report::Tally;

/// Everything known about one tenant cluster at one moment.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The moment.
    pub now: Timestamp,
    /// What the platform set.
    pub platform: Platform,
    /// Who it is about.
    pub tenant: Tenant,
    /// The object as the API server has it.
    pub cluster: TenantCluster,
    /// The catalogue by version.
    pub catalogue: BTreeMap<String, KubernetesReleaseSpec>,
    /// The control-plane namespace, and namespaces of earlier objects with the same name.
    pub namespaces: Vec<Namespace>,
    /// Live objects of the control-plane namespace that carry our label; no Secrets, no Pods.
    pub objects: BTreeMap<Reference, Live>,
    /// Secrets of the control-plane namespace, by name, without a byte of key material.
    pub secrets: BTreeMap<String, Secret>,
    /// The Secret with the kubeconfig's name in the tenant's namespace.
    pub kubeconfig: Option<Secret>,
    /// Pods of the control plane.
    pub pods: Vec<Pod>,
    /// What etcd says; `None` when it was not asked or did not answer.
    pub etcd: Option<Etcd>,
    /// What the last requests through the endpoint gave.
    pub probe: Option<Probe>,
    /// What the last API server that had to prove itself answered; `None` when none was asked.
    pub trial: Option<Trial>,
    /// What clients see of an upgrade that is under way; `None` while nobody looks.
    pub vigil: Option<Vigil>,
    /// Addresses of the endpoint's host: itself, or what its name resolves to; empty when that is not known now.
    pub addresses: BTreeSet<IpAddr>,
    /// Objects of ours inside the tenant; `None` when its API was not read.
    pub inside: Option<BTreeMap<Reference, Live>>,
    /// What is kept inside the tenant for its workers; `None` when it was not looked at.
    pub addons: Option<Addons>,
    /// What was seen inside the tenant for the next upgrade; `None` when there is none, or it was not looked at.
    pub preflight: Option<Facts>,
    /// Certificate of the cluster's authority, PEM; `None` while there is none.
    pub authority: Option<String>,
    /// Its workers; `None` when they were not read.
    pub workers: Option<Tally>,
}

/// What is inside the tenant for its workers, as far as there was reason to look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Addons {
    /// DaemonSets and Deployments of ours.
    pub workloads: BTreeMap<Reference, Live>,
    /// Everything else that is ours or has the name of something of ours; `None` when only the workloads were read.
    pub others: Option<BTreeMap<Reference, Live>>,
    /// What the tenant's API answered when something of it was last applied, if it refused.
    pub refused: Option<String>,
}

/// An object as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion when it was read.
    pub resource_version: String,
    /// Whether its deletion has begun.
    pub terminating: bool,
    /// The whole document.
    pub content: Value,
}

/// A namespace that belongs, or once belonged, to a tenant cluster of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion when it was read.
    pub resource_version: String,
    /// The tenant UID that it is keyed by.
    pub tenant_uid: String,
    /// The UID that the platform allows to take it over.
    pub adopt_by: Option<String>,
    /// Whether its deletion has begun.
    pub terminating: bool,
    /// What the namespace controller says still blocks the deletion, one sentence a cause.
    pub remaining: Vec<String>,
}

/// A Secret, without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion when it was read.
    pub resource_version: String,
    /// UID of the controlling owner, if any.
    pub owner_uid: Option<String>,
    /// Its keys.
    pub keys: BTreeSet<String>,
    /// Certificates in it, by the part of the key before `.crt`; a kubeconfig's under `kubeconfig`.
    pub certificates: BTreeMap<String, Certificate>,
    /// The hash annotation that it was applied with.
    pub applied_hash: Option<String>,
    /// The server that a kubeconfig in it names.
    pub kubeconfig_server: Option<String>,
    /// When it was made anew, where something has to be restarted for that.
    pub renewed: Option<String>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Common name of the subject.
    pub common_name: String,
    /// Organizations of the subject: groups, to Kubernetes.
    pub organizations: BTreeSet<String>,
    /// DNS names.
    pub dns_names: BTreeSet<String>,
    /// IP addresses.
    pub ip_addresses: BTreeSet<IpAddr>,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// Whether the authority that should have signed it did (checked with its key, not its name).
    pub signed: bool,
}

/// A pod of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its component label.
    pub component: String,
    /// Hash of the template it was made from: `controller-revision-hash` or `pod-template-hash`.
    pub template_hash: String,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it has a node: its volumes exist, and it starts in a moment.
    pub placed: bool,
    /// When it got its node, if that is known.
    pub placed_at: Option<Timestamp>,
    /// Its Ready condition.
    pub ready: bool,
    /// Whether its deletion has begun.
    pub terminating: bool,
    /// Grace period of the deletion in seconds; zero while it is not being deleted.
    pub grace: i64,
    /// Why it does not run, as Kubernetes says it: a waiting reason, or that it cannot be scheduled.
    pub trouble: Option<Trouble>,
}

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Kubernetes' word, for example `ImagePullBackOff` or `Unschedulable`.
    pub reason: String,
    /// Kubernetes' sentence.
    pub message: String,
}

/// What etcd says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Etcd {
    /// ID of the cluster, in hexadecimal. A different one than remembered is different data.
    pub cluster_id: String,
    /// ID of the leader; zero when there is none.
    pub leader: u64,
    /// Members as the membership list has them.
    pub members: Vec<Member>,
    /// Alarms raised, by name.
    pub alarms: Vec<String>,
    /// The minor version that members were told to lower the format of their data to, for example `3.6.0`.
    pub downgrade: Option<String>,
}

/// One member of etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its ID.
    pub id: u64,
    /// Its name; empty until it started for the first time.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// Whether it cannot vote yet.
    pub learner: bool,
    /// Whether it answered a status request.
    pub healthy: bool,
    /// Raft index it has applied, when it answered.
    pub applied: u64,
    /// Bytes that its data takes, when it answered.
    pub size: i64,
    /// Bytes that its data may take, when it answered.
    pub quota: i64,
    /// Its version, for example `3.7.3`; empty when it did not answer.
    pub version: String,
    /// The version whose format its data has, for example `3.7.0`; empty when it did not say.
    pub storage_version: String,
}

/// The last requests through the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// When the last one ended.
    pub at: Timestamp,
    /// What it gave.
    pub answer: Answer,
}

/// What clients of ours saw through the endpoint while something changed. Nothing was asked twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vigil {
    /// Since when they ask.
    pub since: Timestamp,
    /// Requests on new connections.
    pub requests: u32,
    /// Those that failed.
    pub failed: u32,
    /// Requests on a connection that is used again.
    pub reused: u32,
    /// Those that failed.
    pub reused_failed: u32,
    /// The longest time between two successes on new connections.
    pub gap: SignedDuration,
    /// Since when there was none, if the last one failed.
    pub failing_since: Option<Timestamp>,
    /// The last failure, in a sentence.
    pub failure: Option<String>,
    /// Of the requests on new connections those that ended lately.
    pub lately: Lately,
    /// Changes that the watch told.
    pub events: u32,
    /// Changes that were answered and never told.
    pub lost: u32,
    /// Changes that were told twice.
    pub repeated: u32,
    /// The longest time from a change's answer until it was told.
    pub watch_gap: SignedDuration,
}

/// Requests that ended not longer ago than [`gate::LATELY`](crate::upgrade::gate::LATELY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lately {
    /// All of them.
    pub requests: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that took longer than [`gate::SLOW`](crate::upgrade::gate::SLOW), however they ended.
    pub slow: u32,
}

/// What a request through the endpoint gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It succeeded; the API server says this version of itself.
    Serving {
        /// `gitVersion` of the API server that answered.
        version: String,
    },
    /// It failed.
    Failed {
        /// Since when requests fail without one success between.
        since: Timestamp,
        /// What went wrong, in a stable sentence.
        message: String,
    },
}

impl Namespace {
    /// Whether it holds this tenant's control plane: by its name, which the UID gives, or because the platform said so.
    /// A label alone is no proof.
    pub fn is_home_of(&self, tenant: &Tenant) -> bool {
        let native = self.name == kaas_crds::name::control_plane_namespace(&tenant.uid);
        self.tenant_uid == tenant.uid && (native || self.adopt_by.as_deref() == Some(tenant.uid.as_str()))
    }
}

impl Observed {
    /// The earlier namespace that the platform lets this tenant take over, if it has none of its own.
    pub fn adoptable(&self) -> Option<&Namespace> {
        let mut earlier = self.namespaces.iter().filter(|namespace| !namespace.terminating);
        let found = earlier.find(|namespace| namespace.adopt_by.as_deref() == Some(self.tenant.uid.as_str()));
        found.filter(|_| self.own_namespace().is_none())
    }

    /// The namespace that holds this tenant's control plane, if it exists.
    pub fn own_namespace(&self) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.is_home_of(&self.tenant))
    }

    /// A live object of the control-plane namespace.
    pub fn live(&self, kind: Kind, name: &str) -> Option<&Live> {
        self.objects.get(&Reference::namespaced(kind, self.tenant.control_plane_namespace(), name))
    }

    /// Pods of one component.
    pub fn pods_of<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| pod.component == component)
    }

    /// The last probe, if it is younger than this many seconds: older evidence is none.
    pub fn fresh_probe(&self, seconds: i64) -> Option<&Probe> {
        self.probe.as_ref().filter(|probe| self.now.duration_since(probe.at).as_secs() < seconds)
    }

    /// Whether the last request through the endpoint succeeded.
    pub fn serving(&self) -> bool {
        matches!(self.probe, Some(Probe { answer: Answer::Serving { .. }, .. }))
    }

    /// Whether the deletion of the TenantCluster has begun.
    pub fn deleting(&self) -> bool {
        self.cluster.metadata.deletion_timestamp.is_some()
    }
}

impl Pod {
    /// Why it does not run, in Kubernetes' own words; `None` when nothing is known to keep it from that.
    pub fn tell_trouble(&self, namespace: &str) -> Option<String> {
        let trouble = self.trouble.as_ref().filter(|_| !self.ready && !self.terminating)?;
        let text = format!("Pod {namespace}/{}: {}", self.name, trouble.reason);
        let message: String = trouble.message.chars().take(300).collect();
        Some(if message.is_empty() { text } else { format!("{text}: {message}") })
    }
}

impl Live {
    /// A value of the document by JSON pointer.
    pub fn get(&self, pointer: &str) -> Option<&Value> {
        self.content.pointer(pointer)
    }

    /// A number of the document by JSON pointer; zero when absent, as Kubernetes omits zeros.
    pub fn count(&self, pointer: &str) -> i64 {
        self.get(pointer).and_then(Value::as_i64).unwrap_or(0)
    }

    /// A text of the document by JSON pointer; empty when absent.
    pub fn text(&self, pointer: &str) -> &str {
        self.get(pointer).and_then(Value::as_str).unwrap_or("")
    }
}
