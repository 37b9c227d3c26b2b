//! The tunnel: its agents, one on each worker, and what the servers beside the API servers may.
//!
//! An agent is on the node's own network and dials out, so that it needs no network of pods, no Services and no DNS:
//! logs and exec work before those do. A request to a kubelet takes the agent of its node; any other, the agent of
//! any.

use serde_json::{Value, json};

use super::super::pod::field_variable;
use super::super::tunnel::SERVER_NAME;
use super::{
    NAMESPACE, Part, Site, TUNNEL_ADDRESS, TUNNEL_NAME, TUNNEL_PORT, binding, binding_to, confined,
    daemon_set, http_probe, node_pod, resources, rule, service_account,
};
use crate::object::Kind;

/// The DaemonSet of the agents.
pub const AGENT: &str = "konnectivity-agent";
/// Service account of the agents; servers let in nobody else.
pub const AGENT_SERVICE_ACCOUNT: &str = AGENT;
/// Whom the agents' tokens are for: they are good for nothing else.
pub const AGENT_AUDIENCE: &str = "system:konnectivity-server";
/// Common name of the servers' client certificate.
pub const SERVER_USER: &str = "system:konnectivity-server";
/// Port beside each API server where agents are let in, and of the endpoint's Service.
pub const AGENT_PORT: u16 = 8132;

const SERVER_ROLE: &str = "kaas:konnectivity-server";
const AGENT_ROLE: &str = "kaas:konnectivity-agent";
const TOKENS: &str = "/var/run/secrets/tokens";
/// On the node's loopback, where nothing else of Kubernetes listens.
const ADMIN_PORT: u16 = 8133;
const HEALTH_PORT: u16 = 8134;

/// What the servers may: they are there before the first worker.
pub(super) const SERVER_PARTS: &[Part] = &[
    // They ask whose a token is, and keep a lease each, by which agents count them.
    Part::cluster(
        Kind::ClusterRole,
        SERVER_ROLE,
        |_| json!({"rules": [rule("authentication.k8s.io", &["tokenreviews"], &["create"])]}),
    ),
    Part::cluster(Kind::ClusterRoleBinding, SERVER_ROLE, |_| {
        binding_to("ClusterRole", SERVER_ROLE, &[("User", SERVER_USER)])
    }),
    Part::system(Kind::Role, SERVER_ROLE, |_| {
        let verbs = ["get", "list", "watch", "create", "update", "delete"];
        json!({"rules": [rule("coordination.k8s.io", &["leases"], &verbs)]})
    }),
    Part::system(Kind::RoleBinding, SERVER_ROLE, |_| {
        binding_to("Role", SERVER_ROLE, &[("User", SERVER_USER)])
    }),
];

pub(super) const AGENT_PARTS: &[Part] = &[
    Part::system(Kind::ServiceAccount, AGENT, service_account),
    Part::system(
        Kind::Role,
        AGENT_ROLE,
        |_| json!({"rules": [rule("coordination.k8s.io", &["leases"], &["get", "list", "watch"])]}),
    ),
    Part::system(Kind::RoleBinding, AGENT_ROLE, |_| binding("Role", AGENT_ROLE, AGENT)),
    Part::system(Kind::DaemonSet, AGENT, workload),
];

fn workload(site: &Site<'_>) -> Value {
    let mut environment = vec![
        field_variable("POD_NAME", "metadata.name"),
        field_variable("NODE_NAME", "spec.nodeName"),
        field_variable("HOST_IP", "status.hostIP"),
    ];
    environment.extend(Site::api_variables());
    let loopback = Some("127.0.0.1");
    let container = json!({
        "name": AGENT,
        "image": site.image(|images| &images.konnectivity_agent),
        "imagePullPolicy": "IfNotPresent",
        "command": [
            "/proxy-agent",
            format!("--proxy-server-host={TUNNEL_NAME}"),
            format!("--proxy-server-port={TUNNEL_PORT}"),
            "--ca-cert=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
            format!("--service-account-token-path={TOKENS}/token"),
            "--agent-id=$(POD_NAME)",
            "--agent-identifiers=ipv4=$(HOST_IP)&host=$(NODE_NAME)",
            // One address leads to any of the servers: how many there are is counted, and dialled until all are met.
            "--count-server-leases=true",
            "--server-count-source=max",
            format!("--lease-namespace={NAMESPACE}"),
            // A new server is met by chance, and before it is ready: so often it is tried until all are met, and never after.
            "--sync-interval=500ms",
            "--sync-interval-cap=5s",
            // The least that servers bear; a connection that died in silence is noticed.
            "--keepalive-time=30s",
            "--health-server-host=127.0.0.1",
            format!("--health-server-port={HEALTH_PORT}"),
            "--admin-bind-address=127.0.0.1",
            format!("--admin-server-port={ADMIN_PORT}"),
        ],
        "env": environment,
        "resources": resources("5m", "24Mi", "512Mi"),
        "securityContext": confined(&[]),
        "livenessProbe": http_probe("/healthz", HEALTH_PORT, "HTTP", loopback),
        // Ready: connected to a server.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": HEALTH_PORT, "scheme": "HTTP", "host": "127.0.0.1"},
            "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3,
        },
        "volumeMounts": [{"name": "token", "mountPath": TOKENS, "readOnly": true}],
    });
    let volumes = json!([{"name": "token", "projected": {"sources": [{"serviceAccountToken": {
        "path": "token", "audience": AGENT_AUDIENCE, "expirationSeconds": 3600,
    }}]}}]);
    // Told to end it takes no new requests, and ends when it is killed: streams have so long.
    let mut template = node_pod(AGENT, AGENT, 10, json!([container]), volumes);
    if let Some(context) = template.pointer_mut("/spec/securityContext").and_then(Value::as_object_mut) {
        context.insert("runAsNonRoot".into(), true.into());
        context.insert("runAsUser".into(), 65532.into());
        context.insert("runAsGroup".into(), 65532.into());
    }
    if let Some(pod) = template.pointer_mut("/spec").and_then(Value::as_object_mut) {
        pod.insert("hostAliases".into(), json!([{"ip": TUNNEL_ADDRESS, "hostnames": [SERVER_NAME]}]));
    }
    daemon_set(AGENT, template)
}
