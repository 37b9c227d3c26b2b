//! The life of one tenant: operations one after the other, each disturbed at most once, each ending in the same world
//! as when nothing happens.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kaas_crds::{TenantCluster, name};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::door::{Behind, Line};
use crate::equal::{Picture, difference, picture};
use crate::kubelets::{self, Complaints, Kubelets};
use crate::player::Player;
use crate::plot::{Planted, Plot, Strike, Target};
use crate::record::resource;
use crate::wire::{Scope, Wire};
use crate::world::{Operator, Slot, World};
use crate::{forbidden, machines};

mod pools;
mod renewal;

/// An operation must be done after this, whatever went wrong: the longest pause of the operator that it can need is
/// 5 s, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);
/// Nothing asked for so long is rest: longer than an operator bundles wakes (50 ms) and follows a probe (100 ms).
const REST: Duration = Duration::from_millis(160);
/// The same where nothing goes wrong and what is seen becomes the measure.
const DEEP_REST: Duration = Duration::from_secs(1);

const CLUSTER: &str = "blue";

/// What a user, or time, does to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Creation,
    /// API servers from one to three.
    Growth,
    /// And back.
    Shrinking,
    /// Every certificate is past two thirds of its life.
    Renewal,
    /// Nothing is asked for; an operator starts and finds everything as it should be.
    Restart,
    Deletion,
    /// Deletion while the creation was broken off.
    EarlyDeletion,
    /// A pool of two workers.
    PoolCreation,
    /// A third worker.
    PoolGrowth,
    /// The third is not wanted after all.
    Withdrawal,
    /// It goes again, with pods on it.
    Draining,
    /// One worker is left.
    PoolShrinking,
    /// The template changes: another worker takes its place.
    Replacement,
    /// A worker is deleted by hand, and made again.
    ByHand,
    /// Nothing is asked for; an operator starts and finds pool and workers as they should be.
    PoolRestart,
    PoolDeletion,
    /// The deletion of a cluster that has a pool.
    DeletionWithPool,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::Creation => "creation",
            Operation::Growth => "scaling 1 -> 3",
            Operation::Shrinking => "scaling 3 -> 1",
            Operation::Renewal => "renewal",
            Operation::Restart => "restart",
            Operation::Deletion => "deletion",
            Operation::EarlyDeletion => "early deletion",
            Operation::PoolCreation => "pool of 2",
            Operation::PoolGrowth => "workers 2 -> 3",
            Operation::Withdrawal => "back to 2",
            Operation::Draining => "drain 3 -> 2",
            Operation::PoolShrinking => "workers 2 -> 1",
            Operation::Replacement => "replacement",
            Operation::ByHand => "worker deleted",
            Operation::PoolRestart => "pool restart",
            Operation::PoolDeletion => "pool deleted",
            Operation::DeletionWithPool => "all deleted",
        })
    }
}

impl Operation {
    /// In the order in which one tenant can go through them; the last is for another one.
    pub(crate) const ALL: [Operation; 7] = [
        Operation::Creation,
        Operation::Growth,
        Operation::Shrinking,
        Operation::Renewal,
        Operation::Restart,
        Operation::Deletion,
        Operation::EarlyDeletion,
    ];

    /// The life of a pool, in order.
    pub(crate) const POOL: [Operation; 8] = [
        Operation::PoolCreation,
        Operation::PoolRestart,
        Operation::PoolGrowth,
        Operation::Draining,
        Operation::PoolShrinking,
        Operation::Replacement,
        Operation::ByHand,
        Operation::PoolDeletion,
    ];

    fn deletes(self) -> bool {
        matches!(self, Operation::Deletion | Operation::EarlyDeletion | Operation::DeletionWithPool)
    }
}

/// What one operation came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) operation: Operation,
    pub(crate) strikes: Vec<Strike>,
    /// Strikes whose write was never reached.
    pub(crate) missed: Vec<Strike>,
    pub(crate) took: Duration,
    /// Writes of the first operator.
    pub(crate) writes: Vec<Target>,
    /// The world at its end.
    pub(crate) picture: Picture,
    /// What is wrong with it.
    pub(crate) wrong: Option<String>,
}

/// What is expected of the end of each operation; unknown at first.
pub(crate) type Measures = BTreeMap<Operation, Picture>;

pub(crate) struct Life {
    world: Arc<World>,
    slot: Option<Slot>,
    scope: Scope,
    players: [AbortHandle; 2],
    /// The way to the tenant's API.
    line: Line,
    complaints: Complaints,
    planted: Option<Planted>,
    strayed: Vec<String>,
    /// Versions of Secrets whose certificates were aged.
    aged: BTreeMap<(String, String), String>,
    /// UID of the worker that was deleted by hand.
    deleted: Option<String>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.players.iter().for_each(AbortHandle::abort);
        self.slot.take().into_iter().for_each(|slot| self.world.give_back(slot));
    }
}

enum End {
    Reached(Picture),
    Died,
    Late(String),
}

/// An operation under way: its operator, and the wires of all that it had, the newest last.
struct Run {
    operation: Operation,
    operator: Option<Operator>,
    wires: Vec<Arc<Wire>>,
    /// So many may die still.
    left: usize,
}

impl Run {
    async fn end(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.kill().await;
        }
    }
}

impl Life {
    /// A tenant that asks for a cluster; no operator is there yet.
    pub(crate) async fn begin(world: &Arc<World>, team: &str, planted: Option<Planted>) -> Self {
        let mut slot = world.slot().await;
        slot.runs += 1;
        clear(&slot.client).await;
        let create = PostParams::default();
        let namespace = serde_json::from_value(json!({"metadata": {"name": team}})).unwrap();
        Api::<Namespace>::all(world.admin.clone()).create(&create, &namespace).await.unwrap();
        let cluster = serde_json::from_value(json!({
            "apiVersion": "kaas.dev/v1alpha1",
            "kind": "TenantCluster",
            "metadata": {"name": CLUSTER},
            "spec": {
                "version": "v1.37.1",
                "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
                // What would run on workers: one of each sort is enough, and its server has other networks.
                "addons": {
                    "kubeProxy": {"enabled": false}, "coreDNS": {"enabled": false}, "cni": {"none": {}},
                    "metricsServer": {"enabled": false},
                },
                "etcd": {"replicas": 1, "storage": {"ephemeral": {}}},
            },
        }))
        .unwrap();
        let clusters: Api<TenantCluster> = Api::namespaced(world.admin.clone(), team);
        let cluster = clusters.create(&create, &cluster).await.unwrap();
        let scope =
            Scope { team: team.to_owned(), cluster: CLUSTER.to_owned(), uid: cluster.metadata.uid.unwrap() };
        let (line, complaints) = (Line::default(), Complaints::default());
        let player = Player {
            client: world.admin.clone(),
            record: world.record.clone(),
            home: scope.home(),
            machines: scope.machines(),
            api_server: Behind::Api(line.clone()),
            etcd: Behind::Server(world.etcd.address()),
            node: world.node,
            network: (20 + slot.number, slot.runs),
        };
        let kubelets = Kubelets {
            tenant: slot.client.clone(),
            record: world.record.clone(),
            machines: scope.machines(),
            complaints: complaints.clone(),
        };
        let players = [tokio::spawn(player.play()), tokio::spawn(kubelets.play())];
        Life {
            world: world.clone(),
            slot: Some(slot),
            scope,
            players: players.map(|player| player.abort_handle()),
            line,
            complaints,
            planted,
            strayed: Vec::new(),
            aged: BTreeMap::new(),
            deleted: None,
        }
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// One operation, disturbed as told.
    pub(crate) async fn perform(
        &mut self,
        operation: Operation,
        strikes: &[Strike],
        measures: &Measures,
    ) -> Outcome {
        let begin = Instant::now();
        self.ask(operation).await;
        let measure = measures.get(&operation);
        let plot = Plot::new(strikes);
        let wire = self.wire(&plot);
        // No strike kills twice.
        let mut run = Run {
            operation,
            operator: Some(self.world.operate(&wire)),
            wires: vec![wire],
            left: strikes.len(),
        };
        let mut end = self.see_through(&mut run, &plot, measure).await;
        let mut at = 0;
        while let (Some(wire), End::Reached(_)) = (run.wires.get(at), &end) {
            if let Some((_, of_token)) = wire.deliver().await {
                if of_token {
                    kubelets::outlive_tokens(self.tenant()).await;
                }
                // What is written then may be what the other strike waits for.
                end = self.see_through(&mut run, &plot, measure).await;
            }
            at += 1;
        }
        run.end().await;
        let wires = run.wires;
        self.strayed.extend(wires.iter().flat_map(|wire| wire.strayed()));
        let (picture, wrong) = match end {
            End::Reached(picture) => (picture, None),
            End::Late(what) => (Picture::new(), Some(what)),
            End::Died => (Picture::new(), Some("one operator too many died".to_owned())),
        };
        Outcome {
            operation,
            strikes: strikes.to_vec(),
            missed: plot.missed(),
            took: begin.elapsed(),
            writes: wires[0].writes(),
            picture,
            wrong,
        }
    }

    /// Waits for the end, with another operator whenever one dies.
    async fn see_through(&self, run: &mut Run, plot: &Arc<Plot>, measure: Option<&Picture>) -> End {
        loop {
            let end = self.await_end(run.operation, &run.wires[run.wires.len() - 1], measure).await;
            if !matches!(end, End::Died) || run.left == 0 {
                return end;
            }
            run.left -= 1;
            run.end().await;
            let next = self.wire(plot);
            run.operator = Some(self.world.operate(&next));
            run.wires.push(next);
        }
    }

    /// An operation whose operator dies at a write, and nobody goes on. Gives its wire, if it died.
    pub(crate) async fn half(&mut self, operation: Operation, strike: Strike) -> Option<Arc<Wire>> {
        self.ask(operation).await;
        let wire = self.wire(&Plot::new(&[strike]));
        let operator = self.world.operate(&wire);
        let died = matches!(self.await_end(operation, &wire, None).await, End::Died);
        operator.kill().await;
        self.strayed.extend(wire.strayed());
        died.then_some(wire)
    }

    /// Waits until the watches have told what is there now: they are a moment behind.
    async fn catch_up(&self) {
        let (home, machines, team) = (self.scope.home(), self.scope.machines(), self.scope.team.as_str());
        for (place, kind, name) in [
            (team, "TenantCluster", CLUSTER),
            (team, "WorkerPool", pools::POOL),
            (&home, "Namespace", &home),
            (&home, "Secret", "authority"),
            (&machines, "Namespace", &machines),
        ] {
            let kind_of = resource(kind);
            let api: Api<DynamicObject> = match kind {
                "Namespace" => Api::all_with(self.world.admin.clone(), &kind_of),
                _ => Api::namespaced_with(self.world.admin.clone(), place, &kind_of),
            };
            let version = api.get_opt(name).await.unwrap().and_then(|found| found.metadata.resource_version);
            let told = || {
                let object = self.world.record.get(place, kind, name);
                object.and_then(|object| object["metadata"]["resourceVersion"].as_str().map(str::to_owned))
            };
            let mut seen = u64::MAX;
            while told() != version {
                let places = [place];
                let change = self.world.record.changed(&places, seen);
                seen = timeout(LIMIT, change).await.expect("the watches tell what is there");
            }
        }
    }

    /// What was seen in this life that may never be.
    pub(crate) async fn judge(&mut self) -> Vec<String> {
        self.catch_up().await;
        let places = [&self.scope.home(), &self.scope.machines(), &self.scope.team];
        let log = self.world.record.take_log(&places.map(String::as_str));
        let mut found = forbidden::judge(&log, &self.scope);
        found.extend(machines::judge(&log, &self.scope));
        found.append(&mut self.complaints.lock().unwrap());
        found.extend(
            self.strayed.drain(..).map(|write| format!("an object of somebody else was written: {write}")),
        );
        found
    }

    /// A wire for the next operator.
    fn wire(&self, plot: &Arc<Plot>) -> Arc<Wire> {
        let clients = (self.world.operator.clone(), self.tenant().clone());
        let wire = Wire::new(clients, self.scope.clone(), plot.clone(), self.planted);
        *self.line.lock().unwrap() = Some(wire.clone());
        wire
    }

    fn tenant(&self) -> &kube::Client {
        &self.slot.as_ref().unwrap().client
    }

    async fn ask(&mut self, operation: Operation) {
        let clusters: Api<TenantCluster> = Api::namespaced(self.world.admin.clone(), &self.scope.team);
        match operation {
            // Asked for when the life began.
            Operation::Creation | Operation::Restart => {}
            Operation::Growth | Operation::Shrinking => {
                let replicas = if operation == Operation::Growth { 3 } else { 1 };
                let patch = Patch::Merge(json!({"spec": {"controlPlane": {"replicas": replicas}}}));
                clusters.patch(CLUSTER, &PatchParams::default(), &patch).await.unwrap();
            }
            Operation::Renewal => self.age().await,
            Operation::Deletion | Operation::EarlyDeletion | Operation::DeletionWithPool => {
                clusters.delete(CLUSTER, &DeleteParams::default()).await.unwrap();
            }
            _ => self.ask_of_pool(operation).await,
        }
    }

    /// Whether the operation looks done, judged by little: what it costs to look is paid at each change.
    fn looks_done(&self, operation: Operation) -> bool {
        let record = &self.world.record;
        let (home, team) = (self.scope.home(), &self.scope.team);
        let cluster = record.get(team, "TenantCluster", CLUSTER);
        if operation.deletes() {
            return cluster.is_none()
                && record.live(&home).is_empty()
                && record.live(&self.scope.machines()).is_empty()
                && self.pools_are_settled(operation);
        }
        let Some(cluster) = cluster else { return false };
        let status = &cluster["status"];
        let condition = |kind: &str| {
            let all = status["conditions"].as_array();
            all.into_iter().flatten().find(|one| one["type"] == kind).map(|one| one["status"] == "True")
        };
        condition("Ready") == Some(true)
            && condition("Reconciling") == Some(false)
            && status["observedGeneration"] == cluster["metadata"]["generation"]
            && (operation != Operation::Renewal || self.still_aged().is_empty())
            && self.pools_are_settled(operation)
    }

    async fn await_end(&self, operation: Operation, wire: &Arc<Wire>, measure: Option<&Picture>) -> End {
        let until = Instant::now() + LIMIT;
        let (home, machines) = (self.scope.home(), self.scope.machines());
        let places = [home.as_str(), machines.as_str(), self.scope.team.as_str()];
        let mut seen = u64::MAX;
        loop {
            if self.looks_done(operation) {
                let rest = if measure.is_some() { REST } else { DEEP_REST };
                tokio::select! {
                    () = wire.dead.cancelled() => return End::Died,
                    _ = timeout_at(until, wire.quiet(rest)) => {}
                }
                if self.looks_done(operation) {
                    let next_request = wire.next_request();
                    let found = self.picture(operation).await;
                    match measure {
                        Some(measure) if *measure != found && Instant::now() < until => {
                            // What is inside the tenant comes last, and is no change of these places. The operator
                            // looks at what it did: with a request.
                            tokio::select! {
                                () = wire.dead.cancelled() => return End::Died,
                                _ = timeout_at(until, next_request) => continue,
                            }
                        }
                        Some(measure) if *measure != found => {
                            return End::Late(format!(
                                "at rest, but different:\n{}",
                                difference(measure, &found)
                            ));
                        }
                        _ => return End::Reached(found),
                    }
                }
            }
            tokio::select! {
                () = wire.dead.cancelled() => return End::Died,
                count = self.world.record.changed(&places, seen) => seen = count,
                () = sleep_until(until) => return End::Late(self.stuck(operation, measure).await),
            }
        }
    }

    async fn stuck(&self, operation: Operation, measure: Option<&Picture>) -> String {
        let found = self.picture(operation).await;
        let status = self.world.record.get(&self.scope.team, "TenantCluster", CLUSTER);
        let summary = status.map(|found| found["status"]["summary"].to_string()).unwrap_or_default();
        let differs = measure.map(|measure| difference(measure, &found)).unwrap_or_else(|| {
            let workloads = found.iter().filter(|(key, _)| {
                ["StatefulSet", "Deployment", "Pod", "TenantCluster", "WorkerPool", "Worker"]
                    .contains(&key.split(' ').next().unwrap())
            });
            workloads
                .map(|(key, content)| {
                    let content: serde_json::Value = serde_json::from_str(content).unwrap();
                    format!("{key} {} {}", content["metadata"], content["status"])
                })
                .collect::<Vec<_>>()
                .join("\n")
        });
        let aged = if operation == Operation::Renewal { self.still_aged() } else { Vec::new() };
        format!("not done after {} s, summary {summary}, not renewed {aged:?}:\n{differs}", LIMIT.as_secs())
    }

    /// The world as it stands, with what is inside the tenant.
    async fn picture(&self, operation: Operation) -> Picture {
        let mut found = Vec::new();
        if !operation.deletes() {
            for (api, kind, name) in inside(self.tenant()) {
                if let Some(object) = api.get_opt(name).await.unwrap() {
                    found.push((format!("inside: {kind} {name}"), serde_json::to_value(object).unwrap()));
                }
            }
            found.extend(self.workers_inside().await);
        }
        picture(&self.world.record, &self.scope, found)
    }
}

/// What the operator keeps inside a tenant.
fn inside(client: &kube::Client) -> [(Api<DynamicObject>, &'static str, &'static str); 3] {
    let resource = |group, kind, plural| {
        let kind = kube::core::GroupVersionKind::gvk(group, "v1", kind);
        kube::api::ApiResource::from_gvk_with_plural(&kind, plural)
    };
    let binding = resource("rbac.authorization.k8s.io", "ClusterRoleBinding", "clusterrolebindings");
    let slice = resource("discovery.k8s.io", "EndpointSlice", "endpointslices");
    let endpoints = resource("", "Endpoints", "endpoints");
    let namespaced = |resource| Api::namespaced_with(client.clone(), "default", resource);
    [
        (Api::all_with(client.clone(), &binding), "ClusterRoleBinding", name::ADMIN_GROUP),
        (namespaced(&slice), "EndpointSlice", "kubernetes"),
        (namespaced(&endpoints), "Endpoints", "kubernetes"),
    ]
}

/// Makes the tenant's servers as good as new for the next run.
async fn clear(client: &kube::Client) {
    for (api, _, name) in inside(client) {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("{name} inside the tenant: {error}"),
        }
    }
    kubelets::clear(client).await;
}
