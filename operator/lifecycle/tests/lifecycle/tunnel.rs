//! The tunnel: it comes with the release's images for workers, and its certificate follows the endpoint.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::kubernetes_release::AddonImages;

use crate::world::World;

/// The release gains images for workers, as a newer chart may have it.
fn gain_images(world: &mut World) {
    let image = |name: &str| format!("registry.k8s.io/{name}:v1");
    let images = AddonImages {
        kube_proxy: image("kube-proxy"),
        core_dns: image("coredns"),
        flannel: image("flannel"),
        konnectivity_server: image("proxy-server"),
        konnectivity_agent: image("proxy-agent"),
        metrics_server: image("metrics-server"),
        pause: image("pause"),
        worker: image("worker"),
    };
    world.catalogue.get_mut("v1.37.1").unwrap().addons = Some(images);
}

/// Pods by their components.
fn pods(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in &world.pods {
        all.entry(pod.component.clone()).or_default().insert(pod.uid.clone());
    }
    all
}

#[test]
fn its_certificate_names_itself_and_the_endpoint() {
    let names = |world: &World| {
        let certificate = &world.secrets["konnectivity-server"].certificates["konnectivity"];
        (certificate.dns_names.clone(), certificate.ip_addresses.clone())
    };
    let own = "konnectivity-server".to_owned();
    let mut world = World::demo();
    gain_images(&mut world);
    world.settle();
    assert_eq!(world.summary(), "Running");
    assert_eq!(
        names(&world),
        (BTreeSet::from([own.clone()]), BTreeSet::from(["10.77.0.1".parse().unwrap()]))
    );
    let client = &world.secrets["konnectivity-server"].certificates["konnectivity-client"];
    assert_eq!(client.common_name, "system:konnectivity-server");
    assert_eq!(client.organizations, BTreeSet::new(), "it has what is bound to its name alone");
    let before = pods(&world);

    world.platform.node_port_host = "api.example".into();
    world.settle();
    assert_eq!(names(&world), (BTreeSet::from([own, "api.example".to_owned()]), BTreeSet::new()));
    assert_eq!(pods(&world), before, "the name that agents call it by has not changed");
}

#[test]
fn a_release_that_gains_images_restarts_nothing_unasked() {
    let mut world = World::demo();
    world.settle();
    assert!(!world.secrets.contains_key("konnectivity-server"));
    let before = pods(&world);
    gain_images(&mut world);
    world.settle();
    assert_eq!(pods(&world), before);
    let pending = world.cluster.status.as_ref().unwrap().pending.clone().unwrap();
    assert!(pending.summary.contains("+ --egress-selector-config-file="), "{}", pending.summary);

    world.edit(|spec| spec.accept_revision = Some(pending.revision));
    world.settle();
    let after = pods(&world);
    assert_ne!(after["kube-apiserver"], before["kube-apiserver"]);
    assert_eq!(after["etcd"], before["etcd"]);
    assert_eq!(after["kube-controllers"], before["kube-controllers"]);
}

#[test]
fn what_runs_on_workers_restarts_no_control_plane() {
    let mut world = World::demo();
    gain_images(&mut world);
    world.settle();
    let before = pods(&world);
    world.edit(|spec| spec.addons.metrics_server.enabled = false);
    world.settle();
    assert_eq!(pods(&world), before);
    assert!(world.cluster.status.as_ref().unwrap().pending.is_none());
}
