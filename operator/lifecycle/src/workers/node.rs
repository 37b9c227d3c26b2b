//! The node of a worker: whether it is the worker's, how it stands, and what changes on it when its pool changes.
//!
//! A node is matched by its name and by what its kubelet says of the machine. Only labels and taints that a pool put
//! there are ever removed: which ones these are is written down on the node itself.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::worker_pool::{InfrastructureKind, Template};
use kaas_crds::{InstanceTypeSpec, Worker, name};

use crate::workers::action::NodeChange;
use crate::workers::observed::{Fact, Node, Readiness, WorkerObserved};

/// Label of a node: the InstanceType.
const INSTANCE_TYPE_LABEL: &str = "node.kubernetes.io/instance-type";
/// Label of a node: the zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Whose node it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match<'a> {
    /// Nobody could look.
    Unread,
    /// There is none of that name.
    Absent,
    /// It is the worker's.
    Own(&'a Node),
    /// It is of another machine.
    Foreign(&'a Node),
}

/// What the kubelet of a worker says of its machine.
pub fn provider_id(worker: &Worker) -> String {
    let kind = worker.spec.infrastructure.kind().map_or("", InfrastructureKind::as_str);
    name::provider_id(kind, worker.metadata.uid.as_deref().unwrap_or_default())
}

/// Whether the node of the worker's name is its own. A user's machine says nothing of itself when it joins; whoever joined
/// under that name had the worker's own token, and then the node is given its identity.
pub fn matched(observed: &WorkerObserved) -> Match<'_> {
    let external = observed.worker.spec.infrastructure.kind() == Some(InfrastructureKind::External);
    match &observed.node {
        Fact::Unread => Match::Unread,
        Fact::Absent => Match::Absent,
        Fact::Found(node) if node.provider_id == provider_id(&observed.worker) => Match::Own(node),
        Fact::Found(node) if external && node.provider_id.is_empty() => Match::Own(node),
        Fact::Found(node) => Match::Foreign(node),
    }
}

/// How the node stands.
pub fn readiness(matched: Match<'_>) -> Readiness {
    match matched {
        Match::Own(node) if node.ready == "True" => Readiness::Ready,
        Match::Own(node) if node.ready == "False" => Readiness::NotReady,
        Match::Own(_) | Match::Unread => Readiness::Silent,
        Match::Absent | Match::Foreign(_) => Readiness::NotReady,
    }
}

/// Labels that the node should have: the InstanceType's, over them the pool's, over them ours.
pub fn labels(
    worker: &Worker,
    template: &Template,
    instance_type: &InstanceTypeSpec,
) -> BTreeMap<String, String> {
    let mut labels = instance_type.labels.0.clone();
    labels.extend(template.labels.0.clone());
    labels.insert(name::POOL_LABEL.into(), worker.spec.pool_name.clone());
    labels.insert(INSTANCE_TYPE_LABEL.into(), worker.spec.instance_type.clone());
    labels.extend(worker.spec.zone.clone().map(|zone| (ZONE_LABEL.into(), zone)));
    labels
}

/// Taints that the node should have, as `key:Effect` and value.
pub fn taints(template: &Template) -> BTreeMap<String, String> {
    template
        .taints
        .iter()
        .map(|taint| (format!("{}:{}", taint.key, taint.effect), taint.value.clone()))
        .collect()
}

/// What changes on the node; `None` when it is as it should be.
pub fn change(
    node: &Node,
    worker: &Worker,
    template: &Template,
    instance_type: &InstanceTypeSpec,
) -> Option<NodeChange> {
    let (labels, taints) = (labels(worker, template, instance_type), taints(template));
    let resources: BTreeMap<String, i64> = instance_type
        .extended_resources
        .0
        .iter()
        .map(|(name, count)| (name.clone(), i64::from(*count)))
        .collect();
    let annotations = BTreeMap::from([
        (name::OWN_LABELS_ANNOTATION.to_owned(), joined(&labels)),
        (name::OWN_TAINTS_ANNOTATION.to_owned(), joined(&taints)),
    ]);
    let provider_id = node.provider_id.is_empty().then(|| provider_id(worker));
    let change = NodeChange {
        uid: node.uid.clone(),
        resource_version: node.resource_version.clone(),
        remove_labels: surplus(own(node, name::OWN_LABELS_ANNOTATION), &labels, &node.labels),
        set_labels: missing(labels, &node.labels),
        remove_taints: surplus(own(node, name::OWN_TAINTS_ANNOTATION), &taints, &node.taints),
        set_taints: missing(taints, &node.taints),
        set_annotations: missing(annotations, &node.annotations),
        set_extended_resources: missing(resources, &node.extended_resources),
        set_provider_id: provider_id,
    };
    let nothing = NodeChange {
        uid: node.uid.clone(),
        resource_version: node.resource_version.clone(),
        ..NodeChange::default()
    };
    (change != nothing).then_some(change)
}

fn joined(map: &BTreeMap<String, String>) -> String {
    map.keys().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// Keys that the node says to be a pool's.
pub(super) fn own<'a>(node: &'a Node, annotation: &str) -> BTreeSet<&'a str> {
    let text = node.annotations.get(annotation).map_or("", String::as_str);
    text.split(',').filter(|key| !key.is_empty()).collect()
}

fn missing<V: PartialEq>(wanted: BTreeMap<String, V>, live: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    wanted.into_iter().filter(|(key, value)| live.get(key) != Some(value)).collect()
}

/// What was ours, is there, and is not wanted any more.
fn surplus(
    own: BTreeSet<&str>,
    wanted: &BTreeMap<String, String>,
    live: &BTreeMap<String, String>,
) -> Vec<String> {
    let gone = own.into_iter().filter(|key| !wanted.contains_key(*key) && live.contains_key(*key));
    gone.map(str::to_owned).collect()
}
