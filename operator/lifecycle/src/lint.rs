//! The linter over plans: from facts and a plan to the invariants that the plan would break. It decides nothing about
//! what should be done, only what must not be, and it does not ask the planner: its rules stand on the facts alone,
//! so that a mistake there is caught here. A plan with a breach is not executed, no part of it.
//!
//! Facts that are absent permit nothing: an action on what was not seen is refused.

use std::collections::BTreeMap;
use std::fmt;

use kaas_crds::condition::Reason;
use kaas_crds::name::{self, component};
use serde_json::Value;

use self::quorum::Members;
use crate::action::{Action, Disruption, EtcdOrder, Issue, Material, Precondition};
use crate::addons;
use crate::desired;
use crate::etcd::{self, CLUSTER_ID_KEY, Health, Places, series_of};
use crate::key_material::{self, AUTHORITY_SECRET};
use crate::object::{Kind, Object, Reference};
use crate::observed::{Live, Namespace, Observed, Pod};
use crate::plan::{self, Plan};
use crate::report::Failure;
use crate::upgrade::canary;

mod quorum;

/// What must hold of every plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// After the plan a quorum of etcd's voters is healthy and has its data; no healthy member goes while another is
    /// not well.
    Quorum,
    /// No member gets an etcd that does not start on its data.
    EtcdVersion,
    /// One pod of a component at a time, and no workload as a whole.
    Budget,
    /// At most one action that cannot be taken back.
    Irreversible,
    /// Only what belongs to this tenant is touched, and every document says what its reference says.
    Ownership,
    /// Nothing is put where it would go away at once, or where there is no namespace.
    Home,
    /// Authorities are made once, before anything else is made with them.
    Authority,
    /// A control-plane namespace is made once, and goes only with its TenantCluster.
    Namespace,
    /// The finalizer stays until the namespace is gone.
    Finalizer,
    /// Every write is guarded by what was seen.
    Precondition,
    /// Data that is not the data that was is not touched, and whose data it was is not forgotten.
    DataLost,
    /// Nothing is made for a TenantCluster that is being deleted.
    Deletion,
    /// Nothing is changed while the spec says so.
    Paused,
    /// No more workers are made than were asked for, each of a name of its own.
    Count,
    /// Workers go by a choice that was stored before, from a list that does not lag.
    Choice,
    /// A machine goes after its pods, a node after its machine, and only those of a worker that goes.
    Drain,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An invariant that a plan would break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which one.
    pub invariant: Invariant,
    /// By which action.
    pub action: String,
    /// Because of which fact. It says nothing that changes from try to try.
    pub fact: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.invariant, self.action, self.fact)
    }
}

/// The invariants that the plan would break; none for a plan that may be executed.
pub fn check(observed: &Observed, plan: &Plan) -> Vec<Breach> {
    let mut lint = Lint {
        observed,
        home: home(observed),
        members: Members::of(observed),
        namespace_made: false,
        pods_deleted: BTreeMap::new(),
        irreversible: 0,
        action: String::new(),
        breaches: Vec::new(),
    };
    for action in plan.waves.iter().chain(&plan.addons).flatten() {
        lint.action = tell(action);
        lint.inspect(action);
    }
    lint.breaches
}

/// How a plan with breaches is reported; `None` for one without.
pub fn refusal(breaches: &[Breach]) -> Option<Failure> {
    let first = breaches.first()?;
    let more = match breaches.len() {
        1 => String::new(),
        all => format!(" (and {} more)", all.saturating_sub(1)),
    };
    Some(Failure {
        reason: Reason::PlanRefused,
        message: format!("nothing was done, because the plan would break an invariant: {first}{more}"),
        transient: false,
    })
}

/// An action in a few words that are the same for the same action.
fn tell(action: &Action) -> String {
    match action {
        Action::AddFinalizer { .. } => "add the finalizer".into(),
        Action::RemoveFinalizer { .. } => "remove the finalizer".into(),
        Action::Apply { object, .. } => format!("apply {}", object.reference),
        Action::Delete { reference, .. } => format!("delete {reference}"),
        Action::Issue(issue) => format!("issue {}", issue.reference),
        Action::ApplyInside { object, .. } => format!("apply {} inside the tenant", object.reference),
        Action::DeleteInside { reference, .. } => format!("delete {reference} inside the tenant"),
        Action::Etcd(EtcdOrder::MoveLeader { to }) => format!("move etcd's leadership to {to:x}"),
        Action::Etcd(EtcdOrder::AddLearner { peer_url }) => format!("add etcd learner {peer_url}"),
        Action::Etcd(EtcdOrder::Promote { id }) => format!("promote etcd learner {id:x}"),
        Action::Etcd(EtcdOrder::Remove { id }) => format!("remove etcd member {id:x}"),
        Action::Etcd(EtcdOrder::EnableDowngrade { version }) => {
            format!("lower the format of etcd's data to that of {version}")
        }
        Action::Etcd(EtcdOrder::CancelDowngrade) => "raise the format of etcd's data again".into(),
    }
}

/// The way through one plan: what the actions so far would have led to, and what was found.
struct Lint<'a> {
    observed: &'a Observed,
    home: String,
    members: Members,
    namespace_made: bool,
    pods_deleted: BTreeMap<&'a str, u32>,
    irreversible: u32,
    action: String,
    breaches: Vec<Breach>,
}

impl<'a> Lint<'a> {
    fn breach(&mut self, invariant: Invariant, fact: impl Into<String>) {
        self.breaches.push(Breach { invariant, action: self.action.clone(), fact: fact.into() });
    }

    fn require(&mut self, holds: bool, invariant: Invariant, fact: &str) {
        if !holds {
            self.breach(invariant, fact);
        }
    }

    /// Whether the namespace ends: what is deleted in it would go anyway.
    fn ending(&self) -> bool {
        self.observed.own_namespace().is_some_and(|namespace| namespace.terminating)
    }

    fn inspect(&mut self, action: &Action) {
        self.moment(action);
        let decided = matches!(action, Action::Delete { reference, .. }
            if self.ending() && reference.namespace.as_deref() == Some(&self.home));
        if action.disruption() == Disruption::Irreversible && !decided {
            self.irreversible = self.irreversible.saturating_add(1);
            self.require(
                self.irreversible == 1,
                Invariant::Irreversible,
                "it is not the only one in the plan",
            );
        }
        let metadata = &self.observed.cluster.metadata;
        match action {
            Action::AddFinalizer { resource_version } => {
                self.version(metadata.resource_version.as_deref(), resource_version);
            }
            Action::RemoveFinalizer { resource_version } => {
                self.version(metadata.resource_version.as_deref(), resource_version);
                let gone = !self.observed.namespaces.iter().any(|namespace| namespace.name == self.home)
                    && self.observed.own_namespace().is_none();
                self.require(
                    self.observed.deleting(),
                    Invariant::Finalizer,
                    "the TenantCluster is not being deleted",
                );
                self.require(gone, Invariant::Finalizer, "the control-plane namespace exists");
                let alone = self.observed.workers.as_ref().is_some_and(|workers| workers.left == 0);
                self.require(alone, Invariant::Finalizer, "its workers are not known to be gone");
            }
            Action::Apply { object, precondition } => self.apply(object, precondition),
            Action::Delete { reference, uid, .. } => self.delete(reference, uid),
            Action::Issue(issue) => self.issue(issue),
            Action::ApplyInside { object, precondition } => self.apply_inside(object, precondition),
            Action::DeleteInside { reference, uid } => self.delete_inside(reference, uid),
            Action::Etcd(order) => {
                if let Err(fact) = self.members.order(order) {
                    self.breach(Invariant::Quorum, fact);
                }
            }
        }
    }

    /// Whether it is a moment for this action at all.
    fn moment(&mut self, action: &Action) {
        let takes_away = matches!(action, Action::Delete { .. } | Action::RemoveFinalizer { .. });
        if self.observed.deleting() {
            self.require(takes_away, Invariant::Deletion, "the TenantCluster is being deleted");
            return;
        }
        self.require(!self.observed.cluster.spec.paused, Invariant::Paused, "spec.paused is true");
        // The pattern does not depend on what the variant carries.
        let other_data = matches!(etcd::health(self.observed), Health::DataLost { .. });
        self.require(!other_data, Invariant::DataLost, "etcd's data is not the data that was there before");
        let ran = self.observed.cluster.status.as_ref().is_some_and(|status| status.version.is_some());
        let lost = ran && self.observed.own_namespace().is_none();
        self.require(!lost, Invariant::DataLost, "the control-plane namespace is gone, and the data with it");
    }

    fn apply(&mut self, object: &Object, precondition: &Precondition) {
        let reference = &object.reference;
        self.consistent(object);
        if reference.kind == Kind::Namespace {
            return self.apply_namespace(reference, precondition);
        }
        let ours = matches!(
            reference.kind,
            Kind::ConfigMap
                | Kind::Service
                | Kind::StatefulSet
                | Kind::Deployment
                | Kind::ControllerRevision
                | Kind::NetworkPolicy
                | Kind::PodDisruptionBudget
        );
        self.require(ours, Invariant::Ownership, "objects of this kind are not applied");
        self.at_home(reference);
        self.labelled(object);
        let live = self.observed.objects.get(reference);
        self.guarded(live.map(|live| live.resource_version.as_str()), precondition);
        if let Some(was) = live.and_then(cluster_id)
            && object.content.pointer("/data").and_then(|data| data.get(CLUSTER_ID_KEY)?.as_str())
                != Some(was)
        {
            self.breach(Invariant::DataLost, "it would forget whose data it was");
        }
        if reference.kind == Kind::StatefulSet && reference.name == component::ETCD {
            let before = live.map(|live| Places::of(&live.content));
            if let Err(fact) = self.members.scale(before, Places::of(&object.content)) {
                self.breach(Invariant::Quorum, fact);
            }
            let series = (live.and_then(|live| series_of(&live.content)), series_of(&object.content));
            if let (Some(before), Some(after)) = series
                && let Err(fact) = self.members.change(before, after)
            {
                self.breach(Invariant::EtcdVersion, fact);
            }
        }
    }

    /// Made, or taken over because the platform said so.
    fn apply_namespace(&mut self, reference: &Reference, precondition: &Precondition) {
        self.require(reference.namespace.is_none(), Invariant::Ownership, "a namespace is in no namespace");
        self.require(!self.namespace_made, Invariant::Namespace, "it is made twice");
        self.namespace_made = true;
        if let Some(own) = self.observed.own_namespace() {
            return self
                .breach(Invariant::Namespace, format!("namespace {} is the control plane's", own.name));
        }
        let uid = self.observed.tenant.uid.as_str();
        let found = self.observed.namespaces.iter().find(|other| other.name == reference.name);
        self.guarded(found.map(|found| found.resource_version.as_str()), precondition);
        match found {
            Some(earlier) => {
                let permitted = earlier.adopt_by.as_deref() == Some(uid);
                self.require(
                    permitted,
                    Invariant::Ownership,
                    "the platform does not say that it is this tenant's",
                );
                self.require(!earlier.terminating, Invariant::Home, "it is terminating");
            }
            None => {
                let native = reference.name == name::control_plane_namespace(uid);
                self.require(native, Invariant::Ownership, "it is not this tenant's control-plane namespace");
                if let Some(rival) = self.observed.namespaces.iter().find(|other| !other.terminating) {
                    self.breach(
                        Invariant::Namespace,
                        format!("namespace {} holds an earlier one's", rival.name),
                    );
                }
            }
        }
    }

    fn issue(&mut self, issue: &Issue) {
        let reference = &issue.reference;
        let same = issue.frame.reference == *reference && reference.kind == Kind::Secret;
        self.require(same, Invariant::Ownership, "its document is of another object");
        self.consistent(&issue.frame);
        let authorities = matches!(issue.material, Material::Authorities);
        if matches!(issue.material, Material::Kubeconfig { .. }) {
            self.require(
                *reference == self.kubeconfig(),
                Invariant::Ownership,
                "it is not the tenant's kubeconfig",
            );
            let foreign = key_material::kubeconfig_foreign(self.observed);
            self.require(
                !foreign,
                Invariant::Ownership,
                "the Secret of that name is not of this TenantCluster",
            );
            let owner =
                issue.frame.content.pointer("/metadata/ownerReferences/0/uid").and_then(Value::as_str);
            let owned = owner == Some(self.observed.tenant.uid.as_str());
            self.require(owned, Invariant::Ownership, "the TenantCluster would not own it");
            let live = self.observed.kubeconfig.as_ref();
            self.guarded(live.map(|live| live.resource_version.as_str()), &issue.precondition);
            return;
        }
        self.at_home(reference);
        self.labelled(&issue.frame);
        let live = self.observed.secrets.get(&reference.name);
        self.guarded(live.map(|live| live.resource_version.as_str()), &issue.precondition);
        let named = authorities == (reference.name == AUTHORITY_SECRET);
        self.require(named, Invariant::Authority, "authorities and leaves are not in one Secret");
        if authorities && let Some(fact) = made_with_authorities(self.observed) {
            self.breach(Invariant::Authority, fact);
        }
    }

    fn apply_inside(&mut self, object: &Object, precondition: &Precondition) {
        self.consistent(object);
        let reference = &object.reference;
        let seen = if plan::inside_references().contains(reference) {
            self.observed.inside.as_ref()
        } else if desired::addon_references().contains(reference) {
            self.addons(reference)
        } else {
            return self.breach(Invariant::Ownership, "it is not an object that is kept inside tenants");
        };
        let Some(seen) = seen else {
            return self.breach(Invariant::Precondition, "the tenant's API was not read");
        };
        self.guarded(seen.get(reference).map(|live| live.resource_version.as_str()), precondition);
    }

    fn delete_inside(&mut self, reference: &Reference, uid: &str) {
        let off = desired::unwanted_addons(&self.observed.cluster.spec.addons).contains(reference);
        self.require(off, Invariant::Ownership, "it is not switched off");
        let live = self.addons(reference).and_then(|seen| seen.get(reference));
        let ours = live.is_some_and(desired::ours);
        self.require(ours, Invariant::Ownership, "the operator has not put it there");
        self.exactly(live.map(|live| live.uid.as_str()), uid);
    }

    /// Where an addon's object was looked for.
    fn addons(&self, reference: &Reference) -> Option<&'a BTreeMap<Reference, Live>> {
        let found = self.observed.addons.as_ref()?;
        if addons::WORKLOADS.contains(&reference.kind) {
            Some(&found.workloads)
        } else {
            found.others.as_ref()
        }
    }

    fn delete(&mut self, reference: &Reference, uid: &str) {
        let observed = self.observed;
        let deleting = observed.deleting();
        match reference.kind {
            Kind::Namespace => {
                let own = observed.own_namespace().filter(|own| own.name == reference.name);
                let mine = reference.name == self.home && reference.namespace.is_none();
                self.require(mine, Invariant::Ownership, "it is not this tenant's control-plane namespace");
                self.require(deleting, Invariant::Namespace, "the TenantCluster is not being deleted");
                self.exactly(own.map(|own| own.uid.as_str()), uid);
            }
            Kind::Secret => {
                let mine = *reference == self.kubeconfig() && !key_material::kubeconfig_foreign(observed);
                self.require(mine, Invariant::Ownership, "only the tenant's own kubeconfig is ever deleted");
                self.require(deleting, Invariant::Deletion, "the TenantCluster is not being deleted");
                self.exactly(observed.kubeconfig.as_ref().map(|live| live.uid.as_str()), uid);
            }
            Kind::Pod => {
                self.in_home(reference);
                let pod = observed.pods.iter().find(|pod| pod.name == reference.name);
                self.exactly(pod.map(|pod| pod.uid.as_str()), uid);
                if let Some(pod) = pod.filter(|_| !deleting) {
                    self.delete_pod(pod);
                }
            }
            Kind::StatefulSet | Kind::Deployment => {
                self.in_home(reference);
                let passing = [canary::reference(observed), etcd::snapshot::reference(observed)];
                let passes = passing.contains(reference);
                self.require(passes, Invariant::Budget, "all of its pods would go at once");
                if passes {
                    self.exactly(observed.objects.get(reference).map(|live| live.uid.as_str()), uid);
                }
            }
            _ => {
                self.in_home(reference);
                let live = observed.objects.get(reference);
                self.exactly(live.map(|live| live.uid.as_str()), uid);
                let remembers = live.and_then(cluster_id).is_some();
                self.require(!remembers, Invariant::DataLost, "it would forget whose data it was");
                if reference.kind == Kind::PersistentVolumeClaim
                    && !self.ending()
                    && let Err(fact) = self.members.delete_volume(&reference.name)
                {
                    self.breach(Invariant::Quorum, fact);
                }
            }
        }
    }

    /// A pod outside of the tenant's deletion.
    fn delete_pod(&mut self, pod: &'a Pod) {
        let others = self.observed.pods_of(&pod.component).filter(|other| other.uid != pod.uid);
        let away: Vec<&str> = others
            .filter(|other| other.terminating || !other.ready)
            .map(|other| other.name.as_str())
            .collect();
        // One that serves nobody takes nothing away; the pod of who is no member any more neither.
        let serves = pod.ready && !pod.terminating;
        let serves = serves && (pod.component != component::ETCD || self.members.votes(&pod.name));
        if let (true, Some(other)) = (serves, away.first()) {
            self.breach(Invariant::Budget, format!("{other} is away already"));
        }
        let deleted = self.pods_deleted.entry(&pod.component).or_default();
        *deleted = deleted.saturating_add(1);
        let alone = *deleted == 1;
        self.require(alone, Invariant::Budget, "another pod of the component is deleted too");
        let starts = self.members.starts(&pod.name);
        if pod.component == component::ETCD
            && let Err(fact) = self.members.restart(&pod.name)
        {
            self.breach(Invariant::Quorum, fact);
        }
        if pod.component == component::ETCD
            && let Err(fact) = starts
        {
            self.breach(Invariant::EtcdVersion, fact);
        }
    }

    /// An object that is put into the control-plane namespace.
    fn at_home(&mut self, reference: &Reference) {
        self.in_home(reference);
        match self.observed.own_namespace() {
            Some(own) if own.terminating => {
                self.breach(Invariant::Home, "the control-plane namespace is terminating")
            }
            Some(_) => {}
            None => self.require(self.namespace_made, Invariant::Home, "there is no control-plane namespace"),
        }
    }

    fn in_home(&mut self, reference: &Reference) {
        let inside = reference.namespace.as_deref() == Some(self.home.as_str());
        self.require(inside, Invariant::Ownership, "it is not in this tenant's control-plane namespace");
    }

    /// The document names the object that the reference names: requests go by the one, API servers by the other.
    fn consistent(&mut self, object: &Object) {
        let reference = &object.reference;
        let text = |pointer: &str| object.content.pointer(pointer).and_then(Value::as_str);
        let same = text("/kind") == Some(reference.kind.to_string().as_str())
            && text("/apiVersion") == Some(reference.kind.api_version().as_str())
            && text("/metadata/name") == Some(reference.name.as_str())
            && text("/metadata/namespace") == reference.namespace.as_deref();
        self.require(same, Invariant::Ownership, "its document names another object");
    }

    /// A revision that was stored before a take-over still names the earlier tenant.
    fn labelled(&mut self, object: &Object) {
        let labels = object.content.pointer("/metadata/labels");
        let uid = labels.and_then(|labels| labels.get(name::TENANT_UID_LABEL)?.as_str());
        let ours = uid.is_some_and(|uid| {
            uid == self.observed.tenant.uid || name::control_plane_namespace(uid) == self.home
        });
        self.require(ours, Invariant::Ownership, "its label does not name this tenant");
    }

    fn kubeconfig(&self) -> Reference {
        let tenant = &self.observed.tenant;
        Reference::namespaced(Kind::Secret, &tenant.namespace, name::kubeconfig_secret(&tenant.name))
    }

    /// A write under a precondition that fits what was seen.
    fn guarded(&mut self, seen: Option<&str>, precondition: &Precondition) {
        match (seen, precondition) {
            (None, Precondition::Absent) => {}
            (Some(_), Precondition::Absent) => self.breach(Invariant::Precondition, "the object exists"),
            (seen, Precondition::Version(version)) => self.version(seen, version),
        }
    }

    fn version(&mut self, seen: Option<&str>, version: &str) {
        let same = seen == Some(version) && !version.is_empty();
        self.require(same, Invariant::Precondition, "it is not guarded by the resourceVersion that was seen");
    }

    fn exactly(&mut self, seen: Option<&str>, uid: &str) {
        let same = seen == Some(uid) && !uid.is_empty();
        self.require(same, Invariant::Precondition, "it is not guarded by the UID that was seen");
    }
}

/// The control-plane namespace: the one that the UID gives, or an earlier one that the platform gave to this UID.
fn home(observed: &Observed) -> String {
    let uid = observed.tenant.uid.as_str();
    let native = name::control_plane_namespace(uid);
    let given =
        |namespace: &&Namespace| namespace.tenant_uid == uid && namespace.adopt_by.as_deref() == Some(uid);
    let home = observed.namespaces.iter().find(|namespace| namespace.name == native);
    home.or_else(|| observed.namespaces.iter().find(given)).map_or(native, |namespace| namespace.name.clone())
}

/// The cluster ID that a ConfigMap remembers.
fn cluster_id(live: &Live) -> Option<&str> {
    live.get("/data")?.get(CLUSTER_ID_KEY)?.as_str().filter(|id| !id.is_empty())
}

/// What shows that there were authorities before: with new ones it would all be a stranger's.
fn made_with_authorities(observed: &Observed) -> Option<String> {
    if let Some(name) = observed.secrets.keys().next() {
        return Some(format!("Secret {name} exists"));
    }
    if observed.kubeconfig.is_some() && !key_material::kubeconfig_foreign(observed) {
        return Some("the kubeconfig was made with them".into());
    }
    let workload = |reference: &&Reference| matches!(reference.kind, Kind::StatefulSet | Kind::Deployment);
    if let Some(workload) = observed.objects.keys().find(workload) {
        return Some(format!("{workload} exists"));
    }
    observed.pods.first().map(|pod| format!("Pod {} exists", pod.name))
}
