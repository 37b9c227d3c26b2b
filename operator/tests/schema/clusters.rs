//! TenantClusters and KubernetesReleases: what is refused, what is accepted, what may never change, and what cannot yet.

use std::time::Duration;

use kaas_crds::{KubernetesRelease, TenantCluster};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective,
};
use kube::core::Resource;
use serde_json::{Value, json};

use crate::judge::{DEADLINE, Judge};

const ADMISSION: &str = include_str!("../../../charts/kaas/templates/admission.yaml");
const CATALOGUE: &str = include_str!("../../../charts/kaas/catalogue/v1.37.1.yaml");

/// Specs that are refused, and words of the refusal: the field, the value, the way out.
fn bad_specs() -> Vec<(Value, &'static [&'static str])> {
    let with = |field: &str, value: Value| json!({"version": "v1.37.1", field: value});
    let endpoint = |endpoint: Value| with("controlPlane", json!({"endpoint": endpoint}));
    let storage = |storage: Value| with("etcd", json!({"storage": storage}));
    let size = |size: Value| storage(json!({"persistent": {"size": size}}));
    let pods = |network: &str| with("network", json!({"podCIDR": network}));
    let services = |network: &str| with("network", json!({"serviceCIDR": network}));
    let domain = |domain: &str| with("network", json!({"domain": domain}));
    let window = |field: &str, value: Value| {
        let mut window = json!({"start": "02:00", "duration": "4h", "timeZone": "UTC"});
        window[field] = value;
        with("maintenance", json!({"windows": [window]}))
    };
    let exclusion = |from: &str, to: &str| {
        with("maintenance", json!({"exclusions": [{"from": from, "to": to, "timeZone": "UTC"}]}))
    };
    vec![
        (json!({}), &["spec.version", "Required value"]),
        (
            json!({"version": "1.37.1"}),
            &["spec.version", "'1.37.1'", "v1.37.1", "kubectl get kubernetesreleases"],
        ),
        (json!({"version": "v1.37"}), &["spec.version", "'v1.37'", "must look like v1.37.1"]),
        (json!({"version": "v1.37.1-rc.0"}), &["spec.version", "'v1.37.1-rc.0'", "must look like v1.37.1"]),
        (json!({"version": "latest"}), &["spec.version", "'latest'", "must look like v1.37.1"]),
        (json!({"version": ""}), &["spec.version", "''", "must look like v1.37.1"]),
        (
            with("etcd", json!({"version": "v3.7.3"})),
            &["spec.etcd.version", "'v3.7.3'", "must look like 3.7.3"],
        ),
        (with("etcd", json!({"version": "3.7"})), &["spec.etcd.version", "'3.7'", "must look like 3.7.3"]),
        (with("colour", json!("red")), &["unknown field \"spec.colour\""]),
        (with("paused", json!("please")), &["spec.paused", "boolean"]),
        (with("acceptRevision", json!("a".repeat(64))), &["spec.acceptRevision", "63"]),
        (
            with("controlPlane", json!({"replicas": 0})),
            &["spec.controlPlane.replicas", "0", "greater than or equal to 1"],
        ),
        (
            with("controlPlane", json!({"replicas": 6})),
            &["spec.controlPlane.replicas", "6", "less than or equal to 5"],
        ),
        (with("controlPlane", json!({"replicas": "two"})), &["spec.controlPlane.replicas", "integer"]),
        (
            endpoint(json!({"type": "Ingress"})),
            &["spec.controlPlane.endpoint.type", "Ingress", "ClusterIP", "NodePort", "LoadBalancer"],
        ),
        (
            endpoint(json!({"type": "LoadBalancer", "nodePort": {"port": 30443}})),
            &["spec.controlPlane.endpoint.nodePort", "only goes with type NodePort", "LoadBalancer"],
        ),
        (
            endpoint(json!({"type": "NodePort", "nodePort": {"port": 70000}})),
            &["spec.controlPlane.endpoint.nodePort.port", "70000", "less than or equal to 65535"],
        ),
        (with("etcd", json!({"replicas": 2})), &["spec.etcd.replicas: 2", "1, 3 or 5"]),
        (with("etcd", json!({"replicas": 7})), &["spec.etcd.replicas: 7", "1, 3 or 5"]),
        (with("etcd", json!({"replicas": -1})), &["spec.etcd.replicas: -1", "1, 3 or 5"]),
        (storage(json!({})), &["spec.etcd.storage", "exactly one of persistent and ephemeral"]),
        (
            storage(json!({"persistent": null})),
            &["spec.etcd.storage", "exactly one of persistent and ephemeral"],
        ),
        (
            storage(json!({"persistent": {"size": "1Gi"}, "ephemeral": {}})),
            &["spec.etcd.storage", "exactly one of persistent and ephemeral"],
        ),
        (size(json!("10Mi")), &["spec.etcd.storage.persistent.size", "'10Mi'", "512Mi to 1Ti", "8Gi"]),
        (size(json!("2Ti")), &["spec.etcd.storage.persistent.size", "'2Ti'", "512Mi to 1Ti"]),
        (size(json!("8GB")), &["spec.etcd.storage.persistent.size", "'8GB'", "512Mi to 1Ti"]),
        (size(json!("-8Gi")), &["spec.etcd.storage.persistent.size", "'-8Gi'", "512Mi to 1Ti"]),
        (size(json!("1.5Gi")), &["spec.etcd.storage.persistent.size", "'1.5Gi'", "whole quantity"]),
        (size(json!("1e9")), &["spec.etcd.storage.persistent.size", "'1e9'", "whole quantity"]),
        (size(json!("1E9")), &["spec.etcd.storage.persistent.size", "'1E9'", "whole quantity"]),
        (size(json!("+8Gi")), &["spec.etcd.storage.persistent.size", "'+8Gi'", "whole quantity"]),
        (size(json!(8)), &["spec.etcd.storage.persistent.size", "string"]),
        (
            storage(json!({"persistent": {"storageClassName": ""}})),
            &["spec.etcd.storage.persistent.storageClassName", "at least 1"],
        ),
        (pods("nonsense"), &["spec.network.podCIDR", "'nonsense'", "/8 to /24", "100.96.0.0/16"]),
        (pods("10.0.0.5/16"), &["spec.network.podCIDR", "'10.0.0.5/16'", "without host bits"]),
        (pods("010.0.0.0/16"), &["spec.network.podCIDR", "'010.0.0.0/16'", "/8 to /24"]),
        (pods("10.0.0.0/25"), &["spec.network.podCIDR", "'10.0.0.0/25'", "/8 to /24"]),
        (pods("fd00::/64"), &["spec.network.podCIDR", "IPv4"]),
        (services("10.0.0.0/11"), &["spec.network.serviceCIDR", "'10.0.0.0/11'", "/12 to /24"]),
        (services("100.96.128.0/20"), &["spec.network", "100.96.0.0/16", "100.96.128.0/20", "overlap"]),
        (domain("Cluster.Local"), &["spec.network.domain", "'Cluster.Local'", "lower case", "cluster.local"]),
        (domain(""), &["spec.network.domain", "''", "cluster.local"]),
        (domain("a..b"), &["spec.network.domain", "'a..b'", "cluster.local"]),
        (domain(&"a".repeat(64)), &["spec.network.domain", "63"]),
        (with("addons", json!({"cni": {}})), &["spec.addons.cni", "exactly one of flannel and none"]),
        (
            with("addons", json!({"cni": {"flannel": {}, "none": {}}})),
            &["spec.addons.cni", "exactly one of flannel and none"],
        ),
        (
            with("addons", json!({"kubeProxy": {"enabled": "no"}})),
            &["spec.addons.kubeProxy.enabled", "boolean"],
        ),
        (
            with(
                "controlPlane",
                json!({"runtimeConfig": {"networking.k8s.io/v1beta1": true, "apps/v1": false}}),
            ),
            &[
                "spec.controlPlane.runtimeConfig",
                "'apps/v1'",
                "alpha or beta version",
                "networking.k8s.io/v1beta1",
            ],
        ),
        (
            with("controlPlane", json!({"runtimeConfig": {"api/beta": true}})),
            &["'api/beta'", "alpha or beta"],
        ),
        (with("controlPlane", json!({"runtimeConfig": {"a.io/v1beta1": "yes"}})), &["boolean"]),
        (with("upgrade", json!({"ignore": [""]})), &["spec.upgrade.ignore[0]", "at least 1"]),
        (window("days", json!(["Saturday"])), &["spec.maintenance.windows[0].days[0]", "Saturday", "Sat"]),
        (
            window("start", json!("2:00")),
            &["spec.maintenance.windows[0].start", "'2:00'", "for example 02:00"],
        ),
        (
            window("start", json!("24:00")),
            &["spec.maintenance.windows[0].start", "'24:00'", "00:00 to 23:59"],
        ),
        (window("duration", json!("59m")), &["spec.maintenance.windows[0].duration", "'59m'", "1h to 168h"]),
        (
            window("duration", json!("169h")),
            &["spec.maintenance.windows[0].duration", "'169h'", "1h to 168h"],
        ),
        (window("duration", json!("7d")), &["spec.maintenance.windows[0].duration", "'7d'", "1h to 168h"]),
        (window("timeZone", json!("")), &["spec.maintenance.windows[0].timeZone", "at least 1"]),
        (window("timeZone", Value::Null), &["spec.maintenance.windows[0].timeZone", "Required value"]),
        (
            with(
                "maintenance",
                json!({"windows": vec![json!({"start": "02:00", "duration": "4h", "timeZone": "UTC"}); 17]}),
            ),
            &["spec.maintenance.windows", "at most 16"],
        ),
        (
            exclusion("2026-12-20", "2027-01-05T00:00"),
            &["spec.maintenance.exclusions[0].from", "'2026-12-20'", "2026-12-20T00:00"],
        ),
        (exclusion("2026-12-20T00:00", "2027-01-05T00:00Z"), &["spec.maintenance.exclusions[0].to"]),
        (
            exclusion("2026-12-20T00:00", "2026-12-20T00:00"),
            &[
                "spec.maintenance.exclusions[0]",
                "to: '2026-12-20T00:00' must be later than from '2026-12-20T00:00'",
            ],
        ),
    ]
}

/// Specs that are accepted.
fn good_specs() -> Vec<Value> {
    vec![
        json!({"version": "v1.37.1"}),
        json!({"version": "v1.37.1", "acceptRevision": null, "controlPlane": {"endpoint": {"nodePort": null}}}),
        json!({"version": "v1.37.1", "controlPlane": {"replicas": 5, "endpoint": {"type": "LoadBalancer"}}}),
        json!({"version": "v1.37.1", "controlPlane": {"endpoint": {"type": "NodePort", "nodePort": {"port": 30443}}}}),
        json!({"version": "v1.37.1", "etcd": {"replicas": 1, "storage": {"ephemeral": {}}}}),
        json!({"version": "v1.37.1", "etcd": {"storage": {"ephemeral": {}, "persistent": null}}}),
        json!({"version": "v1.37.1", "etcd": {"replicas": 5, "storage": {"persistent": {"size": "512Mi"}}}}),
        json!({"version": "v1.37.1", "etcd": {"storage": {"persistent": {"size": "1Ti", "storageClassName": "fast"}}}}),
        json!({"version": "v1.37.1", "network": {"podCIDR": "10.0.0.0/8", "serviceCIDR": "172.16.0.0/12"}}),
        json!({"version": "v1.37.1", "network": {"podCIDR": "10.0.0.0/24", "serviceCIDR": "10.0.1.0/24", "domain": "a"}}),
        json!({"version": "v1.37.1", "paused": true, "acceptRevision": "abc"}),
        json!({"version": "v1.37.1", "addons": {"kubeProxy": {"enabled": false}, "cni": {"none": {}}}}),
        json!({"version": "v1.37.1", "addons": {"coreDNS": {}, "cni": {"flannel": {}, "none": null}}}),
        json!({"version": "v1.37.1", "etcd": {"version": "3.6.16"}}),
        json!({"version": "v1.37.1", "maintenance": {}}),
        json!({"version": "v1.37.1", "controlPlane": {"runtimeConfig": {"networking.k8s.io/v1beta1": true, "batch/v2alpha1": false}}}),
        json!({"version": "v1.37.1", "upgrade": {"ignore": ["BudgetBlocksDrain/default/web"]}}),
        json!({"version": "v1.37.1", "maintenance": {
            "windows": [
                {"days": ["Sat", "Sun"], "start": "02:00", "duration": "4h", "timeZone": "Asia/Tokyo"},
                {"start": "23:59", "duration": "604800s", "timeZone": "UTC"},
            ],
            "exclusions": [
                {"from": "2026-12-20T00:00", "to": "2027-01-05T00:00", "timeZone": "Asia/Tokyo", "scope": "NoUpgrades"},
            ],
        }}),
    ]
}

/// Changes of [`first_spec`] that are refused.
fn refused_changes() -> Vec<(Value, &'static [&'static str])> {
    let endpoint = |endpoint: Value| json!({"controlPlane": {"endpoint": endpoint}});
    let storage = |storage: Value| json!({"etcd": {"storage": storage}});
    vec![
        // What runs is v1.37.1.
        (json!({"version": "v1.39.0"}), &["spec.version", "v1.39.0", "more than one minor", "v1.37.1"]),
        (json!({"version": "v1.35.9"}), &["spec.version", "v1.35.9", "more than one minor", "v1.37.1"]),
        (json!({"upgrade": {"soak": "169h"}}), &["spec.upgrade.soak", "'169h'", "at most 168h"]),
        (json!({"upgrade": {"soak": "10"}}), &["spec.upgrade.soak", "'10'", "10m"]),
        (json!({"upgrade": {"finalize": "Never"}}), &["spec.upgrade.finalize", "AfterSoak", "Manual"]),
        (
            endpoint(json!({"type": "ClusterIP", "nodePort": null})),
            &["spec.controlPlane.endpoint.type", "stays NodePort"],
        ),
        (
            endpoint(json!({"nodePort": {"port": 30444}})),
            &["spec.controlPlane.endpoint.nodePort.port", "every kubeconfig names it", "stays 30443"],
        ),
        (
            endpoint(json!({"nodePort": {"port": null}})),
            &["spec.controlPlane.endpoint.nodePort.port", "stays 30443"],
        ),
        (endpoint(json!({"nodePort": null})), &["spec.controlPlane.endpoint.nodePort.port", "stays 30443"]),
        (json!({"etcd": {"replicas": 2}}), &["spec.etcd.replicas", "2 must be 1, 3 or 5"]),
        (
            storage(json!({"persistent": {"size": "2Gi"}})),
            &["spec.etcd.storage", "cannot be changed yet", "create a second TenantCluster"],
        ),
        (
            storage(json!({"persistent": null, "ephemeral": {}})),
            &["spec.etcd.storage", "cannot be changed yet"],
        ),
        (
            json!({"network": {"podCIDR": "10.0.0.0/16"}}),
            &["spec.network.podCIDR", "can never change", "100.96.0.0/16"],
        ),
        (
            json!({"network": {"serviceCIDR": "10.0.0.0/16"}}),
            &["spec.network.serviceCIDR", "can never change", "100.64.0.0/16"],
        ),
        (
            json!({"network": {"domain": "x.y"}}),
            &["spec.network.domain", "can never change", "cluster.local"],
        ),
        (
            json!({"addons": {"cni": {"flannel": null, "none": {}}}}),
            &["spec.addons.cni", "cannot be changed", "flannel", "create a second TenantCluster"],
        ),
        (json!({"version": null}), &["spec.version", "Required value"]),
    ]
}

/// Changes of [`first_spec`] that are accepted.
fn accepted_changes() -> Vec<Value> {
    vec![
        json!({"controlPlane": {"replicas": 3}}),
        json!({"etcd": {"replicas": 3}}),
        json!({"paused": true}),
        json!({"version": "v1.38.0", "upgrade": {"finalize": "Manual", "soak": "0s"}}),
        json!({"version": "v1.37.9"}),
        json!({"version": "v1.36.3"}),
        json!({"acceptRevision": "abc"}),
        json!({"addons": {"kubeProxy": {"enabled": false}, "metricsServer": {"enabled": false}}}),
        // Falls back to the defaults, which are what it has.
        json!({"network": null}),
        json!({}),
    ]
}

fn first_spec() -> Value {
    json!({
        "version": "v1.37.1",
        "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort", "nodePort": {"port": 30443}}},
        "etcd": {"replicas": 1, "storage": {"persistent": {"size": "1Gi"}}},
    })
}

pub(crate) async fn judge(judge: &mut Judge) {
    judge.specs().await;
    judge.nulls().await;
    judge.cluster_names().await;
    judge.cluster_changes().await;
    judge.releases().await;
}

impl Judge {
    fn clusters(&self) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<TenantCluster>(&());
        Api::namespaced_with(self.client.clone(), "default", &resource)
    }

    async fn try_cluster(&self, name: &str, spec: &Value) -> Result<DynamicObject, kube::Error> {
        self.try_create(&self.clusters(), &cluster(name, spec)).await
    }

    async fn specs(&mut self) {
        for (spec, words) in bad_specs() {
            let answer = self.try_cluster("blue", &spec).await;
            self.expect_refusal(&spec.to_string(), answer, words);
        }
        for spec in good_specs() {
            let answer = self.try_cluster("blue", &spec).await;
            let Some(object) = self.expect_success(&spec.to_string(), answer) else { continue };
            // What the server lets in, the operator must be able to read.
            if let Err(error) = object.try_parse::<TenantCluster>() {
                self.failures.push(format!("{spec}: accepted, but cannot be read: {error}"));
            }
        }
    }

    /// In a plain request null means unset (see the tables). An apply on the server's side could not own it: it is
    /// refused by name, and never kept, where it would count as set.
    async fn nulls(&mut self) {
        let spec = json!({"version": "v1.37.1", "etcd": {"storage": {"ephemeral": {}, "persistent": null}}});
        let apply = Patch::Apply(cluster("blue", &spec));
        let answer = self.clusters().patch("blue", &strict("tester").dry_run(), &apply).await;
        self.expect_refusal("null applied", answer, &["spec.etcd.storage.persistent", "null"]);
    }

    async fn cluster_names(&mut self) {
        let spec = json!({"version": "v1.37.1"});
        for name in ["1blue", "blue.red", &"a".repeat(51)] {
            let answer = self.try_cluster(name, &spec).await;
            self.expect_refusal(name, answer, &["metadata.name", &format!("'{name}'"), "at most 50"]);
        }
        for name in ["b", "blue-2", &"a".repeat(50)] {
            let answer = self.try_cluster(name, &spec).await;
            self.expect_success(name, answer);
        }
    }

    async fn cluster_changes(&mut self) {
        let clusters = self.clusters();
        let gold = cluster("gold", &first_spec());
        clusters.patch("gold", &strict("tester"), &Patch::Apply(gold)).await.unwrap();
        let runs = json!({"status": {"version": "v1.37.1"}});
        clusters.patch_status("gold", &PatchParams::default(), &Patch::Merge(runs)).await.unwrap();
        let dry_run = PatchParams::default().dry_run();
        for (change, words) in refused_changes() {
            let answer = clusters.patch("gold", &dry_run, &Patch::Merge(json!({"spec": change}))).await;
            self.expect_refusal(&change.to_string(), answer, words);
        }
        for change in accepted_changes() {
            let answer = clusters.patch("gold", &dry_run, &Patch::Merge(json!({"spec": change}))).await;
            self.expect_success(&change.to_string(), answer);
        }
    }

    async fn releases(&mut self) {
        let releases: Api<KubernetesRelease> = Api::all(self.client.clone());
        let spec: Value = serde_yaml::from_str(CATALOGUE).unwrap();
        let release = |name: &str, spec: &Value| json!({"apiVersion": "kaas.dev/v1alpha1", "kind": "KubernetesRelease", "metadata": {"name": name}, "spec": spec});
        let apply = |name: &'static str, spec: Value| {
            let (releases, document) = (releases.clone(), release(name, &spec));
            async move { releases.patch(name, &strict("tester"), &Patch::Apply(document)).await }
        };
        let answer = apply("v1.37.2", spec.clone()).await;
        self.expect_refusal(
            "another name",
            answer,
            &["metadata.name", "'v1.37.2'", "spec.version 'v1.37.1'"],
        );
        let mut bare = spec.clone();
        bare.as_object_mut().unwrap().remove("addons");
        let answer = apply("v1.37.1", bare.clone()).await;
        self.expect_success("a release without images for workers", answer);
        let answer = apply("v1.37.1", spec.clone()).await;
        self.expect_success("the chart's release, which adds them", answer);
        let answer = apply("v1.37.1", bare).await;
        self.expect_refusal("what was added taken away", answer, &["spec.addons", "never changes"]);
        for (pointer, field) in [
            ("/etcd/version", "spec.etcd"),
            ("/images/kubeScheduler", "spec.images"),
            ("/addons/kubeProxy", "spec.addons"),
            ("/removes/0", "spec.removes"),
            ("/adds/0", "spec.adds"),
        ] {
            let mut changed = spec.clone();
            *changed.pointer_mut(pointer).unwrap() = json!("something-else");
            let answer = apply("v1.37.1", changed).await;
            self.expect_refusal(pointer, answer, &[field, "never changes", "add another KubernetesRelease"]);
        }
        self.deletion_in_use(&releases).await;
    }

    /// The chart's admission policy: a release in use stays, and the refusal names the users.
    async fn deletion_in_use(&mut self, releases: &Api<KubernetesRelease>) {
        for document in ADMISSION.split("\n---\n") {
            // Labels are all that Helm fills in.
            let plain: Vec<_> = document.lines().filter(|line| !line.contains("{{")).collect();
            let object: DynamicObject = serde_yaml::from_str(&plain.join("\n")).unwrap();
            let types = object.types.clone().unwrap();
            let gvk = kube::core::GroupVersionKind::try_from(&types).unwrap();
            let plural = match types.kind.as_str() {
                "ValidatingAdmissionPolicy" => "validatingadmissionpolicies",
                _ => "validatingadmissionpolicybindings",
            };
            let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            api.create(&PostParams::default(), &object).await.unwrap();
        }
        let use_by = |users: i32, summary: &str| json!({"status": {"users": users, "summary": summary}});
        let status = |change: Value| {
            let releases = releases.clone();
            async move { releases.patch_status("v1.37.1", &PatchParams::default(), &Patch::Merge(change)).await }
        };
        status(use_by(2, "2: team-a/blue, team-b/gold")).await.unwrap();
        let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
        // The server reads new policies a moment after they were made.
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        let refused = async {
            loop {
                pause.tick().await;
                if let Err(refusal) = releases.delete("v1.37.1", &dry_run).await {
                    break refusal;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, refused).await {
            Err(_) => self.failures.push("a release in use could be deleted".into()),
            Ok(refusal) => {
                let words =
                    ["v1.37.1 is in use", "team-a/blue, team-b/gold", "delete these TenantClusters first"];
                self.expect_refusal::<()>("deletion of a release in use", Err(refusal), &words);
            }
        }
        status(use_by(0, "")).await.unwrap();
        let answer = releases.delete("v1.37.1", &dry_run).await;
        self.expect_success("deletion of a release that nobody uses", answer);
    }
}

fn cluster(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": TenantCluster::api_version(&()), "kind": TenantCluster::kind(&()),
        "metadata": {"name": name}, "spec": spec,
    })
}

fn strict(manager: &str) -> PatchParams {
    PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply(manager).force() }
}
