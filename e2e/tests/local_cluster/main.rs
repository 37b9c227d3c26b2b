//! A whole local cluster of its own: up, a volume bound, an image loaded, a worker joined and gone, half of it
//! killed, up again on the same data, down after more kills, and the machine looks as before.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test states its expectations bluntly")]

mod worker;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kaas_e2e::cluster::{Cluster, Spec};
use kaas_e2e::compile::{self, Order};
use kaas_e2e::footprint::Footprint;
use kaas_e2e::layout::{Cache, Repository, State};
use kaas_e2e::{prerequisite, registry};

const CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim, namespace: default}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: writer
      image: kaas.local/busybox:1
      command: [sh, -c, "echo kept >> /data/file; sleep 3600"]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: claim}}]
"#;

/// An image as `docker save` writes it.
fn saved_image(path: &Path) {
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    let manifest = br#"[{"Config":"c.json","RepoTags":["team/app:1"],"Layers":[]}]"#;
    for (name, bytes) in
        [("manifest.json", &manifest[..]), ("c.json", br#"{"os":"linux","architecture":"amd64"}"#)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    archive.finish().unwrap();
}

/// What the registry answers to a mirror's question.
fn mirrored(cluster: &Cluster, repository: &str, tag: &str, of: &str) -> String {
    let place = format!("http://{}:30050/v2/{repository}/manifests/{tag}?ns={of}", cluster.address());
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let output =
        Command::new("busybox").args(["wget", "-q", "-O", "-", "--header", accept, &place]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Takes the cluster down also when the test fails.
struct Guard(State);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = Cluster::remove(&self.0);
    }
}

fn kill(state: &State, program: &str) {
    let record = std::fs::read(state.root().join("cluster.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pid = record["daemons"][program]["pid"].as_i64().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
}

#[test]
fn comes_up_heals_and_leaves_nothing() {
    let (repository, cache) = (Repository::find().unwrap(), Cache::find().unwrap());
    prerequisite::ensure(&repository, &cache).unwrap();
    let toolbox = compile::build_all(&repository, &cache, &Order::default()).unwrap().toolbox;
    let scratch = tempfile::Builder::new().prefix("kaas local ").tempdir().unwrap();
    let state = State::at(scratch.path().join("state")).unwrap();
    let before = Footprint::take(state.root()).unwrap();
    let guard = Guard(state.clone());
    let start =
        || Cluster::start(Spec { state: state.clone(), toolbox: toolbox.clone(), operator: None }, &cache);

    let cluster = start().unwrap();
    cluster.stock(&cache).unwrap();
    let kubectl = cluster.kubectl().unwrap();
    let running = |object: &serde_json::Value| match object["status"]["phase"].as_str() {
        Some("Running") => Ok(()),
        other => Err(format!("phase {other:?}")),
    };
    kubectl.apply(CLAIM).unwrap();
    let minute = Duration::from_secs(60);
    kubectl.await_object("the writer", &["get", "pod", "writer"], minute, running).unwrap();
    let archive = scratch.path().join("app.tar");
    saved_image(&archive);
    registry::load(&repository, &cache, &state, &archive).unwrap();
    let loaded = mirrored(&cluster, "team/app", "1", "docker.io");
    assert!(loaded.contains("\"config\""), "{loaded}");
    assert_eq!(mirrored(&cluster, "team/app", "1", "ghcr.io"), "", "another registry's image");
    assert!(mirrored(&cluster, "kube-proxy", "v1.37.1", "registry.k8s.io").contains("\"layers\""));
    worker::joins_comes_back_and_goes(&cluster);
    drop(cluster);

    for program in ["etcd", "kube-apiserver", "kubelet", "containerd"] {
        kill(&state, program);
    }
    let cluster = start().unwrap();
    // The new kubelet learns of its pods a moment after it has reported itself.
    let started = Instant::now();
    let kept = loop {
        match kubectl.run(&["exec", "writer", "--", "cat", "/data/file"]) {
            Ok(text) => break text,
            Err(error) => assert!(started.elapsed() < minute, "{error}"),
        }
    };
    assert_eq!(kept, "kept\n", "the pod has lived through the death of its node's daemons");
    while mirrored(&cluster, "team/app", "1", "docker.io") != loaded {
        assert!(started.elapsed() < minute, "the loaded image is not there any more");
    }
    drop(cluster);

    kill(&state, "kubelet");
    kill(&state, "kube-controller-manager");
    std::fs::write(state.root().join("cluster.json"), "half a rec").unwrap();
    Cluster::remove(&state).unwrap();
    assert_eq!(Cluster::remains(&state).unwrap(), Vec::<String>::new());
    Cluster::remove(&state).unwrap();
    drop(guard);
    let after = Footprint::take(state.root()).unwrap();
    assert_eq!(after.difference(&before), Vec::<String>::new());
}
