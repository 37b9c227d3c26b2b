//! WorkerPools, Workers and InstanceTypes: what is refused, what is accepted, and what may never change.

use kaas_crds::{InstanceType, Worker, WorkerPool};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::judge::Judge;

fn instance_type() -> Value {
    json!({"capacity": {"cpu": "2", "memory": "4Gi"}})
}

fn pool() -> Value {
    json!({"clusterName": "blue", "instanceTypes": ["small"], "infrastructure": {"pod": {}}})
}

fn worker() -> Value {
    json!({
        "clusterName": "blue", "clusterUID": "u", "poolName": "p", "instanceType": "small", "version": "v1.37.1",
        "infrastructure": {"pod": {}}, "templateHash": "1-abc",
    })
}

/// A spec with this at the pointer's place; the objects on the way there are made.
fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut spec;
    for key in pointer.split('/').skip(1) {
        at = at.as_object_mut().unwrap().entry(key).or_insert(json!({}));
    }
    *at = value;
    spec
}

type Refusals = Vec<(&'static str, Value, &'static [&'static str])>;

fn bad_instance_types() -> Refusals {
    let long = format!("{}/x", "a".repeat(254));
    vec![
        ("/capacity/cpu", json!("1.5"), &["spec.capacity.cpu", "'1.5'", "100m to 1024"]),
        ("/capacity/cpu", json!("99m"), &["spec.capacity.cpu", "'99m'", "100m to 1024"]),
        ("/capacity/cpu", json!(""), &["spec.capacity.cpu", "''"]),
        ("/capacity/cpu", json!(2), &["spec.capacity.cpu", "string"]),
        ("/capacity/memory", json!("1Mi"), &["spec.capacity.memory", "'1Mi'", "256Mi to 32Ti"]),
        ("/capacity/memory", json!("1.5Gi"), &["spec.capacity.memory", "whole quantity"]),
        ("/architecture", json!("x86"), &["spec.architecture", "amd64", "arm64"]),
        ("/zones", json!(["a b"]), &["spec.zones", "should match"]),
        (
            "/labels",
            json!({"kubernetes.io/os": "x"}),
            &["spec.labels", "'kubernetes.io/os'", "example.com/role"],
        ),
        ("/labels", json!({"a.k8s.io/b": "x", "fine": ""}), &["spec.labels", "'a.k8s.io/b'"]),
        ("/labels", json!({"kaas.dev/pool": "x"}), &["spec.labels", "'kaas.dev/pool'"]),
        (
            "/labels",
            json!({"node-role.kubernetes.io/worker": ""}),
            &["spec.labels", "'node-role.kubernetes.io/worker'"],
        ),
        ("/labels", json!({"node.kubernetes.io/instance-type": "x"}), &["spec.labels", "instance-type"]),
        ("/labels", json!({"-x": "y"}), &["spec.labels", "'-x'", "qualified name"]),
        ("/labels", json!({long: "y"}), &["spec.labels", "qualified name"]),
        ("/labels", json!({"x": "a b"}), &["spec.labels.x", "should match"]),
        ("/extendedResources", json!({"gpu": 1}), &["spec.extendedResources", "'gpu'", "example.com/gpu"]),
        (
            "/extendedResources",
            json!({"x.kubernetes.io/gpu": 1}),
            &["spec.extendedResources", "'x.kubernetes.io/gpu'"],
        ),
        ("/extendedResources", json!({"e.com/gpu": -1}), &["spec.extendedResources.e.com/gpu", "-1"]),
        ("/pricePerHour", json!("-1"), &["spec.pricePerHour", "should match"]),
        ("/colour", json!("red"), &["unknown field \"spec.colour\""]),
    ]
}

fn bad_pools() -> Refusals {
    let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
    vec![
        ("/clusterName", json!(""), &["spec.clusterName", "at least 1"]),
        ("/replicas", json!(-1), &["spec.replicas", "-1", "greater than or equal to 0"]),
        ("/replicas", json!(1001), &["spec.replicas", "less than or equal to 1000"]),
        ("/instanceTypes", json!([]), &["spec.instanceTypes", "at least 1"]),
        ("/instanceTypes", json!(["a", "b"]), &["spec.instanceTypes", "at most 1"]),
        ("/infrastructure", json!({}), &["spec.infrastructure", "exactly one of pod and external"]),
        ("/infrastructure", json!({"pod": {}, "external": {}}), &["spec.infrastructure", "exactly one"]),
        (
            "/template/labels",
            json!({"kubernetes.io/hostname": "x"}),
            &["spec.template.labels", "'kubernetes.io/hostname'"],
        ),
        ("/template/taints", taint("a b", "NoSchedule"), &["spec.template.taints[0].key", "'a b'"]),
        (
            "/template/taints",
            taint("node.kubernetes.io/unreachable", "NoExecute"),
            &["spec.template.taints[0].key", "'node.kubernetes.io/unreachable'"],
        ),
        (
            "/template/taints",
            taint("a", "Never"),
            &["spec.template.taints[0].effect", "NoSchedule", "NoExecute"],
        ),
        (
            "/template/taints",
            json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]),
            &["spec.template.taints", "Duplicate value"],
        ),
        (
            "/template/kubelet/maxPods",
            json!(1),
            &["spec.template.kubelet.maxPods", "greater than or equal to 5"],
        ),
        (
            "/template/kubelet/containerLogMaxSize",
            json!("1Ki"),
            &["spec.template.kubelet.containerLogMaxSize", "'1Ki'", "1Mi to 10Gi"],
        ),
        ("/rollout", json!({"maxSurge": 0}), &["spec.rollout", "cannot both be 0"]),
        ("/rollout/drain/timeout", json!("25h"), &["spec.rollout.drain.timeout", "'25h'", "at most 24h"]),
        ("/rollout/drain/timeout", json!("soon"), &["spec.rollout.drain.timeout", "'soon'", "10m"]),
        ("/version", json!("1.37.1"), &["spec.version", "'1.37.1'", "must look like v1.37.1"]),
        ("/autoscaling", json!({}), &["unknown field \"spec.autoscaling\""]),
    ]
}

pub(crate) async fn judge(judge: &mut Judge) {
    judge.refusals("InstanceType", &instance_type(), bad_instance_types()).await;
    judge.refusals("WorkerPool", &pool(), bad_pools()).await;
    judge.acceptances().await;
    judge.names().await;
    judge.changes().await;
}

impl Judge {
    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk("kaas.dev", "v1alpha1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, &format!("{}s", kind.to_lowercase()));
        match kind {
            "InstanceType" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), "default", &resource),
        }
    }

    async fn try_kind(&self, kind: &str, name: &str, spec: &Value) -> Result<DynamicObject, kube::Error> {
        self.try_create(&self.api(kind), &object(kind, name, spec)).await
    }

    async fn refusals(&mut self, kind: &str, good: &Value, bad: Refusals) {
        for (pointer, value, words) in bad {
            let what = format!("{kind} {pointer} {value}");
            let answer = self.try_kind(kind, "small", &with(good.clone(), pointer, value)).await;
            self.expect_refusal(&what, answer, words);
        }
    }

    /// What the server lets in, the operator must be able to read.
    async fn acceptances(&mut self) {
        let many: Value =
            (0..32).map(|at| (format!("{}.x/k{at}", "d".repeat(200)), "a".repeat(63))).collect();
        let types = [
            instance_type(),
            json!({
                "capacity": {"cpu": "500m", "memory": "256Mi"}, "architecture": "arm64", "zones": ["a", "b"],
                "labels": {"node.kubernetes.io/x": "y", "topology.kubernetes.io/zone": "z", "e.com/role": ""},
                "extendedResources": {"example.com/gpu": 8}, "pricePerHour": "0.12",
            }),
            with(instance_type(), "/labels", many.clone()),
        ];
        for spec in types {
            let answer = self.try_kind("InstanceType", "small", &spec).await;
            let Some(object) = self.expect_success(&spec.to_string(), answer) else { continue };
            let read = object.try_parse::<InstanceType>().map_err(|error| format!("{spec}: {error}"));
            self.failures.extend(read.err());
        }
        let pools = [
            pool(),
            with(pool(), "/infrastructure", json!({"external": {}})),
            with(pool(), "/template/labels", many),
            with(
                pool(),
                "/rollout",
                json!({"maxSurge": 0, "maxUnavailable": 1, "drain": {"timeout": "90s"}}),
            ),
            with(pool(), "/replicas", json!(1000)),
            with(
                pool(),
                "/template",
                json!({
                    "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoExecute"}],
                    "kubelet": {"maxPods": 500, "podPidsLimit": 64, "containerLogMaxSize": "10Gi"},
                }),
            ),
        ];
        for spec in pools {
            let answer = self.try_kind("WorkerPool", "p", &spec).await;
            let Some(object) = self.expect_success(&spec.to_string(), answer) else { continue };
            let read = object.try_parse::<WorkerPool>().map_err(|error| format!("{spec}: {error}"));
            self.failures.extend(read.err());
        }
        let answer = self.try_kind("Worker", "p-0", &worker()).await;
        if let Some(object) = self.expect_success("a worker", answer) {
            self.failures.extend(object.try_parse::<Worker>().err().map(|error| error.to_string()));
        }
    }

    async fn names(&mut self) {
        for (kind, spec, most) in
            [("WorkerPool", pool(), 57), ("Worker", worker(), 63), ("InstanceType", instance_type(), 63)]
        {
            let (longest, longer) = ("a".repeat(most), "a".repeat(most + 1));
            let answer = self.try_kind(kind, &longest, &spec).await;
            self.expect_success(&longest, answer);
            for name in [longer.as_str(), "a.b"] {
                let answer = self.try_kind(kind, name, &spec).await;
                self.expect_refusal(
                    name,
                    answer,
                    &["metadata.name", &format!("'{name}'"), &format!("at most {most}")],
                );
            }
        }
    }

    async fn changes(&mut self) {
        let changes: [(&str, Value, Value, &[&str]); 6] = [
            (
                "InstanceType",
                instance_type(),
                json!({"capacity": {"cpu": "4"}}),
                &["spec.capacity", "make another InstanceType"],
            ),
            (
                "InstanceType",
                instance_type(),
                json!({"extendedResources": {"e.com/gpu": 1}}),
                &["spec.extendedResources", "make another InstanceType"],
            ),
            ("InstanceType", instance_type(), json!({"architecture": "arm64"}), &["spec.architecture"]),
            (
                "WorkerPool",
                pool(),
                json!({"clusterName": "green"}),
                &["spec.clusterName", "stays blue", "make another"],
            ),
            (
                "WorkerPool",
                pool(),
                json!({"infrastructure": {"pod": null, "external": {}}}),
                &["spec.infrastructure", "cannot be changed"],
            ),
            (
                "Worker",
                worker(),
                json!({"version": "v1.38.0"}),
                &["what a worker is cannot change", "WorkerPool"],
            ),
        ];
        for (kind, spec, change, words) in changes {
            let api = self.api(kind);
            let strict = PatchParams {
                field_validation: Some(ValidationDirective::Strict),
                ..PatchParams::apply("tester").force()
            };
            api.patch("kept", &strict, &Patch::Apply(object(kind, "kept", &spec))).await.unwrap();
            let what = format!("{kind} {change}");
            let answer =
                api.patch("kept", &PatchParams::default(), &Patch::Merge(json!({"spec": change}))).await;
            self.expect_refusal(&what, answer, words);
        }
        let pools = self.api("WorkerPool");
        let change = json!({"spec": {"instanceTypes": ["large"], "template": {"labels": {"e.com/a": "b"}}}});
        let answer = pools.patch("kept", &PatchParams::default(), &Patch::Merge(change)).await;
        self.expect_success("another instance type", answer);
        let scale = json!({"spec": {"replicas": 7}});
        let answer = pools.patch_scale("kept", &PatchParams::default(), &Patch::Merge(scale)).await;
        let scaled = self.expect_success("scale", answer).and_then(|scale| scale.spec?.replicas);
        if scaled != Some(7) {
            self.failures.push(format!("scaled to {scaled:?}"));
        }
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "kaas.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}
