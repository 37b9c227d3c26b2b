//! The worker's image without the operator: it joins the local cluster itself as a second node, by a bootstrap
//! token and a request that is approved by hand, runs a pod from the registry, comes back in place, and goes.

use std::time::Duration;

use kaas_e2e::cluster::Cluster;
use kaas_e2e::kubectl::{Kubectl, condition};
use serde_json::{Value, json};

const NAME: &str = "worker-1";
const MINUTE: Duration = Duration::from_secs(60);
const MEBIBYTE: u64 = 1 << 20;
const MIRROR: &str = "http://registry.kaas-registry.svc.cluster.local:5000";

const TOKEN: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: "true"}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: bootstrap}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-bootstrapper"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:bootstrappers"}]
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: on-the-worker, namespace: default}
spec:
  nodeName: worker-1
  tolerations: [{operator: Exists}]
  terminationGracePeriodSeconds: 0
  containers: [{name: sleeper, image: busybox, imagePullPolicy: Always, command: [sleep, infinity]}]
"#;

/// All that the image promises.
pub(crate) fn joins_comes_back_and_goes(cluster: &Cluster) {
    let kubectl = cluster.kubectl().unwrap();
    kubectl.apply(TOKEN).unwrap();
    kubectl.apply(&secret(&kubectl).to_string()).unwrap();
    kubectl.apply(&worker().to_string()).unwrap();
    let pod = ["get", "pod", NAME];
    kubectl.await_object("the worker's pod", &pod, MINUTE, |object| restarted(object, 0)).unwrap();
    approve(&kubectl);
    let node = ["get", "node", NAME];
    let registered = kubectl.await_object("the worker's node", &node, MINUTE, |_| Ok(())).unwrap();
    let allocatable = &registered["status"]["allocatable"];
    assert_eq!(allocatable["cpu"], "500m");
    assert_eq!(allocatable["memory"], "462Mi", "the limit less what eviction keeps");
    assert_eq!(registered["spec"]["providerID"], "test://worker-1");
    assert_eq!(registered["metadata"]["labels"]["team"], "a");

    let network = json!({
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]]},
        }],
    });
    let write = format!("echo '{network}' > /etc/cni/net.d/10-test.conflist");
    kubectl.run(&["exec", NAME, "--", "sh", "-c", &write]).unwrap();
    kubectl.await_object("the worker to be Ready", &node, MINUTE, ready).unwrap();
    kubectl.apply(POD).unwrap();
    let inner = ["get", "pod", "on-the-worker"];
    kubectl.await_object("a pod on the worker", &inner, MINUTE, |object| restarted(object, 0)).unwrap();

    kubectl.run(&["exec", NAME, "--", "sh", "-c", "kill -9 $(pidof kubelet)"]).unwrap();
    let pod_again =
        kubectl.await_object("the worker again", &pod, MINUTE, |object| restarted(object, 1)).unwrap();
    let last = &pod_again["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 1, "{last}");
    kubectl.await_object("its pod again", &inner, MINUTE, |object| restarted(object, 1)).unwrap();
    let asked = kubectl.read(&["get", "csr"]).unwrap()["items"].as_array().unwrap().len();
    assert_eq!(asked, 1, "it has found its certificate");

    kubectl.run(&["delete", "pod", NAME, "--timeout=10s"]).unwrap();
    kubectl.run(&["delete", "node", NAME]).unwrap();
}

fn secret(kubectl: &Kubectl) -> Value {
    let text = kubectl.run(&["config", "view", "--raw", "--output", "json"]).unwrap();
    let admin: Value = serde_json::from_str(&text).unwrap();
    let cluster = &admin["clusters"][0]["cluster"];
    let bootstrap = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "c", "user": {"token": "abcdef.0123456789abcdef"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": "/etc/kaas/worker/ca.crt"}},
        "rotateCertificates": true, "failSwapOn": false, "cgroupRoot": "/",
        "evictionHard": {"memory.available": "50Mi"},
    });
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "default"},
        "data": {"ca.crt": cluster["certificate-authority-data"]},
        "stringData": {
            "bootstrap-kubeconfig": bootstrap.to_string(),
            "kubelet.yaml": kubelet.to_string(),
            "hosts.toml": format!("server = \"{MIRROR}\"\n"),
        },
    })
}

fn worker() -> Value {
    let memory = 512 * MEBIBYTE;
    let variables = [
        ("NODE_NAME", NAME),
        ("NODE_LABELS", "team=a"),
        ("PROVIDER_ID", "test://worker-1"),
        ("SANDBOX_IMAGE", "registry.k8s.io/pause:3.10.2"),
        ("CPU_LIMIT", "500"),
        ("MEMORY_LIMIT", &memory.to_string()),
    ];
    let mut env: Vec<_> =
        variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    env.push(json!({"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}));
    let places =
        [("secret", "/etc/kaas/worker"), ("images", "/var/lib/containerd"), ("pods", "/var/lib/kubelet")];
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "hostname": NAME, "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "worker", "image": "kaas.local/kaas-dev/kaas-worker:v1.37.1",
                "securityContext": {"privileged": true},
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": memory}},
                "env": env,
                "volumeMounts": places.map(|(name, path)| json!({"name": name, "mountPath": path})),
            }],
            "volumes": [
                {"name": "secret", "secret": {"secretName": NAME}},
                {"name": "images", "emptyDir": {}}, {"name": "pods", "emptyDir": {}},
            ],
        },
    })
}

/// Runs, and was started again so often.
fn restarted(pod: &Value, times: u64) -> Result<(), String> {
    let status = &pod["status"]["containerStatuses"][0];
    if status["restartCount"] == times && !status["state"]["running"].is_null() {
        return Ok(());
    }
    Err(status.to_string())
}

fn ready(node: &Value) -> Result<(), String> {
    match condition(node, "Ready") {
        Some("True") => Ok(()),
        other => Err(format!("Ready is {other:?}")),
    }
}

fn approve(kubectl: &Kubectl) {
    let asked = |list: &Value| match list["items"][0]["metadata"]["name"].as_str() {
        Some(name) => {
            kubectl.run(&["certificate", "approve", name]).map(drop).map_err(|error| error.to_string())
        }
        None => Err("no request for a certificate".to_owned()),
    };
    kubectl.await_object("the worker's request", &["get", "csr"], MINUTE, asked).unwrap();
}
