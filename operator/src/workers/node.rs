//! Nodes of tenants: facts of one, and the few changes that are made on it. Everything else of a node stays.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kaas_lifecycle::workers::action::{NodeChange, NodeCondition};
use kaas_lifecycle::workers::observed::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use crate::cluster::{DEADLINE, within};

/// Upstream's conditions for drain and maintenance.
const DRAIN: [&str; 2] = ["DrainInProgress", "Drained"];

/// Facts of a node.
pub(super) fn facts(node: &core::Node) -> Node {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let taints = spec.taints.unwrap_or_default().into_iter();
    let capacity = status.capacity.unwrap_or_default().into_iter();
    Node {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        resource_version: node.metadata.resource_version.clone().unwrap_or_default(),
        provider_id: spec.provider_id.unwrap_or_default(),
        ready: ready.map_or("Unknown".into(), |ready| ready.status.clone()),
        message: ready.and_then(|ready| ready.message.clone()).unwrap_or_default(),
        unschedulable: spec.unschedulable.unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        annotations: node.metadata.annotations.clone().unwrap_or_default(),
        taints: taints
            .map(|taint| (format!("{}:{}", taint.key, taint.effect), taint.value.unwrap_or_default()))
            .collect(),
        // Those of a vendor: others are the kubelet's.
        extended_resources: capacity
            .filter(|(name, _)| name.contains('/'))
            .filter_map(|(name, quantity)| Some((name, quantity.0.parse().ok()?)))
            .collect(),
        conditions: conditions
            .iter()
            .filter(|condition| DRAIN.contains(&condition.type_.as_str()))
            .map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect(),
        version: status.node_info.map(|info| info.kubelet_version).unwrap_or_default(),
    }
}

/// What of a node wakes its worker: not that its kubelet has said again what it said before.
pub(super) fn digest(node: &core::Node) -> u64 {
    let facts = Node { resource_version: String::new(), ..facts(node) };
    let text = format!("{facts:?} {:?}", node.metadata.deletion_timestamp.is_some());
    // FNV-1a: it only has to tell two states of one node apart.
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Addresses that a node says are its.
pub(super) fn addresses(node: &core::Node) -> impl Iterator<Item = std::net::IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_.ends_with("IP"))
        .filter_map(|address| address.address.parse().ok())
}

/// Brings what is the pool's on the node to what the pool says.
pub(super) async fn configure(
    api: &Api<core::Node>,
    name: &str,
    change: &NodeChange,
) -> Result<(), kube::Error> {
    let mut labels: BTreeMap<&str, Value> =
        change.set_labels.iter().map(|(key, value)| (key.as_str(), Value::from(value.as_str()))).collect();
    labels.extend(change.remove_labels.iter().map(|key| (key.as_str(), Value::Null)));
    let mut spec = serde_json::Map::new();
    if let Some(id) = &change.set_provider_id {
        spec.insert("providerID".into(), id.as_str().into());
    }
    if !change.set_taints.is_empty() || !change.remove_taints.is_empty() {
        // The list is one field: those of others go with it as they are, or the version has changed.
        let node = within(DEADLINE, api.get(name)).await?;
        spec.insert("taints".into(), taints(node.spec.and_then(|spec| spec.taints), change)?);
    }
    let nothing = labels.is_empty() && spec.is_empty() && change.set_annotations.is_empty();
    let object = json!({
        "metadata": {
            "uid": change.uid, "resourceVersion": change.resource_version,
            "labels": labels, "annotations": change.set_annotations,
        },
        "spec": spec,
    });
    if !nothing {
        within(DEADLINE, api.patch(name, &PatchParams::default(), &Patch::Merge(&object))).await?;
    }
    if !change.set_extended_resources.is_empty() {
        let capacity: BTreeMap<&str, String> = change
            .set_extended_resources
            .iter()
            .map(|(name, count)| (name.as_str(), count.to_string()))
            .collect();
        let patch = json!({"status": {"capacity": capacity}});
        within(DEADLINE, api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    }
    Ok(())
}

/// The taints with the pool's among them.
fn taints(live: Option<Vec<core::Taint>>, change: &NodeChange) -> Result<Value, kube::Error> {
    let key = |taint: &core::Taint| format!("{}:{}", taint.key, taint.effect);
    let mut taints: Vec<core::Taint> = live
        .unwrap_or_default()
        .into_iter()
        .filter(|taint| {
            !change.remove_taints.contains(&key(taint)) && !change.set_taints.contains_key(&key(taint))
        })
        .collect();
    taints.extend(change.set_taints.iter().filter_map(|(key, value)| {
        let (key, effect) = key.rsplit_once(':')?;
        Some(core::Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            value: Some(value.clone()).filter(|value| !value.is_empty()),
            time_added: None,
        })
    }));
    serde_json::to_value(taints).map_err(kube::Error::SerdeError)
}

/// Lets no more pods come to the node, and says so in its conditions.
pub(super) async fn mark(
    api: &Api<core::Node>,
    name: &str,
    (uid, resource_version): (&str, &str),
    cordon: bool,
    conditions: &BTreeMap<String, NodeCondition>,
) -> Result<(), kube::Error> {
    if cordon {
        let patch = json!({
            "metadata": {"uid": uid, "resourceVersion": resource_version}, "spec": {"unschedulable": true},
        });
        within(DEADLINE, api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    }
    if !conditions.is_empty() {
        let now = Timestamp::now();
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, condition)| {
                json!({
                    "type": kind, "status": condition.status, "reason": condition.reason,
                    "message": condition.message, "lastTransitionTime": now, "lastHeartbeatTime": now,
                })
            })
            .collect();
        // Merged by type: the kubelet's stay.
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": conditions}});
        within(DEADLINE, api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch))).await?;
    }
    Ok(())
}

/// Deletes exactly this node; one that is gone already is a success.
pub(super) async fn delete(api: &Api<core::Node>, name: &str, uid: &str) -> Result<(), kube::Error> {
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    match within(DEADLINE, api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> core::Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_heartbeat_wakes_nobody_and_a_change_does() {
        let with = |ready: &str, heartbeat: &str| {
            digest(&node(json!({
                "metadata": {"name": "p-0", "uid": "n", "resourceVersion": heartbeat},
                "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]},
            })))
        };
        let (one, two) = ("2026-06-01T00:00:00Z", "2026-06-01T00:05:00Z");
        assert_eq!(with("True", one), with("True", two));
        assert_ne!(with("True", one), with("False", one));
    }

    #[test]
    fn taints_of_others_stay_as_they_are() {
        let live = vec![
            core::Taint { key: "a".into(), effect: "NoSchedule".into(), ..core::Taint::default() },
            core::Taint { key: "gone".into(), effect: "NoExecute".into(), ..core::Taint::default() },
            core::Taint {
                key: "node.kubernetes.io/unreachable".into(),
                effect: "NoExecute".into(),
                time_added: serde_json::from_value(json!("2026-06-01T00:00:00Z")).unwrap(),
                ..core::Taint::default()
            },
        ];
        let change = NodeChange {
            set_taints: BTreeMap::from([("a:NoSchedule".to_owned(), "b".to_owned())]),
            remove_taints: vec!["gone:NoExecute".to_owned()],
            ..NodeChange::default()
        };
        let expected = json!([
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-06-01T00:00:00Z"},
            {"key": "a", "value": "b", "effect": "NoSchedule"},
        ]);
        assert_eq!(taints(Some(live), &change).unwrap(), expected);
    }

    #[test]
    fn only_what_a_vendor_advertises_is_an_extended_resource() {
        let facts = facts(&node(json!({
            "metadata": {"name": "p-0"},
            "status": {"capacity": {"cpu": "2", "example.com/gpu": "4", "memory": "1Gi", "hugepages-2Mi": "0"}},
        })));
        assert_eq!(facts.extended_resources, BTreeMap::from([("example.com/gpu".to_owned(), 4)]));
        assert_eq!(facts.ready, "Unknown");
    }
}
