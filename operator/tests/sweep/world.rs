//! The management cluster that all runs share, and the tenants' servers that one run at a time has to itself.

use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kaas_crds::{InstanceType, KubernetesRelease, KubernetesReleaseSpec, name};
use kaas_e2e::apiserver::Apiserver;
use kaas_lifecycle::tenant::Platform;
use kaas_lifecycle::workers::observed::Offer;
use kaas_operator::args::Settings;
use kaas_operator::client::bounded;
use kaas_operator::leader::Gate;
use kaas_operator::metrics::Metrics;
use kaas_operator::{controllers, run};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::crds;
use crate::etcd::Etcd;
use crate::kubelets;
use crate::record::Record;
use crate::wire::Wire;

/// What every pool here asks for.
pub(crate) const INSTANCE_TYPE: &str = "small";
/// What the chart lets the operator do: the sweep's operators may do no more.
const PERMISSIONS: &str = include_str!("../../../charts/kaas/templates/generated/operator.yaml");
const RELEASE: &str = include_str!("../../../charts/kaas/catalogue/v1.37.1.yaml");
const OPERATOR: &str = "system:serviceaccount:kaas-system:kaas-operator";

/// So many tenants' servers run side by side. Each costs 3 s of a core and 350 MiB.
const SLOTS: u8 = 9;

/// One tenant's real API server and etcd, used by one run after the other.
pub(crate) struct Slot {
    pub(crate) number: u8,
    /// Runs so far.
    pub(crate) runs: u8,
    pub(crate) client: Client,
    // Ends with the slot.
    _server: Apiserver,
}

pub(crate) struct World {
    pub(crate) admin: Client,
    pub(crate) operator: Client,
    pub(crate) record: Arc<Record>,
    pub(crate) node: IpAddr,
    /// Every tenant's only member.
    pub(crate) etcd: Etcd,
    settings: Arc<Settings>,
    slots: (mpsc::UnboundedSender<Slot>, Mutex<mpsc::UnboundedReceiver<Slot>>),
    _server: Apiserver,
}

async fn connect(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(bounded(config)).unwrap()
}

/// The address of this machine that other machines would be told. It is asked for because no API server accepts
/// endpoints on loopback; nothing is sent.
fn node_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .connect("192.0.2.1:9")
        .expect("no route: the sweep needs a network interface with an address besides loopback");
    let address = socket.local_addr().unwrap().ip();
    assert!(!address.is_loopback(), "the sweep needs a network interface with an address besides loopback");
    address
}

/// Nobody reads what was asked of a server here.
fn start_server() -> Result<Apiserver, kaas_e2e::Error> {
    Apiserver::start_with(&["--audit-log-path="])
}

impl Slot {
    async fn start(number: u8) -> Self {
        let server = spawn_blocking(start_server).await.unwrap().unwrap();
        let client = connect(&server.kubeconfig().unwrap()).await;
        kubelets::allow(&client).await;
        Slot { number, runs: 0, client, _server: server }
    }
}

impl World {
    /// The world of the tests that run at this moment; the last one takes it down.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<World>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(world) = shared.upgrade() {
            return world;
        }
        let world = Arc::new(World::start().await);
        *shared = Arc::downgrade(&world);
        world
    }

    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        if let Ok(filter) = std::env::var("RUST_LOG") {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).try_init();
        }
        let slots = mpsc::unbounded_channel();
        let starting = tokio::spawn({
            let sender = slots.0.clone();
            async move {
                // One after the other: together they would all be late.
                for number in 0..SLOTS {
                    let _ = sender.send(Slot::start(number).await);
                }
            }
        });
        drop(starting);
        let server = spawn_blocking(start_server).await.unwrap().unwrap();
        let admin = connect(&server.kubeconfig().unwrap()).await;
        let create = PostParams::default();
        crds::install(&admin).await;
        let role = serde_yaml::from_str(PERMISSIONS.split("\n---").next().unwrap()).unwrap();
        Api::<ClusterRole>::all(admin.clone()).create(&create, &role).await.unwrap();
        // What the chart adds where pods may be workers.
        let role = serde_json::from_value(json!({
            "metadata": {"name": "kaas-pod-workers"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}],
        }))
        .unwrap();
        Api::<ClusterRole>::all(admin.clone()).create(&create, &role).await.unwrap();
        for role in ["kaas-operator", "kaas-pod-workers"] {
            let binding = serde_json::from_value(json!({
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}],
            }))
            .unwrap();
            Api::<ClusterRoleBinding>::all(admin.clone()).create(&create, &binding).await.unwrap();
        }
        let instance_type: InstanceType = serde_json::from_value(json!({
            "apiVersion": "kaas.dev/v1alpha1", "kind": "InstanceType", "metadata": {"name": INSTANCE_TYPE},
            "spec": {"capacity": {"cpu": "1", "memory": "2Gi"}},
        }))
        .unwrap();
        Api::all(admin.clone()).create(&create, &instance_type).await.unwrap();
        let spec: KubernetesReleaseSpec = serde_yaml::from_str(RELEASE).unwrap();
        let release = KubernetesRelease::new(&spec.version.clone(), spec);
        Api::all(admin.clone()).create(&create, &release).await.unwrap();
        let node = node_address();
        let settings = Settings {
            platform: Platform {
                node_port_host: node.to_string(),
                operator_namespace: name::SYSTEM_NAMESPACE.into(),
                ..Platform::default()
            },
            identity: "sweep".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            lease_name: "kaas-operator".into(),
            lease_duration: Duration::from_secs(10),
            probe_interval: Duration::from_millis(100),
            concurrency: 4,
            leaf_lifetime: SignedDuration::from_hours(8760),
            authority_lifetime: SignedDuration::from_hours(87600),
            offer: Offer { pods: true, networks: Vec::new() },
            mirror: String::new(),
        };
        World {
            record: Record::start(&admin),
            operator: connect(&server.kubeconfig_of(OPERATOR, &[]).unwrap()).await,
            admin,
            node,
            etcd: spawn_blocking(Etcd::start).await.unwrap(),
            settings: Arc::new(settings),
            slots: (slots.0, Mutex::new(slots.1)),
            _server: server,
        }
    }

    /// A slot, as soon as one is free.
    pub(crate) async fn slot(&self) -> Slot {
        self.slots.1.lock().await.recv().await.unwrap()
    }

    pub(crate) fn give_back(&self, slot: Slot) {
        let _ = self.slots.0.send(slot);
    }

    /// A fresh operator on this wire; it ends when it dies or is dropped.
    pub(crate) fn operate(&self, wire: &Arc<Wire>) -> Operator {
        let stop = CancellationToken::new();
        let context = run::Context {
            client: wire.client(),
            settings: self.settings.clone(),
            metrics: Arc::new(Metrics::new()),
            gate: Gate::unguarded(),
            stop: stop.clone(),
        };
        let dead = wire.dead.clone();
        Operator(tokio::spawn(async move {
            // Cut off, not stopped; but whom it left to himself must end too.
            let _stop = stop.drop_guard();
            tokio::select! {
                biased;
                () = dead.cancelled() => {}
                () = controllers::run(context) => panic!("the controllers ended by themselves"),
            }
        }))
    }
}

pub(crate) struct Operator(JoinHandle<()>);

impl Operator {
    /// Kills it, and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.0.abort();
        let ended = (&mut self.0).await;
        assert!(ended.is_ok() || ended.unwrap_err().is_cancelled(), "the operator panicked");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.0.abort();
    }
}
