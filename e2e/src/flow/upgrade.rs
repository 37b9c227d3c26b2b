//! A tenant with workers goes to the next minor version while clients go on, from outside and from inside: no request
//! fails that may not, and what runs afterwards is asked for, not believed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::traffic::Traffic;
use super::{NAMESPACE, POLL, Stage, claim, small};
use crate::Error;
use crate::kubectl::{Kubectl, at};
use crate::release::{NEWEST, Release, oldest};
use crate::terminal::say;
use crate::wait;

use super::workers::{self, text};

pub(super) mod matrix;

pub(super) const NAME: &str = "a minor upgrade with workers, under load";
const TENANT: &str = "rising";
const POOL: &str = "rising-general";
const WORKERS: usize = 2;
/// From the change of the spec to the last worker.
const LONGEST: Duration = Duration::from_secs(240);
/// New binaries have to be well for so long before they serve their own version.
const SOAK: &str = "10s";
/// Over both loads.
const REQUESTS: u64 = 10_000;
/// How often the endpoint is asked, each time on a new connection: one of several servers might be another.
const ASKED: usize = 10;

/// Two API servers, one etcd member.
pub(super) fn goes_unnoticed(stage: &Stage) -> Result<(), Error> {
    upgraded(stage, 2, 1)
}

fn upgraded(stage: &Stage, servers: usize, members: usize) -> Result<(), Error> {
    let kubectl = prepare(stage, servers, members)?;
    let result = under_traffic(stage, &kubectl);
    remove(stage)?;
    result
}

/// A tenant of the older version with its workers, and something in it.
fn prepare(stage: &Stage, servers: usize, members: usize) -> Result<Kubectl, Error> {
    let from = oldest()?;
    stage.ground()?.stock()?;
    let mut spec = small(from.kubernetes);
    for (replicas, wanted) in [("/controlPlane/replicas", servers), ("/etcd/replicas", members)] {
        if let Some(replicas) = spec.pointer_mut(replicas) {
            *replicas = json!(wanted);
        }
    }
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("upgrade".to_owned(), json!({"soak": SOAK}));
    }
    stage.apply_tenant(TENANT, spec)?;
    workers::apply_pool(
        stage,
        POOL,
        json!({
            "clusterName": TENANT, "replicas": WORKERS, "instanceTypes": [workers::TYPE], "infrastructure": {"pod": {}},
        }),
    )?;
    stage.await_settled(TENANT)?;
    workers::await_workers(stage, POOL, WORKERS)?;
    let kubectl = stage.tenant_kubectl(TENANT)?;
    runs(stage, &kubectl, from)?;
    kubectl.run(&["create", "configmap", "before", "--from-literal=version=old"])?;
    Ok(kubectl)
}

fn remove(stage: &Stage) -> Result<(), Error> {
    stage.kubectl.run(&["--namespace", NAMESPACE, "delete", "workerpools.kaas.dev", POOL, "--wait=false"])?;
    super::chaos::remove(stage, TENANT)
}

fn under_traffic(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let traffic = Traffic::start(stage, TENANT, 0)?;
    let started = Instant::now();
    let upgraded =
        stage.change(TENANT, &json!({"version": NEWEST.kubernetes})).and_then(|()| arrive(stage, kubectl));
    let seconds = started.elapsed().as_secs_f32();
    // What it holds on is of interest after a failure too.
    let reports = traffic.finish();
    upgraded?;
    say(format!("  upgraded in {seconds:.1} s"));
    let reports = reports?;
    super::traffic::judge(&reports)?;
    let requests: u64 = reports.iter().map(super::traffic::Report::requests).sum();
    claim(requests >= REQUESTS, || format!("{requests} requests were made, at least {REQUESTS} are wanted"))?;
    runs(stage, kubectl, &NEWEST)?;
    let kept = kubectl.run(&["get", "configmap", "before", "--output", "jsonpath={.data.version}"])?;
    claim(kept == "old", || format!("what was written before the upgrade reads `{kept}` after it"))?;
    recorded(stage)
}

/// Until the last worker has the new version, and nothing is left to do.
fn arrive(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let there = || {
        let tenant = stage.tenant(TENANT).map_err(|error| error.to_string())?;
        super::settled(&tenant)?;
        let version = text(&tenant, "/status/version");
        if version != NEWEST.kubernetes {
            return Err(format!("status.version is {version}: {}", text(&tenant, "/status/summary")));
        }
        kubelets(kubectl, &NEWEST)
    };
    wait::until("the upgrade to be over", LONGEST, POLL, there, || stage.kubectl.report())?;
    workers::await_workers(stage, POOL, WORKERS).map(drop)
}

/// Every node's kubelet says that it is of this release, and there are as many as there should be.
fn kubelets(kubectl: &Kubectl, release: &Release) -> Result<(), String> {
    let nodes = workers::nodes(kubectl).map_err(|error| error.to_string())?;
    let versions: Vec<_> = nodes.iter().map(|node| text(node, "/status/nodeInfo/kubeletVersion")).collect();
    match versions.len() == WORKERS && versions.iter().all(|version| version == release.kubernetes) {
        true => Ok(()),
        false => Err(format!("kubelets: {}", versions.join(", "))),
    }
}

/// All that runs is of this release, by its own word: API servers, controllers, kubelets and kube-proxies.
fn runs(stage: &Stage, kubectl: &Kubectl, release: &Release) -> Result<(), Error> {
    let version = release.kubernetes;
    for _ in 0..ASKED {
        let told = kubectl.run(&["get", "--raw", "/version"])?;
        let told: Value = serde_json::from_str(&told)
            .map_err(|error| Error::Invalid(format!("/version says `{told}`: {error}")))?;
        claim(at(&told, "/gitVersion") == version, || format!("the API is {}", at(&told, "/gitVersion")))?;
        // Neither is a newer binary that emulates this version.
        let emulated = at(&told, "/emulationMinor");
        claim(emulated == at(&told, "/minor"), || format!("the API emulates: {told}"))?;
    }
    kubelets(kubectl, release).map_err(Error::Invalid)?;
    let home = stage.home(TENANT)?;
    let own = ["--namespace", &home, "get", "pods"];
    all_are(&stage.kubectl, &own, &["kube-apiserver", "kube-controller-manager", "kube-scheduler"], version)?;
    all_are(kubectl, &["--namespace", "kube-system", "get", "pods"], &["kube-proxy"], version)?;
    let tenant = stage.tenant(TENANT)?;
    claim(at(&tenant, "/status/version") == version, || {
        format!("status.version is {}, {version} runs", at(&tenant, "/status/version"))
    })
}

/// Each of these containers is there, and has an image of this version wherever it is.
fn all_are(kubectl: &Kubectl, pods: &[&str], containers: &[&str], version: &str) -> Result<(), Error> {
    let pods = kubectl.read(pods)?;
    let pods = at(&pods, "/items").as_array().cloned().unwrap_or_default();
    for name in containers {
        let all =
            pods.iter().flat_map(|pod| at(pod, "/spec/containers").as_array().cloned().unwrap_or_default());
        let images: Vec<String> = all
            .filter(|container| at(container, "/name") == *name)
            .map(|container| text(&container, "/image"))
            .collect();
        let right = |image: &String| image.ends_with(&format!(":{version}"));
        claim(!images.is_empty() && images.iter().all(right), || format!("{name}: {}", images.join(", ")))?;
    }
    Ok(())
}

/// The tenant's own record tells it too.
fn recorded(stage: &Stage) -> Result<(), Error> {
    let tenant = stage.tenant(TENANT)?;
    let last = at(&tenant, "/status/history/0");
    claim(at(last, "/version") == NEWEST.kubernetes, || {
        format!("status.history of {NAMESPACE}/{TENANT} begins with {last}")
    })
}
