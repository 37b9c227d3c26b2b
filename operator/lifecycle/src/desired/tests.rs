//! What the builders must hold for every input, and the shapes of two typical clusters.

mod addons;
mod audit;
mod isolation;
mod pods;

use k8s_openapi::api::{
    apps::v1 as apps, core::v1 as core, networking::v1 as networking, policy::v1 as policy,
};
use k8s_openapi::api::{discovery::v1 as discovery, rbac::v1 as rbac};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use kaas_crds::kubernetes_release::{AddonImages, EtcdRelease, Images};
use kaas_crds::tenant_cluster::{EndpointType, EphemeralStorage, NodePort, PersistentStorage, Storage};
use kaas_crds::{KubernetesReleaseSpec, Quantity, TenantClusterSpec};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::*;
use crate::difference::describe;
use crate::endpoint::Endpoint;
use crate::etcd::Series;

/// Everything that inputs borrow.
#[derive(Clone, Debug)]
struct World {
    tenant: Tenant,
    spec: TenantClusterSpec,
    release: KubernetesReleaseSpec,
    platform: Platform,
    watched: BTreeSet<String>,
    existing: bool,
    alone: bool,
}

fn addon_images() -> AddonImages {
    AddonImages {
        kube_proxy: "registry.k8s.io/kube-proxy:v1.37.1".into(),
        core_dns: "registry.k8s.io/coredns/coredns:v1.15.0".into(),
        flannel: "ghcr.io/flannel-io/flannel:v0.28.4".into(),
        konnectivity_server: "registry.k8s.io/kas-network-proxy/proxy-server:v0.36.0".into(),
        konnectivity_agent: "registry.k8s.io/kas-network-proxy/proxy-agent:v0.36.0".into(),
        metrics_server: "registry.k8s.io/metrics-server/metrics-server:v0.9.0".into(),
        pause: "registry.k8s.io/pause:3.10.2".into(),
        worker: "ghcr.io/kaas-dev/kaas-worker:v1.37.1".into(),
    }
}

/// What a control plane gave whose endpoint is at this host.
fn facts(host: &str) -> Facts {
    Facts {
        api: Endpoint { host: host.into(), port: 30443 },
        tunnel: Endpoint { host: host.into(), port: 30444 },
        authority: "-----BEGIN CERTIFICATE-----\n".into(),
    }
}

impl World {
    /// One API server, one member, a fixed node port, data in the pod: what a trial looks like.
    fn small() -> Self {
        let mut spec: TenantClusterSpec = serde_json::from_value(json!({"version": "v1.37.1"})).unwrap();
        spec.control_plane.replicas = 1;
        spec.control_plane.endpoint.kind = EndpointType::NodePort;
        spec.control_plane.endpoint.node_port = Some(NodePort { port: Some(30443) });
        spec.etcd.replicas = 1;
        spec.etcd.storage = Storage { persistent: None, ephemeral: Some(EphemeralStorage {}) };
        World {
            tenant: Tenant::new("5f0c6f0e-uid", "demo", "blue"),
            spec,
            release: KubernetesReleaseSpec {
                adds: Vec::new(),
                version: "v1.37.1".into(),
                images: Images {
                    kube_apiserver: "registry.k8s.io/kube-apiserver:v1.37.1".into(),
                    kube_controller_manager: "registry.k8s.io/kube-controller-manager:v1.37.1".into(),
                    kube_scheduler: "registry.k8s.io/kube-scheduler:v1.37.1".into(),
                },
                etcd: EtcdRelease { version: "3.7.3".into(), image: "registry.k8s.io/etcd:3.7.3-0".into() },
                addons: Some(addon_images()),
                removes: Vec::new(),
            },
            platform: Platform { operator_namespace: "kaas-system".into(), ..Platform::default() },
            watched: BTreeSet::new(),
            existing: false,
            alone: true,
        }
    }

    /// Three of everything, on volumes, behind a load balancer, after its first start.
    fn large() -> Self {
        let mut world = World::small();
        world.spec.control_plane.replicas = 3;
        world.spec.control_plane.endpoint = Default::default();
        world.spec.control_plane.endpoint.kind = EndpointType::LoadBalancer;
        world.spec.etcd = Default::default();
        world.platform.registry = "mirror.example".into();
        world.platform.priority_class = "kaas-control-plane".into();
        world.existing = true;
        world.alone = false;
        world
    }

    fn with(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self);
        self
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            tenant: &self.tenant,
            spec: &self.spec,
            release: &self.release,
            emulated: None,
            etcd_image: self.platform.image(&self.release.etcd.image),
            canary: false,
            snapshot: false,
            watched: self.watched.clone(),
            platform: &self.platform,
            alone: self.alone,
        }
    }

    fn workloads(&self) -> Vec<Object> {
        workloads(&self.inputs())
    }

    fn surroundings(&self) -> Vec<Object> {
        let members: Vec<String> = (0..self.spec.etcd.replicas).map(etcd_member_name).collect();
        let volumes = members.iter().map(|name| (name.clone(), format!("volume of {name}"))).collect();
        let identity = EtcdIdentity { cluster_id: "c0ffee".into(), volumes };
        surroundings(
            &self.inputs(),
            &EtcdBootstrap { starters: members.iter().cloned().collect(), members },
            self.existing.then_some(&identity),
        )
    }

    /// What saves a snapshot of the second member.
    fn snapshot(&self) -> Option<Object> {
        let inputs = self.inputs();
        etcd_snapshot(&inputs, &inputs.etcd_image, Series::of(&self.release.etcd.version)?, 1)
    }

    /// Every object there is, those inside the tenant too.
    fn all(&self) -> Vec<Object> {
        let mut all = vec![namespace(&self.tenant)];
        all.extend(self.surroundings());
        all.extend(self.workloads());
        all.extend(self.snapshot());
        all.extend(tenant_objects(&self.inputs(), &["10.77.0.1".parse().unwrap()], 30443));
        all
    }

    /// What runs inside it for its workers.
    fn inside(&self) -> Vec<Object> {
        super::addons(&self.inputs(), true)
            .into_iter()
            .map(|object| fill(object, &facts("10.77.0.1")))
            .collect()
    }

    /// How the other world's objects differ from this one's.
    fn against(&self, other: &World) -> String {
        describe(&self.all(), &other.all()).join("\n")
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let endpoint = prop_oneof![
        Just(EndpointType::ClusterIP),
        Just(EndpointType::NodePort),
        Just(EndpointType::LoadBalancer)
    ];
    let storage = prop::option::of((100_u64..2_000_000, prop::option::of("[a-z]{1,9}")));
    let platform = ("(mirror\\.example)?", "(kaas-control-plane)?", "(kaas-system)?");
    (
        1..=5_i32,
        prop::sample::select(vec![1, 3, 5]),
        endpoint,
        prop::option::of(1..=65535_i32),
        storage,
        platform,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(replicas, members, kind, port, storage, platform, existing, alone, watched)| {
            World::small().with(|world| {
                world.spec.control_plane.replicas = replicas;
                world.spec.etcd.replicas = members;
                world.spec.control_plane.endpoint.kind = kind;
                let node_port = (kind == EndpointType::NodePort).then_some(NodePort { port });
                world.spec.control_plane.endpoint.node_port = node_port;
                if let Some((mebibytes, storage_class_name)) = storage {
                    let size: Quantity = format!("{mebibytes}Mi").parse().unwrap();
                    let persistent = Some(PersistentStorage { size, storage_class_name });
                    world.spec.etcd.storage = Storage { persistent, ephemeral: None };
                }
                (world.platform.registry, world.platform.priority_class, world.platform.operator_namespace) =
                    platform;
                if watched {
                    world.watched = ["networking.k8s.io/v1beta1".to_owned()].into();
                    world.platform.operator_image = "ghcr.io/kaas-dev/kaas-operator:1".into();
                }
                world.existing = existing;
                world.alone = alone && members == 1;
            })
        })
}

#[test]
fn a_small_cluster() {
    let objects: Vec<Value> = World::small().all().into_iter().map(|object| object.content).collect();
    insta::with_settings!({sort_maps => true}, { insta::assert_yaml_snapshot!(objects) });
}

#[test]
fn a_large_cluster_differs_from_a_small_one() {
    insta::assert_snapshot!(World::small().against(&World::large()), @r#"
    Service kube-apiserver: - spec.ports[https].nodePort=30443
    Service kube-apiserver: + spec.ports[konnectivity]
    Service kube-apiserver: spec.type: NodePort -> LoadBalancer
    ConfigMap etcd-bootstrap: data.ETCD_INITIAL_CLUSTER: etcd-0=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2380 -> etcd-0=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2380,etcd-1=https://etcd-1.etcd.kaas-5f0c6f0e-uid.svc:2380,etcd-2=ht...
    ConfigMap etcd-identity: new
    PodDisruptionBudget etcd: new
    PodDisruptionBudget kube-apiserver: new
    PodDisruptionBudget kube-controllers: new
    StatefulSet etcd: + spec.persistentVolumeClaimRetentionPolicy={"whenDeleted":"Retain","whenScaled":"Delete"}
    StatefulSet etcd: spec.replicas: 1 -> 3
    StatefulSet etcd: - --heartbeat-interval=10
    StatefulSet etcd: - --election-timeout=100
    StatefulSet etcd: + --heartbeat-interval=100
    StatefulSet etcd: + --election-timeout=1000
    StatefulSet etcd: spec.template.spec.containers[etcd].image: registry.k8s.io/etcd:3.7.3-0 -> mirror.example/etcd:3.7.3-0
    StatefulSet etcd: + spec.template.spec.priorityClassName=kaas-control-plane
    StatefulSet etcd: spec.template.spec.terminationGracePeriodSeconds: 2 -> 10
    StatefulSet etcd: - spec.template.spec.volumes[data]
    StatefulSet etcd: + spec.volumeClaimTemplates=[{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"labels":{"app.kubernetes.io/managed-by":"kaas","app.k...
    Deployment kube-apiserver: spec.replicas: 1 -> 3
    Deployment kube-apiserver: - --etcd-servers=https://etcd-0.kaas-5f0c6f0e-uid.svc:2379
    Deployment kube-apiserver: + --etcd-servers=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2379,https://etcd-1.etcd.kaas-5f0c6f0e-uid.svc:2379,https://...
    Deployment kube-apiserver: spec.template.spec.containers[kube-apiserver].image: registry.k8s.io/kube-apiserver:v1.37.1 -> mirror.example/kube-apiserver:v1.37.1
    Deployment kube-apiserver: spec.template.spec.containers[konnectivity-server].image: registry.k8s.io/kas-network-proxy/proxy-server:v0.36.0 -> mirror.example/kas-network-proxy/proxy-server:v0.36.0
    Deployment kube-apiserver: + spec.template.spec.priorityClassName=kaas-control-plane
    Deployment kube-controllers: spec.replicas: 1 -> 2
    Deployment kube-controllers: spec.template.spec.containers[kube-controller-manager].image: registry.k8s.io/kube-controller-manager:v1.37.1 -> mirror.example/kube-controller-manager:v1.37.1
    Deployment kube-controllers: spec.template.spec.containers[kube-scheduler].image: registry.k8s.io/kube-scheduler:v1.37.1 -> mirror.example/kube-scheduler:v1.37.1
    Deployment kube-controllers: + spec.template.spec.priorityClassName=kaas-control-plane
    StatefulSet etcd-snapshot: new
    Service konnectivity-server: gone
    "#);
}

#[test]
fn a_change_reaches_what_it_is_about() {
    let one = World::small();
    let cases: Vec<(&str, World)> = vec![
        ("two API servers", one.clone().with(|world| world.spec.control_plane.replicas = 2)),
        ("five API servers", one.clone().with(|world| world.spec.control_plane.replicas = 5)),
        ("one member of several", one.clone().with(|world| world.alone = false)),
        ("three members", one.clone().with(|world| (world.spec.etcd.replicas, world.alone) = (3, false))),
        ("any node port", one.clone().with(|world| world.spec.control_plane.endpoint.node_port = None)),
        (
            "a small volume",
            one.clone().with(|world| {
                let persistent = PersistentStorage {
                    size: Quantity::gibibytes(1),
                    storage_class_name: Some("fast".into()),
                };
                world.spec.etcd.storage = Storage { persistent: Some(persistent), ephemeral: None };
            }),
        ),
        (
            "other networks",
            one.clone().with(|world| {
                world.spec.network.service_cidr = "10.0.0.0/16".into();
                world.spec.network.pod_cidr = "10.1.0.0/16".into();
                world.spec.network.domain = "blue.example".into();
            }),
        ),
        ("a mirror", one.clone().with(|world| world.platform.registry = "mirror.example".into())),
        ("a priority", one.clone().with(|world| world.platform.priority_class = "first".into())),
        ("an unknown operator", one.clone().with(|world| world.platform.operator_namespace.clear())),
        ("an existing cluster", one.clone().with(|world| world.existing = true)),
    ];
    let text: Vec<String> =
        cases.iter().map(|(name, world)| format!("{name}:\n{}\n", one.against(world))).collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
    two API servers:
    PodDisruptionBudget kube-apiserver: new
    PodDisruptionBudget kube-controllers: new
    Deployment kube-apiserver: spec.replicas: 1 -> 2
    Deployment kube-controllers: spec.replicas: 1 -> 2

    five API servers:
    PodDisruptionBudget kube-apiserver: new
    PodDisruptionBudget kube-controllers: new
    Deployment kube-apiserver: spec.replicas: 1 -> 5
    Deployment kube-controllers: spec.replicas: 1 -> 2

    one member of several:
    StatefulSet etcd: - --heartbeat-interval=10
    StatefulSet etcd: - --election-timeout=100
    StatefulSet etcd: + --heartbeat-interval=100
    StatefulSet etcd: + --election-timeout=1000
    StatefulSet etcd: spec.template.spec.terminationGracePeriodSeconds: 2 -> 10

    three members:
    ConfigMap etcd-bootstrap: data.ETCD_INITIAL_CLUSTER: etcd-0=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2380 -> etcd-0=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2380,etcd-1=https://etcd-1.etcd.kaas-5f0c6f0e-uid.svc:2380,etcd-2=ht...
    PodDisruptionBudget etcd: new
    StatefulSet etcd: spec.replicas: 1 -> 3
    StatefulSet etcd: - --heartbeat-interval=10
    StatefulSet etcd: - --election-timeout=100
    StatefulSet etcd: + --heartbeat-interval=100
    StatefulSet etcd: + --election-timeout=1000
    StatefulSet etcd: spec.template.spec.terminationGracePeriodSeconds: 2 -> 10
    Deployment kube-apiserver: - --etcd-servers=https://etcd-0.kaas-5f0c6f0e-uid.svc:2379
    Deployment kube-apiserver: + --etcd-servers=https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2379,https://etcd-1.etcd.kaas-5f0c6f0e-uid.svc:2379,https://...

    any node port:
    Service kube-apiserver: - spec.ports[https].nodePort=30443

    a small volume:
    StatefulSet etcd: + spec.persistentVolumeClaimRetentionPolicy={"whenDeleted":"Retain","whenScaled":"Delete"}
    StatefulSet etcd: - --quota-backend-bytes=2147483648
    StatefulSet etcd: + --quota-backend-bytes=268435456
    StatefulSet etcd: - spec.template.spec.volumes[data]
    StatefulSet etcd: + spec.volumeClaimTemplates=[{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"labels":{"app.kubernetes.io/managed-by":"kaas","app.k...
    StatefulSet etcd-snapshot: new

    other networks:
    Deployment kube-apiserver: - --service-account-issuer=https://kubernetes.default.svc.cluster.local
    Deployment kube-apiserver: - --service-account-jwks-uri=https://kubernetes.default.svc.cluster.local/openid/v1/jwks
    Deployment kube-apiserver: - --service-cluster-ip-range=100.64.0.0/16
    Deployment kube-apiserver: + --service-account-issuer=https://kubernetes.default.svc.blue.example
    Deployment kube-apiserver: + --service-account-jwks-uri=https://kubernetes.default.svc.blue.example/openid/v1/jwks
    Deployment kube-apiserver: + --service-cluster-ip-range=10.0.0.0/16
    Deployment kube-controllers: - --cluster-cidr=100.96.0.0/16
    Deployment kube-controllers: - --service-cluster-ip-range=100.64.0.0/16
    Deployment kube-controllers: + --cluster-cidr=10.1.0.0/16
    Deployment kube-controllers: + --service-cluster-ip-range=10.0.0.0/16

    a mirror:
    StatefulSet etcd: spec.template.spec.containers[etcd].image: registry.k8s.io/etcd:3.7.3-0 -> mirror.example/etcd:3.7.3-0
    Deployment kube-apiserver: spec.template.spec.containers[kube-apiserver].image: registry.k8s.io/kube-apiserver:v1.37.1 -> mirror.example/kube-apiserver:v1.37.1
    Deployment kube-apiserver: spec.template.spec.containers[konnectivity-server].image: registry.k8s.io/kas-network-proxy/proxy-server:v0.36.0 -> mirror.example/kas-network-proxy/proxy-server:v0.36.0
    Deployment kube-controllers: spec.template.spec.containers[kube-controller-manager].image: registry.k8s.io/kube-controller-manager:v1.37.1 -> mirror.example/kube-controller-manager:v1.37.1
    Deployment kube-controllers: spec.template.spec.containers[kube-scheduler].image: registry.k8s.io/kube-scheduler:v1.37.1 -> mirror.example/kube-scheduler:v1.37.1

    a priority:
    StatefulSet etcd: + spec.template.spec.priorityClassName=first
    Deployment kube-apiserver: + spec.template.spec.priorityClassName=first
    Deployment kube-controllers: + spec.template.spec.priorityClassName=first

    an unknown operator:
    NetworkPolicy etcd: - spec.ingress[0].from[2]

    an existing cluster:
    ConfigMap etcd-identity: new
    "#);
}

#[test]
fn a_snapshot_is_saved_made_into_data_and_run() {
    assert_eq!(World::small().snapshot(), None, "there is nothing to keep it on");
    let world = World::large();
    let set = world.snapshot().unwrap().content;
    let pod = set.pointer("/spec/template/spec").unwrap();
    let containers = ["initContainers", "containers"].map(|kind| pod[kind].as_array().unwrap().clone());
    let commands: Vec<String> = containers
        .iter()
        .flatten()
        .map(|container| {
            serde_json::from_value::<Vec<String>>(container["command"].clone()).unwrap().join(" ")
        })
        .collect();
    insta::assert_snapshot!(commands.join("\n"), @"
    etcdctl snapshot save /var/lib/snapshot/3.7.db --endpoints=https://etcd-1.etcd.kaas-5f0c6f0e-uid.svc:2379 --cacert=/etc/kubernetes/pki/etcd-ca.crt --cert=/etc/kubernetes/pki/server.crt --key=/etc/kubernetes/pki/server.key
    etcdutl snapshot restore /var/lib/snapshot/3.7.db --data-dir=/var/lib/etcd/data
    etcd --data-dir=/var/lib/etcd/data --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://localhost:2379 --listen-peer-urls=http://127.0.0.1:2380 --listen-metrics-urls=http://0.0.0.0:2381
    ");
    // It is let out to members and to names, and nobody is let in.
    let inputs = Inputs { snapshot: true, ..world.inputs() };
    let policies = super::policy::policies(&inputs);
    let named = |name: &str| policies.iter().find(|policy| policy.reference.name == name).unwrap();
    let own = &named("etcd-snapshot").content["spec"];
    assert_eq!((own.get("ingress"), own["egress"].as_array().unwrap().len()), (None, 2));
    assert!(named("etcd").content.to_string().contains(r#""etcd-snapshot""#));
    let without = super::policy::policies(&world.inputs());
    assert!(without.iter().all(|policy| !policy.content.to_string().contains("etcd-snapshot")));
}

#[test]
fn addresses_of_a_tenants_api_have_their_family() {
    let world = World::small();
    for (address, family) in [("10.77.0.1", "IPv4"), ("2001:db8::1", "IPv6")] {
        let objects = tenant_objects(&world.inputs(), &[address.parse().unwrap()], 6443);
        let find = |kind| &objects.iter().find(|object| object.reference.kind == kind).unwrap().content;
        assert_eq!(find(Kind::EndpointSlice)["addressType"], family);
        assert_eq!(find(Kind::EndpointSlice)["endpoints"][0]["addresses"], json!([address]));
        assert_eq!(find(Kind::Endpoints)["subsets"][0]["addresses"][0]["ip"], address);
    }
}

#[test]
fn urls_are_those_that_members_advertise() {
    let world = World::large();
    let tenant = &world.tenant;
    assert_eq!(etcd_peer_url(tenant, 2), "https://etcd-2.etcd.kaas-5f0c6f0e-uid.svc:2380");
    assert_eq!(etcd_client_url(tenant, 0), "https://etcd-0.etcd.kaas-5f0c6f0e-uid.svc:2379");
    let bootstrap =
        world.surroundings().into_iter().find(|object| object.reference.name == "etcd-bootstrap").unwrap();
    let initial = bootstrap.content["data"]["ETCD_INITIAL_CLUSTER"].as_str().unwrap().to_owned();
    let expected: Vec<String> =
        (0..3).map(|index| format!("etcd-{index}={}", etcd_peer_url(tenant, index))).collect();
    assert_eq!(initial, expected.join(","));
    let advertised = etcd_peer_url(tenant, 0).replace("etcd-0.", "$(POD_NAME).");
    let set = world.workloads().remove(0).content.to_string();
    assert!(set.contains(&format!("--initial-advertise-peer-urls={advertised}")), "{set}");
}

/// The content as Kubernetes' own types have it: a field that they do not know is gone.
fn typed<T: DeserializeOwned + Serialize>(content: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(content.clone()).unwrap()).unwrap()
}

fn known(object: &Object) -> Value {
    let content = &object.content;
    match object.reference.kind {
        Kind::Namespace => typed::<core::Namespace>(content),
        Kind::ConfigMap => typed::<core::ConfigMap>(content),
        Kind::Service => typed::<core::Service>(content),
        Kind::Endpoints => typed::<core::Endpoints>(content),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(content),
        Kind::StatefulSet => typed::<apps::StatefulSet>(content),
        Kind::Deployment => typed::<apps::Deployment>(content),
        Kind::NetworkPolicy => typed::<networking::NetworkPolicy>(content),
        Kind::PodDisruptionBudget => typed::<policy::PodDisruptionBudget>(content),
        Kind::ClusterRoleBinding => typed::<rbac::ClusterRoleBinding>(content),
        Kind::ClusterRole => typed::<rbac::ClusterRole>(content),
        Kind::Role => typed::<rbac::Role>(content),
        Kind::RoleBinding => typed::<rbac::RoleBinding>(content),
        Kind::ServiceAccount => typed::<core::ServiceAccount>(content),
        Kind::DaemonSet => typed::<apps::DaemonSet>(content),
        Kind::APIService => typed::<apiregistration::APIService>(content),
        other => panic!("{other} is not rendered here"),
    }
}

/// Paths of empty maps and lists, and of nulls: they mean nothing, or not what one thinks.
fn empty(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Null => found.push(path.to_owned()),
        Value::Object(map) if map.is_empty() => found.push(path.to_owned()),
        Value::Array(list) if list.is_empty() => found.push(path.to_owned()),
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| empty(value, &format!("{path}/{key}"), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| empty(value, &format!("{path}/{at}"), found));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn the_same_inputs_give_the_same_bytes(world in any_world()) {
        let bytes = |world: &World| serde_json::to_string(&(world.all(), world.inside())).unwrap();
        prop_assert_eq!(bytes(&world), bytes(&world.clone()));
    }

    #[test]
    fn names_are_unique_and_objects_are_labelled(world in any_world()) {
        let mut all = world.all();
        all.extend(world.inside());
        let names: std::collections::BTreeSet<_> = all.iter().map(|object| &object.reference).collect();
        prop_assert_eq!(names.len(), all.len());
        for object in &all {
            prop_assert_eq!(&object.content["metadata"]["labels"][MANAGED_BY_LABEL], MANAGED_BY);
            if object.reference.namespace == Some(world.tenant.control_plane_namespace()) {
                let uid = &object.content["metadata"]["labels"]["kaas.dev/tenant-uid"];
                prop_assert_eq!(uid, world.tenant.uid.as_str());
            }
        }
    }

    #[test]
    fn kubernetes_knows_every_field(world in any_world()) {
        for object in world.all() {
            prop_assert_eq!(known(&object), object.content.clone(), "{}", object.reference);
            let mut found = Vec::new();
            empty(&object.content, "", &mut found);
            // Selects every pod: the one empty map that says something.
            found.retain(|path| !(object.reference.name == "deny" && path == "/spec/podSelector"));
            prop_assert!(found.is_empty(), "{}: {found:?}", object.reference);
        }
    }

    #[test]
    fn scaling_changes_no_pod_template(world in any_world(), replicas in 1..=5_i32, members in prop::sample::select(vec![1, 3, 5])) {
        let templates = |world: &World| -> Vec<Value> {
            world.workloads().iter().map(|object| object.content["spec"]["template"].clone()).collect()
        };
        let scaled = world.clone().with(|world| world.spec.control_plane.replicas = replicas);
        prop_assert_eq!(templates(&world), templates(&scaled));
        let grown = world.clone().with(|world| world.spec.etcd.replicas = members);
        let lines = describe(&world.workloads(), &grown.workloads());
        let meant = |line: &String| line.contains(" --etcd-servers=") || line.starts_with("StatefulSet etcd: spec.replicas:");
        prop_assert!(lines.iter().all(meant), "{lines:?}");
    }

    #[test]
    fn a_budget_never_stands_in_the_way_of_a_drain_for_ever(world in any_world()) {
        let replicas = |name: &str| {
            let all = world.workloads();
            all.iter().find(|object| object.reference.name == name).unwrap().content["spec"]["replicas"].as_i64().unwrap()
        };
        for object in world.surroundings() {
            if object.reference.kind == Kind::PodDisruptionBudget {
                let least = if object.reference.name == "etcd" { 3 } else { 2 };
                prop_assert!(replicas(&object.reference.name) >= least, "{}", object.reference);
                prop_assert_eq!(&object.content["spec"]["maxUnavailable"], 1);
            }
        }
    }

    #[test]
    fn data_and_its_copy_and_the_log_fit_on_the_volume(world in any_world()) {
        let set = world.workloads().remove(0).content;
        let flags = set["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap().clone();
        let quota: u64 = flags.iter().find_map(|flag| flag.as_str()?.strip_prefix("--quota-backend-bytes=")).unwrap().parse().unwrap();
        let volume = match &world.spec.etcd.storage.persistent {
            Some(storage) => storage.size.bytes(),
            None => {
                let limit = set.pointer("/spec/template/spec/volumes/1/emptyDir/sizeLimit").unwrap();
                limit.as_str().unwrap().parse::<Quantity>().unwrap().bytes()
            }
        };
        prop_assert!(quota > 0 && quota <= 2 << 30 && quota * 4 <= volume, "{quota} of {volume}");
    }
}
