//! A tiny world of workers: an API server that checks preconditions, an infrastructure that makes machines, kubelets that
//! join, a clock that only tests move. What is the same has the same resourceVersion, whichever way led to it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::{InstanceTypeSpec, Worker, WorkerPool, WorkerPoolSpec, name};
use kaas_lifecycle::action::Precondition;
use kaas_lifecycle::drain::Pod;
use kaas_lifecycle::workers::action::Action;
use kaas_lifecycle::workers::node;
use kaas_lifecycle::workers::observed::{
    Bootstrap, Cluster, Fact, Machine, MachineState, Member, Node, Offer, PoolObserved, Readiness,
    WorkerObserved,
};
use kaas_lifecycle::workers::orphan::{self, Listed, ListedNode};
use kaas_lifecycle::workers::pool::{self, PoolPlan};
use kaas_lifecycle::workers::worker::{self, WorkerPlan};
use kaas_lifecycle::workers::{lint, report};
use serde_json::{Value, json};

pub(crate) const CLUSTER: &str = "0b2f7a3e-1111-4222-8333-444455556666";

#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) now: Timestamp,
    pub(crate) pool: Option<WorkerPool>,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) instance_types: BTreeMap<String, InstanceTypeSpec>,
    /// Versions that have images of workers.
    pub(crate) catalogue: BTreeSet<String>,
    pub(crate) offer: Offer,
    pub(crate) workers: BTreeMap<String, Worker>,
    /// Machines by the worker's UID, with the worker's name.
    pub(crate) machines: BTreeMap<String, (String, Machine)>,
    pub(crate) bootstraps: BTreeMap<String, Bootstrap>,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Pods by node.
    pub(crate) pods: BTreeMap<String, Vec<Pod>>,
    /// How many workers of a name there were.
    pub(crate) incarnations: BTreeMap<String, u32>,
    /// The planners, or ones with a planted mistake.
    pub(crate) plan_pool: fn(&PoolObserved) -> PoolPlan,
    pub(crate) plan_worker: fn(&WorkerObserved) -> WorkerPlan,
    /// What the linter refuses is done all the same: to see that something else finds it.
    pub(crate) unlinted: bool,
}

/// Why a write was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) String);

pub(crate) fn version(value: &impl serde::Serialize) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(value).unwrap().hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

pub(crate) fn cluster() -> Cluster {
    Cluster {
        uid: CLUSTER.into(),
        deleting: false,
        paused: false,
        version: "v1.37.1".into(),
        networks: vec![
            ("spec.network.podCIDR".into(), "100.96.0.0/16".into()),
            ("spec.network.serviceCIDR".into(), "100.64.0.0/16".into()),
        ],
        internal: false,
        serving: true,
        maintenance: None,
        addons: None,
    }
}

impl Fleet {
    /// A pool that asks for so many workers and has none yet.
    pub(crate) fn new(replicas: i32) -> Self {
        Self::of(json!({
            "clusterName": "blue", "replicas": replicas, "instanceTypes": ["small"], "infrastructure": {"pod": {}},
        }))
    }

    pub(crate) fn of(spec: Value) -> Self {
        let spec: WorkerPoolSpec = serde_json::from_value(spec).unwrap();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let mut pool = WorkerPool::new("p", spec);
        pool.metadata.namespace = Some("demo".into());
        pool.metadata.uid = Some("pool".into());
        pool.metadata.generation = Some(1);
        let small = json!({"capacity": {"cpu": "2", "memory": "4Gi"}, "labels": {"example.com/disk": "ssd"}});
        Fleet {
            now,
            pool: Some(pool),
            cluster: Some(cluster()),
            instance_types: BTreeMap::from([
                ("small".into(), serde_json::from_value(small).unwrap()),
                (
                    "large".into(),
                    serde_json::from_value(json!({"capacity": {"cpu": "4", "memory": "8Gi"}})).unwrap(),
                ),
            ]),
            catalogue: BTreeSet::from(["v1.37.1".into()]),
            offer: Offer { pods: true, networks: vec![("pods".into(), "10.244.0.0/16".parse().unwrap())] },
            workers: BTreeMap::new(),
            machines: BTreeMap::new(),
            bootstraps: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            plan_pool: pool::plan,
            plan_worker: worker::plan,
            unlinted: false,
        }
    }

    /// One that has all that it asks for.
    pub(crate) fn settled(replicas: i32) -> Self {
        let mut fleet = Fleet::new(replicas);
        fleet.settle();
        fleet
    }

    pub(crate) fn spec(&mut self) -> &mut WorkerPoolSpec {
        &mut self.pool.as_mut().unwrap().spec
    }

    /// Changes the spec as a user does.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut WorkerPoolSpec)) {
        change(self.spec());
        *self.pool.as_mut().unwrap().metadata.generation.as_mut().unwrap() += 1;
    }

    pub(crate) fn pod(&mut self, node: &str, name: &str) {
        let pod = Pod {
            namespace: "web".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            controller: Some("ReplicaSet".into()),
            ..Pod::default()
        };
        self.pods.entry(node.into()).or_default().push(pod);
    }

    pub(crate) fn cluster_fact(&self) -> Fact<Cluster> {
        self.cluster.clone().map_or(Fact::Absent, Fact::Found)
    }

    pub(crate) fn observe_pool(&self) -> PoolObserved {
        self.observe_pool_with(&self.workers, true)
    }

    /// With a list of workers as it was once.
    pub(crate) fn observe_pool_with(&self, workers: &BTreeMap<String, Worker>, live: bool) -> PoolObserved {
        let mut pool = self.pool.clone().unwrap();
        pool.metadata.resource_version = Some(version(&pool));
        let wanted = pool.spec.instance_types.first().and_then(|name| self.instance_types.get(name));
        PoolObserved {
            now: self.now,
            cluster: self.cluster_fact(),
            instance_type: wanted.cloned().map_or(Fact::Absent, Fact::Found),
            instance_types: self.instance_types.keys().cloned().collect(),
            catalogue: self.catalogue.clone(),
            offer: self.offer.clone(),
            workers: workers.values().map(|worker| self.member(worker)).collect(),
            live,
            pool,
        }
    }

    fn member(&self, worker: &Worker) -> Member {
        let name = worker.metadata.name.clone().unwrap();
        let readiness = match self.nodes.get(&name) {
            Some(node) if node.ready == "True" => Readiness::Ready,
            Some(node) if node.ready == "Unknown" => Readiness::Silent,
            _ => Readiness::NotReady,
        };
        Member { worker: worker.clone(), readiness, pods: self.pods.get(&name).map_or(0, Vec::len) }
    }

    pub(crate) fn observe_worker(&self, name: &str) -> WorkerObserved {
        let mut worker = self.workers[name].clone();
        let uid = worker.metadata.uid.clone().unwrap();
        worker.metadata.resource_version = Some(version(&worker));
        let there = self.cluster.as_ref().is_some_and(|cluster| cluster.serving);
        let node = self.nodes.get(name).cloned().map_or(Fact::Absent, |mut node| {
            node.resource_version = node_version(&node);
            Fact::Found(node)
        });
        let instance_type = self.instance_types.get(&worker.spec.instance_type).cloned();
        WorkerObserved {
            now: self.now,
            worker,
            cluster: self.cluster_fact(),
            pool: self.pool.clone().map_or(Fact::Absent, Fact::Found),
            instance_type: instance_type.map_or(Fact::Absent, Fact::Found),
            machine: self
                .machines
                .get(&uid)
                .map_or(Fact::Absent, |(_, machine)| Fact::Found(machine.clone())),
            bootstrap: match self.bootstraps.get(&uid) {
                _ if !there => Fact::Unread,
                Some(bootstrap) => Fact::Found(bootstrap.clone()),
                None => Fact::Absent,
            },
            node: if there { node } else { Fact::Unread },
            pods: there.then(|| self.pods.get(name).cloned().unwrap_or_default()),
            last: !self.workers.values().any(|other| {
                other.metadata.deletion_timestamp.is_none() && other.metadata.name.as_deref() != Some(name)
            }),
            answers: BTreeMap::new(),
        }
    }

    /// One write; why it was refused, if it was. `subject` is the worker that a worker's plan is about.
    pub(crate) fn act(&mut self, subject: &str, action: &Action) -> Result<(), Refused> {
        let refuse = |why: &str| Err(Refused(why.to_owned()));
        match action {
            Action::AddPoolFinalizer { resource_version } => {
                let pool = self.pool_at(resource_version)?;
                pool.metadata.finalizers = Some(vec![name::POOL_FINALIZER.into()]);
            }
            Action::RemovePoolFinalizer { resource_version } => {
                self.pool_at(resource_version)?;
                self.pool = None;
            }
            Action::Record { resource_version, removals } => {
                let pool = self.pool_at(resource_version)?;
                pool.status.get_or_insert_default().removing = removals.clone();
            }
            Action::Create { worker, .. } => {
                let name = worker.metadata.name.clone().unwrap();
                if self.workers.contains_key(&name) {
                    return refuse("AlreadyExists");
                }
                let incarnation = self.incarnations.entry(name.clone()).or_default();
                *incarnation += 1;
                let mut worker = worker.as_ref().clone();
                worker.metadata.uid = Some(format!("{name}#{incarnation}"));
                worker.metadata.generation = Some(1);
                worker.metadata.creation_timestamp = Some(Time(self.now));
                self.workers.insert(name, worker);
            }
            Action::Delete { name, uid } => {
                let now = self.now;
                let Some(worker) =
                    self.workers.get_mut(name).filter(|worker| worker.metadata.uid.as_ref() == Some(uid))
                else {
                    return refuse("NotFound");
                };
                worker.metadata.deletion_timestamp.get_or_insert(Time(now));
            }
            _ => return self.act_on_worker(subject, action),
        }
        Ok(())
    }

    fn act_on_worker(&mut self, subject: &str, action: &Action) -> Result<(), Refused> {
        let refuse = |why: &str| Err(Refused(why.to_owned()));
        // Writes on objects of the tenant need its API; the machine is asked for by the worker's UID.
        match action {
            Action::AddFinalizer { resource_version } => {
                let worker = self.worker_at(subject, resource_version)?;
                worker.metadata.finalizers = Some(vec![name::WORKER_FINALIZER.into()]);
            }
            Action::RemoveFinalizer { resource_version } => {
                self.worker_at(subject, resource_version)?;
                self.workers.remove(subject);
            }
            Action::IssueBootstrap { token_id, expires, precondition } => {
                let Some(uid) = self.workers.get(subject).and_then(|worker| worker.metadata.uid.clone())
                else {
                    return refuse("NotFound");
                };
                if (*precondition == Precondition::Absent) == self.bootstraps.contains_key(&uid) {
                    return refuse("Conflict");
                }
                let bootstrap = Bootstrap {
                    token_id: token_id.clone(),
                    expires: *expires,
                    uid: format!("secret-{uid}"),
                    resource_version: version(expires),
                };
                self.bootstraps.insert(uid, bootstrap);
            }
            Action::RevokeBootstrap { token_id } => {
                self.bootstraps.retain(|_, found| found.token_id != *token_id)
            }
            Action::EnsureMachine(request) => {
                let machine = Machine {
                    id: format!("machine-{}", request.worker_uid),
                    state: MachineState::Starting,
                    since: self.now,
                    addresses: Vec::new(),
                    trouble: None,
                };
                self.machines.entry(request.worker_uid.clone()).or_insert((request.name.clone(), machine));
            }
            Action::DeleteMachine { id } => {
                let found = self.machines.values_mut().find(|(_, machine)| machine.id == *id);
                let Some((_, machine)) = found else { return Ok(()) };
                machine.state = MachineState::Stopping;
            }
            Action::ConfigureNode(change) => {
                let node = self.node_at(subject, &change.uid, Some(&change.resource_version))?;
                node.labels.extend(change.set_labels.clone());
                node.labels.retain(|key, _| !change.remove_labels.contains(key));
                node.taints.extend(change.set_taints.clone());
                node.taints.retain(|key, _| !change.remove_taints.contains(key));
                node.annotations.extend(change.set_annotations.clone());
                node.extended_resources.extend(change.set_extended_resources.clone());
                node.provider_id = change.set_provider_id.clone().unwrap_or(node.provider_id.clone());
            }
            Action::MarkNode { uid, resource_version, cordon, conditions } => {
                let node = self.node_at(subject, uid, Some(resource_version))?;
                node.unschedulable |= cordon;
                for (kind, condition) in conditions {
                    node.conditions.insert(kind.clone(), condition.status.into());
                }
            }
            Action::Evict { uid, .. } => {
                let gone_by = self.now + SignedDuration::from_secs(30);
                let mut pods = self.pods.values_mut().flatten();
                let Some(pod) = pods.find(|pod| pod.uid == *uid) else { return Ok(()) };
                pod.gone_by.get_or_insert(gone_by);
            }
            Action::DeletePod { uid, .. } => {
                self.pods.values_mut().for_each(|pods| pods.retain(|pod| pod.uid != *uid));
            }
            Action::DeleteNode { uid } => {
                self.node_at(subject, uid, None)?;
                self.nodes.remove(subject);
                self.pods.remove(subject);
            }
            other => panic!("{other:?} is no worker's"),
        }
        Ok(())
    }

    fn pool_at(&mut self, resource_version: &str) -> Result<&mut WorkerPool, Refused> {
        let pool = self.pool.as_mut().ok_or_else(|| Refused("NotFound".into()))?;
        if version(pool) == resource_version { Ok(pool) } else { Err(Refused("Conflict".into())) }
    }

    fn worker_at(&mut self, name: &str, resource_version: &str) -> Result<&mut Worker, Refused> {
        let worker = self.workers.get_mut(name).ok_or_else(|| Refused("NotFound".into()))?;
        if version(worker) == resource_version { Ok(worker) } else { Err(Refused("Conflict".into())) }
    }

    fn node_at(&mut self, name: &str, uid: &str, seen: Option<&str>) -> Result<&mut Node, Refused> {
        let node = self.nodes.get_mut(name).filter(|node| node.uid == uid);
        let node = node.ok_or_else(|| Refused("NotFound".into()))?;
        if seen.is_none_or(|seen| seen == node_version(node)) {
            Ok(node)
        } else {
            Err(Refused("Conflict".into()))
        }
    }

    /// Infrastructure and kubelets go on: machines start and stop, nodes join, pods end.
    pub(crate) fn go_on(&mut self) {
        let now = self.now;
        let serving = self.cluster.as_ref().is_some_and(|cluster| cluster.serving);
        self.machines.retain(|_, (_, machine)| machine.state != MachineState::Stopping);
        for pods in self.pods.values_mut() {
            pods.retain(|pod| pod.gone_by.is_none());
        }
        self.pods.retain(|_, pods| !pods.is_empty());
        for (uid, (name, machine)) in &mut self.machines {
            if machine.state == MachineState::Starting {
                machine.state = MachineState::Running;
                machine.since = now;
            } else if serving && !self.nodes.contains_key(name) && self.bootstraps.contains_key(uid) {
                let provider_id = kaas_crds::name::provider_id("pod", uid);
                let node = Node {
                    uid: format!("node-{uid}"),
                    provider_id,
                    ready: "True".into(),
                    version: "v1.37.1".into(),
                    ..Node::default()
                };
                self.nodes.insert(name.clone(), node);
            }
        }
        for (name, node) in &mut self.nodes {
            let mut machines = self.machines.iter();
            if !machines.any(|(uid, (of, _))| of == name && node.provider_id.ends_with(uid.as_str())) {
                node.ready = "Unknown".into();
            }
        }
    }

    /// What an undisturbed operator does in one turn: the pool, then each worker, then machines without a worker. Gives
    /// whether it wrote something.
    pub(crate) fn turn(&mut self) -> bool {
        let mut wrote = false;
        if self.pool.is_some() {
            let observed = self.observe_pool();
            let plan = (self.plan_pool)(&observed);
            assert!(self.unlinted || lint::check_pool(&observed, &plan).is_empty(), "{plan:?}");
            for action in plan.waves.iter().flatten() {
                wrote |= self.act("", action).is_ok();
            }
        }
        for name in self.workers.keys().cloned().collect::<Vec<_>>() {
            let observed = self.observe_worker(&name);
            let plan = (self.plan_worker)(&observed);
            assert!(self.unlinted || lint::check_worker(&observed, &plan).is_empty(), "{plan:?}");
            for action in plan.waves.iter().flatten() {
                wrote |= self.act(&name, action).is_ok();
            }
            wrote |= self.publish(&name);
        }
        for (name, action) in self.orphans() {
            wrote |= self.act(&name, &action).is_ok();
        }
        wrote
    }

    /// What takes away machines and nodes without a worker, each with the name of the node.
    pub(crate) fn orphans(&self) -> Vec<(String, Action)> {
        let listed: Vec<Listed> = self
            .machines
            .iter()
            .map(|(uid, (_, machine))| Listed {
                name: uid.clone(),
                id: machine.id.clone(),
                worker_uid: uid.clone(),
                cluster_uid: CLUSTER.into(),
                stopping: machine.state == MachineState::Stopping,
            })
            .collect();
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let workers = self.workers.values().filter_map(|worker| worker.metadata.uid.clone()).collect();
        let machines = orphan::orphans(&cluster.uid, &listed, Some(&workers));
        let nodes: Vec<ListedNode> = self
            .nodes
            .iter()
            .filter(|_| cluster.serving)
            .map(|(name, node)| ListedNode {
                name: name.clone(),
                uid: node.uid.clone(),
                provider_id: node.provider_id.clone(),
            })
            .collect();
        let nodes = orphan::orphaned_nodes(&nodes, Some(&listed), Some(&workers));
        machines.into_iter().map(|action| (String::new(), action)).chain(nodes).collect()
    }

    /// Writes the status of a worker: that it has joined is remembered there.
    pub(crate) fn publish(&mut self, name: &str) -> bool {
        if !self.workers.contains_key(name) {
            return false;
        }
        let observed = self.observe_worker(name);
        let plan = (self.plan_worker)(&observed);
        let status = report::worker_status(&observed, &plan, None, None);
        let worker = self.workers.get_mut(name).unwrap();
        let joined =
            |status: Option<&kaas_crds::WorkerStatus>| status.and_then(|status| status.node_ref.clone());
        let news = joined(worker.status.as_ref()) != joined(Some(&status));
        if news {
            worker.status = Some(kaas_crds::WorkerStatus { node_ref: status.node_ref, ..Default::default() });
        }
        news
    }

    /// Lets everything come to rest.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let wrote = self.turn();
            let before = self.digest();
            self.go_on();
            if !wrote && self.digest() == before {
                return;
            }
        }
        panic!("it does not come to rest: {:#?}", self.observe_pool());
    }

    /// What the world is, in a number: no times, as none passes.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let told = format!(
            "{:?}",
            (
                &self.pool,
                &self.cluster,
                &self.workers,
                &self.machines,
                &self.bootstraps.keys().collect::<Vec<_>>(),
                &self.nodes,
                &self.pods,
            )
        );
        told.hash(&mut hasher);
        hasher.finish()
    }

    /// Workers that stay.
    pub(crate) fn staying(&self) -> Vec<&str> {
        let stay = self.workers.iter().filter(|(_, worker)| worker.metadata.deletion_timestamp.is_none());
        stay.map(|(name, _)| name.as_str()).collect()
    }

    /// Workers that stay and whose node is Ready.
    pub(crate) fn ready(&self) -> usize {
        self.staying()
            .iter()
            .filter(|name| self.nodes.get(**name).is_some_and(|node| node.ready == "True"))
            .count()
    }
}

fn node_version(node: &Node) -> String {
    let Node { labels, annotations, taints, conditions, extended_resources, provider_id, .. } = node;
    version(&json!([
        labels,
        annotations,
        taints,
        conditions,
        extended_resources,
        provider_id,
        node.unschedulable,
        node.ready
    ]))
}

/// The labels that a node of this fleet's pool should have.
pub(crate) fn wanted_labels(fleet: &Fleet, name: &str) -> BTreeMap<String, String> {
    let worker = &fleet.workers[name];
    let template = &fleet.pool.as_ref().unwrap().spec.template;
    node::labels(worker, template, &fleet.instance_types[&worker.spec.instance_type])
}
