//! The snapshot that is taken before etcd goes to another minor version: a pod saves it on a volume of its own, makes a
//! data directory from it and runs an etcd on that. The pod is ready when what was saved was seen to start.
//!
//! The image is the one that members run: an older etcd does not start on what a newer one saved. The pod goes when the
//! change begins. Its claim stays, and has the last snapshot of each minor version, by its name.

use kaas_crds::name::component::{ETCD, ETCD_SNAPSHOT};
use serde_json::{Value, json};

use super::etcd::{
    CLIENT_PORT, DATA, DATA_DIRECTORY, DATA_MOUNT, METRICS_PORT, PEER_PORT, claim_template, data_in_pod,
    etcd_client_url, probes, retention,
};
use super::pod::{Container, Pod, Resources, key_file, key_mount, key_volume, step};
use super::{Inputs, selector};
use crate::etcd::Series;
use crate::key_material::AUTHORITY_SECRET;
use crate::object::{Kind, Object};

/// Where the volume with the snapshots is mounted.
const MOUNT: &str = "/var/lib/snapshot";
/// The data directory that is made from a snapshot goes with the pod.
const PROOF: &str = "proof";

/// What saves a snapshot of the member with this number. `None` without a volume to keep it on.
pub(crate) fn etcd_snapshot(inputs: &Inputs<'_>, image: &str, series: Series, member: i32) -> Option<Object> {
    let storage = inputs.spec.etcd.storage.persistent.as_ref()?;
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let file = format!("{MOUNT}/{series}.db");
    let command = |words: &[&str], flags: Vec<String>| -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).chain(flags).collect()
    };
    let save = command(
        &["etcdctl", "snapshot", "save", &file],
        vec![
            flag("endpoints", &etcd_client_url(inputs.tenant, member)),
            flag("cacert", &key_file("etcd-ca.crt")),
            flag("cert", &key_file("server.crt")),
            flag("key", &key_file("server.key")),
        ],
    );
    let restore = command(&["etcdutl", "snapshot", "restore", &file], vec![flag("data-dir", DATA_DIRECTORY)]);
    let local = |port: u16| format!("http://localhost:{port}");
    let run = command(
        &[ETCD],
        vec![
            flag("data-dir", DATA_DIRECTORY),
            flag("listen-client-urls", &format!("http://127.0.0.1:{CLIENT_PORT}")),
            flag("advertise-client-urls", &local(CLIENT_PORT)),
            flag("listen-peer-urls", &format!("http://127.0.0.1:{PEER_PORT}")),
            flag("listen-metrics-urls", &format!("http://0.0.0.0:{METRICS_PORT}")),
        ],
    );
    let kept = json!({"name": DATA, "mountPath": MOUNT});
    let proof = json!({"name": PROOF, "mountPath": DATA_MOUNT});
    let steps = [
        step("save", image, save, vec![kept.clone(), key_mount("pki")]),
        step("restore", image, restore, vec![kept, proof.clone()]),
    ];
    let pod = Pod {
        component: ETCD_SNAPSHOT,
        containers: vec![Container {
            name: ETCD,
            image: image.to_owned(),
            command: run,
            environment: Vec::new(),
            ports: vec![("metrics", METRICS_PORT)],
            probes: probes(),
            request: Resources { cpu: "10m", memory: "64Mi" },
            memory_limit: "4Gi",
            mounts: vec![proof],
            linger_seconds: 0,
        }],
        volumes: vec![
            key_volume("pki", &[(AUTHORITY_SECRET, &["etcd-ca.crt"]), (ETCD, &["server.crt", "server.key"])]),
            data_in_pod(PROOF),
        ],
        grace_seconds: 1,
        template_label: None,
    };
    let mut template = pod.template(inputs);
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("initContainers".into(), json!(steps));
    }
    let spec = json!({
        "replicas": 1,
        // Nobody looks for it.
        "serviceName": ETCD_SNAPSHOT,
        // A pod that cannot start is replaced when it is to be another one.
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": selector(ETCD_SNAPSHOT)},
        "volumeClaimTemplates": [claim_template(storage, ETCD_SNAPSHOT)],
        "persistentVolumeClaimRetentionPolicy": retention("Retain"),
        "template": template,
    });
    Some(inputs.object(Kind::StatefulSet, ETCD_SNAPSHOT, ETCD_SNAPSHOT, json!({"spec": spec})))
}
