//! The life of a tenant: it comes and serves, what cannot be is refused or told, at rest nothing is written, and it goes
//! without a trace.

use std::time::Duration;

use serde_json::{Value, json};

use super::{GONE, NAMESPACE, POLL, SOON, Stage, claim, known_version, small};
use crate::Error;
use crate::audit::{self, Mark};
use crate::kubectl::{at, condition};
use crate::operator::tenant_is_ready;
use crate::wait;

pub(super) fn a_tenant_serves(stage: &Stage) -> Result<(), Error> {
    stage.apply_tenant("green", small(known_version()))?;
    let tenant = stage.await_tenant("green", "to be Ready", tenant_is_ready)?;
    claim(at(&tenant, "/status/version") == known_version(), || {
        format!("status.version is {}, expected {}", at(&tenant, "/status/version"), known_version())
    })?;
    let kubectl = stage.tenant_kubectl("green")?;
    // Ready means that requests succeed now: no second attempt is allowed.
    kubectl.run(&["create", "configmap", "written", "--from-literal=by=e2e"])?;
    let read = kubectl.run(&["get", "configmap", "written", "--output", "jsonpath={.data.by}"])?;
    claim(read == "e2e", || format!("read `{read}` from the tenant, wrote `e2e`"))?;
    let version = kubectl.read(&["version"])?;
    claim(at(&version, "/serverVersion/gitVersion") == known_version(), || {
        format!("the tenant's API says {}", at(&version, "/serverVersion"))
    })?;
    let account = || kubectl.run(&["get", "serviceaccount", "default"]).map_err(|error| error.to_string());
    wait::until("the tenant's default service account", SOON, POLL, account, || stage.kubectl.report())
        .map(drop)
}

pub(super) fn the_kubeconfig_is_bounded(stage: &Stage) -> Result<(), Error> {
    let kubectl = stage.tenant_kubectl("green")?;
    let review = kubectl.read(&["auth", "whoami"])?;
    let groups = at(&review, "/status/userInfo/groups").to_string();
    claim(!groups.contains("system:masters"), || format!("the admin kubeconfig is of the groups {groups}"))?;
    claim(kubectl.run(&["auth", "can-i", "*", "*"]).is_ok(), || {
        "the admin may not do everything in it".to_owned()
    })
}

pub(super) fn a_node_port_answers(stage: &Stage) -> Result<(), Error> {
    let tenant = stage.tenant("green")?;
    let endpoint = at(&tenant, "/status/controlPlaneEndpoint").clone();
    let (host, port) =
        (at(&endpoint, "/host").as_str().unwrap_or_default(), at(&endpoint, "/port").as_i64().unwrap_or(0));
    claim(host.starts_with("10.77.") && (30000..32768).contains(&port), || {
        format!("the endpoint is {endpoint}")
    })?;
    let kubectl = stage.tenant_kubectl("green")?;
    let server = kubectl.run(&["config", "view", "--output", "jsonpath={.clusters[0].cluster.server}"])?;
    claim(server == format!("https://{host}:{port}"), || {
        format!("the kubeconfig leads to {server}, status to {endpoint}")
    })
}

pub(super) fn bad_input_is_refused(stage: &Stage) -> Result<(), Error> {
    let mut spec = small(known_version());
    if let Some(members) = spec.pointer_mut("/etcd/replicas") {
        *members = json!(2);
    }
    match stage.apply_tenant("even", spec) {
        Ok(()) => Err(Error::Invalid("two etcd members were accepted".to_owned())),
        Err(error) => {
            let text = error.to_string();
            let told = ["spec.etcd.replicas", "2", "1, 3 or 5"].iter().all(|part| text.contains(part));
            claim(told, || format!("the refusal does not name field, value and way out: {text}"))
        }
    }
}

pub(super) fn an_unknown_version_is_named(stage: &Stage) -> Result<(), Error> {
    stage.apply_tenant("future", small("v1.99.0"))?;
    let lists = |object: &Value| {
        let conditions = at(object, "/status/conditions").to_string();
        match condition(object, "Ready") {
            Some("False") if conditions.contains(known_version()) => Ok(()),
            _ => Err(format!("conditions: {conditions}")),
        }
    };
    stage.await_tenant("future", "to say which versions there are", lists)?;
    stage
        .kubectl
        .run(&["--namespace", NAMESPACE, "delete", "tenantclusters.kaas.dev", "future", "--timeout=60s"])
        .map(drop)
}

/// What is said of every tenant.
fn statuses(stage: &Stage) -> Result<Vec<Value>, Error> {
    let found = stage.kubectl.read(&["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev"])?;
    let all = at(&found, "/items").as_array().cloned().unwrap_or_default();
    Ok(all.iter().map(|tenant| json!([at(tenant, "/metadata/name"), at(tenant, "/status")])).collect())
}

pub(super) fn rest_is_silent(stage: &Stage) -> Result<(), Error> {
    let log = stage.kubectl.kubeconfig().with_file_name("log").join("audit.log");
    let writes_within = |time: Duration| -> Result<Vec<audit::Event>, Error> {
        let mark = Mark::now(&log)?;
        std::thread::sleep(time);
        mark.operator_writes()
    };
    // What the flow before has set off may still be written; users of a release are counted every 5 s.
    let quiet = || match writes_within(Duration::from_secs(8)) {
        Ok(writes) if writes.is_empty() => Ok(()),
        Ok(writes) => Err(format!("{} writes within 8 s", writes.len())),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the operator to come to rest", SOON, POLL, quiet, String::new)?;
    let before = statuses(stage)?;
    let writes = writes_within(Duration::from_secs(15))?;
    let after = statuses(stage)?;
    let news: Vec<_> = after.iter().filter(|status| !before.contains(status)).collect();
    claim(writes.is_empty(), || {
        let tally = audit::tally(&writes);
        format!("writes within 15 s of rest: {tally:?}, that said: {}", json!([before, news]))
    })
}

pub(super) fn deletion_ends(stage: &Stage) -> Result<(), Error> {
    let tenant = stage.tenant("green")?;
    let uid = at(&tenant, "/metadata/uid").as_str().unwrap_or_default().to_owned();
    claim(!uid.is_empty(), || "the tenant has no UID".to_owned())?;
    let namespace = format!("kaas-{uid}");
    claim(stage.kubectl.run(&["get", "namespace", &namespace]).is_ok(), || {
        format!("namespace {namespace} is not there")
    })?;
    // With what a failed flow left: its failure is told once, not here again.
    let all = ["delete", "tenantclusters.kaas.dev", "--all", "--wait=false"];
    stage.kubectl.run(&[&["--namespace", NAMESPACE], all.as_slice()].concat())?;
    let gone = || {
        let left = stage
            .kubectl
            .run(&["get", "tenantclusters.kaas.dev,secrets", "--namespace", NAMESPACE, "--output", "name"])
            .map_err(|error| error.to_string())?;
        let volumes = stage.kubectl.run(&[
            "get",
            "persistentvolumes",
            "--output",
            "jsonpath={.items[*].spec.claimRef.namespace}",
        ]);
        let volumes = volumes.map_err(|error| error.to_string())?;
        let namespaces =
            stage.kubectl.run(&["get", "namespace", &namespace, "--ignore-not-found", "--output", "name"]);
        let namespaces = namespaces.map_err(|error| error.to_string())?;
        if left.trim().is_empty() && namespaces.trim().is_empty() && !volumes.contains(&namespace) {
            return Ok(());
        }
        Err(format!("left: {left} {namespaces} volumes of {volumes}"))
    };
    wait::until("the tenant to be gone without a trace", GONE, POLL, gone, || stage.kubectl.report())
}
