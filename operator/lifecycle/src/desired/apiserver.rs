//! API servers: their Deployment, the Service that is the tenant's endpoint, who may ask without credentials, their
//! disruption budget.

use kaas_crds::name::component::{KONNECTIVITY_SERVER, KUBE_APISERVER};
use kaas_crds::tenant_cluster::EndpointType;
use serde_json::{Map, Value, json};

use super::audit::Audit;
use super::etcd::{ETCD_SERVERS_FLAG, budget_spec, etcd_servers};
use super::pod::{Container, Pod, Probes, Resources, field_variable, key_file, key_mount, key_volume};
use super::tunnel::{self, Tunnel};
use super::{FRONT_PROXY_CLIENT, Inputs, selector};
use crate::endpoint::PORT;
use crate::etcd::Servers;
use crate::key_material::AUTHORITY_SECRET;
use crate::object::{Kind, Object};

/// After a SIGTERM a server is not ready but serves on for so long: the time for proxies and balancers to take it
/// out, for reused connections to be moved, and for exec and log streams to end by themselves.
pub(super) const SHUTDOWN_DELAY_SECONDS: u32 = 10;
/// The longest a request may take; those under way at the end of the delay are waited for.
const REQUEST_TIMEOUT_SECONDS: u32 = 60;
/// Margin over both before the kubelet kills. A server without requests in flight is gone much sooner.
const GRACE_SECONDS: u32 = SHUTDOWN_DELAY_SECONDS + REQUEST_TIMEOUT_SECONDS + 5;

/// ConfigMap with the authentication configuration.
const CONFIGURATION: &str = "kube-apiserver";
const CONFIGURATION_DIRECTORY: &str = "/etc/kubernetes/config";
const AUTHENTICATION_FILE: &str = "authentication.yaml";
const EGRESS_FILE: &str = "egress.yaml";

/// The API servers.
pub(super) fn deployment(inputs: &Inputs<'_>) -> Object {
    let tunnel = Tunnel::of(inputs);
    let mut pod = Pod {
        component: KUBE_APISERVER,
        containers: vec![container(inputs)],
        volumes: vec![
            key_volume(
                "pki",
                &[
                    (
                        AUTHORITY_SECRET,
                        &[
                            "cluster-ca.crt",
                            "etcd-ca.crt",
                            "front-proxy-ca.crt",
                            "service-account.key",
                            "service-account.pub",
                        ],
                    ),
                    (
                        KUBE_APISERVER,
                        &[
                            "tls.crt",
                            "tls.key",
                            "kubelet-client.crt",
                            "kubelet-client.key",
                            "etcd-client.crt",
                            "etcd-client.key",
                            "front-proxy-client.crt",
                            "front-proxy-client.key",
                        ],
                    ),
                ],
            ),
            json!({"name": "config", "configMap": {"name": CONFIGURATION}}),
        ],
        grace_seconds: GRACE_SECONDS,
        template_label: Some("pod-template-hash"),
    };
    pod.containers.extend(tunnel.iter().map(Tunnel::container));
    pod.volumes.extend(tunnel.iter().flat_map(|_| tunnel::volumes()));
    let audit = Audit::of(inputs);
    pod.containers.extend(audit.iter().map(Audit::container));
    pod.volumes.extend(audit.iter().flat_map(Audit::volumes));
    let mut template = pod.template(inputs);
    let metadata = template.pointer_mut("/metadata").and_then(Value::as_object_mut);
    if let (Some(audit), Some(metadata)) = (audit, metadata) {
        metadata.insert("annotations".into(), audit.annotations());
    }
    inputs.object(
        Kind::Deployment,
        KUBE_APISERVER,
        KUBE_APISERVER,
        json!({"spec": {
            "replicas": inputs.spec.control_plane.replicas,
            // The way back is a stored revision of ours, not an old ReplicaSet.
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": selector(KUBE_APISERVER)},
            // A new server is ready before an old one goes, with one replica too.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": template,
        }}),
    )
}

fn container(inputs: &Inputs<'_>) -> Container {
    let mut mounts = vec![
        key_mount("pki"),
        json!({"name": "config", "mountPath": CONFIGURATION_DIRECTORY, "readOnly": true}),
    ];
    mounts.extend(Tunnel::of(inputs).map(|_| tunnel::socket_mount()));
    mounts.extend(Audit::of(inputs).map(|audit| audit.mount()));
    Container {
        name: KUBE_APISERVER,
        image: inputs.platform.image(&inputs.release.images.kube_apiserver),
        command: command(inputs),
        environment: vec![field_variable("POD_IP", "status.podIP")],
        ports: vec![("https", PORT)],
        probes: Probes {
            port: PORT,
            scheme: "HTTPS",
            // Without etcd: a restart of all API servers is no cure for etcd, and makes its return slower.
            alive: "/livez?exclude=etcd",
            // Its hooks wait for etcd; after a minute without it the server ends by itself.
            start_seconds: 300,
            ready: "/readyz",
            // 10 to 20 s: longer than a restart of the only etcd member (up to 7 s, and 3 s until it is dialled again).
            // A server that ends or dies is taken out of the Service by that, not by this probe.
            ready_failures: 10,
        },
        // Seen at rest: 263-283 MiB, 2-3 % of a core.
        request: Resources { cpu: "25m", memory: "288Mi" },
        memory_limit: "4Gi",
        mounts,
        linger_seconds: 0,
    }
}

fn command(inputs: &Inputs<'_>) -> Vec<String> {
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let seconds = |name: &str, value: u32| format!("--{name}={value}s");
    let network = &inputs.spec.network;
    let issuer = format!("https://kubernetes.default.svc.{}", network.domain);
    let at_first = Servers::at_first(inputs.spec.etcd.replicas);
    let mut command = vec![
        KUBE_APISERVER.to_owned(),
        flag("secure-port", &PORT.to_string()),
        // Otherwise looked for along the default route, which not every pod network has. Nobody dials it.
        flag("advertise-address", "$(POD_IP)"),
        flag("tls-cert-file", &key_file("tls.crt")),
        flag("tls-private-key-file", &key_file("tls.key")),
        // Data.
        // Later they follow the members.
        format!("{ETCD_SERVERS_FLAG}{}", etcd_servers(inputs.tenant, at_first).join(",")),
        flag("etcd-cafile", &key_file("etcd-ca.crt")),
        flag("etcd-certfile", &key_file("etcd-client.crt")),
        flag("etcd-keyfile", &key_file("etcd-client.key")),
        // Who asks.
        flag("client-ca-file", &key_file("cluster-ca.crt")),
        flag("authentication-config", &format!("{CONFIGURATION_DIRECTORY}/{AUTHENTICATION_FILE}")),
        flag("enable-bootstrap-token-auth", "true"),
        flag("service-account-issuer", &issuer),
        // Otherwise it would name the address of one pod.
        flag("service-account-jwks-uri", &format!("{issuer}/openid/v1/jwks")),
        flag("service-account-key-file", &key_file("service-account.pub")),
        flag("service-account-signing-key-file", &key_file("service-account.key")),
        flag("requestheader-client-ca-file", &key_file("front-proxy-ca.crt")),
        flag("requestheader-allowed-names", FRONT_PROXY_CLIENT),
        flag("requestheader-username-headers", "X-Remote-User"),
        flag("requestheader-group-headers", "X-Remote-Group"),
        flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        flag("proxy-client-cert-file", &key_file("front-proxy-client.crt")),
        flag("proxy-client-key-file", &key_file("front-proxy-client.key")),
        // Who may.
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", "true"),
        // Networks and workers.
        flag("service-cluster-ip-range", &network.service_cidr),
        // With the default one, servers behind one address share one lease, and each shutdown empties the tenant's
        // `kubernetes` Service for up to 10 s. The operator writes that Service's EndpointSlice.
        flag("endpoint-reconciler-type", "none"),
        flag("kubelet-client-certificate", &key_file("kubelet-client.crt")),
        flag("kubelet-client-key", &key_file("kubelet-client.key")),
        flag("kubelet-certificate-authority", &key_file("cluster-ca.crt")),
        flag("kubelet-preferred-address-types", "InternalIP,Hostname"),
        // How it ends, and how a roll goes unseen.
        seconds("request-timeout", REQUEST_TIMEOUT_SECONDS),
        seconds("shutdown-delay-duration", SHUTDOWN_DELAY_SECONDS),
        // At the end of the delay it refuses what is new with `Retry-After` and closes the connection, and two seconds after the
        // last request under way it ends: without this it would stay for a minute wherever somebody follows a log. It
        // ends no watch before itself (shutdown-watch-termination-grace-period): a watch that it ended would be asked
        // for again on the connection that it had, be refused, and wait for five seconds. One that is cut is asked
        // for again at once, on a new connection.
        flag("shutdown-send-retry-after", "true"),
        // HTTP/2 connections live for ever and would be cut at the end of the delay; this moves them in time, the
        // busy ones first. It is the same for one replica (a roll has two servers then as well), so that scaling
        // restarts nothing. One request in fifty, the most that there is; it costs one handshake, no request.
        flag("goaway-chance", "0.02"),
        // Does nothing without --peer-ca-file but write a lease for ever.
        flag("feature-gates", "UnknownVersionInteroperabilityProxy=false"),
        flag("profiling", "false"),
        // What a later version could change: see the feature.
        #[cfg(feature = "next-rendering")]
        flag("event-ttl", "2h"),
    ];
    command.extend(runtime_config(inputs));
    command.extend(Audit::of(inputs).iter().flat_map(Audit::flags));
    command.extend(inputs.emulation());
    // Kubelets, webhooks and aggregated APIs are beyond the tunnel. It is there with the first worker and without any:
    // a pool restarts no API server.
    command.extend(
        Tunnel::of(inputs).map(|_| {
            flag("egress-selector-config-file", &format!("{CONFIGURATION_DIRECTORY}/{EGRESS_FILE}"))
        }),
    );
    command
}

/// APIs that the tenant switches on or off. Those that the binary does not have any more are left out: it would end.
fn runtime_config(inputs: &Inputs<'_>) -> Option<String> {
    let asked = inputs.spec.control_plane.runtime_config.0.iter();
    let words: Vec<String> = asked
        .filter(|(api, _)| !inputs.release.removes.contains(api))
        .map(|(api, served)| format!("{api}={served}"))
        .collect();
    (!words.is_empty()).then(|| format!("--runtime-config={}", words.join(",")))
}

/// Who may ask without credentials: probes, and those who join a cluster by token and look for its `cluster-info`.
/// Whatever a tenant binds to `system:anonymous` reaches nothing else.
const AUTHENTICATION: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
  - path: /api/v1/namespaces/kube-public/configmaps/cluster-info
";

/// The configuration that API servers read when they start.
pub(super) fn configuration(inputs: &Inputs<'_>) -> Object {
    let mut data = Map::from_iter([(AUTHENTICATION_FILE.to_owned(), json!(AUTHENTICATION))]);
    data.extend(Tunnel::of(inputs).map(|_| (EGRESS_FILE.to_owned(), json!(tunnel::egress()))));
    inputs.object(Kind::ConfigMap, CONFIGURATION, KUBE_APISERVER, json!({"data": data}))
}

/// The endpoint.
pub(super) fn service(inputs: &Inputs<'_>) -> Object {
    let endpoint = &inputs.spec.control_plane.endpoint;
    let mut port = json!({"name": "https", "port": PORT, "targetPort": PORT, "protocol": "TCP"});
    let asked = endpoint.node_port.as_ref().and_then(|settings| settings.port);
    if let (Some(port), Some(number), EndpointType::NodePort) = (port.as_object_mut(), asked, endpoint.kind) {
        port.insert("nodePort".into(), number.into());
    }
    // The first is the API: who looks for the endpoint's port looks there.
    let mut ports = vec![port];
    if endpoint.kind == EndpointType::LoadBalancer {
        ports.extend(Tunnel::of(inputs).map(|_| tunnel::service_port()));
    }
    let mut spec = json!({"type": endpoint.kind, "selector": selector(KUBE_APISERVER), "ports": ports});
    every_node_answers(&mut spec, endpoint.kind);
    inputs.object(Kind::Service, KUBE_APISERVER, KUBE_APISERVER, json!({"spec": spec}))
}

/// Every node answers, so that a balancer need not find out during a roll which of them have a server.
fn every_node_answers(spec: &mut Value, kind: EndpointType) {
    if let (Some(spec), true) = (spec.as_object_mut(), kind != EndpointType::ClusterIP) {
        spec.insert("externalTrafficPolicy".into(), "Cluster".into());
    }
}

/// Where the tunnel's agents are let in: a Service of its own, because they must be with a server before clients are. A
/// new server is dialled as soon as it runs; when it is ready, a few seconds later, it has its agents. A balancer is
/// not paid for twice: there it is a second port of the endpoint, and agents come when clients do.
pub(super) fn agent_service(inputs: &Inputs<'_>) -> Option<Object> {
    let kind = inputs.spec.control_plane.endpoint.kind;
    if kind == EndpointType::LoadBalancer {
        return None;
    }
    Tunnel::of(inputs)?;
    let mut spec = json!({
        "type": kind,
        "selector": selector(KUBE_APISERVER),
        "ports": [tunnel::service_port()],
        "publishNotReadyAddresses": true,
    });
    every_node_answers(&mut spec, kind);
    Some(inputs.object(Kind::Service, KONNECTIVITY_SERVER, KUBE_APISERVER, json!({"spec": spec})))
}

/// One server at a time, from two on; with one replica a drain must be able to move it. One that is not ready serves
/// nobody and may always go (`AlwaysAllow`): a server that cannot start must not block a drain.
pub(super) fn budget(inputs: &Inputs<'_>) -> Option<Object> {
    (inputs.spec.control_plane.replicas >= 2).then(|| {
        let spec = budget_spec(KUBE_APISERVER, "AlwaysAllow");
        inputs.object(Kind::PodDisruptionBudget, KUBE_APISERVER, KUBE_APISERVER, json!({"spec": spec}))
    })
}
