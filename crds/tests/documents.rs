//! Documents of any shape: reading one never panics, and what was read is written and read again as the same.
#![cfg(test)]

use std::fmt::Debug;

use kaas_crds::{
    Cpu, InstanceType, KubernetesRelease, Period, Quantity, TenantCluster, Worker, WorkerPool, name,
};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The same documents in every run, so that a red run is the change's doing; `PROPTEST_RNG_SEED` asks for others.
fn config(cases: u32) -> Config {
    let default = Config::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(37),
        asked => asked,
    };
    Config { cases, failure_persistence: None, rng_seed, ..default }
}

/// A cluster with every field that there is.
fn cluster() -> Value {
    let operation = json!({
        "type": "Roll", "target": "v1.37.1", "step": "1 of 2", "startedAt": "2026-06-01T00:00:00Z",
        "waiting": {"reason": "Rolling", "since": "2026-06-01T00:00:00Z", "until": "2026-06-01T00:10:00Z", "owner": "Nobody"},
    });
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "TenantCluster",
        "metadata": {
            "name": "blue", "namespace": "team-a", "uid": "0b2f7a3e-1111-4222-8333-444455556666", "generation": 3,
            "resourceVersion": "77", "creationTimestamp": "2026-06-01T00:00:00Z", "labels": {"a": "b"},
            "finalizers": ["kaas.dev/control-plane"], "deletionTimestamp": "2026-06-02T00:00:00Z",
        },
        "spec": {
            "version": "v1.37.1",
            "controlPlane": {
                "replicas": 2, "endpoint": {"type": "NodePort", "nodePort": {"port": 30443}},
                "runtimeConfig": {"networking.k8s.io/v1beta1": true},
            },
            "upgrade": {"ignore": ["BudgetBlocksDrain/default/web"]},
            "etcd": {"replicas": 3, "storage": {"persistent": {"size": "8Gi", "storageClassName": "fast"}, "ephemeral": {}}},
            "network": {"podCIDR": "100.96.0.0/16", "serviceCIDR": "100.64.0.0/16", "domain": "cluster.local"},
            "addons": {
                "kubeProxy": {"enabled": false}, "coreDNS": {"enabled": true}, "cni": {"flannel": {}, "none": {}},
                "metricsServer": {"enabled": true},
            },
            "upgrade": {"finalize": "Manual", "soak": "90s"},
            "maintenance": {
                "windows": [{"days": ["Sat", "Sun"], "start": "02:00", "duration": "4h", "timeZone": "Asia/Tokyo"}],
                "exclusions": [{
                    "from": "2026-12-20T00:00", "to": "2027-01-05T00:00", "timeZone": "Asia/Tokyo", "scope": "NoUpgrades",
                }],
            },
            "paused": false,
            "acceptRevision": "7eca6913821b29ca",
        },
        "status": {
            "observedGeneration": 3, "version": "v1.37.1", "endpoint": "https://10.0.0.7:30443",
            "controlPlaneEndpoint": {"host": "10.0.0.7", "port": 30443},
            "kubeconfigSecretRef": {"name": "blue-kubeconfig"},
            "workers": {"ready": 1, "desired": 2, "summary": "1/2"},
            "summary": "Running",
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Serving", "message": "it does", "observedGeneration": 3,
                "lastTransitionTime": "2026-06-01T00:00:00Z",
            }],
            "operation": operation,
            "pending": {"revision": "7eca6913821b29ca", "summary": "one line"},
            "preflight": {"target": "v1.38.0", "more": 1, "findings": [{
                "id": "SpaceShort", "severity": "Warning", "message": "a", "evidence": "b", "owner": "Tenant", "fix": "c",
                "ignored": true,
            }]},
            "history": [{
                "type": "Create", "version": "v1.37.1", "startedAt": "2026-06-01T00:00:00Z",
                "endedAt": "2026-06-01T00:00:05Z", "result": "Succeeded",
                "probe": {
                    "requests": 1, "failed": 2, "reusedRequests": 3, "reusedFailed": 4, "longestGapMilliseconds": 5,
                    "watchEvents": 6, "watchLost": 7, "watchRepeated": 8, "longestWatchGapMilliseconds": 9,
                },
            }],
        },
    })
}

/// A catalogue entry with every field that there is.
fn release() -> Value {
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "KubernetesRelease",
        "metadata": {"name": "v1.37.1", "uid": "0b2f7a3e-1111-4222-8333-444455556666"},
        "spec": {
            "version": "v1.37.1",
            "images": {
                "kubeApiserver": "registry.k8s.io/kube-apiserver:v1.37.1",
                "kubeControllerManager": "registry.k8s.io/kube-controller-manager:v1.37.1",
                "kubeScheduler": "registry.k8s.io/kube-scheduler:v1.37.1",
            },
            "etcd": {"version": "3.7.3", "image": "registry.k8s.io/etcd:3.7.3-0"},
            "addons": {
                "kubeProxy": "registry.k8s.io/kube-proxy:v1.37.1",
                "coreDNS": "registry.k8s.io/coredns/coredns:v1.15.0",
                "flannel": "ghcr.io/flannel-io/flannel:v0.28.4",
                "konnectivityServer": "registry.k8s.io/kas-network-proxy/proxy-server:v0.36.0",
                "konnectivityAgent": "registry.k8s.io/kas-network-proxy/proxy-agent:v0.36.0",
                "metricsServer": "registry.k8s.io/metrics-server/metrics-server:v0.9.0",
                "pause": "registry.k8s.io/pause:3.10.2",
                "worker": "ghcr.io/kaas-dev/kaas-worker:v1.37.1",
            },
            "removes": ["networking.k8s.io/v1beta1/ipaddresses"],
            "adds": ["certificates.k8s.io/v1/clustertrustbundles"],
        },
        "status": {"usedBy": ["team-a/blue"], "users": 1, "summary": "1: team-a/blue"},
    })
}

fn conditions() -> Value {
    json!([{
        "type": "Ready", "status": "False", "reason": "Joining", "message": "it does", "observedGeneration": 3,
        "lastTransitionTime": "2026-06-01T00:00:00Z",
    }])
}

/// A pool with every field that there is.
fn pool() -> Value {
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": "general", "namespace": "team-a", "generation": 2},
        "spec": {
            "clusterName": "blue", "replicas": 3, "version": "v1.36.3", "instanceTypes": ["small"],
            "infrastructure": {"pod": {}, "external": {}},
            "template": {
                "labels": {"example.com/role": "web"},
                "taints": [{"key": "example.com/gpu", "value": "yes", "effect": "NoSchedule"}],
                "kubelet": {"maxPods": 50, "podPidsLimit": 1000, "containerLogMaxSize": "10Mi"},
            },
            "rollout": {"maxSurge": 1, "maxUnavailable": 0, "drain": {"timeout": "10m"}},
        },
        "status": {
            "observedGeneration": 2, "replicas": 3, "readyReplicas": 2, "updatedReplicas": 1,
            "selector": "kaas.dev/pool=general", "workers": "2/3", "summary": "Rolling", "conditions": conditions(),
            "removing": [{"name": "general-0", "uid": "u", "why": "newest"}],
        },
    })
}

/// A worker with every field that there is.
fn worker() -> Value {
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "Worker",
        "metadata": {"name": "general-0", "namespace": "team-a", "uid": "u"},
        "spec": {
            "clusterName": "blue", "clusterUID": "0b2f7a3e-1111-4222-8333-444455556666", "poolName": "general",
            "instanceType": "small", "version": "v1.37.1", "zone": "a", "infrastructure": {"pod": {}, "external": {}},
            "kubelet": {"maxPods": 50, "podPidsLimit": 1000, "containerLogMaxSize": "10Mi"}, "templateHash": "1-abc",
        },
        "status": {
            "observedGeneration": 1, "nodeRef": {"name": "general-0", "uid": "n"}, "providerID": "kaas://pod/u",
            "version": "v1.37.1", "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}], "summary": "Ready",
            "conditions": conditions(),
            "failure": {
                "reason": "QuotaExceeded", "message": "pods", "attempts": 2, "since": "2026-06-01T00:00:00Z",
                "retryAt": "2026-06-01T00:01:00Z",
            },
        },
    })
}

/// An instance type with every field that there is.
fn instance_type() -> Value {
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "InstanceType",
        "metadata": {"name": "small"},
        "spec": {
            "capacity": {"cpu": "2", "memory": "4Gi"}, "architecture": "arm64", "zones": ["a", "b"],
            "labels": {"example.com/disk": "ssd"}, "extendedResources": {"example.com/gpu": 1}, "pricePerHour": "0.05",
        },
    })
}

/// Letters as nobody expects them: of several bytes, joined, from right to left, of no width, none at all; numbers,
/// networks, and times of whole seconds, as Kubernetes writes them: a fraction would be read and not written.
fn text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "ä",
        "\u{202e}",
        "\u{0}",
        "👩‍👩‍👧",
        "\u{feff}",
        "ﬁ",
        "\u{7f}",
        "\n",
        "\"",
        "é́́",
    ]);
    prop_oneof![
        4 => ".{0,40}",
        2 => prop::collection::vec(odd, 0..20).prop_map(|letters| letters.concat()),
        2 => "[0-9]{0,25}[.]?[0-9]{0,25}(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|m)?",
        2 => "[0-9]{1,4}([.][0-9]{1,4}){3}/[0-9]{1,4}",
        1 => "[-+]?[0-9]{1,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})",
        2 => "[0-9]{4}-0[1-9]-[0-2][1-9]T[01][0-9]:[0-5][0-9]:[0-6][0-9](Z|[+-]0[0-9]:[0-5][0-9])",
        1 => (1usize..100_000).prop_map(|length| "x".repeat(length)),
    ]
}

/// Any JSON value, also one of great depth.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-5..5i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    let deep = (1usize..100, any::<bool>()).prop_map(|(depth, list)| {
        (0..depth).fold(Value::Null, |inner, _| if list { json!([inner]) } else { json!({"a": inner}) })
    });
    let tree = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,10}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    });
    prop_oneof![8 => tree, 1 => deep]
}

/// Pointers to everything in a document but itself.
fn pointers(document: &Value) -> Vec<String> {
    let below = |key: &str, value: &Value| {
        let key = key.replace('~', "~0").replace('/', "~1");
        let deeper = pointers(value).into_iter().map(|rest| format!("/{key}{rest}"));
        std::iter::once(format!("/{key}")).chain(deeper).collect::<Vec<_>>()
    };
    match document {
        Value::Object(map) => map.iter().flat_map(|(key, value)| below(key, value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(at, value)| below(&at.to_string(), value)).collect()
        }
        _ => Vec::new(),
    }
}

#[derive(Clone, Debug)]
enum Change {
    Becomes(Index, Value),
    Says(Index, String),
    Goes(Index),
    Gains(Index, String, Value),
    /// Another part of the same document takes its place.
    Swaps(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<Index>();
    prop_oneof![
        2 => (at(), value()).prop_map(|(at, value)| Change::Becomes(at, value)),
        3 => (at(), text()).prop_map(|(at, text)| Change::Says(at, text)),
        2 => at().prop_map(Change::Goes),
        1 => (at(), "[a-zA-Z]{1,10}", value()).prop_map(|(at, key, value)| Change::Gains(at, key, value)),
        1 => (at(), at()).prop_map(|(at, from)| Change::Swaps(at, from)),
    ]
}

impl Change {
    fn put(&self, document: &mut Value) {
        let all = pointers(document);
        if all.is_empty() {
            return;
        }
        match self {
            Change::Becomes(at, value) => {
                *document.pointer_mut(at.get::<String>(&all)).unwrap() = value.clone()
            }
            Change::Says(at, text) => {
                let leaves: Vec<&String> =
                    all.iter().filter(|at| document.pointer(at).is_some_and(Value::is_string)).collect();
                if !leaves.is_empty() {
                    let at = (*at.get(&leaves)).clone();
                    *document.pointer_mut(&at).unwrap() = text.as_str().into();
                }
            }
            Change::Goes(at) => {
                let (parent, key) = at.get::<String>(&all).rsplit_once('/').unwrap();
                let key = &key.replace("~1", "/").replace("~0", "~");
                match document.pointer_mut(parent).unwrap() {
                    Value::Object(map) => drop(map.remove(key)),
                    Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                    _ => {}
                }
            }
            Change::Gains(at, key, value) => {
                if let Some(map) = document.pointer_mut(at.get::<String>(&all)).unwrap().as_object_mut() {
                    map.insert(key.clone(), value.clone());
                }
            }
            Change::Swaps(at, from) => {
                let other = document.pointer(from.get::<String>(&all)).unwrap().clone();
                *document.pointer_mut(at.get::<String>(&all)).unwrap() = other;
            }
        }
    }
}

/// A document shaped like this one.
fn like(whole: Value) -> impl Strategy<Value = Value> {
    prop::collection::vec(change(), 1..5).prop_map(move |changes| {
        let mut document = whole.clone();
        changes.iter().for_each(|change| change.put(&mut document));
        document
    })
}

/// Reads it, and if it can be read writes it and reads it again, as a value and as text. Tells whether it could.
fn round<T>(document: Value) -> Result<bool, TestCaseError>
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let Ok(read) = serde_json::from_value::<T>(document) else { return Ok(false) };
    let written = serde_json::to_value(&read).unwrap();
    let again: T = serde_json::from_value(written.clone()).unwrap();
    prop_assert_eq!(&again, &read, "by {}", written);
    prop_assert_eq!(&serde_json::to_value(&again).unwrap(), &written, "it is written in another way");
    let text = serde_json::to_string(&read).unwrap();
    prop_assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), &read, "by {}", text);
    Ok(true)
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_cluster_of_any_shape_is_read_or_refused(document in like(cluster())) {
        round::<TenantCluster>(document)?;
    }

    #[test]
    fn a_release_of_any_shape_is_read_or_refused(document in like(release())) {
        round::<KubernetesRelease>(document)?;
    }

    #[test]
    fn a_pool_of_any_shape_is_read_or_refused(document in like(pool())) {
        round::<WorkerPool>(document)?;
    }

    #[test]
    fn a_worker_of_any_shape_is_read_or_refused(document in like(worker())) {
        round::<Worker>(document)?;
    }

    #[test]
    fn an_instance_type_of_any_shape_is_read_or_refused(document in like(instance_type())) {
        round::<InstanceType>(document)?;
    }

    #[test]
    fn any_value_is_read_or_refused(document in value()) {
        round::<TenantCluster>(document.clone())?;
        round::<WorkerPool>(document.clone())?;
        round::<Worker>(document.clone())?;
        round::<InstanceType>(document.clone())?;
        round::<KubernetesRelease>(document)?;
    }

    /// Bytes that were a document before some of them were lost or changed.
    #[test]
    fn any_text_is_read_or_refused(
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        for whole in [cluster(), release()] {
            let mut bytes = whole.to_string().into_bytes();
            for (at, byte, lost) in &changes {
                let at = at.index(bytes.len());
                if *lost {
                    bytes.truncate(at.max(1));
                } else {
                    bytes[at] = *byte;
                }
            }
            let _ = serde_json::from_slice::<TenantCluster>(&bytes);
            let _ = serde_json::from_slice::<KubernetesRelease>(&bytes);
        }
    }

    #[test]
    fn a_quantity_is_refused_or_has_one_spelling(text in text()) {
        if let Ok(read) = text.parse::<Quantity>() {
            let written = read.to_string();
            prop_assert_eq!(written.parse::<Quantity>(), Ok(read));
            prop_assert!(written.len() <= 32, "{}", written);
        }
    }

    #[test]
    fn an_amount_or_a_length_of_time_is_refused_or_has_one_spelling(text in text()) {
        if let Ok(read) = text.parse::<Cpu>() {
            prop_assert_eq!(read.to_string().parse::<Cpu>(), Ok(read));
        }
        if let Ok(read) = text.parse::<Period>() {
            prop_assert_eq!(read.to_string().parse::<Period>(), Ok(read));
        }
    }

    /// As the rule on metadata.name has it; the ordinal is as large as pools can make it.
    #[test]
    fn workers_have_names_that_lead_back(pool in "[a-z]([-a-z0-9]{0,55}[a-z0-9])?", ordinal in 0u32..100_000) {
        let made = name::worker(&pool, ordinal);
        prop_assert!(made.len() <= 63, "{} is no DNS label", made);
        prop_assert_eq!(name::worker_ordinal(&pool, &made), Some(ordinal));
        prop_assert_eq!(name::worker_ordinal(&pool, &format!("{pool}-0{ordinal}")), None);
        prop_assert_eq!(name::worker_ordinal(&format!("{pool}-0"), &made), None);
    }

    /// As the rule on metadata.name has it.
    #[test]
    fn names_that_are_made_are_names(cluster in "[a-z]([-a-z0-9]{0,48}[a-z0-9])?", uid in "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}") {
        for made in [name::control_plane_namespace(&uid), name::kubeconfig_secret(&cluster)] {
            let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            prop_assert!(made.len() <= 63 && made.chars().all(inner), "{} is no DNS label", made);
            prop_assert!(!made.starts_with('-') && !made.ends_with('-'), "{} is no DNS label", made);
        }
    }
}

#[test]
fn the_whole_documents_are_read_with_every_field() {
    assert!(round::<TenantCluster>(cluster()).unwrap());
    assert!(round::<KubernetesRelease>(release()).unwrap());
    let read: TenantCluster = serde_json::from_value(cluster()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), cluster(), "a field is missing in one of the two");
    let read: WorkerPool = serde_json::from_value(pool()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), pool(), "a field is missing in one of the two");
    let read: Worker = serde_json::from_value(worker()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), worker(), "a field is missing in one of the two");
    let read: InstanceType = serde_json::from_value(instance_type()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), instance_type(), "a field is missing in one of the two");
    let read: KubernetesRelease = serde_json::from_value(release()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), release(), "a field is missing in one of the two");
}

#[test]
fn some_documents_are_read_and_some_are_refused() {
    let mut runner = TestRunner::new(config(1));
    let documents = like(cluster());
    let read = (0..500).filter(|_| {
        let document = documents.new_tree(&mut runner).unwrap().current();
        round::<TenantCluster>(document).unwrap()
    });
    let read = read.count();
    assert!((50..450).contains(&read), "{read} of 500 were read: the others show nothing");
}

#[test]
fn great_depth_is_refused() {
    for (open, close) in [("[", "]"), ("{\"spec\":", "}")] {
        let text = format!("{}0{}", open.repeat(100_000), close.repeat(100_000));
        assert!(serde_json::from_str::<TenantCluster>(&text).is_err());
    }
}
