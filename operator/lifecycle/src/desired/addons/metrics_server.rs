//! metrics-server: use of CPU and memory, for `kubectl top` and for scaling by it.

use serde_json::{Value, json};

use super::{
    APP_LABEL, NAMESPACE, Part, Site, binding, confined, http_probe, resources, rule, service_account,
};
use crate::object::Kind;

pub(super) const NAME: &str = "metrics-server";
const ROLE: &str = "kaas:metrics-server";
const READERS: &str = "kaas:metrics-readers";
const PORT: u16 = 10250;

pub(super) const PARTS: &[Part] = &[
    Part::system(Kind::ServiceAccount, NAME, service_account),
    Part::cluster(Kind::ClusterRole, ROLE, |_| {
        json!({"rules": [
            rule("", &["nodes/metrics"], &["get"]),
            rule("", &["pods", "nodes"], &["get", "list", "watch"]),
        ]})
    }),
    Part::cluster(Kind::ClusterRoleBinding, ROLE, |_| binding("ClusterRole", ROLE, NAME)),
    // Who asks it is asked of the API server, as for every aggregated API.
    Part::cluster(Kind::ClusterRoleBinding, "kaas:metrics-server:auth-delegator", |_| {
        binding("ClusterRole", "system:auth-delegator", NAME)
    }),
    Part::system(Kind::RoleBinding, "kaas:metrics-server:auth-reader", |_| {
        binding("Role", "extension-apiserver-authentication-reader", NAME)
    }),
    Part::cluster(Kind::ClusterRole, READERS, |_| {
        json!({
            "metadata": {"labels": {
                "rbac.authorization.k8s.io/aggregate-to-admin": "true",
                "rbac.authorization.k8s.io/aggregate-to-edit": "true",
                "rbac.authorization.k8s.io/aggregate-to-view": "true",
            }},
            "rules": [rule("metrics.k8s.io", &["pods", "nodes"], &["get", "list", "watch"])],
        })
    }),
    Part::system(Kind::Service, NAME, |_| {
        json!({"spec": {
            "selector": {APP_LABEL: NAME},
            "ports": [{"name": "https", "port": 443, "targetPort": PORT, "protocol": "TCP"}],
        }})
    }),
    Part::system(Kind::Deployment, NAME, workload),
    Part::cluster(Kind::APIService, "v1beta1.metrics.k8s.io", |_| {
        json!({"spec": {
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "service": {"name": NAME, "namespace": NAMESPACE, "port": 443},
            // It makes its own certificate, anew at each start. The way to it is the tunnel, and what it tells is no
            // secret; who asks is proven to it by the front proxy's certificate.
            "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        }})
    }),
];

fn workload(site: &Site<'_>) -> Value {
    let container = json!({
        "name": NAME,
        "image": site.image(|images| &images.metrics_server),
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "--cert-dir=/tmp",
            format!("--secure-port={PORT}"),
            // Kubelets' certificates are signed by the cluster's authority, and name these addresses.
            "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--kubelet-use-node-status-port",
            "--metric-resolution=15s",
        ],
        "ports": [{"name": "https", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources("10m", "48Mi", "1Gi"),
        "securityContext": confined(&[]),
        "livenessProbe": http_probe("/livez", PORT, "HTTPS", None),
        // Ready once it has asked every kubelet twice.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": PORT, "scheme": "HTTPS"},
            "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    });
    let template = json!({
        "metadata": {"labels": {APP_LABEL: NAME}},
        "spec": {
            "serviceAccountName": NAME,
            "enableServiceLinks": false,
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}}],
        },
    });
    json!({"spec": {
        "replicas": 1,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": {APP_LABEL: NAME}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }})
}
