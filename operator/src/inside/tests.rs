//! The inside of a tenant that is a real API server: everything is taken as it is meant, comes to rest, and comes back.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kaas_crds::{KubernetesReleaseSpec, TenantCluster};
use kaas_e2e::apiserver::Apiserver;
use kaas_lifecycle::lint;
use kaas_lifecycle::observed::{Answer, Namespace, Probe};
use kaas_lifecycle::plan::plan;
use kaas_lifecycle::tenant::{Platform, Tenant};
use kaas_lifecycle::workers::report::Tally;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::*;

const RELEASE: &str = include_str!("../../../charts/kaas/catalogue/v1.37.1.yaml");

/// A tenant with a worker whose API is this server.
struct Stage {
    client: kube::Client,
    observed: Observed,
    gate: Gate,
    metrics: Metrics,
    memory: Arc<Memory>,
    _server: Apiserver,
}

fn service(name: &str, port: u16) -> (Reference, Live) {
    let reference = Reference::namespaced(Kind::Service, "kaas-1", name);
    let content = json!({"spec": {"ports": [{"nodePort": port}]}});
    (reference, Live { uid: name.into(), resource_version: "1".into(), terminating: false, content })
}

impl Stage {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = tokio::task::spawn_blocking(Apiserver::start).await.unwrap().unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig().unwrap()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let cluster: TenantCluster = serde_json::from_value(json!({
            "apiVersion": "kaas.dev/v1alpha1",
            "kind": "TenantCluster",
            "metadata": {"name": "blue", "namespace": "team", "uid": "1", "resourceVersion": "1"},
            "spec": {
                "version": "v1.37.1",
                "controlPlane": {"endpoint": {"type": "NodePort"}},
                // The server's own.
                "network": {"serviceCIDR": "10.96.0.0/16"},
            },
            "status": {"version": "v1.37.1"},
        }))
        .unwrap();
        let release: KubernetesReleaseSpec = serde_yaml::from_str(RELEASE).unwrap();
        let probe = Probe { at: Timestamp::now(), answer: Answer::Serving { version: "v1.37.1".into() } };
        let observed = Observed {
            now: Timestamp::now(),
            platform: Platform { node_port_host: "10.77.0.1".into(), ..Platform::default() },
            tenant: Tenant::new("1", "team", "blue"),
            cluster,
            catalogue: BTreeMap::from([("v1.37.1".to_owned(), release)]),
            namespaces: vec![Namespace {
                name: "kaas-1".into(),
                uid: "2".into(),
                resource_version: "1".into(),
                tenant_uid: "1".into(),
                adopt_by: None,
                terminating: false,
                remaining: Vec::new(),
            }],
            objects: BTreeMap::from([
                service("kube-apiserver", 30443),
                service("konnectivity-server", 30444),
            ]),
            secrets: BTreeMap::new(),
            kubeconfig: None,
            pods: Vec::new(),
            etcd: None,
            probe: Some(probe),
            trial: None,
            vigil: None,
            addresses: BTreeSet::new(),
            inside: None,
            addons: None,
            preflight: None,
            authority: Some(server.credential("ca.crt").unwrap()),
            workers: Some(Tally { desired: 1, left: 1, ..Tally::default() }),
        };
        Stage {
            client,
            observed,
            gate: Gate::unguarded(),
            metrics: Metrics::new(),
            memory: Arc::default(),
            _server: server,
        }
    }

    /// One reconcile, as far as it is about addons: what was written in each of its passes.
    async fn reconcile(&mut self) -> (Vec<usize>, Kept) {
        let mut passes = Vec::new();
        loop {
            self.observed.addons = None;
            observe(&self.client, &self.memory, &mut self.observed).await.unwrap();
            let plan = plan(&self.observed);
            let addons = Plan { waves: Vec::new(), ..plan };
            assert_eq!(lint::check(&self.observed, &addons), []);
            passes.push(addons.addons.iter().map(Vec::len).sum());
            let tools = Tools {
                client: self.client.clone(),
                memory: self.memory.clone(),
                gate: &self.gate,
                metrics: &self.metrics,
            };
            match keep(&tools, &addons, &mut self.observed).await {
                Kept::Changed if passes.len() < 4 => {}
                kept => return (passes, kept),
            }
        }
    }

    /// Reconciles as an operator that knows nothing, and expects rest.
    async fn rests(&mut self) {
        self.memory = Arc::default();
        let (passes, kept) = self.reconcile().await;
        assert_eq!(passes, [0], "an operator that starts into a settled world writes nothing");
        assert!(matches!(kept, Kept::Well));
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), "kube-system", &cluster::resource(kind))
    }

    /// Whether a probe of each kind in turn sees something new.
    async fn glances(&self) -> bool {
        let mut changed = false;
        for _ in GLANCES {
            changed |= self.memory.glance(&self.client).await;
        }
        changed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_inside_is_applied_kept_and_taken_away() {
    let mut stage = Stage::start().await;
    // Somebody was there first.
    let foreign = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns"}, "data": {"Corefile": ". {}"},
    });
    let maps = stage.api(Kind::ConfigMap);
    maps.create(&PostParams::default(), &serde_json::from_value(foreign).unwrap()).await.unwrap();

    let (passes, kept) = stage.reconcile().await;
    assert!(matches!(kept, Kept::Well), "{:?}", stage.observed.addons.map(|addons| addons.refused));
    assert!(
        passes.len() == 2 && passes[0] > 30 && passes[1] == 1,
        "all of it, then the one in the way: {passes:?}"
    );
    assert!(
        maps.get("coredns").await.unwrap().data["data"]["Corefile"].as_str().unwrap().contains("forward")
    );
    stage.rests().await;

    // At rest a reconcile reads the workloads alone, and glances see nothing.
    assert_eq!(stage.reconcile().await.0, [0]);
    assert!(stage.observed.addons.as_ref().unwrap().others.is_none());
    stage.glances().await;
    assert!(!stage.glances().await);

    // What goes or changes is seen by a glance and put right.
    let proxies = stage.api(Kind::DaemonSet);
    proxies.delete("kube-proxy", &DeleteParams::background()).await.unwrap();
    assert!(stage.glances().await);
    assert_eq!(stage.reconcile().await.0, [1]);
    proxies.get("kube-proxy").await.unwrap();
    stage.glances().await;
    let edit = Patch::Merge(json!({"data": {"Corefile": ". {}"}}));
    maps.patch("coredns", &PatchParams::default(), &edit).await.unwrap();
    assert!(stage.glances().await);
    assert_eq!(stage.reconcile().await.0, [1]);
    stage.rests().await;

    // A switch takes away what is ours and nothing else.
    let accounts = stage.api(Kind::ServiceAccount);
    let unlabel = Patch::Merge(json!({"metadata": {"labels": null}}));
    accounts.patch("metrics-server", &PatchParams::default(), &unlabel).await.unwrap();
    stage.observed.cluster.spec.addons.metrics_server.enabled = false;
    let (passes, _) = stage.reconcile().await;
    assert!(passes[0] > 5, "{passes:?}");
    stage.rests().await;
    assert!(stage.api(Kind::Deployment).get_opt("metrics-server").await.unwrap().is_none());
    accounts.get("metrics-server").await.unwrap();
    stage.observed.cluster.spec.addons.metrics_server.enabled = true;
    assert!(matches!(stage.reconcile().await.1, Kept::Well));
    stage.rests().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tenant_refuses_is_told_and_holds_up_nothing() {
    let mut stage = Stage::start().await;
    let policy = |api_version: &str, kind: &str, spec: Value| {
        serde_json::from_value::<DynamicObject>(json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"name": "no-daemons"}, "spec": spec,
        }))
        .unwrap()
    };
    let version = "admissionregistration.k8s.io/v1";
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["daemonsets"]}]);
    for (kind, plural, spec) in [
        (
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            json!({
                "matchConstraints": {"resourceRules": rules},
                "validations": [{"expression": "false", "message": "no daemons here"}],
            }),
        ),
        (
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            json!({"policyName": "no-daemons", "validationActions": ["Deny"]}),
        ),
    ] {
        let gvk = kube::core::GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, plural);
        let api: Api<DynamicObject> = Api::all_with(stage.client.clone(), &resource);
        api.create(&PostParams::default(), &policy(version, kind, spec)).await.unwrap();
    }
    // The policy acts a moment after it was made.
    let probe = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "probe"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    let probe: DynamicObject = serde_json::from_value(probe).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let refused = async {
        while stage.api(Kind::DaemonSet).create(&dry, &probe).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();

    let (_, kept) = stage.reconcile().await;
    assert!(matches!(kept, Kept::Later(RETRY)));
    let told = stage.observed.addons.as_ref().unwrap().refused.clone().unwrap();
    assert!(told.contains("DaemonSet kube-system/flannel") && told.contains("no daemons here"), "{told}");
    stage.api(Kind::Deployment).get("coredns").await.unwrap();
    let (passes, _) = stage.reconcile().await;
    assert_eq!(passes, [3], "only what was refused is tried again");
}
