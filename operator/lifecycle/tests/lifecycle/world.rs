//! A tiny world for plans to act on: an API server that keeps versions and checks preconditions, controllers that
//! make pods, an etcd, a clock that only tests move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::kubernetes_release::{AddonImages, EtcdRelease, Images};
use kaas_crds::{KubernetesReleaseSpec, TenantCluster, TenantClusterSpec, TenantClusterStatus};
use kaas_lifecycle::action::{Action, CertificateRequest, EtcdOrder, Issue, Material};
use kaas_lifecycle::addons;
use kaas_lifecycle::lint;
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::observed::{
    Addons, Answer, Certificate, Etcd, Live, Member, Namespace, Observed, Pod, Probe, Secret, Trouble, Vigil,
};
use kaas_lifecycle::plan::{Plan, plan};
use kaas_lifecycle::report;
use kaas_lifecycle::tenant::{Platform, Tenant};
use kaas_lifecycle::upgrade::canary::{self, Trial};
use kaas_lifecycle::upgrade::preflight::{self, Facts};
use kaas_lifecycle::workers::report::Tally;
use serde_json::{Value, json};

mod admission;
mod controllers;

pub(crate) const UID: &str = "0b2f7a3e-1111-4222-8333-444455556666";

/// How long leaves live in this world.
pub(crate) const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(8760);

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) platform: Platform,
    pub(crate) cluster: TenantCluster,
    pub(crate) gone: bool,
    pub(crate) catalogue: BTreeMap<String, KubernetesReleaseSpec>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) objects: BTreeMap<Reference, Arc<Live>>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) kubeconfig: Option<Secret>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) etcd_id: u64,
    pub(crate) leader: u64,
    /// Members by ID, once etcd was founded.
    pub(crate) members: Vec<Member>,
    /// Whether the API answers through the endpoint when its pods are ready.
    pub(crate) reachable: bool,
    /// Pods whose template has one of these words never start.
    pub(crate) dead: Vec<String>,
    /// No node has room for another pod.
    pub(crate) cramped: bool,
    /// No pod is ready for as long as it has to be to be available.
    pub(crate) unfound: bool,
    /// What an API server answers that has to prove itself.
    pub(crate) trial: Result<u32, String>,
    /// What is inside the tenant that may speak against an upgrade.
    pub(crate) inside_facts: Facts,
    /// What clients see.
    pub(crate) vigil: Option<Vigil>,
    /// Version of the API server that a template hash stands for.
    servers: BTreeMap<String, String>,
    pub(crate) inside: BTreeMap<Reference, Arc<Live>>,
    pub(crate) workers: Tally,
    /// Writes so far.
    pub(crate) writes: u64,
    /// Status writes so far.
    pub(crate) status_writes: u64,
    /// What is on members' volumes: the volume, and the ID of the member that wrote it.
    pub(crate) data: BTreeMap<String, (String, u64)>,
    /// Which members API servers dial, by their template.
    pub(crate) dialled: BTreeMap<String, Vec<String>>,
    /// Minor version of etcd, by its members' template.
    pub(crate) minors: BTreeMap<String, u32>,
    /// Minor version that the data has the format of, and the one that it is lowered to.
    pub(crate) format: u32,
    pub(crate) lowered: Option<u32>,
    /// The planner, or one with a planted mistake.
    pub(crate) planner: fn(&Observed) -> Plan,
    version: u64,
}

/// An action in a few words.
pub(crate) fn told(action: &Action) -> String {
    match action {
        Action::AddFinalizer { .. } => "add finalizer".into(),
        Action::RemoveFinalizer { .. } => "remove finalizer".into(),
        Action::Apply { object, .. } => format!("apply {} {}", object.reference.kind, object.reference.name),
        Action::Delete { reference, .. } => format!("delete {} {}", reference.kind, reference.name),
        Action::Issue(issue) => format!("issue {} ({})", issue.reference.name, issue.why),
        Action::ApplyInside { object, .. } => {
            format!("apply inside {} {}", object.reference.kind, object.reference.name)
        }
        Action::DeleteInside { reference, .. } => {
            format!("delete inside {} {}", reference.kind, reference.name)
        }
        Action::Etcd(order) => format!("etcd {order:?}"),
    }
}

fn name(member: &Member) -> String {
    match member.name.as_str() {
        "" => member.peer_urls[0].trim_start_matches("https://").split('.').next().unwrap().to_owned(),
        name => name.to_owned(),
    }
}

fn unshared(objects: &BTreeMap<Reference, Arc<Live>>) -> BTreeMap<Reference, Live> {
    objects.iter().map(|(reference, live)| (reference.clone(), live.as_ref().clone())).collect()
}

/// Why the API server refused a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict(pub(crate) String);

pub(crate) fn release(version: &str) -> KubernetesReleaseSpec {
    KubernetesReleaseSpec {
        version: version.into(),
        images: Images {
            kube_apiserver: format!("registry.k8s.io/kube-apiserver:{version}"),
            kube_controller_manager: format!("registry.k8s.io/kube-controller-manager:{version}"),
            kube_scheduler: format!("registry.k8s.io/kube-scheduler:{version}"),
        },
        etcd: EtcdRelease { version: "3.7.3".into(), image: "registry.k8s.io/etcd:3.7.3-0".into() },
        addons: None,
        removes: Vec::new(),
        adds: Vec::new(),
    }
}

impl World {
    pub(crate) fn new(spec: Value) -> Self {
        let spec: TenantClusterSpec = serde_json::from_value(spec).unwrap();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let mut cluster = TenantCluster::new("blue", spec);
        cluster.metadata.namespace = Some("demo".into());
        cluster.metadata.uid = Some(UID.into());
        cluster.metadata.generation = Some(1);
        cluster.metadata.resource_version = Some("1".into());
        cluster.metadata.creation_timestamp = Some(Time(now));
        World {
            now,
            platform: Platform {
                node_port_host: "10.77.0.1".into(),
                operator_namespace: "kaas-system".into(),
                ..Platform::default()
            },
            cluster,
            gone: false,
            catalogue: BTreeMap::from([("v1.37.1".into(), release("v1.37.1"))]),
            namespaces: Vec::new(),
            objects: BTreeMap::new(),
            secrets: BTreeMap::new(),
            kubeconfig: None,
            pods: Vec::new(),
            etcd_id: 0xabc,
            leader: 1,
            members: Vec::new(),
            reachable: true,
            dead: Vec::new(),
            cramped: false,
            unfound: false,
            trial: Ok(35),
            inside_facts: Facts::default(),
            vigil: None,
            servers: BTreeMap::new(),
            inside: BTreeMap::new(),
            workers: Tally::default(),
            writes: 0,
            status_writes: 0,
            data: BTreeMap::new(),
            dialled: BTreeMap::new(),
            minors: BTreeMap::new(),
            format: 0,
            lowered: None,
            planner: plan,
            version: 1,
        }
    }

    pub(crate) fn demo() -> Self {
        World::new(json!({
            "version": "v1.37.1",
            "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
            "etcd": {"replicas": 1, "storage": {"persistent": {"size": "1Gi"}}},
        }))
    }

    /// The release gains images for workers, as a newer chart may have it.
    pub(crate) fn gain_images(&mut self) {
        let image = |name: &str| format!("registry.k8s.io/{name}:v1");
        let images = AddonImages {
            kube_proxy: image("kube-proxy"),
            core_dns: image("coredns"),
            flannel: image("flannel"),
            konnectivity_server: image("proxy-server"),
            konnectivity_agent: image("proxy-agent"),
            metrics_server: image("metrics-server"),
            pause: image("pause"),
            worker: image("worker"),
        };
        self.catalogue.get_mut("v1.37.1").unwrap().addons = Some(images);
    }

    pub(crate) fn tenant(&self) -> Tenant {
        let tenant = Tenant::new(UID, "demo", "blue");
        match self.namespaces.iter().find(|namespace| namespace.is_home_of(&tenant)) {
            Some(namespace) => tenant.moved_into(&namespace.name),
            None => tenant,
        }
    }

    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// Changes the spec as a user does.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut TenantClusterSpec)) {
        change(&mut self.cluster.spec);
        *self.cluster.metadata.generation.as_mut().unwrap() += 1;
        self.cluster.metadata.resource_version = Some(self.next());
    }

    /// Deletes the object as a user does.
    pub(crate) fn delete(&mut self) {
        if self.cluster.metadata.finalizers.is_none() {
            self.gone = true;
        }
        self.cluster.metadata.deletion_timestamp = Some(Time(self.now));
        self.cluster.metadata.resource_version = Some(self.next());
    }

    pub(crate) fn observe(&self) -> Observed {
        let home = !self.namespaces.is_empty();
        let mut observed = Observed {
            now: self.now,
            platform: self.platform.clone(),
            tenant: self.tenant(),
            cluster: self.cluster.clone(),
            catalogue: self.catalogue.clone(),
            namespaces: self.namespaces.clone(),
            objects: unshared(&self.objects),
            secrets: self.secrets.clone(),
            kubeconfig: self.kubeconfig.clone(),
            pods: self.pods.clone(),
            etcd: home.then(|| self.etcd()).flatten(),
            probe: home.then(|| self.probe()).flatten(),
            trial: None,
            vigil: self.vigil.clone(),
            addresses: BTreeSet::from(["10.77.0.1".parse().unwrap()]),
            inside: self.serving().then(|| unshared(&self.inside)),
            addons: self.serving().then(|| self.addons()),
            preflight: None,
            authority: self.secrets.contains_key("authority").then(|| "PEM".to_owned()),
            workers: Some(self.workers.clone()),
        };
        let pod = canary::pod(&observed).map(|pod| pod.uid.clone());
        let target = preflight::target(&observed).map(|release| release.version.clone());
        observed.preflight =
            self.serving().then(|| Facts { target: target.unwrap_or_default(), ..self.inside_facts.clone() });
        observed.trial = pod.map(|pod| Trial { pod, result: self.trial.clone() });
        observed
    }

    fn addons(&self) -> Addons {
        let all = unshared(&self.inside);
        let (workloads, others) =
            all.into_iter().partition(|(reference, _)| addons::WORKLOADS.contains(&reference.kind));
        Addons { workloads, others: Some(others), refused: None }
    }

    fn etcd(&self) -> Option<Etcd> {
        let up = |member: &Member| {
            self.pods.iter().any(|pod| pod.name == name(member) && pod.ready && !pod.terminating)
        };
        let members: Vec<Member> =
            self.members.iter().map(|member| Member { healthy: up(member), ..member.clone() }).collect();
        let voters = members.iter().filter(|member| !member.learner).count();
        let healthy = members.iter().filter(|member| !member.learner && member.healthy).count();
        if healthy == 0 {
            return None;
        }
        let led = members.iter().any(|member| member.id == self.leader && !member.learner && member.healthy);
        let leader = if led && healthy > voters / 2 { self.leader } else { 0 };
        let members = members.into_iter().map(|member| self.versioned(member)).collect();
        let downgrade = self.lowered.map(|minor| format!("3.{minor}.0"));
        Some(Etcd { cluster_id: format!("{:x}", self.etcd_id), leader, members, alarms: vec![], downgrade })
    }

    fn ready(&self, component: &str) -> bool {
        self.pods.iter().any(|pod| pod.component == component && pod.ready)
    }

    fn serving(&self) -> bool {
        let mut servers = self.pods.iter().filter(|pod| pod.component == "kube-apiserver" && pod.ready);
        self.reachable
            && self.ready("etcd")
            && servers.any(|server| self.is_answered(server, &BTreeSet::new()))
    }

    fn probe(&self) -> Option<Probe> {
        self.secrets.get("kube-apiserver")?;
        let answer = if self.serving() {
            let mut servers = self.pods.iter().filter(|pod| pod.component == "kube-apiserver" && pod.ready);
            Answer::Serving { version: self.servers[&servers.next().unwrap().template_hash].clone() }
        } else {
            Answer::Failed { since: self.now, message: "connection refused".into() }
        };
        Some(Probe { at: self.now, answer })
    }

    /// One action, as the API server would take it.
    pub(crate) fn act(&mut self, action: &Action) -> Result<(), Conflict> {
        self.admit(action)?;
        match action {
            Action::AddFinalizer { .. } | Action::RemoveFinalizer { .. } => {
                let add = matches!(action, Action::AddFinalizer { .. });
                self.cluster.metadata.finalizers = add.then(|| vec![kaas_crds::name::FINALIZER.into()]);
                self.cluster.metadata.resource_version = Some(self.next());
                self.gone = !add;
            }
            Action::Apply { object, .. } => self.apply(object),
            Action::Delete { reference, uid, .. } => self.remove(reference, uid),
            Action::Issue(issue) => self.issue(issue),
            Action::ApplyInside { object, .. } => {
                let live = Live {
                    uid: "in".into(),
                    resource_version: self.next(),
                    terminating: false,
                    content: object.content.clone(),
                };
                self.inside.insert(object.reference.clone(), live.into());
            }
            Action::DeleteInside { reference, .. } => {
                self.inside.remove(reference);
            }
            Action::Etcd(order) => self.order(order),
        }
        self.writes += 1;
        Ok(())
    }

    fn order(&mut self, order: &EtcdOrder) {
        match order {
            EtcdOrder::MoveLeader { to } => self.leader = *to,
            EtcdOrder::EnableDowngrade { version } => {
                let minor = version.rsplit('.').next().unwrap().parse().unwrap();
                (self.lowered, self.format) = (Some(minor), minor);
            }
            EtcdOrder::CancelDowngrade => self.lowered = None,
            EtcdOrder::AddLearner { peer_url } => {
                self.version += 1;
                let id = 100 + self.version;
                self.members.push(Member {
                    id,
                    peer_urls: vec![peer_url.clone()],
                    learner: true,
                    ..Member::default()
                });
            }
            EtcdOrder::Promote { id } => {
                let member = self.members.iter_mut().find(|member| member.id == *id).unwrap();
                member.learner = false;
            }
            EtcdOrder::Remove { id } => {
                let gone = self.members.iter().position(|member| member.id == *id).unwrap();
                let gone = name(&self.members.remove(gone));
                // It stops for good: etcd says that it was permanently removed.
                self.pods.iter_mut().filter(|pod| pod.name == gone).for_each(|pod| {
                    pod.ready = false;
                    pod.trouble = Some(Trouble { reason: "CrashLoopBackOff".into(), message: String::new() });
                });
            }
        }
    }

    fn apply(&mut self, object: &Object) {
        let reference = &object.reference;
        let (version, mut content) = (self.next(), object.content.clone());
        if reference.kind == Kind::Namespace {
            if let Some(adopted) = self.namespaces.iter_mut().find(|found| found.name == reference.name) {
                adopted.tenant_uid =
                    content["metadata"]["labels"]["kaas.dev/tenant-uid"].as_str().unwrap().into();
                adopted.resource_version = version;
                return;
            }
            self.namespaces.push(Namespace {
                name: reference.name.clone(),
                uid: format!("uid-{version}"),
                tenant_uid: content["metadata"]["labels"]["kaas.dev/tenant-uid"].as_str().unwrap().into(),
                resource_version: version,
                adopt_by: None,
                terminating: false,
                remaining: vec![],
            });
            return;
        }
        let before = self.objects.get(reference);
        let generation = before.map_or(1, |live| live.count("/metadata/generation") + 1);
        let status = before.and_then(|live| live.get("/status").cloned());
        content["metadata"]["generation"] = generation.into();
        content["metadata"]["creationTimestamp"] = before
            .map_or_else(|| self.now.to_string(), |live| live.text("/metadata/creationTimestamp").to_owned())
            .into();
        if reference.kind == Kind::Service
            && content["spec"]["type"] == "NodePort"
            && content["spec"]["ports"][0]["nodePort"].is_null()
        {
            let port = if reference.name == "kube-apiserver" { 30443 } else { 30444 };
            content["spec"]["ports"][0]["nodePort"] = port.into();
        }
        if reference.kind == Kind::Service && content["spec"]["clusterIP"].is_null() {
            content["spec"]["clusterIP"] = "10.96.7.7".into();
        }
        if let Some(status) = status {
            content["status"] = status;
        }
        let uid = before.map_or_else(|| format!("uid-{version}"), |live| live.uid.clone());
        let live = Live { uid, resource_version: version, terminating: false, content };
        self.objects.insert(reference.clone(), live.into());
    }

    fn remove(&mut self, reference: &Reference, uid: &str) {
        match reference.kind {
            Kind::Namespace => {
                self.namespaces
                    .iter_mut()
                    .filter(|found| found.uid == uid)
                    .for_each(|found| found.terminating = true);
            }
            Kind::Pod => {
                self.pods.iter_mut().filter(|pod| pod.uid == uid).for_each(|pod| {
                    pod.terminating = true;
                    pod.ready = false;
                });
            }
            Kind::Secret if self.kubeconfig.as_ref().is_some_and(|secret| secret.uid == uid) => {
                self.kubeconfig = None
            }
            // It is protected while a pod has it.
            Kind::PersistentVolumeClaim
                if self.pods.iter().any(|pod| reference.name.ends_with(&pod.name)) =>
            {
                let version = self.next();
                if let Some(live) = self.objects.get_mut(reference).filter(|live| live.uid == uid) {
                    let live = Arc::make_mut(live);
                    (live.terminating, live.resource_version) = (true, version);
                }
            }
            _ => {
                if matches!(reference.kind, Kind::Deployment | Kind::StatefulSet) {
                    self.pods
                        .iter_mut()
                        .filter(|pod| pod.component == reference.name)
                        .for_each(|pod| pod.terminating = true);
                }
                self.objects.retain(|key, live| key != reference || live.uid != uid);
            }
        }
    }

    fn issue(&mut self, issue: &Issue) {
        let version = self.next();
        let mut secret =
            Secret { uid: format!("uid-{version}"), resource_version: version, ..Secret::default() };
        let renewed = issue.frame.content.pointer("/metadata/annotations/kaas.dev~1tunnel-renewed");
        secret.renewed = renewed.and_then(Value::as_str).map(str::to_owned);
        let annotation = issue.frame.content.pointer("/metadata/annotations/kaas.dev~1applied-hash");
        secret.applied_hash = annotation.and_then(Value::as_str).map(str::to_owned);
        match &issue.material {
            Material::Authorities => {}
            Material::Leaves { certificates, .. } => {
                secret.certificates = certificates
                    .iter()
                    .map(|request| (request.name.clone(), self.certificate(request)))
                    .collect();
            }
            Material::Kubeconfig { certificate, server, .. } => {
                secret.certificates = BTreeMap::from([("kubeconfig".into(), self.certificate(certificate))]);
                secret.kubeconfig_server = Some(server.clone());
                secret.owner_uid = Some(UID.into());
                self.kubeconfig = Some(secret);
                return;
            }
        }
        self.secrets.insert(issue.reference.name.clone(), secret);
    }

    fn certificate(&self, request: &CertificateRequest) -> Certificate {
        Certificate {
            common_name: request.common_name.clone(),
            organizations: request.organizations.iter().cloned().collect(),
            dns_names: request.dns_names.iter().cloned().collect(),
            ip_addresses: request.ip_addresses.iter().copied().collect::<BTreeSet<_>>(),
            not_before: self.now - kaas_lifecycle::key_material::BACKDATED,
            not_after: self.now + LEAF_LIFETIME,
            signed: true,
        }
    }

    /// A new status.
    pub(crate) fn put_status(&mut self, status: TenantClusterStatus) {
        self.cluster.status = Some(status);
        self.cluster.metadata.resource_version = Some(self.next());
        self.status_writes += 1;
    }

    /// One reconcile: passes of observing, planning and acting, then the report. Gives the plans that did something.
    pub(crate) fn reconcile(&mut self) -> Vec<Plan> {
        let mut done = Vec::new();
        // From five members to one is two passes a member, and a few before and after.
        for _ in 0..12 {
            if self.gone {
                return done;
            }
            let observed = self.observe();
            let plan = (self.planner)(&observed);
            assert_eq!(
                lint::check(&observed, &plan),
                [],
                "in {:?}",
                plan.waves.iter().flatten().map(told).collect::<Vec<_>>()
            );
            let again = !plan.is_empty() && !observed.deleting();
            for action in plan.waves.iter().chain(&plan.addons).flatten() {
                self.act(action).unwrap();
            }
            if !again {
                if !self.gone {
                    let status = report::derive(&observed, &plan, None);
                    if report::worth_writing(&observed, self.cluster.status.as_ref(), &status) {
                        self.put_status(status);
                    }
                }
                if !plan.is_empty() || !plan.addons.is_empty() {
                    done.push(plan);
                }
                return done;
            }
            done.push(plan);
        }
        panic!(
            "two writers undo each other: {:?}",
            done.iter()
                .map(|plan| plan.waves.iter().flatten().map(told).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        );
    }

    /// Reconciles and lets the world go on, a second a step, until nothing happens any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let before = (self.writes, self.status_writes, self.version);
            self.reconcile();
            self.controllers();
            self.now += SignedDuration::from_secs(1);
            if before == (self.writes, self.status_writes, self.version) || self.gone {
                return;
            }
        }
        panic!("does not settle: {:#?}", self.cluster.status);
    }

    pub(crate) fn summary(&self) -> &str {
        self.cluster.status.as_ref().map_or("", |status| status.summary.as_str())
    }

    /// Status and reason of a condition.
    pub(crate) fn condition(&self, kind: &str) -> (String, String) {
        let status = self.cluster.status.as_ref().unwrap();
        let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
        (found.status.clone(), found.reason.clone())
    }
}
