//! A state of the tiny world, and its digest: names of things and what they say, without UIDs and versions, which
//! differ from way to way. What of those matters is whether a write that is still to come would find what its plan
//! saw. States of one digest are one state.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use kaas_crds::TenantClusterStatus;
use kaas_lifecycle::action::{Action, EtcdOrder, Precondition};
use kaas_lifecycle::etcd;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::{Member, Pod, Secret};
use serde_json::{Value, json};

use super::World;
use crate::world::told;

/// What the operator does next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operator {
    /// It looks, and plans.
    Looking,
    /// It has these writes before it.
    Acting(Vec<Write>),
    /// It looked and there was nothing to do. A change wakes it.
    Resting,
}

/// A write that is still to come.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) action: Arc<Action>,
    digest: u64,
}

impl PartialEq for Write {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// What a read that lags will show.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    pub(super) world: Arc<World>,
    digest: u64,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) world: Arc<World>,
    pub(super) operator: Operator,
    /// A write of a former leader that hangs in the network.
    pub(super) late: Option<Write>,
    pub(super) frozen: Option<Frozen>,
    /// Whether a read has lagged.
    pub(super) lagged: bool,
    pub(super) edit_to_come: bool,
    /// How often authorities were made.
    pub(super) authorities: u8,
    /// Whether all members were well once: from then on there is data.
    pub(super) established: bool,
    /// Whether a member has died by itself.
    pub(super) died: bool,
    /// Members that died by themselves and are not back.
    pub(super) lost: BTreeSet<String>,
    pub(super) breach: Option<String>,
    pub(super) digest: u64,
    /// Digests of the documents, with the versions that they had then.
    documents: BTreeMap<Reference, (String, u64)>,
    /// Digest of the TenantCluster, with its version.
    cluster: (String, u64),
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

impl State {
    pub(super) fn new(begin: &World, edit_to_come: bool) -> Self {
        let mut state = State {
            world: Arc::new(begin.clone()),
            operator: Operator::Looking,
            late: None,
            frozen: None,
            lagged: false,
            edit_to_come,
            authorities: 0,
            established: false,
            died: false,
            lost: BTreeSet::new(),
            breach: None,
            digest: 0,
            documents: BTreeMap::new(),
            cluster: (String::new(), 0),
        };
        state.remember();
        state
    }

    pub(super) fn change(&mut self) -> &mut World {
        Arc::make_mut(&mut self.world)
    }

    pub(super) fn freeze(&mut self) {
        self.lagged = true;
        self.frozen = Some(Frozen { world: self.world.clone(), digest: self.digest });
    }

    pub(super) fn write(&self, action: Action) -> Write {
        let digest = digest(&essence(&self.world, &action));
        Write { action: Arc::new(action), digest }
    }

    pub(super) fn identified(&self) -> bool {
        self.world.objects.keys().any(|key| key.name == etcd::IDENTITY)
    }

    /// Whether it is remembered that the member has its data on what it is on now.
    pub(super) fn remembers(&self, member: &Member) -> bool {
        let identity = self.world.objects.iter().find(|(key, _)| key.name == etcd::IDENTITY);
        let volume = identity.and_then(|(_, live)| live.get("/data")?.get(&member.name)?.as_str());
        volume.is_some() && volume == self.world.volume_of(&member.name) && self.world.holds(member)
    }

    /// How an undisturbed world ends here: running, or gone.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let well = self.world.gone || self.world.summary() == "Running";
        let unfinished = matches!(self.operator, Operator::Acting(_));
        if well && !unfinished { Ok(()) } else { Err(self.world.summary().to_owned()) }
    }

    /// What states keep of what was.
    pub(super) fn remember(&mut self) {
        self.established |= self.identified();
        let back = |name: &String| self.world.pods.iter().any(|pod| pod.name == *name && pod.ready);
        self.lost = self.lost.iter().filter(|name| !back(name)).cloned().collect();
        if self.late.as_ref().is_some_and(|write| spent(&self.world, &write.action)) {
            self.late = None;
        }
    }

    pub(super) fn finish(mut self) -> Self {
        let world = self.world.clone();
        let world = world.as_ref();
        let documents = self.documents(world);
        let mut pods: Vec<String> = world.pods.iter().map(pod_text).collect();
        pods.sort();
        let cluster = self.cluster(world);
        let operator = match &self.operator {
            Operator::Looking => json!("looking"),
            Operator::Resting => json!("resting"),
            Operator::Acting(writes) => writes.iter().map(|write| write_text(world, write)).collect(),
        };
        let homes = world.namespaces.iter().map(|home| json!([home.name, home.terminating]));
        let secrets = world.secrets.iter().map(|(name, secret)| json!([name, secret_text(secret)]));
        let whole = json!({
            "namespaces": homes.collect::<Vec<_>>(),
            "documents": documents,
            "pods": pods,
            "members": members(world),
            "secrets": secrets.collect::<Vec<_>>(),
            "kubeconfig": world.kubeconfig.as_ref().map(secret_text),
            "inside": world.inside.keys().collect::<Vec<_>>(),
            "cluster": [cluster, u64::from(world.gone)],
            "operator": operator,
            "late": self.late.as_ref().map(|write| write_text(world, write)),
            "frozen": self.frozen.as_ref().map(|frozen| frozen_text(world, frozen)),
            "ghosts": [json!(self.lagged), json!(self.edit_to_come), json!(self.authorities), json!(self.established), json!(self.died), json!(self.lost), json!(self.breach)],
        });
        self.digest = digest(&whole);
        self
    }

    fn cluster(&mut self, world: &World) -> u64 {
        let cluster = &world.cluster;
        let version = cluster.metadata.resource_version.clone().unwrap_or_default();
        if self.cluster.0 != version {
            let metadata = [json!(cluster.metadata.finalizers), json!(cluster.metadata.deletion_timestamp)];
            // History only grows, and decides nothing.
            let status =
                cluster.status.clone().map(|status| TenantClusterStatus { history: vec![], ..status });
            self.cluster = (version, digest(&json!([metadata, cluster.spec, status])));
        }
        self.cluster.1
    }

    fn documents(&mut self, world: &World) -> Vec<Value> {
        self.documents.retain(|reference, _| world.objects.contains_key(reference));
        let mut documents = Vec::new();
        for (reference, live) in &world.objects {
            let known =
                self.documents.get(reference).filter(|(version, _)| *version == live.resource_version);
            let content = match known {
                // The identity is compared with volumes, which change beside it.
                Some((_, content)) if reference.name != etcd::IDENTITY => *content,
                _ => digest(&canonical(world, reference, &live.content)),
            };
            self.documents.insert(reference.clone(), (live.resource_version.clone(), content));
            let seen = live.count("/status/observedGeneration") >= live.count("/metadata/generation");
            documents.push(json!([reference.kind, reference.name, content, seen, live.terminating]));
        }
        documents
    }
}

/// Whether a late write can never be taken any more: versions, UIDs and members' IDs do not come again.
fn spent(world: &World, action: &Action) -> bool {
    let guarded = |precondition: &Precondition| matches!(precondition, Precondition::Version(_));
    let once = match action {
        Action::AddFinalizer { .. } | Action::RemoveFinalizer { .. } | Action::Delete { .. } => true,
        Action::Apply { precondition, .. } | Action::ApplyInside { precondition, .. } => {
            guarded(precondition)
        }
        Action::Issue(issue) => guarded(&issue.precondition),
        Action::Etcd(EtcdOrder::Remove { id }) => world.members.iter().all(|member| member.id != *id),
        Action::Etcd(EtcdOrder::Promote { id }) => {
            !world.members.iter().any(|member| member.id == *id && member.learner)
        }
        Action::DeleteInside { .. } | Action::Etcd(_) => false,
    };
    let waits = matches!(action, Action::Etcd(EtcdOrder::Remove { .. } | EtcdOrder::Promote { .. }));
    once && (waits || !finds(world, action))
}

/// Whether the write would still find what its plan saw.
fn finds(world: &World, action: &Action) -> bool {
    match action {
        Action::Delete { reference, uid, .. } => match reference.kind {
            Kind::Namespace => world.namespaces.iter().any(|found| found.uid == *uid),
            Kind::Pod => world.pods.iter().any(|found| found.uid == *uid),
            Kind::Secret => world.kubeconfig.as_ref().is_some_and(|found| found.uid == *uid),
            _ => world.objects.get(reference).is_some_and(|found| found.uid == *uid),
        },
        other => world.admit(other).is_ok(),
    }
}

/// Quick, and the same in every run.
fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(value, &mut hasher);
    hasher.finish()
}

fn feed(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Object(map) => {
            map.len().hash(hasher);
            for (key, value) in map {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
        Value::Array(list) => {
            list.len().hash(hasher);
            list.iter().for_each(|value| feed(value, hasher));
        }
        Value::String(text) => text.hash(hasher),
        other => other.to_string().hash(hasher),
    }
}

/// What a write does, in words that are the same on every way.
fn essence(world: &World, action: &Action) -> Value {
    let member = |id: u64| world.members.iter().find(|member| member.id == id).map(|member| &member.name);
    match action {
        Action::Apply { object, .. } | Action::ApplyInside { object, .. } => {
            json!([told(action), digest(&canonical(world, &object.reference, &object.content))])
        }
        Action::Delete { reference, uid, .. } if reference.kind == Kind::Pod => {
            let pod = world.pods.iter().find(|pod| pod.uid == *uid);
            json!(["delete", pod.map(pod_text)])
        }
        Action::Etcd(EtcdOrder::MoveLeader { to }) => json!(["lead", member(*to)]),
        Action::Etcd(EtcdOrder::Promote { id }) => json!(["promote", member(*id)]),
        Action::Etcd(EtcdOrder::Remove { id }) => json!(["remove", member(*id)]),
        Action::Issue(issue) => json!([told(action), format!("{:?}", issue.material)]),
        other => json!(told(other)),
    }
}

fn write_text(world: &World, write: &Write) -> Value {
    json!([write.digest, finds(world, &write.action)])
}

/// What was seen, and what of it is still so.
fn frozen_text(world: &World, frozen: &Frozen) -> Value {
    let then = &frozen.world;
    let documents = then.objects.iter().map(|(key, live)| {
        world.objects.get(key).is_some_and(|now| now.resource_version == live.resource_version)
    });
    let pods = then.pods.iter().map(|pod| world.pods.iter().any(|now| now.uid == pod.uid));
    let secrets = then.secrets.iter().map(|(name, secret)| {
        world.secrets.get(name).is_some_and(|now| now.resource_version == secret.resource_version)
    });
    let members = then.members.iter().map(|member| world.members.iter().any(|now| now.id == member.id));
    let same: Vec<bool> = documents.chain(pods).chain(secrets).chain(members).collect();
    let whole = [
        then.cluster.metadata.resource_version == world.cluster.metadata.resource_version,
        then.kubeconfig == world.kubeconfig,
        then.namespaces == world.namespaces,
    ];
    json!([frozen.digest, same, whole])
}

fn members(world: &World) -> Vec<Value> {
    let told = world.members.iter().map(|member| {
        let leads = member.id == world.leader;
        json!([member.name, member.peer_urls, member.learner, leads, world.holds(member)])
    });
    // Data of who is no member: whether it could be taken for theirs.
    let old = world.data.iter().filter(|(_, (_, id))| world.members.iter().all(|member| member.id != *id));
    told.chain(old.map(|(name, _)| json!(name))).collect()
}

/// A pod of a Deployment has a random name.
fn pod_text(pod: &Pod) -> String {
    let name = if pod.component == "etcd" { pod.name.as_str() } else { "" };
    let state = (pod.ready, pod.terminating, &pod.trouble);
    format!("{} {name} {} {state:?}", pod.component, pod.template_hash)
}

fn secret_text(secret: &Secret) -> Value {
    let names = secret.certificates.values().map(|found| json!([found.dns_names, found.ip_addresses]));
    json!([secret.applied_hash, secret.owner_uid, secret.kubeconfig_server, names.collect::<Vec<_>>()])
}

/// A document without what differs from way to way.
fn canonical(world: &World, reference: &Reference, content: &Value) -> Value {
    let mut content = content.clone();
    let identity = reference.name == etcd::IDENTITY;
    if let Some(metadata) = content.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("generation");
        if identity {
            // The hash of what it says of volumes.
            metadata.remove("annotations");
        }
    }
    if let Some(status) = content.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("observedGeneration");
    }
    if identity && let Some(data) = content.get_mut("data").and_then(Value::as_object_mut) {
        // Volumes are known by their UIDs.
        for (key, volume) in data.iter_mut().filter(|(key, _)| *key != etcd::CLUSTER_ID_KEY) {
            let name = key.strip_prefix("left.").unwrap_or(key);
            *volume = (volume.as_str() == world.volume_of(name)).into();
        }
    }
    content
}
