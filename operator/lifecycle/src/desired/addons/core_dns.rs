//! CoreDNS: names of Services and pods, forward and reverse, and everybody else's through the node's resolver.

use serde_json::{Value, json};

use super::{APP_LABEL, Part, Site, binding, http_probe, resources, rule, service_account};
use crate::object::Kind;

pub(super) const NAME: &str = "coredns";
/// What Kubernetes' documents, tests and tools call the Service and its pods.
pub(super) const SERVICE: &str = "kube-dns";
const ROLE: &str = "kaas:coredns";
const DIRECTORY: &str = "/etc/coredns";
const FILE: &str = "Corefile";
const METRICS_PORT: u16 = 9153;

pub(super) const PARTS: &[Part] = &[
    Part::system(Kind::ServiceAccount, NAME, service_account),
    Part::cluster(Kind::ClusterRole, ROLE, |_| {
        json!({"rules": [
            rule("", &["services", "pods", "namespaces"], &["list", "watch"]),
            rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
        ]})
    }),
    Part::cluster(Kind::ClusterRoleBinding, ROLE, |_| binding("ClusterRole", ROLE, NAME)),
    Part::system(Kind::ConfigMap, NAME, configuration),
    Part::system(Kind::Service, SERVICE, service),
    Part::system(Kind::Deployment, NAME, workload),
    Part::system(Kind::PodDisruptionBudget, NAME, |_| {
        // One that is not ready serves nobody and may always go.
        json!({"spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {APP_LABEL: SERVICE}},
        }})
    }),
];

/// After a SIGTERM a server answers for so long what still comes to it.
const LAMEDUCK_SECONDS: u32 = 10;
const GRACE_SECONDS: u32 = LAMEDUCK_SECONDS + 5;

fn configuration(site: &Site<'_>) -> Value {
    let domain = &site.inputs.spec.network.domain;
    let text = format!(
        "\
.:53 {{
    errors
    health {{
        lameduck {LAMEDUCK_SECONDS}s
    }}
    ready
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus :{METRICS_PORT}
    forward . /etc/resolv.conf {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success {domain}
        disable denial {domain}
    }}
    loop
    reload
    loadbalance
}}
"
    );
    json!({"data": {FILE: text}})
}

fn service(site: &Site<'_>) -> Value {
    let port = |name: &str, number: u16, protocol: &str| json!({"name": name, "port": number, "targetPort": number, "protocol": protocol});
    json!({
        "metadata": {"labels": {
            APP_LABEL: SERVICE, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
        }},
        "spec": {
            "clusterIP": site.dns(),
            "selector": {APP_LABEL: SERVICE},
            "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", METRICS_PORT, "TCP")],
        },
    })
}

fn workload(site: &Site<'_>) -> Value {
    let port = |name: &str, number: u16, protocol: &str| json!({"name": name, "containerPort": number, "protocol": protocol});
    let container = json!({
        "name": NAME,
        "image": site.image(|images| &images.core_dns),
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", format!("{DIRECTORY}/{FILE}")],
        "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", METRICS_PORT, "TCP")],
        "resources": resources("10m", "40Mi", "256Mi"),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            // The official program has this as its own; without it here it does not start.
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "livenessProbe": http_probe("/health", 8080, "HTTP", None),
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": 8181, "scheme": "HTTP"},
            "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3,
        },
        "volumeMounts": [{"name": "config", "mountPath": DIRECTORY, "readOnly": true}],
    });
    let spread = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(|key| {
        json!({
            "topologyKey": key,
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {APP_LABEL: SERVICE}},
            "matchLabelKeys": ["pod-template-hash"],
        })
    });
    let template = json!({
        "metadata": {"labels": {APP_LABEL: SERVICE}},
        "spec": {
            "serviceAccountName": NAME,
            "enableServiceLinks": false,
            // What it does not know itself it asks the node's resolver.
            "dnsPolicy": "Default",
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            // One worker after the other is drained: the two are to be on two, where there are two.
            "topologySpreadConstraints": spread,
            "securityContext": {
                "seccompProfile": {"type": "RuntimeDefault"},
                // Port 53 without rights, for images whose program has none of its own.
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            },
            "containers": [container],
            "volumes": [{"name": "config", "configMap": {"name": NAME}}],
        },
    });
    json!({"spec": {
        "replicas": 2,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": {APP_LABEL: SERVICE}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }})
}
