//! kube-proxy: addresses of Services on every worker.

use serde_json::{Value, json};

use super::super::pod::field_variable;
use super::document::yaml;
use super::{
    API_URL, NAMESPACE, Part, Site, binding, daemon_set, http_probe, node_pod, resources, service_account,
};
use crate::object::Kind;

pub(super) const NAME: &str = "kube-proxy";
/// ConfigMap, with the names that kubeadm knows: `kubeadm join` reads it where it may.
const DIRECTORY: &str = "/var/lib/kube-proxy";
const CONFIGURATION: &str = "config.conf";
const KUBECONFIG: &str = "kubeconfig.conf";
/// Where it says how it is.
const HEALTH_PORT: u16 = 10256;

pub(super) const PARTS: &[Part] = &[
    Part::system(Kind::ServiceAccount, NAME, service_account),
    Part::cluster(Kind::ClusterRoleBinding, "kaas:kube-proxy", |_| {
        binding("ClusterRole", "system:node-proxier", NAME)
    }),
    Part::system(Kind::ConfigMap, NAME, configuration),
    Part::system(Kind::DaemonSet, NAME, workload),
];

fn configuration(site: &Site<'_>) -> Value {
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": format!("{DIRECTORY}/{KUBECONFIG}")},
        // Said, because unsaid it is iptables with a warning, and from 1.40 on this. It costs the same with ten
        // thousand Services as with ten, needs no lock that others hold, and the official image has what it needs.
        "mode": "nftables",
        "clusterCIDR": site.inputs.spec.network.pod_cidr,
        "detectLocalMode": "ClusterCIDR",
        "healthzBindAddress": format!("0.0.0.0:{HEALTH_PORT}"),
        "metricsBindAddress": "127.0.0.1:10249",
        // How many connections are tracked is the machine's: within the network of a container this cannot be
        // written, and a kube-proxy that cannot write it ends. Times of connections can, so their defaults stay.
        "conntrack": {"maxPerCore": 0, "min": 0},
    });
    // The API by its outer address: the `kubernetes` Service is what this program makes.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {
            "server": API_URL, "certificate-authority": format!("{account}/ca.crt"),
        }}],
        "users": [{"name": "default", "user": {"tokenFile": format!("{account}/token")}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": NAMESPACE, "user": "default"}}],
        "current-context": "default",
    });
    json!({"data": {CONFIGURATION: yaml(&configuration), KUBECONFIG: yaml(&kubeconfig)}})
}

fn workload(site: &Site<'_>) -> Value {
    let container = json!({
        "name": NAME,
        "image": site.image(|images| &images.kube_proxy),
        "imagePullPolicy": "IfNotPresent",
        // It follows its configuration by ending when that changes.
        "command": [
            "/usr/local/bin/kube-proxy",
            format!("--config={DIRECTORY}/{CONFIGURATION}"),
            "--hostname-override=$(NODE_NAME)",
        ],
        "env": [field_variable("NODE_NAME", "spec.nodeName")],
        "resources": resources("10m", "40Mi", "512Mi"),
        // It writes sysctls of the node's network, which a container may that is privileged and no other.
        "securityContext": {"privileged": true, "readOnlyRootFilesystem": true},
        "livenessProbe": http_probe("/livez", HEALTH_PORT, "HTTP", None),
        "volumeMounts": [
            {"name": "config", "mountPath": DIRECTORY, "readOnly": true},
            {"name": "modules", "mountPath": "/lib/modules", "readOnly": true},
        ],
    });
    let volumes = json!([
        {"name": "config", "configMap": {"name": NAME}},
        {"name": "modules", "hostPath": {"path": "/lib/modules"}},
    ]);
    daemon_set(NAME, node_pod(NAME, NAME, 10, json!([container]), volumes))
}
