//! What a real API server tells: APIs that are served and who calls them, budgets, webhooks, kubelets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::TenantClusterSpec;
use kaas_e2e::apiserver::Apiserver;
use kaas_lifecycle::desired::{Inputs, workloads};
use kaas_lifecycle::tenant::{Platform, Tenant};
use kaas_pki::{Authority, Request, Usages, Validity};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::callers;

const RELEASE: &str = include_str!("../../../../charts/kaas/catalogue/v1.37.1.yaml");
/// On in this test, and gone in the next version.
const BETA: &str = "resource.k8s.io/v1beta1";
/// The same, and nothing else has its objects.
const ALONE: &str = "coordination.k8s.io/v1beta1";
const PATIENCE: Duration = Duration::from_secs(30);

fn release() -> KubernetesReleaseSpec {
    serde_yaml::from_str(RELEASE).unwrap()
}

fn next() -> KubernetesReleaseSpec {
    let removes = vec![format!("{BETA}/deviceclasses"), ALONE.into(), "certificates.k8s.io/v1alpha1".into()];
    KubernetesReleaseSpec { version: "v1.38.0".into(), removes, ..release() }
}

/// An API server with both APIs, which sends its events where a rendering of ours says.
struct Stage {
    client: Client,
    server: Apiserver,
    keyring: Keyring,
    port: u16,
    _directory: TempDir,
}

impl Stage {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = TempDir::new().unwrap();
        let keyring = keys(directory.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let file = |name: &str| directory.path().join(name);
        let args = callers::Args {
            listen: ([127, 0, 0, 1], port).into(),
            certificate: file("tls.crt"),
            key: file("tls.key"),
            authority: file("cluster-ca.crt"),
            watched: next().removes,
        };
        tokio::spawn(callers::run(args, std::future::pending()));
        let mut flags = audit_flags(directory.path(), port);
        flags.push(format!("--runtime-config={BETA}=true,{ALONE}=true"));
        let starting = move || {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            Apiserver::start_with(&flags)
        };
        let server = tokio::task::spawn_blocking(starting).await.unwrap().unwrap();
        let client = client_of(&server.kubeconfig().unwrap()).await;
        Stage { client, server, keyring, port, _directory: directory }
    }

    async fn create<K>(&self, api: Api<K>, object: Value)
    where
        K: Clone + DeserializeOwned + std::fmt::Debug + serde::Serialize,
    {
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    fn objects(&self, api: &str, kind: &str, plural: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    async fn read(&self) -> Facts {
        read(&self.client, &next(), None).await.unwrap()
    }
}

async fn client_of(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Key material as a pod finds it, and the operator's.
fn keys(directory: &Path) -> Keyring {
    let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(1));
    let authority = Authority::generate("cluster-ca", validity).unwrap();
    let issue = |name: &str, organization: &str, usages| {
        let request = Request {
            common_name: name.into(),
            organizations: vec![organization.into()],
            dns_names: if matches!(usages, Usages::Server) { vec![name.into()] } else { Vec::new() },
            ip_addresses: if matches!(usages, Usages::Server) {
                vec![[127, 0, 0, 1].into()]
            } else {
                Vec::new()
            },
            usages,
        };
        authority.issue(&request, validity).unwrap()
    };
    let server = issue("kube-apiserver", "kaas", Usages::Server);
    let kubelet = issue("kube-apiserver-kubelet-client", "system:masters", Usages::Client);
    let operator = issue("kaas-operator", "system:masters", Usages::Client);
    for (name, text) in [
        ("cluster-ca.crt", authority.certificate_pem()),
        ("tls.crt", &server.certificate_pem),
        ("tls.key", &server.private_key_pem),
        ("kubelet-client.crt", &kubelet.certificate_pem),
        ("kubelet-client.key", &kubelet.private_key_pem),
    ] {
        fs::write(directory.join(name), text).unwrap();
    }
    let mut keyring = Keyring::default();
    let entries = [("api.crt", operator.certificate_pem), ("api.key", operator.private_key_pem)];
    keyring.put("operator", entries.map(|(key, text)| (key.to_owned(), text)).into());
    let roots = [("cluster-ca.crt".to_owned(), authority.certificate_pem().to_owned())];
    keyring.put("authority", roots.into());
    keyring
}

/// The flags that an API server of ours would have, with their files in this directory.
fn audit_flags(directory: &Path, port: u16) -> Vec<String> {
    let (tenant, release) = (Tenant::new("1", "team", "blue"), release());
    let spec: TenantClusterSpec = serde_json::from_value(json!({"version": "v1.37.1"})).unwrap();
    let platform = Platform { operator_image: "example.com/kaas-operator:1".into(), ..Platform::default() };
    let inputs = Inputs {
        tenant: &tenant,
        spec: &spec,
        release: &release,
        emulated: None,
        etcd_image: String::new(),
        canary: false,
        snapshot: false,
        watched: BTreeSet::from_iter(next().removes),
        platform: &platform,
        alone: true,
    };
    let rendered = workloads(&inputs);
    let servers = rendered.iter().find(|object| object.reference.name == "kube-apiserver").unwrap();
    let template = &servers.content["spec"]["template"];
    let here = |text: &str| {
        text.replace("/etc/kubernetes/pki", directory.to_str().unwrap())
            .replace("/etc/kubernetes/audit", directory.to_str().unwrap())
            .replace(&format!("127.0.0.1:{CALLERS_PORT}"), &format!("127.0.0.1:{port}"))
    };
    let volumes = template["spec"]["volumes"].as_array().unwrap();
    let files = volumes.iter().find(|volume| volume["name"] == "audit").unwrap();
    for item in files["downwardAPI"]["items"].as_array().unwrap() {
        let field = item["fieldRef"]["fieldPath"].as_str().unwrap();
        let annotation = field.strip_prefix("metadata.annotations['").unwrap().strip_suffix("']").unwrap();
        let text = template["metadata"]["annotations"][annotation].as_str().unwrap();
        fs::write(directory.join(item["path"].as_str().unwrap()), here(text)).unwrap();
    }
    let command = template["spec"]["containers"][0]["command"].as_array().unwrap().iter();
    let flags = command.filter_map(Value::as_str).filter(|flag| flag.starts_with("--audit-"));
    flags.map(here).collect()
}

/// A pod of an API server whose neighbour is on loopback.
fn server_pod(address: &str, containers: &[&str]) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "kube-apiserver-0", "labels": {"app.kubernetes.io/name": "kube-apiserver"}},
        "spec": {"containers": containers.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_good_for_minutes_and_while_somebody_waits_for_seconds() {
    let memory = Memory::default();
    let look = |facts| Some(Look { at: Instant::now(), target: "v1.38.0".into(), facts });
    memory.keep(look(Some(Facts::default())));
    sleep(ASKED).await;
    assert_eq!(memory.recall("v1.38.0", ASKED), None);
    assert_eq!(memory.recall("v1.38.0", AT_REST), Some(Some(Facts::default())));
    assert_eq!(memory.recall("v1.38.1", AT_REST), None, "another version is another question");
    sleep(AT_REST).await;
    assert_eq!(memory.recall("v1.38.0", AT_REST), None);
    memory.keep(look(None));
    assert_eq!(memory.recall("v1.38.0", AT_REST), Some(None), "a failure is not repeated at once");
    sleep(ASKED).await;
    assert_eq!(memory.recall("v1.38.0", AT_REST), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_speaks_against_an_upgrade_is_read() {
    let stage = Stage::start().await;

    // APIs: two are served and go, one of them has objects that nothing else has.
    let candidates = stage.objects(ALONE, "LeaseCandidate", "leasecandidates", Some("default"));
    for name in ["one", "two"] {
        let spec = json!({
            "leaseName": "x", "binaryVersion": "1.37.1", "emulationVersion": "1.37.1", "strategy": "OldestEmulationVersion",
        });
        let object =
            json!({"apiVersion": ALONE, "kind": "LeaseCandidate", "metadata": {"name": name}, "spec": spec});
        stage.create(candidates.clone(), object).await;
    }
    let facts = stage.read().await;
    let removed: Vec<_> = facts
        .removed
        .iter()
        .map(|found| (found.api.as_str(), found.resource.as_str(), found.elsewhere.as_deref(), found.stored))
        .collect();
    assert_eq!(
        removed,
        [(ALONE, "leasecandidates", None, 2), (BETA, "deviceclasses", Some("resource.k8s.io/v1"), 0)]
    );
    assert!(facts.kubelets.is_empty() && facts.budgets.is_empty() && facts.webhooks.is_empty());
    assert_eq!(facts.system_labels["kubernetes.io/metadata.name"], "kube-system");

    callers_are_told(&stage).await;
    budgets_are_told(&stage).await;
    webhooks_are_told(&stage).await;
    kubelets_are_told(&stage).await;
    additions_are_told(&stage).await;
}

/// What would be lost on the way back.
async fn additions_are_told(stage: &Stage) {
    let deployments = stage.objects("apps/v1", "Deployment", "deployments", Some("default"));
    let template = json!({
        "metadata": {"labels": {"app": "new"}},
        "spec": {"containers": [{"name": "a", "image": "a", "workingDir": "/new"}]},
    });
    let spec = json!({"selector": {"matchLabels": {"app": "new"}}, "template": template});
    let object =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "new"}, "spec": spec});
    stage.create(deployments, object).await;
    let adds = [
        "v1/nodes",
        "v1/pods:spec.containers[].workingDir",
        "example.com/v1/things",
        "v1/nodes:spec.podCIDR",
    ];
    let adds = adds.map(str::to_owned).into();
    let serving = KubernetesReleaseSpec { adds, ..release() };
    let facts = read(&stage.client, &next(), Some(&serving)).await.unwrap();
    let told: Vec<_> =
        facts.added.iter().map(|added| (added.what.as_str(), added.stored, added.names.join(" "))).collect();
    let template = "apps/v1/deployments:spec.template.spec.containers[].workingDir";
    assert_eq!(told, [(template, 1, "default/new".into()), ("v1/nodes", 5, "node-0 node-1 node-2".into())]);
    assert_eq!((facts.looked_for, facts.added[0].all), (4, true));
}

async fn callers_are_told(stage: &Stage) {
    let lister = "system:serviceaccount:demo:lister";
    let somebody = client_of(&stage.server.kubeconfig_of(lister, &["system:masters"]).unwrap()).await;
    let version = GroupVersionKind::gvk("resource.k8s.io", "v1beta1", "DeviceClass");
    let classes = ApiResource::from_gvk_with_plural(&version, "deviceclasses");
    Api::<DynamicObject>::all_with(somebody, &classes).list(&ListParams::default()).await.unwrap();
    // The port of the test is another one than that of a pod.
    let url = format!("https://127.0.0.1:{}", stage.port);
    let heard = async {
        loop {
            let request = http::Request::get("/callers").body(Vec::new()).unwrap();
            let neighbour = tenant::beside(&url, &stage.keyring).unwrap();
            let told: Callers = neighbour.request(request).await.unwrap();
            if let Some(caller) = told.seen.into_iter().find(|caller| caller.user == lister) {
                return caller;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let caller = timeout(PATIENCE, heard).await.expect("the event arrives");
    assert_eq!(
        (caller.api.as_str(), caller.resource.as_str(), caller.verb.as_str()),
        (BETA, "deviceclasses", "list")
    );
    // Whoever is not heard leaves it unknown.
    let silent = server_pod("127.0.0.1", &["kube-apiserver", component::AUDIT_CALLERS]);
    assert_eq!(callers(&[silent], &stage.keyring).await, None);
    let without = server_pod("127.0.0.1", &["kube-apiserver"]);
    assert_eq!(callers(&[without], &stage.keyring).await, None);
}

async fn budgets_are_told(stage: &Stage) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(stage.client.clone(), "default");
    for (name, rule) in [("never", json!({"minAvailable": 1})), ("fine", json!({"maxUnavailable": "50%"}))] {
        let mut spec = json!({"selector": {"matchLabels": {"app": name}}});
        spec.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
        let object = json!({"metadata": {"name": name}, "spec": spec});
        stage.create(budgets.clone(), object).await;
    }
    // Nobody has judged them yet.
    assert!(stage.read().await.budgets.is_empty());
    for (name, allowed) in [("never", 0), ("fine", 1)] {
        let status = json!({"status": {
            "observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1 - allowed,
            "expectedPods": 1,
        }});
        budgets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let expected = Budget {
        namespace: "default".into(),
        name: "never".into(),
        rule: "minAvailable: 1".into(),
        expected: 1,
        healthy: 1,
        desired: 1,
        failed: None,
    };
    assert_eq!(stage.read().await.budgets, [expected]);
}

async fn webhooks_are_told(stage: &Stage) {
    let version = "admissionregistration.k8s.io/v1";
    let hook = |name: &str, policy: &str, service: &str| {
        json!({
            "name": format!("{name}.example.com"), "failurePolicy": policy, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "default", "name": service}},
            "rules": [{
                "apiGroups": ["example.com"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["foos"],
            }],
            "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        })
    };
    for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
        let plural = format!("{}s", kind.to_lowercase());
        let hooks = [
            hook("dead", "Fail", "nobody"),
            hook("alive", "Fail", "somebody"),
            hook("lax", "Ignore", "nobody"),
        ];
        let object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": "policy"}, "webhooks": hooks});
        stage.create(stage.objects(version, kind, &plural, None), object).await;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(stage.client.clone(), "default");
    for (name, service, ready) in [("a", "somebody", true), ("b", "nobody", false)] {
        let object = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": ready}}],
        });
        stage.create(slices.clone(), object).await;
    }
    let found = stage.read().await.webhooks;
    let told: Vec<_> =
        found.iter().map(|hook| (hook.kind.as_str(), hook.name.as_str(), hook.answered)).collect();
    let (validating, mutating) = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration");
    assert_eq!(
        told,
        [
            (validating, "dead.example.com", false),
            (validating, "alive.example.com", true),
            (mutating, "dead.example.com", false),
            (mutating, "alive.example.com", true),
        ]
    );
    let first = &found[0];
    assert!(first.rules[0].groups.contains("example.com") && first.rules[0].operations.contains("CREATE"));
    assert!(!first.namespaces.selects_all() && !first.picky);
}

async fn kubelets_are_told(stage: &Stage) {
    let nodes: Api<Node> = Api::all(stage.client.clone());
    for index in 0..5 {
        let name = format!("node-{index}");
        stage.create(nodes.clone(), json!({"metadata": {"name": name}})).await;
        let info = json!({
            "kubeletVersion": if index == 4 { "v1.33.0" } else { "v1.37.1" }, "architecture": "amd64", "bootID": "",
            "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "machineID": "",
            "operatingSystem": "linux", "osImage": "", "systemUUID": "",
        });
        let status = json!({"status": {"nodeInfo": info}});
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let kubelets = stage.read().await.kubelets;
    assert_eq!((kubelets["v1.37.1"].count, kubelets["v1.37.1"].names.len()), (4, NAMED));
    assert_eq!(kubelets["v1.33.0"].names, ["node-4"]);
}
