//! The plan: from facts to the next guarded steps.
//!
//! Planning on a world that is already right yields no action. A plan reaches as far as the facts do; what depends
//! on an answer of the API server (an assigned port, a pod that became ready) is planned when that answer is a fact.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::name::{self, component};
use serde_json::{Value, json};

use crate::action::{Action, Precondition};
use crate::addons::{self, Outline};
use crate::basis::{Basis, basis};
use crate::desired::{self, Inputs};
use crate::difference::{covers, stamp};
use crate::endpoint;
use crate::etcd::{self, Health, Step};
use crate::key_material;
use crate::object::{Kind, Object, Reference};
use crate::observed::{Live, Observed, Pod};
use crate::revision::{self, Choice};
use crate::rollout;
use crate::upgrade::canary;
use crate::upgrade::preflight;
use crate::upgrade::step::Progress;
use crate::validated::{Problem, validate};

/// What to do, in waves: everything of a wave may run at once, the next begins when it succeeded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Actions in order of dependency.
    pub waves: Vec<Vec<Action>>,
    /// What is applied and taken away inside the tenant for its workers, after everything else: what fails there, by a
    /// webhook of the tenant's own for example, holds up nothing.
    pub addons: Vec<Vec<Action>>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// What would be rendered now, if it differs from what is applied and nobody asked for it.
    pub pending: Option<kaas_crds::status::Pending>,
    /// Where a change of the version stands.
    pub upgrade: Option<Progress>,
    /// Where a change of etcd's minor version stands.
    pub etcd: Option<Progress>,
    /// When to look again although nothing happened.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to do, but for addons.
    pub fn is_empty(&self) -> bool {
        self.waves.iter().all(Vec::is_empty)
    }
}

/// Looks again so often although nothing happened: drift that no watch showed.
const RESYNC: SignedDuration = SignedDuration::from_mins(10);
/// Looks again so soon while a member joins: nothing tells that a learner has caught up.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(1);
/// Looks again so soon while pods start or go.
const SOON: SignedDuration = SignedDuration::from_secs(5);

/// Plans the next steps for one tenant cluster.
pub fn plan(observed: &Observed) -> Plan {
    if observed.deleting() {
        return plan_deletion(observed);
    }
    let mut plan = Plan { problems: validate(observed), wake_at: wake(observed, RESYNC), ..Plan::default() };
    if observed.cluster.spec.paused || plan.problems.iter().any(Problem::blocks_everything) {
        return plan;
    }
    let Basis { inputs, choice, step } = basis(observed);
    let Some(choice) = choice else { return plan };
    plan.pending = choice.pending.clone();
    plan.problems.extend(step.problem.clone());
    plan.upgrade = step.progress.clone();
    plan.etcd = revision::members(&choice.revision).and_then(|wanted| etcd::progress(observed, wanted));
    if observed.adoptable().is_some() {
        // What is in it is not known before it is ours.
        plan.waves = vec![finalizer(observed), foundation(observed)];
        plan.waves.retain(|wave| !wave.is_empty());
        return plan;
    }
    plan.waves = vec![
        finalizer(observed),
        foundation(observed),
        base(observed, inputs.as_ref(), &choice),
        leaves(observed),
        workloads(observed, &choice),
        inside(observed, inputs.as_ref()),
    ];
    plan.waves.push(canary_actions(observed, step.canary));
    plan.waves.push(snapshot_actions(observed, inputs.as_ref()));
    plan.waves.push(surplus(observed, inputs.as_ref()));
    plan.waves.retain(|wave| !wave.is_empty());
    if let Some(inputs) = &inputs {
        plan.addons = addons::plan(observed, inputs, &choice.revision);
    }
    if etcd::next_step(observed).is_some() {
        plan.wake_at = wake(observed, AT_ONCE);
    } else if !plan.is_empty() || rollout::unsettled(observed) {
        plan.wake_at = wake(observed, SOON);
    }
    for progress in plan.upgrade.iter().chain(&plan.etcd) {
        let next = wake(observed, SOON);
        plan.wake_at = plan.wake_at.min(progress.until.map_or(next, |until| next.min(Some(until))));
    }
    plan
}

/// The canary that is wanted, and not the one of before.
fn canary_actions(observed: &Observed, wanted: Option<Object>) -> Vec<Action> {
    let live = canary::live(observed);
    let same =
        |object: &Object, live: &Live| canary::rendering(&object.content) == canary::rendering(&live.content);
    match (wanted, live) {
        (Some(object), live) if live.is_none_or(|live| same(&object, live)) => {
            apply(observed, object).into_iter().collect()
        }
        (_, Some(live)) if !live.terminating => vec![delete(canary::reference(observed), &live.uid, None)],
        _ => Vec::new(),
    }
}

/// What takes a snapshot, as long as one is due.
fn snapshot_actions(observed: &Observed, inputs: Option<&Inputs<'_>>) -> Vec<Action> {
    let due = inputs.filter(|inputs| inputs.snapshot);
    match (due.and_then(|inputs| etcd::snapshot::object(observed, inputs)), etcd::snapshot::live(observed)) {
        (Some(object), _) => apply(observed, object).into_iter().collect(),
        (None, Some(live)) if !live.terminating => {
            vec![delete(etcd::snapshot::reference(observed), &live.uid, None)]
        }
        (None, _) => Vec::new(),
    }
}

/// What is to be inside the tenant for its workers, in short; `None` when nothing is, or not now.
pub fn addon_outline(observed: &Observed) -> Option<Outline> {
    if validate(observed).iter().any(Problem::blocks_everything) {
        return None;
    }
    let Basis { inputs, choice, .. } = basis(observed);
    addons::outline(observed, &inputs?, &choice?.revision)
}

fn wake(observed: &Observed, after: SignedDuration) -> Option<Timestamp> {
    let next = observed.now.checked_add(after).ok()?;
    let due = key_material::horizon(observed).map(|(due, _)| due).filter(|due| *due > observed.now);
    due.into_iter().chain(preflight::due(observed)).chain([next]).min()
}

fn finalizer(observed: &Observed) -> Vec<Action> {
    let metadata = &observed.cluster.metadata;
    let present = metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name::FINALIZER);
    if present {
        return Vec::new();
    }
    vec![Action::AddFinalizer { resource_version: metadata.resource_version.clone().unwrap_or_default() }]
}

/// The namespace: found, taken over with the platform's consent, or made.
fn foundation(observed: &Observed) -> Vec<Action> {
    if observed.own_namespace().is_some() {
        return Vec::new();
    }
    let (tenant, precondition) = match observed.adoptable() {
        Some(earlier) => {
            let tenant = observed.tenant.clone().moved_into(&earlier.name);
            (tenant, Precondition::Version(earlier.resource_version.clone()))
        }
        None => (observed.tenant.clone(), Precondition::Absent),
    };
    vec![Action::Apply { object: desired::namespace(&tenant), precondition }]
}

fn surroundings(observed: &Observed, inputs: &Inputs<'_>) -> Vec<Object> {
    desired::surroundings(inputs, &etcd::bootstrap(observed), etcd::identity(observed).as_ref())
}

/// Everything that pods refer to, and the revision that they are made from.
fn base(observed: &Observed, inputs: Option<&Inputs<'_>>, choice: &Choice) -> Vec<Action> {
    let surroundings = inputs.map(|inputs| surroundings(observed, inputs));
    let revision = choice.store.then(|| revision::object(observed, &choice.revision));
    let mut actions: Vec<Action> = surroundings
        .into_iter()
        .flatten()
        .chain(revision)
        .filter_map(|object| apply(observed, object))
        .collect();
    actions.extend(key_material::due(observed).into_iter().filter(is_authority));
    actions
}

fn leaves(observed: &Observed) -> Vec<Action> {
    let leaves = key_material::due(observed).into_iter().filter(|action| !is_authority(action));
    leaves.chain(key_material::due_kubeconfig(observed)).collect()
}

fn is_authority(action: &Action) -> bool {
    matches!(action, Action::Issue(issue) if issue.reference.name == key_material::AUTHORITY_SECRET)
}

/// The pods. At first all at once, but for API servers, which begin when etcd has a place to run: what dials it earlier
/// only learns to wait longer between its tries. Later etcd first, then API servers, then their
/// controllers: two of them changing together is how requests hang. Members come before API servers learn of them, and
/// go after API servers forgot them.
fn workloads(observed: &Observed, choice: &Choice) -> Vec<Action> {
    if matches!(etcd::health(observed), Health::DataLost(_)) {
        return Vec::new();
    }
    if let Some(order) = etcd::let_in(observed) {
        return vec![order];
    }
    let step = etcd::next_step(observed);
    let leaving = matches!(step, Some(Step::Remove(..)));
    let joining = step.is_some() && !leaving;
    let mut actions: Vec<Action> = Vec::new();
    // Whether something that exists is about to change: what comes after it in the order waits for a later look.
    let mut changing = false;
    let back = choice.revision.record.controllers_first();
    let outside = |name: &&str| {
        let mut objects = choice.revision.objects.iter().filter(|object| !revision::is_inside(object));
        objects.find(|object| object.reference.name == **name)
    };
    for object in rollout::order(back).iter().filter_map(outside) {
        let component = object.reference.name.as_str();
        let exists = observed.live(object.reference.kind, component).is_some();
        // Its certificate waits for the Service's address; without it the pod would wait in a kubelet's back-off.
        let too_early = component == component::KUBE_APISERVER
            && (endpoint_unknown(observed) || !exists && !etcd::placed(observed));
        let turn =
            component == component::ETCD || !joining && rollout::settled_before(observed, component, back);
        if too_early || (exists && (changing || !turn)) {
            continue;
        }
        let object = etcd::put_places(observed, revision::labelled(observed, object.clone()));
        let object = etcd::put_image(observed, object);
        let object = with_certificate(observed, etcd::put_servers(observed, object));
        if let Some(action) = apply(observed, object) {
            changing |= exists;
            actions.push(action);
        }
    }
    if !actions.is_empty() {
        return actions;
    }
    if let Some(order) = revision::members(&choice.revision).and_then(|wanted| etcd::order(observed, wanted))
    {
        return vec![order];
    }
    match step {
        Some(step) if !leaving || etcd::turned(observed) => etcd::actions(observed, &step),
        Some(_) => Vec::new(),
        None if rollout::members_may_restart(observed) => etcd::restart(observed).into_iter().collect(),
        None => Vec::new(),
    }
}

/// API servers follow the certificate of their tunnel's server: an annotation of their pods says when it was made anew.
fn with_certificate(observed: &Observed, mut object: Object) -> Object {
    let containers = object.content.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let has_tunnel =
        containers.into_iter().flatten().any(|container| container["name"] == component::KONNECTIVITY_SERVER);
    if object.reference.name != component::KUBE_APISERVER || !has_tunnel {
        return object;
    }
    let renewed = match observed.secrets.get(component::KONNECTIVITY_SERVER) {
        Some(secret) => secret.renewed.clone().map(Value::from),
        // It is about to be there again.
        None => observed
            .live(Kind::Deployment, component::KUBE_APISERVER)
            .and_then(|live| live.get("/spec/template/metadata/annotations")?.get(name::RENEWED_ANNOTATION))
            .cloned(),
    };
    if let (Some(renewed), Some(metadata)) =
        (renewed, object.content.pointer_mut("/spec/template/metadata").and_then(Value::as_object_mut))
    {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(name::RENEWED_ANNOTATION.into(), renewed);
        }
    }
    object
}

fn endpoint_unknown(observed: &Observed) -> bool {
    use kaas_crds::tenant_cluster::EndpointType::LoadBalancer;
    observed.cluster.spec.control_plane.endpoint.kind != LoadBalancer && endpoint::host(observed).is_none()
}

/// Objects inside the tenant: once its API answers.
fn inside(observed: &Observed, inputs: Option<&Inputs<'_>>) -> Vec<Action> {
    let (Some(inside), Some(inputs), true) = (&observed.inside, inputs, observed.serving()) else {
        return Vec::new();
    };
    let Some(endpoint) = endpoint::endpoint(observed) else { return Vec::new() };
    // A slice that kube-proxy reads has addresses of one family, no names.
    let family = observed.addresses.first().is_some_and(IpAddr::is_ipv4);
    let addresses: Vec<IpAddr> =
        observed.addresses.iter().copied().filter(|address| address.is_ipv4() == family).collect();
    desired::tenant_objects(inputs, &addresses, endpoint.port)
        .into_iter()
        .map(stamp)
        .filter_map(|object| {
            let live = inside.get(&object.reference);
            difference(live.map(|live| (&live.content, live.resource_version.as_str())), object)
        })
        .map(|(object, precondition)| Action::ApplyInside { object, precondition })
        .collect()
}

/// The objects inside the tenant that are ours to keep.
pub fn inside_references() -> Vec<Reference> {
    desired::tenant_references().to_vec()
}

/// What was ours and is no longer wanted: a budget after scaling down, old revisions.
fn surplus(observed: &Observed, inputs: Option<&Inputs<'_>>) -> Vec<Action> {
    let Some(inputs) = inputs else { return Vec::new() };
    let wanted: Vec<Reference> =
        surroundings(observed, inputs).into_iter().map(|object| object.reference).collect();
    let swept = [Kind::PodDisruptionBudget, Kind::NetworkPolicy, Kind::Service, Kind::ConfigMap];
    let gone = observed
        .objects
        .iter()
        .filter(|(reference, live)| {
            swept.contains(&reference.kind) && !wanted.contains(reference) && !live.terminating
        })
        .map(|(reference, live)| (reference.clone(), live.uid.clone()));
    gone.chain(revision::superseded(observed))
        .map(|(reference, uid)| Action::Delete { reference, uid, grace: None })
        .collect()
}

fn apply(observed: &Observed, object: Object) -> Option<Action> {
    let object = stamp(object);
    let live =
        observed.objects.get(&object.reference).map(|live| (&live.content, live.resource_version.as_str()));
    difference(live, object).map(|(object, precondition)| Action::Apply { object, precondition })
}

fn difference(live: Option<(&Value, &str)>, object: Object) -> Option<(Object, Precondition)> {
    match live {
        None => Some((object, Precondition::Absent)),
        Some((content, _)) if covers(content, &object.content) => None,
        Some((_, version)) => Some((object, Precondition::Version(version.to_owned()))),
    }
}

/// The end of a tenant: its pods, its namespace with everything in it, the kubeconfig, then the object itself.
fn plan_deletion(observed: &Observed) -> Plan {
    let metadata = &observed.cluster.metadata;
    let ours = metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name::FINALIZER);
    let mut plan = Plan { wake_at: wake(observed, SOON), ..Plan::default() };
    if !ours {
        return plan;
    }
    let mut last = Vec::new();
    if let Some(namespace) = observed.own_namespace() {
        // First the namespace: in one that terminates nothing makes a pod again. Its controller waits five seconds
        // before it looks, half a pod's grace period when it then finds one, and five more when it finds a claim, which
        // is protected while it has a pod: by then they are gone.
        if !namespace.terminating {
            plan.waves.push(vec![delete(
                Reference::cluster(Kind::Namespace, &namespace.name),
                &namespace.uid,
                None,
            )]);
        }
        let lingering = |pod: &&Pod| !pod.terminating || pod.grace > i64::from(last_grace(pod));
        let pods = observed.pods.iter().filter(lingering).map(|pod| {
            let reference = Reference::namespaced(Kind::Pod, &namespace.name, &pod.name);
            delete(reference, &pod.uid, Some(last_grace(pod)))
        });
        let claims = observed.objects.iter().filter(|(reference, live)| {
            namespace.terminating && reference.kind == Kind::PersistentVolumeClaim && !live.terminating
        });
        let claims = claims.map(|(reference, live)| delete(reference.clone(), &live.uid, None));
        plan.waves.push(pods.chain(claims).collect());
    } else if observed.workers.as_ref().is_some_and(|workers| workers.left == 0) {
        // Workers of a cluster that is gone would be nobody's.
        last.push(Action::RemoveFinalizer {
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
        });
    }
    if let Some(secret) = &observed.kubeconfig
        && !key_material::kubeconfig_foreign(observed)
    {
        let name = name::kubeconfig_secret(&observed.tenant.name);
        let reference = Reference::namespaced(Kind::Secret, &observed.tenant.namespace, name);
        plan.waves.push(vec![delete(reference, &secret.uid, None)]);
    }
    plan.waves.push(last);
    plan.waves.retain(|wave| !wave.is_empty());
    plan
}

/// Seconds that a pod gets at the end of its tenant. What has a volume unmounts it first. The others have nothing to
/// finish for anybody and go at once: for one that is still there the namespace controller would wait half of what its
/// template allows, which is 38 s for an API server.
fn last_grace(pod: &Pod) -> u32 {
    let mounts = [component::ETCD, component::ETCD_SNAPSHOT].contains(&pod.component.as_str());
    if mounts { etcd::GRACE_SECONDS } else { 0 }
}

fn delete(reference: Reference, uid: &str, grace: Option<u32>) -> Action {
    Action::Delete { reference, uid: uid.to_owned(), grace }
}
