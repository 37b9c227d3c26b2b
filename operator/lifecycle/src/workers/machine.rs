//! A worker that is a pod: from what is asked for to the pod, its namespace and the policy around it, field by field.
//!
//! The pod is privileged, so it never runs where a team or a control plane does. What reads these names and labels leads
//! nowhere but to the machine: nothing of a tenant's decides them but the worker's own name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kaas_crds::kubernetes_release::AddonImages;
use kaas_crds::name::{self, component};
use kaas_crds::worker::Address;
use serde_json::json;

use crate::object::{Kind, Object, Reference};
use crate::tenant::Platform;
use crate::workers::action::MachineRequest;
use crate::workers::observed::{Machine, MachineState};

/// Where the image wants its Secret, and file systems that outlive a start in place.
const PLACES: [(&str, &str); 3] =
    [("worker", "/etc/kaas/worker"), ("images", "/var/lib/containerd"), ("pods", "/var/lib/kubelet")];
/// Part of its capacity that a worker asks for: several share a machine, as they are for trying out.
const REQUESTED_CPU: u64 = 10;
const REQUESTED_MEMORY: u64 = 4;
/// A drain comes before; what is left has no time of its own.
const GRACE_SECONDS: i64 = 5;

/// Labels of everything here. They lead a change of a pod to its worker; no selector for control planes matches them.
fn labels(cluster_uid: &str, namespace: &str, cluster: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (name::MANAGED_BY_LABEL, name::MANAGED_BY.to_owned()),
        (name::COMPONENT_LABEL, component::WORKER.to_owned()),
        (name::TENANT_UID_LABEL, cluster_uid.to_owned()),
        (name::TENANT_NAMESPACE_LABEL, namespace.to_owned()),
        (name::CLUSTER_LABEL, cluster.to_owned()),
    ])
}

/// The namespace of a cluster's machines, and the policy in it: they reach everything, and only they reach each other.
pub fn namespace(cluster_uid: &str, namespace: &str, cluster: &str) -> [Object; 2] {
    let home = name::workers_namespace(cluster_uid);
    let labels = labels(cluster_uid, namespace, cluster);
    let mut of_namespace = json!(labels);
    if let Some(map) = of_namespace.as_object_mut() {
        for mode in ["enforce", "audit", "warn"] {
            map.insert(format!("pod-security.kubernetes.io/{mode}"), "privileged".into());
        }
    }
    [
        Object::new(
            Reference::cluster(Kind::Namespace, &home),
            json!({"metadata": {"labels": of_namespace}}),
        ),
        Object::new(
            Reference::namespaced(Kind::NetworkPolicy, &home, "workers"),
            json!({
                "metadata": {"labels": labels},
                "spec": {
                    "podSelector": {},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": {}}]}],
                },
            }),
        ),
    ]
}

/// The Secret that the machine reads, but for its data.
pub fn secret(request: &Place<'_>, annotations: &BTreeMap<&str, String>) -> Object {
    let home = name::workers_namespace(request.cluster_uid);
    let mut labels = labels(request.cluster_uid, request.namespace, request.cluster);
    labels.insert(name::WORKER_UID_LABEL, request.worker_uid.to_owned());
    Object::new(
        Reference::namespaced(Kind::Secret, &home, request.worker),
        json!({"metadata": {"labels": labels, "annotations": annotations}, "type": "Opaque"}),
    )
}

/// Whose machine it is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// UID of the cluster.
    pub cluster_uid: &'a str,
    /// The team's namespace.
    pub namespace: &'a str,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Name of the worker.
    pub worker: &'a str,
    /// UID of the worker.
    pub worker_uid: &'a str,
}

/// The pod.
pub fn pod(request: &MachineRequest, place: &Place<'_>, images: &AddonImages, platform: &Platform) -> Object {
    let capacity = &request.instance_type.capacity;
    let mut labels = labels(place.cluster_uid, place.namespace, place.cluster);
    labels.insert(name::WORKER_UID_LABEL, request.worker_uid.clone());
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let limit = |name: &str, resource: &str, divisor: &str| {
        let source = json!({"containerName": "worker", "resource": resource, "divisor": divisor});
        json!({"name": name, "valueFrom": {"resourceFieldRef": source}})
    };
    let registered: Vec<String> =
        request.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let env = json!([
        value("NODE_NAME", &request.name),
        json!({"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        limit("CPU_LIMIT", "limits.cpu", "1m"),
        limit("MEMORY_LIMIT", "limits.memory", "1"),
        value("SANDBOX_IMAGE", &platform.image(&images.pause)),
        value("NODE_LABELS", &registered.join(",")),
        value("PROVIDER_ID", &request.provider_id),
    ]);
    let resources = json!({
        "requests": {
            "cpu": format!("{}m", capacity.cpu.as_millis() / REQUESTED_CPU),
            "memory": (capacity.memory.bytes() / REQUESTED_MEMORY).to_string(),
        },
        "limits": {"cpu": format!("{}m", capacity.cpu.as_millis()), "memory": capacity.memory.bytes().to_string()},
    });
    let container = json!({
        "name": "worker",
        "image": platform.image(&images.worker),
        "env": env,
        "resources": resources,
        "securityContext": {"privileged": true},
        "volumeMounts": PLACES.map(|(name, path)| json!({"name": name, "mountPath": path})),
    });
    let mut spec = json!({
        "hostname": request.name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {"kubernetes.io/arch": request.instance_type.architecture},
        "containers": [container],
        "volumes": [
            {"name": "worker", "secret": {"secretName": request.name}},
            {"name": "images", "emptyDir": {}},
            {"name": "pods", "emptyDir": {}},
        ],
    });
    if let (Some(zone), Some(spec)) = (&request.zone, spec.as_object_mut()) {
        // A wish: the management cluster may know no zones.
        let expression = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]});
        let preference = json!({"weight": 100, "preference": {"matchExpressions": [expression]}});
        let affinity =
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}});
        spec.insert("affinity".into(), affinity);
    }
    let home = name::workers_namespace(place.cluster_uid);
    Object::new(
        Reference::namespaced(Kind::Pod, &home, &request.name),
        json!({"metadata": {"labels": labels}, "spec": spec}),
    )
}

/// Whether a pod is the machine of the worker with this UID: one that runs, will run by itself, or is not gone yet.
pub fn is_machine(pod: &Pod, worker_uid: &str) -> bool {
    let going = pod.metadata.deletion_timestamp.is_some();
    made_for(pod) == Some(worker_uid) && (going || !ended(pod))
}

/// UID of the worker that a pod was made for.
pub fn made_for(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(name::WORKER_UID_LABEL).map(String::as_str)
}

/// Whether a pod has ended for good: evicted, or its node was shut down.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// What a pod says of the machine that it is.
pub fn facts(pod: &Pod) -> Machine {
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.iter().flatten().next();
    let running = container.and_then(|container| container.state.as_ref()?.running.as_ref());
    let started = running.and_then(|running| running.started_at.as_ref());
    let created = pod.metadata.creation_timestamp.as_ref();
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let waiting = container.and_then(|container| container.state.as_ref()?.waiting.as_ref());
    let going = pod.metadata.deletion_timestamp.is_some();
    let trouble = if going {
        held(pod)
    } else {
        unscheduled.and_then(|condition| condition.message.clone()).or_else(|| {
            let waiting = waiting.filter(|waiting| waiting.reason.as_deref() != Some("ContainerCreating"))?;
            let parts = [waiting.reason.as_deref(), waiting.message.as_deref()];
            Some(parts.into_iter().flatten().collect::<Vec<_>>().join(": "))
        })
    };
    let address = |address: String| Address { kind: "InternalIP".into(), address };
    Machine {
        id: pod.metadata.uid.clone().unwrap_or_default(),
        state: match running {
            _ if going => MachineState::Stopping,
            Some(_) => MachineState::Running,
            None => MachineState::Starting,
        },
        since: started.or(created).map(|time| time.0).unwrap_or_default(),
        addresses: status.pod_ip.into_iter().map(address).collect(),
        trouble: trouble.map(|words| words.chars().take(300).collect()),
    }
}

/// What keeps a pod that goes: no machine of ours has finalizers.
fn held(pod: &Pod) -> Option<String> {
    let metadata = &pod.metadata;
    let finalizers = metadata.finalizers.as_ref().filter(|finalizers| !finalizers.is_empty())?;
    Some(format!(
        "Pod {}/{} is held by {}; who put that there must remove it",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
        finalizers.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use kaas_crds::worker_pool::{InfrastructureKind, Kubelet};
    use serde_json::Value;

    use super::*;

    const PLACE: Place<'static> =
        Place { cluster_uid: "c-1", namespace: "team", cluster: "blue", worker: "p-0", worker_uid: "w-1" };

    fn images() -> AddonImages {
        let names = [
            "kubeProxy",
            "coreDNS",
            "flannel",
            "konnectivityServer",
            "konnectivityAgent",
            "metricsServer",
            "pause",
            "worker",
        ];
        let images = names.map(|name| (name.to_owned(), Value::from(format!("registry.example/{name}:1"))));
        serde_json::from_value(Value::Object(images.into_iter().collect())).unwrap()
    }

    fn request() -> MachineRequest {
        MachineRequest {
            name: "p-0".into(),
            worker_uid: "w-1".into(),
            cluster_uid: "c-1".into(),
            infrastructure: InfrastructureKind::Pod,
            instance_type: serde_json::from_value(json!({
                "capacity": {"cpu": "2", "memory": "4Gi"}, "extendedResources": {"example.com/gpu": 1},
            }))
            .unwrap(),
            version: "v1.37.1".into(),
            zone: Some("a".into()),
            kubelet: Kubelet::default(),
            labels: BTreeMap::from([("kaas.dev/pool".into(), "p".into()), ("team".into(), "a".into())]),
            taints: BTreeMap::new(),
            provider_id: "kaas://pod/w-1".into(),
        }
    }

    #[test]
    fn every_field() {
        let platform = Platform { registry: "mirror.example".into(), ..Platform::default() };
        insta::assert_yaml_snapshot!("machine", pod(&request(), &PLACE, &images(), &platform).content);
        insta::assert_yaml_snapshot!(
            "namespace",
            namespace("c-1", "team", "blue").map(|object| object.content)
        );
    }

    #[test]
    fn no_selector_for_control_planes_matches() {
        let object = pod(&request(), &PLACE, &images(), &Platform::default());
        assert!(object.content["metadata"]["labels"].get(name::TENANT_NAME_LABEL).is_none());
        let [namespace, _] = namespace("c-1", "team", "blue");
        assert!(namespace.content["metadata"]["labels"].get(name::TENANT_NAME_LABEL).is_none());
    }

    fn live(status: Value, metadata: Value) -> Pod {
        let mut metadata = metadata;
        metadata["uid"] = "m-1".into();
        metadata["labels"] = json!({"kaas.dev/worker-uid": "w-1"});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}, "status": status}))
            .unwrap()
    }

    #[test]
    fn what_a_pod_says_of_the_machine() {
        let started = "2026-06-01T00:00:00Z";
        let running = json!({
            "phase": "Running", "podIP": "10.0.0.7",
            "containerStatuses": [{"state": {"running": {"startedAt": started}}, "name": "worker", "ready": true,
                "restartCount": 0, "image": "", "imageID": ""}],
        });
        let machine = facts(&live(running.clone(), json!({})));
        assert_eq!((machine.state, machine.since), (MachineState::Running, started.parse().unwrap()));
        assert_eq!(machine.addresses[0].address, "10.0.0.7");
        let going = live(running.clone(), json!({"deletionTimestamp": started}));
        assert_eq!((facts(&going).state, facts(&going).trouble), (MachineState::Stopping, None));
        let held = json!({
            "name": "p-0", "namespace": "machines", "deletionTimestamp": started, "finalizers": ["example.com/hold"],
        });
        assert_eq!(
            facts(&live(running, held)).trouble.as_deref(),
            Some("Pod machines/p-0 is held by example.com/hold; who put that there must remove it")
        );

        let condition =
            json!({"type": "PodScheduled", "status": "False", "message": "0/1 nodes: too little memory"});
        let pending = live(json!({"phase": "Pending", "conditions": [condition]}), json!({}));
        let machine = facts(&pending);
        assert_eq!(machine.state, MachineState::Starting);
        assert_eq!(machine.trouble.as_deref(), Some("0/1 nodes: too little memory"));
    }

    #[test]
    fn a_pod_of_another_worker_or_one_that_has_ended_is_no_machine() {
        let runs = live(json!({"phase": "Running"}), json!({}));
        assert!(is_machine(&runs, "w-1"));
        assert!(!is_machine(&runs, "w-2"));
        assert!(!is_machine(&live(json!({"phase": "Failed"}), json!({})), "w-1"));
        let going = live(json!({"phase": "Succeeded"}), json!({"deletionTimestamp": "2026-06-01T00:00:00Z"}));
        assert!(is_machine(&going, "w-1"), "nothing comes in its place before it is gone");
    }
}
