//! Twenty-five tenants at once on a machine that is too small to be quick about it: all of them come, the one that
//! served before goes on, and all of them go.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{NAMESPACE, POLL, Stage, claim, known_version, small};
use crate::Error;
use crate::kubectl::at;
use crate::operator::tenant_is_ready;
use crate::terminal::say;
use crate::wait;

const TENANTS: usize = 25;
/// What one costs at most, in GiB of memory.
const SIZE: f64 = 0.65;
const ALL_READY: Duration = Duration::from_secs(600);
const ALL_GONE: Duration = Duration::from_secs(240);
const PREFIX: &str = "crowd-";

pub(super) fn a_crowd_comes_and_goes(stage: &Stage) -> Result<(), Error> {
    // On a machine without the memory, the kernel's choice of victims would be what is tested.
    let (free, wanted) = (available_memory()?, SIZE * f64::from(u32::try_from(TENANTS).unwrap_or(u32::MAX)));
    if free < wanted {
        return stage
            .skip(format!("{TENANTS} tenants want {wanted:.0} GiB of memory, {free:.0} GiB are free"));
    }
    let result = play(stage);
    if result.is_err() {
        let selector = "e2e=crowd";
        let _ = stage.kubectl.run(&[
            "--namespace",
            NAMESPACE,
            "delete",
            "tenantclusters.kaas.dev",
            "--selector",
            selector,
            "--wait=false",
        ]);
    }
    result
}

fn play(stage: &Stage) -> Result<(), Error> {
    let names: Vec<String> = (0..TENANTS).map(|number| format!("{PREFIX}{number}")).collect();
    let started = Instant::now();
    stage.apply_namespace()?;
    let items = names.iter().map(|name| {
        json!({
            "apiVersion": "kaas.dev/v1alpha1", "kind": "TenantCluster",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"e2e": "crowd"}},
            "spec": small(known_version()),
        })
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()});
    stage.kubectl.apply(&list.to_string())?;
    let all_ready = || {
        let tenants = crowd(stage)?;
        let waiting: Vec<String> = tenants
            .iter()
            .filter_map(|tenant| tenant_is_ready(tenant).err().map(|why| format!("{}: {why}", name(tenant))))
            .collect();
        match (tenants.len() == TENANTS, waiting.first()) {
            (true, None) => Ok(()),
            (_, why) => Err(format!("{} of {} are Ready; {why:?}", tenants.len() - waiting.len(), TENANTS)),
        }
    };
    wait::until("all tenants to be Ready", ALL_READY, POLL * 5, all_ready, || stage.kubectl.report())?;
    say(format!("  {TENANTS} tenants at once: all Ready after {:.1} s", started.elapsed().as_secs_f32()));
    // Each has an endpoint of its own that answers as itself.
    let tenants = crowd(stage).map_err(Error::Invalid)?;
    let endpoints: BTreeSet<String> =
        tenants.iter().map(|tenant| at(tenant, "/status/controlPlaneEndpoint").to_string()).collect();
    claim(endpoints.len() == TENANTS, || format!("{} endpoints for {TENANTS} tenants", endpoints.len()))?;
    for name in &names {
        stage.tenant_kubectl(name)?.run(&[
            "create",
            "configmap",
            "mine",
            &format!("--from-literal=by={name}"),
        ])?;
    }
    for name in &names {
        let path = "jsonpath={.data.by}";
        let read = stage.tenant_kubectl(name)?.run(&["get", "configmap", "mine", "--output", path])?;
        claim(read == *name, || format!("{name} has the data of {read}"))?;
    }
    let started = Instant::now();
    let what = ["delete", "tenantclusters.kaas.dev", "--selector", "e2e=crowd", "--wait=false"];
    stage.kubectl.run(&[&["--namespace", NAMESPACE], what.as_slice()].concat())?;
    let all_gone = || match crowd(stage)?.len() {
        0 => Ok(()),
        left => Err(format!("{left} are left")),
    };
    wait::until("all tenants to be gone", ALL_GONE, POLL * 5, all_gone, || stage.kubectl.report())?;
    say(format!(
        "  {TENANTS} tenants deleted at once: all gone after {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn crowd(stage: &Stage) -> Result<Vec<Value>, String> {
    let args = ["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev", "--selector", "e2e=crowd"];
    let list = stage.kubectl.read(&args).map_err(|error| error.to_string())?;
    Ok(at(&list, "/items").as_array().cloned().unwrap_or_default())
}

fn name(tenant: &Value) -> &str {
    at(tenant, "/metadata/name").as_str().unwrap_or_default()
}

/// What can be used without taking it from anybody, in GiB.
fn available_memory() -> Result<f64, Error> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes =
        line.and_then(|line| line.trim().split(' ').next()).and_then(|number| number.parse::<u32>().ok());
    let kibibytes = kibibytes.ok_or_else(|| Error::Invalid(format!("{path} has no MemAvailable")))?;
    Ok(f64::from(kibibytes) / 1_048_576.0)
}
