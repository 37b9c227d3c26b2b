//! The life of one tenant: operations one after the other, each disturbed at most once, each ending in the same world
//! as when nothing happens.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Secret;
use kaas_crds::{TenantCluster, name};
use kaas_pki::{Authority, Certificate, Kubeconfig, Request, Usages, Validity};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::door::Behind;
use crate::equal::{Picture, difference, erase, picture};
use crate::fault::{Fault, Planted, Scope, Strike, Target, Wire};
use crate::forbidden;
use crate::player::{Player, entry};
use crate::record::resource;
use crate::world::{Operator, Slot, World};

/// An operation must be done after this, whatever went wrong: the longest pause of the operator that it can need is
/// 5 s, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);
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

    fn deletes(self) -> bool {
        matches!(self, Operation::Deletion | Operation::EarlyDeletion)
    }
}

/// What one operation came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) operation: Operation,
    pub(crate) strike: Option<Strike>,
    /// Whether the write was reached that the strike waits for.
    pub(crate) fired: bool,
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
    player: AbortHandle,
    planted: Option<Planted>,
    strayed: Vec<String>,
    /// Versions of Secrets whose certificates were aged.
    aged: BTreeMap<(String, String), String>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.player.abort();
        self.slot.take().into_iter().for_each(|slot| self.world.give_back(slot));
    }
}

enum End {
    Reached(Picture),
    Died,
    Late(String),
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
                "etcd": {"replicas": 1, "storage": {"ephemeral": {}}},
            },
        }))
        .unwrap();
        let clusters: Api<TenantCluster> = Api::namespaced(world.admin.clone(), team);
        let cluster = clusters.create(&create, &cluster).await.unwrap();
        let scope =
            Scope { team: team.to_owned(), cluster: CLUSTER.to_owned(), uid: cluster.metadata.uid.unwrap() };
        let player = Player {
            client: world.admin.clone(),
            record: world.record.clone(),
            home: scope.home(),
            api_server: slot.api.clone(),
            etcd: Behind::clear(world.etcd.address(), "h2"),
            node: world.node,
            network: (20 + slot.number, slot.runs),
        };
        let player = tokio::spawn(player.play()).abort_handle();
        let aged = BTreeMap::new();
        Life { world: world.clone(), slot: Some(slot), scope, player, planted, strayed: Vec::new(), aged }
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// One operation, disturbed as told.
    pub(crate) async fn perform(
        &mut self,
        operation: Operation,
        strike: Option<Strike>,
        measures: &Measures,
    ) -> Outcome {
        let begin = Instant::now();
        self.ask(operation).await;
        let measure = measures.get(&operation);
        let fault = strike.as_ref().map(|strike| strike.fault);
        let wire = self.wire(strike.clone());
        let mut operator = self.world.operate(&wire);
        let mut end = self.await_end(operation, &wire, measure).await;
        let mut wires = vec![wire.clone()];
        if matches!(end, End::Died) {
            operator.kill().await;
            let next = self.wire(None);
            operator = self.world.operate(&next);
            end = self.await_end(operation, &next, measure).await;
            wires.push(next.clone());
            if fault == Some(Fault::LateWrite)
                && matches!(end, End::Reached(_))
                && wire.deliver().await.is_some()
            {
                end = self.await_end(operation, &next, measure).await;
            }
        }
        self.finish(operation, strike, operator, &wires, end, begin).await
    }

    /// A creation whose operator dies at a write, and nobody goes on.
    pub(crate) async fn half(&mut self, strike: Strike) -> bool {
        self.ask(Operation::Creation).await;
        let wire = self.wire(Some(strike));
        let operator = self.world.operate(&wire);
        let died = matches!(self.await_end(Operation::Creation, &wire, None).await, End::Died);
        operator.kill().await;
        self.strayed.extend(wire.strayed());
        died
    }

    async fn finish(
        &mut self,
        operation: Operation,
        strike: Option<Strike>,
        operator: Operator,
        wires: &[Arc<Wire>],
        end: End,
        begin: Instant,
    ) -> Outcome {
        operator.kill().await;
        self.strayed.extend(wires.iter().flat_map(|wire| wire.strayed()));
        let (picture, wrong) = match end {
            End::Reached(picture) => (picture, None),
            End::Late(what) => (Picture::new(), Some(what)),
            End::Died => (Picture::new(), Some("the second operator died too".to_owned())),
        };
        Outcome {
            operation,
            strike,
            fired: wires[0].fired(),
            took: begin.elapsed(),
            writes: wires[0].writes(),
            picture,
            wrong,
        }
    }

    /// Waits until the watches have told what is there now: they are a moment behind.
    async fn catch_up(&self) {
        let (home, team) = (self.scope.home(), self.scope.team.as_str());
        for (place, kind, name) in
            [(team, "TenantCluster", CLUSTER), (&home, "Namespace", &home), (&home, "Secret", "authority")]
        {
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
        let log = self.world.record.take_log(&[&self.scope.home(), &self.scope.team]);
        let mut found = forbidden::judge(&log, &self.scope);
        found.extend(
            self.strayed.drain(..).map(|write| format!("an object of somebody else was written: {write}")),
        );
        found
    }

    fn wire(&self, strike: Option<Strike>) -> Arc<Wire> {
        Wire::new(self.world.operator.clone(), self.scope.clone(), strike, self.planted)
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
            Operation::Deletion | Operation::EarlyDeletion => {
                clusters.delete(CLUSTER, &DeleteParams::default()).await.unwrap();
            }
        }
    }

    /// Replaces every leaf by one that says the same and is near its end.
    async fn age(&mut self) {
        let home = self.scope.home();
        let authority = self.world.record.get(&home, "Secret", "authority").unwrap();
        let now = Timestamp::now();
        let authorities = ["cluster-ca", "etcd-ca", "front-proxy-ca"].map(|name| {
            let part = |kind: &str| entry(&authority, &format!("{name}.{kind}")).unwrap();
            older(&part("crt"), &part("key"))
        });
        // Ten of these twelve minutes have passed since they were made (and backdated by five); two are enough for a run.
        let minutes = SignedDuration::from_mins;
        let validity = Validity { not_before: now - minutes(15), not_after: now + minutes(2) };
        let again = |pem: &str| {
            let old = Certificate::parse(pem).unwrap();
            let signer = authorities.iter().find(|signer| old.is_issued_by(signer.certificate())).unwrap();
            let request = Request {
                common_name: old.common_name,
                organizations: old.organizations,
                dns_names: old.dns_names,
                ip_addresses: old.ip_addresses,
                usages: old.usages.unwrap_or(Usages::Client),
            };
            (signer, signer.issue(&request, validity).unwrap())
        };
        let kubeconfig = name::kubeconfig_secret(CLUSTER);
        let places = [(home, None), (self.scope.team.clone(), Some(kubeconfig))];
        for (place, only) in places {
            for ((kind, name), secret) in self.world.record.live(&place) {
                if kind != "Secret" || name == "authority" || only.as_ref().is_some_and(|only| *only != name)
                {
                    continue;
                }
                let mut data = BTreeMap::new();
                for key in secret["data"].as_object().unwrap().keys() {
                    if let Some(part) = key.strip_suffix(".crt") {
                        let (_, issued) = again(&entry(&secret, key).unwrap());
                        data.insert(key.clone(), issued.certificate_pem);
                        data.insert(format!("{part}.key"), issued.private_key_pem);
                    } else if key == name::KUBECONFIG_KEY {
                        let document: Value = serde_yaml::from_str(&entry(&secret, key).unwrap()).unwrap();
                        let encoded =
                            json!({"data": {"pem": document["users"][0]["user"]["client-certificate-data"]}});
                        let (signer, issued) = again(&entry(&encoded, "pem").unwrap());
                        let text = kaas_pki::kubeconfig(&Kubeconfig {
                            name: CLUSTER,
                            server: document["clusters"][0]["cluster"]["server"].as_str().unwrap(),
                            certificate_authority_pem: signer.certificate_pem(),
                            client: Some(&issued),
                            token: None,
                            namespace: None,
                        });
                        data.insert(key.clone(), text);
                    }
                }
                let secrets: Api<Secret> = Api::namespaced(self.world.admin.clone(), &place);
                let patch = Patch::Merge(json!({"stringData": data}));
                let patched = secrets.patch(&name, &PatchParams::default(), &patch).await.unwrap();
                self.aged.insert((place.clone(), name), patched.metadata.resource_version.unwrap());
            }
        }
    }

    /// Secrets with aged certificates still.
    fn still_aged(&self) -> Vec<&(String, String)> {
        let aged = self.aged.iter().filter(|((place, name), version)| {
            let live = self.world.record.get(place, "Secret", name);
            live.is_some_and(|live| live["metadata"]["resourceVersion"] == version.as_str())
        });
        aged.map(|(secret, _)| secret).collect()
    }

    /// Whether the operation looks done, judged by little: what it costs to look is paid at each change.
    fn looks_done(&self, operation: Operation) -> bool {
        let record = &self.world.record;
        let (home, team) = (self.scope.home(), &self.scope.team);
        let cluster = record.get(team, "TenantCluster", CLUSTER);
        if operation.deletes() {
            return cluster.is_none() && record.live(&home).is_empty();
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
    }

    async fn await_end(&self, operation: Operation, wire: &Arc<Wire>, measure: Option<&Picture>) -> End {
        let until = Instant::now() + LIMIT;
        let (home, team) = (self.scope.home(), self.scope.team.as_str());
        let places = [home.as_str(), team];
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
                ["StatefulSet", "Deployment", "Pod", "TenantCluster"]
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
        let mut whole = picture(&self.world.record, &self.scope);
        if !operation.deletes() {
            let port = self
                .world
                .record
                .get(&self.scope.home(), "Service", "kube-apiserver")
                .and_then(|service| service.pointer("/spec/ports/0/nodePort")?.as_u64());
            let client = &self.slot.as_ref().unwrap().client;
            for (api, kind, name) in inside(client) {
                if let Some(found) = api.get_opt(name).await.unwrap() {
                    let found = serde_json::to_value(found).unwrap();
                    whole.insert(format!("inside: {kind} {name}"), erase(&self.scope, port, found));
                }
            }
        }
        whole
    }
}

/// The same authority as if it had been made a day before: no leaf may be older than the one that signs it.
fn older(certificate: &str, key: &str) -> Authority {
    let known = Certificate::parse(certificate).unwrap();
    let pair = KeyPair::from_pem(key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, known.common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from_unix_timestamp(known.not_before.as_second() - 86_400).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(known.not_after.as_second()).unwrap();
    Authority::load(&params.self_signed(&pair).unwrap().pem(), key).unwrap()
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
}
