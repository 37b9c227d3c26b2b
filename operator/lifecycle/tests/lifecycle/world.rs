//! A tiny world for plans to act on: an API server that keeps versions and checks preconditions, controllers that
//! make pods, an etcd, a clock that only tests move.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::kubernetes_release::{EtcdRelease, Images};
use kaas_crds::{KubernetesReleaseSpec, TenantCluster, TenantClusterSpec, TenantClusterStatus};
use kaas_lifecycle::action::{Action, CertificateRequest, EtcdOrder, Issue, Material, Precondition};
use kaas_lifecycle::difference::digest;
use kaas_lifecycle::lint;
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::observed::{
    Answer, Certificate, Etcd, Live, Member, Namespace, Observed, Pod, Probe, Secret, Trouble,
};
use kaas_lifecycle::plan::{Plan, plan};
use kaas_lifecycle::report;
use kaas_lifecycle::tenant::{Platform, Tenant};
use serde_json::{Value, json};

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
    pub(crate) objects: BTreeMap<Reference, Live>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) kubeconfig: Option<Secret>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) etcd_id: u64,
    pub(crate) leader: u64,
    /// Members by ID, once etcd was founded.
    pub(crate) members: Vec<Member>,
    /// Whether the API answers through the endpoint when its pods are ready.
    pub(crate) reachable: bool,
    pub(crate) inside: BTreeMap<Reference, Live>,
    /// Writes so far.
    pub(crate) writes: u64,
    /// Status writes so far.
    pub(crate) status_writes: u64,
    /// What is on members' volumes: the volume, and the ID of the member that wrote it.
    pub(crate) data: BTreeMap<String, (String, u64)>,
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
        Action::Etcd(order) => format!("etcd {order:?}"),
    }
}

fn name(member: &Member) -> String {
    match member.name.as_str() {
        "" => member.peer_urls[0].trim_start_matches("https://").split('.').next().unwrap().to_owned(),
        name => name.to_owned(),
    }
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
            inside: BTreeMap::new(),
            writes: 0,
            status_writes: 0,
            data: BTreeMap::new(),
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
        Observed {
            now: self.now,
            platform: self.platform.clone(),
            tenant: self.tenant(),
            cluster: self.cluster.clone(),
            catalogue: self.catalogue.clone(),
            namespaces: self.namespaces.clone(),
            objects: self.objects.clone(),
            secrets: self.secrets.clone(),
            kubeconfig: self.kubeconfig.clone(),
            pods: self.pods.clone(),
            etcd: home.then(|| self.etcd()).flatten(),
            probe: home.then(|| self.probe()).flatten(),
            addresses: BTreeSet::from(["10.77.0.1".parse().unwrap()]),
            inside: self.serving().then(|| self.inside.clone()),
        }
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
        Some(Etcd { cluster_id: format!("{:x}", self.etcd_id), leader, members, alarms: vec![] })
    }

    fn ready(&self, component: &str) -> bool {
        self.pods.iter().any(|pod| pod.component == component && pod.ready)
    }

    fn serving(&self) -> bool {
        self.reachable && self.ready("etcd") && self.ready("kube-apiserver")
    }

    fn probe(&self) -> Option<Probe> {
        self.secrets.get("kube-apiserver")?;
        let answer = if self.serving() {
            Answer::Serving { version: "v1.37.1".into() }
        } else {
            Answer::Failed { since: self.now, message: "connection refused".into() }
        };
        Some(Probe { at: self.now, answer })
    }

    /// One action, as the API server would take it.
    pub(crate) fn act(&mut self, action: &Action) -> Result<(), Conflict> {
        match action {
            Action::AddFinalizer { resource_version } | Action::RemoveFinalizer { resource_version } => {
                if self.cluster.metadata.resource_version.as_ref() != Some(resource_version) {
                    return Err(Conflict("TenantCluster".into()));
                }
                let add = matches!(action, Action::AddFinalizer { .. });
                self.cluster.metadata.finalizers = add.then(|| vec![kaas_crds::name::FINALIZER.into()]);
                self.cluster.metadata.resource_version = Some(self.next());
                self.gone = !add;
            }
            Action::Apply { object, precondition } => self.apply(object, precondition)?,
            Action::Delete { reference, uid, .. } => self.remove(reference, uid),
            Action::Issue(issue) => self.issue(issue),
            Action::ApplyInside { object, .. } => {
                let live = Live {
                    uid: "in".into(),
                    resource_version: self.next(),
                    terminating: false,
                    content: object.content.clone(),
                };
                self.inside.insert(object.reference.clone(), live);
            }
            Action::Etcd(order) => self.order(order),
        }
        self.writes += 1;
        Ok(())
    }

    fn order(&mut self, order: &EtcdOrder) {
        match order {
            EtcdOrder::MoveLeader { to } => self.leader = *to,
            EtcdOrder::AddLearner { peer_url } => {
                assert!(
                    self.members.iter().all(|member| !member.learner),
                    "etcd takes one learner at a time"
                );
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
                assert!(!member.name.is_empty(), "a learner that never started is not in sync");
                member.learner = false;
            }
            EtcdOrder::Remove { id } => {
                assert_ne!(*id, self.leader, "the leadership moves away first");
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

    fn apply(&mut self, object: &Object, precondition: &Precondition) -> Result<(), Conflict> {
        let reference = &object.reference;
        let (version, mut content) = (self.next(), object.content.clone());
        if reference.kind == Kind::Namespace {
            if let Some(adopted) = self.namespaces.iter_mut().find(|found| found.name == reference.name) {
                adopted.tenant_uid =
                    content["metadata"]["labels"]["kaas.dev/tenant-uid"].as_str().unwrap().into();
                return Ok(());
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
            return Ok(());
        }
        assert!(!self.namespaces.is_empty(), "{reference} before its namespace");
        let before = self.objects.get(reference);
        match (precondition, before) {
            (Precondition::Version(seen), Some(live)) if *seen != live.resource_version => {
                return Err(Conflict(reference.to_string()));
            }
            (Precondition::Version(_), None) => return Err(Conflict(reference.to_string())),
            _ => {}
        }
        let generation = before.map_or(1, |live| live.count("/metadata/generation") + 1);
        let status = before.and_then(|live| live.get("/status").cloned());
        content["metadata"]["generation"] = generation.into();
        if reference.kind == Kind::Service
            && content["spec"]["type"] == "NodePort"
            && content["spec"]["ports"][0]["nodePort"].is_null()
        {
            content["spec"]["ports"][0]["nodePort"] = 30443.into();
        }
        if reference.kind == Kind::Service && content["spec"]["clusterIP"].is_null() {
            content["spec"]["clusterIP"] = "10.96.7.7".into();
        }
        if let Some(status) = status {
            content["status"] = status;
        }
        let uid = before.map_or_else(|| format!("uid-{version}"), |live| live.uid.clone());
        self.objects
            .insert(reference.clone(), Live { uid, resource_version: version, terminating: false, content });
        Ok(())
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
            _ => {
                self.objects.retain(|key, live| key != reference || live.uid != uid);
            }
        }
    }

    fn issue(&mut self, issue: &Issue) {
        let version = self.next();
        let mut secret =
            Secret { uid: format!("uid-{version}"), resource_version: version, ..Secret::default() };
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

    /// Lets the workload controllers, the kubelets and the namespace controller go on by one step.
    pub(crate) fn controllers(&mut self) {
        let before = self.pods.clone();
        self.step();
        if self.pods != before {
            self.next();
        }
    }

    fn step(&mut self) {
        let starting: Vec<usize> =
            (0..self.pods.len()).filter(|at| !self.pods[*at].ready && !self.pods[*at].terminating).collect();
        for at in starting {
            if self.pods[at].component == "etcd" {
                self.start_member(at);
            } else if self.pods[at].trouble.is_none() {
                self.pods[at].ready = true;
            }
        }
        self.pods.retain(|pod| !pod.terminating);
        self.elect();
        if self.namespaces.first().is_some_and(|namespace| namespace.terminating) {
            if self.pods.is_empty() {
                self.namespaces.clear();
                self.objects.clear();
                self.secrets.clear();
            }
            return;
        }
        let workloads: Vec<Reference> = self
            .objects
            .keys()
            .filter(|reference| matches!(reference.kind, Kind::StatefulSet | Kind::Deployment))
            .cloned()
            .collect();
        for reference in workloads {
            self.workload(&reference);
        }
    }

    /// Without a leader, a quorum gives itself another.
    fn elect(&mut self) {
        let Some(etcd) = self.etcd().filter(|etcd| etcd.leader == 0) else { return };
        let voters: Vec<&Member> = etcd.members.iter().filter(|member| !member.learner).collect();
        let up: Vec<u64> = voters.iter().filter(|member| member.healthy).map(|member| member.id).collect();
        if up.len() > voters.len() / 2 {
            self.leader = up[0];
            self.version += 1;
        }
    }

    /// A member's process starts: it founds the cluster, comes back to its data, joins as a learner, or cannot.
    fn start_member(&mut self, at: usize) {
        let pod = self.pods[at].clone();
        let home = self.tenant().control_plane_namespace();
        let exists =
            self.objects.contains_key(&Reference::namespaced(Kind::ConfigMap, &home, "etcd-identity"));
        let volume = self.volume(&pod);
        let data = self.data.get(&pod.name).is_some_and(|(on, _)| *on == volume);
        let member = self.members.iter().position(|member| name(member) == pod.name);
        let works = match member {
            // Its data says who it is; an ID that is no longer a member's is turned away.
            Some(at) if data => self.data[&pod.name].1 == self.members[at].id,
            // Somebody who was added and never started.
            Some(at) if self.members[at].name.is_empty() => {
                self.members[at].name = pod.name.clone();
                self.data.insert(pod.name.clone(), (volume, self.members[at].id));
                true
            }
            // A member without its data: "has already been bootstrapped".
            Some(_) => false,
            None if !exists && !data => {
                let id = self.members.len() as u64 + 1;
                self.members.push(Member { id, name: pod.name.clone(), ..Member::default() });
                self.data.insert(pod.name.clone(), (volume, id));
                true
            }
            None => false,
        };
        let stuck = pod.trouble.as_ref().is_some_and(|trouble| trouble.reason != "CrashLoopBackOff");
        let pod = &mut self.pods[at];
        if works && !stuck {
            pod.trouble = None;
            // A learner's readiness fails until it votes; this world calls a member up when its process is.
            pod.ready = true;
        } else if !stuck {
            pod.trouble = Some(Trouble { reason: "CrashLoopBackOff".into(), message: String::new() });
        }
    }

    /// What a member's data is on: its claim, or its pod.
    fn volume(&self, pod: &Pod) -> String {
        let home = self.tenant().control_plane_namespace();
        let claim = Reference::namespaced(Kind::PersistentVolumeClaim, home, format!("data-{}", pod.name));
        self.objects.get(&claim).map_or_else(|| pod.uid.clone(), |claim| claim.uid.clone())
    }

    fn workload(&mut self, reference: &Reference) {
        let live = self.objects[reference].clone();
        let hash = digest(live.get("/spec/template").unwrap());
        let wanted = usize::try_from(live.count("/spec/replicas")).unwrap();
        let component = reference.name.clone();
        let set = reference.kind == Kind::StatefulSet;
        if set {
            for index in 0..wanted {
                let name = format!("{component}-{index}");
                self.claim(&live, &name);
                if !self.pods.iter().any(|pod| pod.name == name) {
                    self.start(name, &component, &hash);
                }
            }
            let surplus =
                |pod: &Pod| pod.name.rsplit('-').next().unwrap().parse::<usize>().unwrap() >= wanted;
            let gone: Vec<String> = self
                .pods
                .iter()
                .filter(|pod| pod.component == component && surplus(pod))
                .map(|pod| pod.name.clone())
                .collect();
            self.pods.retain(|pod| !gone.contains(&pod.name));
            self.objects.retain(|key, _| !gone.iter().any(|name| key.name == format!("data-{name}")));
        } else {
            // Surge one, and let an old one go when a new one is ready.
            let (new, old): (Vec<&Pod>, Vec<&Pod>) = self
                .pods
                .iter()
                .filter(|pod| pod.component == component)
                .partition(|pod| pod.template_hash == hash);
            let (fresh, ready) = (new.len(), new.iter().filter(|pod| pod.ready).count());
            let leaving = old.iter().find(|pod| !pod.terminating).map(|pod| pod.uid.clone());
            let surplus = new.get(wanted).map(|pod| pod.uid.clone());
            if fresh < wanted && fresh + old.len() <= wanted {
                let name = format!("{component}-{}", self.next());
                self.start(name, &component, &hash);
            }
            for uid in leaving.filter(|_| ready > 0).into_iter().chain(surplus) {
                self.pods.iter_mut().filter(|pod| pod.uid == uid).for_each(|pod| {
                    pod.terminating = true;
                    pod.ready = false;
                });
            }
        }
        let pods: Vec<&Pod> =
            self.pods.iter().filter(|pod| pod.component == component && !pod.terminating).collect();
        let updated = pods.iter().filter(|pod| pod.template_hash == hash).count();
        let status = json!({
            "observedGeneration": live.count("/metadata/generation"),
            "replicas": pods.len(),
            "updatedReplicas": updated,
            "updateRevision": hash,
        });
        if live.get("/status") != Some(&status) {
            let version = self.next();
            let live = self.objects.get_mut(reference).unwrap();
            live.content["status"] = status;
            live.resource_version = version;
        }
    }

    fn claim(&mut self, set: &Live, pod: &str) {
        let home = self.tenant().control_plane_namespace();
        let claim = Reference::namespaced(Kind::PersistentVolumeClaim, home, format!("data-{pod}"));
        if set.get("/spec/volumeClaimTemplates").is_some() && !self.objects.contains_key(&claim) {
            let version = self.next();
            let live = Live {
                uid: format!("volume-{version}"),
                resource_version: version,
                terminating: false,
                content: json!({"metadata": {"creationTimestamp": self.now.to_string()}}),
            };
            self.objects.insert(claim, live);
        }
    }

    fn start(&mut self, name: String, component: &str, hash: &str) {
        let uid = format!("pod-{}", self.next());
        self.pods.push(Pod {
            name,
            uid,
            component: component.into(),
            template_hash: hash.into(),
            created: self.now,
            placed: true,
            ready: false,
            terminating: false,
            grace: 0,
            trouble: None,
        });
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
            let plan = plan(&observed);
            assert_eq!(
                lint::check(&observed, &plan),
                [],
                "in {:?}",
                plan.waves.iter().flatten().map(told).collect::<Vec<_>>()
            );
            let again = !plan.is_empty() && !observed.deleting();
            for action in plan.waves.iter().flatten() {
                self.act(action).unwrap();
            }
            if !again {
                if !self.gone {
                    let status = report::derive(&observed, &plan, None);
                    if report::worth_writing(&observed, self.cluster.status.as_ref(), &status) {
                        self.put_status(status);
                    }
                }
                if !plan.is_empty() {
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
