//! Which images there are: those that the management cluster runs, under the local registry's name, and those
//! that workers of tenant clusters pull, under their official names. Programs are where the official images have
//! them, with the same users and entrypoints: a manifest for one fits the other.

use std::path::Path;

use super::{BUSYBOX, Image, store};
use crate::Error;
use crate::compile::Toolbox;
use crate::component::{self, Component};
use crate::layout::Cache;

/// Host part of every image of the management cluster.
pub(crate) const REGISTRY: &str = "kaas.local";
/// The image of pod sandboxes.
pub(crate) const PAUSE: &str = "kaas.local/pause:1";
/// A shell with the usual tools.
pub(crate) const SHELL: &str = "kaas.local/busybox:1";
/// User and group of programs that need no rights.
const NONROOT: &str = "65532:65532";
/// What kubeadm of this Kubernetes names.
const PAUSE_VERSION: &str = "3.10.2";

/// What the worker's container starts with, what makes it a machine, its own network plugin, and containerd's configuration.
const WORKER_ENTRYPOINT: &str = include_str!("../../../worker/entrypoint");
const WORKER_ISOLATION: &str = include_str!("../../../worker/isolation");
const WORKER_AWAIT: &str = include_str!("../../../worker/await");
const WORKER_CONTAINERD: &str = include_str!("../../../worker/containerd.toml");
/// Where it has images.
const WORKER_IMAGES: &str = "usr/local/share/kaas/images";

/// An image for workers, under all the names by which it is pulled.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) image: Image,
    pub(crate) names: Vec<String>,
}

/// Images that the management cluster runs: its own, those of tenants' control planes, and the workers that
/// are pods.
pub(crate) fn management(
    toolbox: &Toolbox,
    cache: &Cache,
    operator: Option<(&Path, &str)>,
) -> Result<Vec<Image>, Error> {
    let mut images = vec![pause(PAUSE.to_owned()), Image::new(SHELL).shell()?];
    for name in ["coredns", "local-path-provisioner", "registry"] {
        let image = Image::new(addon_reference(name)?);
        images.push(image.program_in("/usr/local/bin", toolbox.program(name)?));
    }
    let server = "proxy-server";
    images.push(
        Image::new(local(&official("registry.k8s.io/kas-network-proxy/proxy-server", server)?))
            .started_by("/proxy-server", toolbox.program(server)?)
            .user(NONROOT),
    );
    for toolbox in toolbox.of_releases() {
        images.extend(control_plane(toolbox)?);
        images.push(worker(toolbox, cache)?);
    }
    if let Some((program, tag)) = operator {
        images.push(
            Image::new(format!("{REGISTRY}/kaas-dev/kaas-operator:{tag}"))
                .started_by("/usr/local/bin/kaas-operator", program)
                .user(NONROOT),
        );
    }
    Ok(images)
}

/// What a tenant's control plane of a release runs.
fn control_plane(toolbox: &Toolbox) -> Result<Vec<Image>, Error> {
    let release = toolbox.release();
    let mut images = Vec::new();
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        let image = Image::new(format!("{REGISTRY}/{name}:{}", release.kubernetes));
        images.push(image.program_in("/usr/local/bin", toolbox.program(name)?));
    }
    let mut etcd = Image::new(format!("{REGISTRY}/etcd:{}-0", release.etcd));
    for name in ["etcd", "etcdctl", "etcdutl"] {
        etcd = etcd.program_in("/usr/local/bin", toolbox.program(name)?);
    }
    images.push(etcd);
    Ok(images)
}

/// Images that workers pull.
pub(crate) fn workers(toolbox: &Toolbox) -> Result<Vec<Published>, Error> {
    let provisioner = "local-path-provisioner";
    let busybox = Image::new("docker.io/library/busybox:1").shell()?.command(&["sh"]);
    let mut images = addons(toolbox)?;
    // Of the add-ons kube-proxy alone has the version of the release.
    for older in toolbox.of_releases().skip(1) {
        images.push(published(kube_proxy(older)?, &[]));
    }
    images.push(published(agnhost(toolbox.program("agnhost")?)?, &[]));
    images.push(published(
        Image::new(official("docker.io/rancher/local-path-provisioner", provisioner)?)
            .started_by("/usr/bin/local-path-provisioner", toolbox.program(provisioner)?),
        &[],
    ));
    // Where flows run.
    if let Ok(program) = toolbox.program("load") {
        let load = Image::new(load_reference()).started_by("/usr/local/bin/load", program).user(NONROOT);
        images.push(published(load, &[]));
    }
    // The helper of local-path-provisioner has no tag where it is named.
    images.push(published(busybox, &["docker.io/library/busybox:latest"]));
    Ok(images)
}

/// What runs on every worker, or on the first ones.
fn addons(toolbox: &Toolbox) -> Result<Vec<Published>, Error> {
    let program = |name: &str| toolbox.program(name);
    let images = [
        pause(format!("registry.k8s.io/pause:{PAUSE_VERSION}")),
        Image::new(official("ghcr.io/flannel-io/flannel", "flanneld")?)
            .shell()?
            .packet_filter()?
            .tools(&["ip"])?
            .started_by("/opt/bin/flanneld", program("flanneld")?),
        kube_proxy(toolbox)?,
        Image::new(official("registry.k8s.io/kas-network-proxy/proxy-agent", "proxy-agent")?)
            .started_by("/proxy-agent", program("proxy-agent")?)
            .user(NONROOT),
        Image::new(official("registry.k8s.io/coredns/coredns", "coredns")?)
            .started_by("/coredns", program("coredns")?)
            .user(NONROOT),
        Image::new(official("registry.k8s.io/metrics-server/metrics-server", "metrics-server")?)
            .started_by("/metrics-server", program("metrics-server")?)
            .user("65534"),
    ];
    Ok(images.into_iter().map(|image| published(image, &[])).collect())
}

fn kube_proxy(toolbox: &Toolbox) -> Result<Image, Error> {
    let image = Image::new(format!("registry.k8s.io/kube-proxy:{}", toolbox.release().kubernetes));
    Ok(image.packet_filter()?.started_by("/usr/local/bin/kube-proxy", toolbox.program("kube-proxy")?))
}

/// An image under its own name and others, each also under the local registry's: with the chart's `registry` set, the
/// add-ons of tenants are asked for there.
fn published(image: Image, others: &[&str]) -> Published {
    let mut names = vec![image.reference.clone()];
    names.extend(others.iter().map(|name| (*name).to_owned()));
    let aliases: Vec<_> = names.iter().map(|name| local(name)).collect();
    names.extend(aliases);
    Published { image, names }
}

/// Reference of the image of an add-on: its program's name and version.
pub(crate) fn addon_reference(program: &str) -> Result<String, Error> {
    official(&format!("{REGISTRY}/{program}"), program)
}

/// A repository with the version of the program in it.
pub(crate) fn official(repository: &str, program: &str) -> Result<String, Error> {
    let component = Component::of_program(program)
        .ok_or_else(|| Error::Invalid(format!("no component builds `{program}`")))?;
    Ok(format!("{repository}:{}", component.version))
}

/// The same image in the local registry: only the host part is another.
fn local(reference: &str) -> String {
    let path = reference.split_once('/').map_or(reference, |(_, path)| path);
    format!("{REGISTRY}/{path}")
}

fn pause(reference: String) -> Image {
    let mut image = Image::new(reference).program(BUSYBOX, BUSYBOX.as_ref()).user(NONROOT);
    image.entrypoint = [BUSYBOX, "sleep", "infinity"].map(str::to_owned).to_vec();
    image
}

/// The program of Kubernetes' own tests, with the shell that they use beside it.
fn agnhost(program: &Path) -> Result<Image, Error> {
    let image = Image::new(format!("registry.k8s.io/e2e-test-images/agnhost:{}", component::AGNHOST))
        .shell()?
        .started_by("/agnhost", program)
        .command(&["pause"])
        .link("/agnhost-2", "agnhost")
        .directory("/uploads", 0o755)
        // A test looks for the groups that the image gives this user.
        .text(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n",
            0o644,
        )
        .text(
            "/etc/group",
            "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n",
            0o644,
        );
    Ok(image)
}

/// A worker that is a pod: the programs of a node, what starts them, and the images that every worker runs.
fn worker(toolbox: &Toolbox, cache: &Cache) -> Result<Image, Error> {
    let images = store::content(toolbox, cache, &addons(toolbox)?, WORKER_CONTAINERD, WORKER_IMAGES)?;
    let version = toolbox.release().kubernetes;
    let mut image = Image::new(worker_reference(version))
        .shell()?
        .packet_filter()?
        .tools(&["dash", "runc", "mount", "umount", "unshare", "nsenter", "ip"])?
        // busybox' own shell takes its own mount, umount and unshare, whatever PATH says.
        .link("/bin/sh", "/usr/bin/dash")
        .text("/usr/local/bin/entrypoint", WORKER_ENTRYPOINT, 0o755)
        .text("/usr/local/share/kaas/isolation", WORKER_ISOLATION, 0o644)
        .text("/usr/local/share/kaas/containerd.toml", WORKER_CONTAINERD, 0o644)
        .text("/opt/cni/bin/await", WORKER_AWAIT, 0o755)
        .text("/etc/os-release", &worker_release(version), 0o644);
    for name in ["kubelet", "kubeadm", "containerd", "containerd-shim-runc-v2", "ctr"] {
        image = image.program_in("/usr/local/bin", toolbox.program(name)?);
    }
    for name in ["bridge", "host-local", "loopback", "portmap", "firewall"] {
        image = image.program_in("/opt/cni/bin", toolbox.program(name)?);
    }
    // Pods of networks, storage and monitoring mount these from the host.
    for place in ["/etc/cni/net.d", "/lib/modules", "/run", "/var/lib/cni", "/var/log/pods"] {
        image = image.directory(place, 0o755);
    }
    image.entrypoint = vec!["/usr/local/bin/entrypoint".to_owned()];
    Ok(image.link("/var/run", "/run").with(images))
}

/// The image of a worker that is a pod.
pub(crate) fn worker_reference(version: &str) -> String {
    format!("{REGISTRY}/kaas-dev/kaas-worker:{version}")
}

/// The image of the load of flows.
pub(crate) fn load_reference() -> String {
    format!("ghcr.io/kaas-dev/kaas-load:{}", component::LOAD.version)
}

/// An API server that is not what it should be.
#[derive(Debug)]
pub(crate) struct Spoiled {
    /// The version that it says it is of, and its image's tag.
    pub(crate) version: &'static str,
    /// In the words of `e2e/go/spoiled`.
    pub(crate) fault: &'static str,
    /// How long after its first readiness that begins; nothing: from the start.
    pub(crate) after: &'static str,
}

/// Images of such API servers: the true one and what stands before it, the same in all of them.
pub(crate) fn spoiled(toolbox: &Toolbox, versions: &[&Spoiled]) -> Result<Image, Error> {
    let server = "/usr/local/bin/kube-apiserver";
    // Named after all of them: another set is another image, and is imported.
    let tag = versions.iter().map(|spoiled| spoiled.version).collect::<Vec<_>>().join("-");
    let image = Image::new(format!("{REGISTRY}/kaas-dev/kaas-spoiled:{tag}"))
        .program(server, toolbox.program("spoiled")?)
        .program(&format!("{server}.true"), toolbox.program("kube-apiserver")?);
    Ok(versions.iter().fold(image, |image, Spoiled { version, fault, after }| {
        let environment = [("FAULT", fault), ("AFTER", after), ("VERSION", version)];
        let environment = environment.map(|(name, value)| format!("SPOILED_{name}={value}"));
        image.twin(format!("{REGISTRY}/kube-apiserver:{version}"), environment.into())
    }))
}

/// What a Node tells about its operating system.
fn worker_release(version: &str) -> String {
    format!(
        "NAME=\"kaas worker\"\nID=kaas-worker\nVERSION_ID={version}\nPRETTY_NAME=\"kaas worker {version}\"\n"
    )
}

impl Image {
    fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invocation::Invocation;

    #[test]
    fn the_worker_s_files_fit_each_other() {
        for script in [WORKER_ENTRYPOINT, WORKER_ISOLATION, WORKER_AWAIT] {
            let checked = Invocation::new("sh").arg("-n").input(script).run();
            assert!(checked.is_ok(), "{checked:?}");
        }
        for place in [
            "@SANDBOX_IMAGE@",
            "@NETWORK_TEMPLATE@",
            "/etc/containerd/certs.d",
            "/run/containerd/containerd.sock",
        ] {
            assert!(WORKER_ISOLATION.contains(place) && WORKER_CONTAINERD.contains(place), "{place}");
        }
        assert!(WORKER_ENTRYPOINT.contains(WORKER_IMAGES));
    }

    #[test]
    fn pods_are_held_back_until_the_network_is_there() {
        let told = |command: &str, file: &str| {
            let network = serde_json::json!({"type": "await", "name": "a", "file": file}).to_string();
            let plugin = Invocation::new("sh").args(["-c", WORKER_AWAIT]).env("CNI_COMMAND", command);
            plugin.input(network).run().unwrap()
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("network");
        let begun = std::time::Instant::now();
        let later = file.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            std::fs::write(later, "x").unwrap();
        });
        assert_eq!(told("ADD", &file.display().to_string()), "{\"cniVersion\":\"1.0.0\"}\n");
        assert!(begun.elapsed().as_millis() >= 300);
        writer.join().unwrap();
        assert_eq!(told("DEL", "/none"), "");
        assert!(told("VERSION", "/none").contains("supportedVersions"));
    }

    #[test]
    fn only_the_host_part_is_replaced() {
        assert_eq!(local("registry.k8s.io/coredns/coredns:v1"), "kaas.local/coredns/coredns:v1");
        assert_eq!(local("docker.io/library/busybox:1"), "kaas.local/library/busybox:1");
    }

    #[test]
    fn versions_are_those_of_the_components() {
        assert_eq!(
            official("ghcr.io/flannel-io/flannel", "flanneld").unwrap(),
            "ghcr.io/flannel-io/flannel:v0.28.4"
        );
        assert!(official("x", "nothing").is_err());
    }
}
