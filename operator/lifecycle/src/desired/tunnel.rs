//! The tunnel's server beside each API server: its container, the socket between the two, and the port where agents
//! are let in.
//!
//! It starts with the API server: as a sidecar it would be first, and a kubelet takes up to a second to see that it runs
//! before it starts what comes after. It is told to end after the API server's delay, so that logs, exec and webhooks
//! work for as long as new requests are taken. Requests come by gRPC over a socket in the pod: with HTTP CONNECT a server
//! that ends forgets the streams that it carries, with gRPC it waits for them. Agents come with a token for this server
//! alone, and the API says whose it is.

use kaas_crds::name::component::KONNECTIVITY_SERVER;
use serde_json::{Value, json};

use super::Inputs;
use super::addons::{AGENT_AUDIENCE, AGENT_PORT, AGENT_SERVICE_ACCOUNT, NAMESPACE};
use super::apiserver::SHUTDOWN_DELAY_SECONDS;
use super::pod::{Container, Probes, Resources, field_variable, key_file, key_mount, key_volume};
use crate::key_material::AUTHORITY_SECRET;

/// Name of the server's certificate, and of its files.
pub(crate) const SERVER: &str = "konnectivity";
/// Name of its client certificate, and of its files.
pub(crate) const CLIENT: &str = "konnectivity-client";
/// What every server's certificate names, wherever the endpoint is.
pub(crate) const SERVER_NAME: &str = "konnectivity-server";
/// Name of the Service's port for agents.
const TUNNEL_PORT_NAME: &str = "konnectivity";

const KEYS: &str = "konnectivity-pki";
const SOCKET: &str = "konnectivity-socket";
const SOCKET_DIRECTORY: &str = "/run/konnectivity";
const SOCKET_FILE: &str = "/run/konnectivity/server.sock";
const ADMIN_PORT: u16 = 8133;
const HEALTH_PORT: u16 = 8134;

/// Agents are told that it ends, and go elsewhere, for so long: they never hang up by themselves.
const SHUTDOWN_SECONDS: u32 = 2;
/// It goes on for so long after the pod was told to end: what came in the last moment of the API server's delay still
/// has its webhooks.
const LINGER_SECONDS: u32 = SHUTDOWN_DELAY_SECONDS + 2;

/// The tunnel of a release that has images for it.
pub(super) struct Tunnel {
    image: String,
}

impl Tunnel {
    pub(super) fn of(inputs: &Inputs<'_>) -> Option<Self> {
        let images = inputs.release.addons.as_ref()?;
        Some(Tunnel { image: inputs.platform.image(&images.konnectivity_server) })
    }

    pub(super) fn container(&self) -> Container {
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        Container {
            name: KONNECTIVITY_SERVER,
            image: self.image.clone(),
            command: vec![
                "/proxy-server".to_owned(),
                // From the API server.
                flag("mode", "grpc"),
                flag("uds-name", SOCKET_FILE),
                flag("server-port", "0"),
                // From agents.
                flag("agent-port", &AGENT_PORT.to_string()),
                flag("cluster-cert", &key_file(&format!("{SERVER}.crt"))),
                flag("cluster-key", &key_file(&format!("{SERVER}.key"))),
                flag("agent-namespace", NAMESPACE),
                flag("agent-service-account", AGENT_SERVICE_ACCOUNT),
                flag("authentication-audience", AGENT_AUDIENCE),
                flag("kubeconfig", &key_file(&format!("{CLIENT}.kubeconfig"))),
                // A kubelet by the agent of its node; all else by any.
                flag("proxy-strategies", "destHost,default"),
                flag("backend-dial-timeout", "10s"),
                flag("keepalive-time", "30s"),
                // Agents count the leases, so that one API server more or less restarts none of them.
                flag("server-id", "$(POD_NAME)"),
                flag("enable-lease-controller", "true"),
                flag("lease-namespace", NAMESPACE),
                format!("--graceful-shutdown-timeout={SHUTDOWN_SECONDS}s"),
                flag("admin-bind-address", "127.0.0.1"),
                flag("admin-port", &ADMIN_PORT.to_string()),
                flag("health-port", &HEALTH_PORT.to_string()),
            ],
            environment: vec![field_variable("POD_NAME", "metadata.name")],
            ports: vec![("konnectivity", AGENT_PORT)],
            probes: Probes {
                port: HEALTH_PORT,
                scheme: "HTTP",
                alive: "/healthz",
                start_seconds: 60,
                // Ready in its own sense would be: an agent is connected. Without workers there is none.
                ready: "/healthz",
                // A pod that is not ready is no API server either.
                ready_failures: 30,
            },
            request: Resources { cpu: "2m", memory: "24Mi" },
            memory_limit: "1Gi",
            mounts: vec![key_mount(KEYS), socket_mount()],
            linger_seconds: LINGER_SECONDS,
        }
    }
}

/// Volumes of the pod: the server's keys, which the API server does not see, and the directory of the socket.
pub(super) fn volumes() -> [Value; 2] {
    let server = ["crt", "key"].map(|kind| format!("{SERVER}.{kind}"));
    let client = ["crt", "key", "kubeconfig"].map(|kind| format!("{CLIENT}.{kind}"));
    let files: Vec<&str> = server.iter().chain(&client).map(String::as_str).collect();
    [
        key_volume(KEYS, &[(AUTHORITY_SECRET, &["cluster-ca.crt"]), (KONNECTIVITY_SERVER, files.as_slice())]),
        json!({"name": SOCKET, "emptyDir": {"sizeLimit": "1Mi"}}),
    ]
}

pub(super) fn socket_mount() -> Value {
    json!({"name": SOCKET, "mountPath": SOCKET_DIRECTORY})
}

/// Where agents are let in.
pub(super) fn service_port() -> Value {
    json!({"name": TUNNEL_PORT_NAME, "port": AGENT_PORT, "targetPort": AGENT_PORT, "protocol": "TCP"})
}

/// What API servers send through the tunnel: all that goes to workers, Services and pods. etcd is dialled directly.
pub(super) fn egress() -> String {
    format!(
        "\
apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: GRPC
    transport:
      uds:
        udsName: {SOCKET_FILE}
"
    )
}
