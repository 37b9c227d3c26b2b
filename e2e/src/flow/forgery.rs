//! A user with every right in one namespace tries to reach what belongs to others: by asking, by Secrets and labels
//! made first, by a port that is somebody else's, and by a status that leads to somebody else. What it must not
//! get is refused; what it may write leads nowhere and harms nobody.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{GONE, NAMESPACE, POLL, SOON, Stage, claim, small};
use crate::Error;
use crate::kubectl::{at, condition};
use crate::wait;

/// Namespace of the forger; it has every right in it.
const TEAM: &str = "kaas-e2e-forger";
pub(super) const USER: &str = "--as=mallory";
const VICTIM: &str = "green";
const FORGED: &str = "forged";
const THIEF: &str = "thief";

pub(super) fn forged_facts_lead_nowhere(stage: &Stage) -> Result<(), Error> {
    let result = play(stage);
    let delete = ["delete", "namespace", TEAM, "--ignore-not-found", "--wait=false"];
    // The tenants first: their finalizers hold the namespace until the operator is done.
    let _ = stage.kubectl.run(&[
        "--namespace",
        TEAM,
        "delete",
        "tenantclusters.kaas.dev",
        "--all",
        "--wait=false",
    ]);
    let _ = stage.kubectl.run(&delete);
    result
}

fn play(stage: &Stage) -> Result<(), Error> {
    let victim = stage.await_settled(VICTIM)?;
    let uid = at(&victim, "/metadata/uid").as_str().unwrap_or_default().to_owned();
    let home = stage.home(VICTIM)?;
    let before = belongings(stage, &home)?;
    enter(stage)?;
    ask(stage, &home)?;
    prepare(stage, &uid)?;
    create_forged(stage, &victim, &uid)?;
    let taken = reason_of("Stalled", "True", "SecretNameTaken");
    await_mine(stage, FORGED, "to say that the Secret's name is taken", taken)?;
    let own = await_mine(stage, FORGED, "to have an endpoint of its own", |object| {
        match at(object, "/status/controlPlaneEndpoint/host").as_str() {
            Some(_) => Ok(()),
            None => Err(at(object, "/status/summary").to_string()),
        }
    })?;
    let endpoint = at(&own, "/status/controlPlaneEndpoint").clone();
    claim(endpoint != *at(&victim, "/status/controlPlaneEndpoint"), || {
        format!("the forged tenant has the victim's endpoint {endpoint}")
    })?;
    thief_gets_nothing(stage, &victim)?;
    forge_status(stage, &victim, &endpoint)?;
    let kept = secret_uid(stage)?;
    leave(stage)?;
    claim(secret_uid(stage)? == kept, || {
        "the Secret of the same name went with the TenantCluster".to_owned()
    })?;
    let bait = stage.kubectl.run(&["--namespace", TEAM, "get", "configmap", "bait", "--output", "name"])?;
    claim(!bait.trim().is_empty(), || "a ConfigMap with forged labels was taken away".to_owned())?;
    let after = belongings(stage, &home)?;
    claim(before == after, || format!("the victim's objects changed: {}", difference(&before, &after)))?;
    stage.tenant_kubectl(VICTIM)?.run(&["get", "namespaces"]).map(drop)
}

/// Every object that a forger could want changed, as name, UID and what was last written. Pods by UID alone: their
/// status moves.
fn belongings(stage: &Stage, home: &str) -> Result<Vec<String>, Error> {
    let versions = "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{\"\\n\"}{end}";
    let uids = "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.uid}{\"\\n\"}{end}";
    let read = |namespace: &str, kinds: &str, output: &str| {
        stage.kubectl.run(&["--namespace", namespace, "get", kinds, "--output", output])
    };
    let still = "secrets,configmaps,services,controllerrevisions,networkpolicies";
    let texts = [
        read(home, still, versions)?,
        read(home, "pods,persistentvolumeclaims,statefulsets,deployments", uids)?,
        read(NAMESPACE, "secrets", versions)?,
        read(NAMESPACE, "tenantclusters.kaas.dev", uids)?,
        stage.kubectl.run(&[
            "get",
            "namespace",
            home,
            "--output",
            "jsonpath={.metadata.uid} {.metadata.labels}",
        ])?,
    ];
    Ok(texts.iter().flat_map(|text| text.lines()).map(str::to_owned).collect())
}

fn difference(before: &[String], after: &[String]) -> String {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("-{line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+{line}"));
    gone.chain(new).collect::<Vec<_>>().join(", ")
}

/// The forger's namespace, with every right that Kubernetes' own `admin` gives, which the chart's roles are part of.
fn enter(stage: &Stage) -> Result<(), Error> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}});
    stage.kubectl.apply(&namespace.to_string())?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "forger", "namespace": TEAM},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}],
    });
    stage.kubectl.apply(&binding.to_string())?;
    let may = || match may(stage, TEAM, "create", "tenantclusters.kaas.dev") {
        Ok(true) => Ok(()),
        Ok(false) => Err("mallory may not create TenantClusters".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the roles to be aggregated", SOON, POLL, may, || stage.kubectl.report())
}

/// `resource/subresource`; to kubectl the part after the slash would be an object's name.
pub(super) fn may(stage: &Stage, namespace: &str, verb: &str, resource: &str) -> Result<bool, Error> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={subresource}");
    match stage.kubectl.run(&[USER, "--namespace", namespace, "auth", "can-i", verb, resource, &subresource])
    {
        Ok(_) => Ok(true),
        // The question was answered. Any other failure says nothing about rights.
        Err(Error::Command { output, .. })
            if output.lines().any(|line| line.split(' ').next() == Some("no")) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// What it may simply not do.
fn ask(stage: &Stage, home: &str) -> Result<(), Error> {
    for (namespace, verb, resource) in [
        (home, "get", "secrets"),
        (home, "list", "secrets"),
        (home, "watch", "secrets"),
        (home, "create", "pods"),
        (home, "create", "pods/exec"),
        (home, "patch", "statefulsets.apps"),
        (home, "delete", "persistentvolumeclaims"),
        (home, "create", "configmaps"),
        (home, "patch", "namespaces"),
        (NAMESPACE, "get", "secrets"),
        (NAMESPACE, "get", "tenantclusters.kaas.dev"),
        (NAMESPACE, "delete", "tenantclusters.kaas.dev"),
        ("kaas-system", "create", "serviceaccounts/token"),
        ("kaas-system", "update", "leases.coordination.k8s.io"),
        (TEAM, "patch", "tenantclusters.kaas.dev/status"),
        (TEAM, "update", "tenantclusters.kaas.dev/status"),
        (TEAM, "update", "tenantclusters.kaas.dev/finalizers"),
        (TEAM, "create", "kubernetesreleases.kaas.dev"),
        (TEAM, "create", "namespaces"),
    ] {
        claim(!may(stage, namespace, verb, resource)?, || {
            format!("mallory may {verb} {resource} in {namespace}")
        })?;
    }
    // Said by the authorizer, and done by nobody.
    let read = stage.kubectl.run(&[USER, "--namespace", home, "get", "secret", "authority"]);
    claim(read.is_err_and(|error| error.to_string().contains("orbidden")), || {
        "mallory read the victim's authority".to_owned()
    })
}

/// Made before the TenantCluster: the Secret of its name, which leads to the victim, and a bait with labels.
fn prepare(stage: &Stage, uid: &str) -> Result<(), Error> {
    let labels = forged_labels(uid);
    let kubeconfig = stage.tenant_kubeconfig(VICTIM)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": format!("{FORGED}-kubeconfig"), "namespace": TEAM, "labels": labels,
            "annotations": {"kaas.dev/applied-hash": "0"},
        },
        "data": {"value": BASE64_STANDARD.encode(kubeconfig), "mine": BASE64_STANDARD.encode("mine")},
    });
    let bait = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "bait", "namespace": TEAM, "labels": labels},
        "data": {"cluster-id": "1"},
    });
    as_forger(stage, &secret)?;
    as_forger(stage, &bait)
}

fn as_forger(stage: &Stage, object: &Value) -> Result<(), Error> {
    let path = stage.scratch.path().join("forged.json");
    std::fs::write(&path, object.to_string()).map_err(Error::io("write", &path))?;
    stage.kubectl.run(&[USER, "create", "--filename", &path.display().to_string()]).map(drop)
}

/// The victim's labels.
fn forged_labels(uid: &str) -> Value {
    json!({
        "app.kubernetes.io/managed-by": "kaas",
        "app.kubernetes.io/name": "etcd",
        "kaas.dev/tenant-uid": uid,
        "kaas.dev/tenant-namespace": NAMESPACE,
        "kaas.dev/tenant-name": VICTIM,
    })
}

fn create_forged(stage: &Stage, victim: &Value, uid: &str) -> Result<(), Error> {
    let metadata = |name: &str| {
        json!({
            "name": name, "namespace": TEAM, "uid": uid, "labels": forged_labels(uid),
            "annotations": {"kaas.dev/adopt-by": uid, "kaas.dev/control-plane-namespace": format!("kaas-{uid}")},
        })
    };
    let mut quiet = small(super::known_version());
    if let Some(place) = quiet.pointer_mut("/controlPlane/endpoint") {
        *place = json!({"type": "ClusterIP"});
    }
    let mut greedy = small(super::known_version());
    if let Some(place) = greedy.pointer_mut("/controlPlane/endpoint") {
        *place = json!({"type": "NodePort", "nodePort": {"port": at(victim, "/status/controlPlaneEndpoint/port")}});
    }
    for (name, spec) in [(FORGED, quiet), (THIEF, greedy)] {
        let object = json!({
            "apiVersion": "kaas.dev/v1alpha1", "kind": "TenantCluster",
            "metadata": metadata(name), "spec": spec, "status": forged_status(victim),
        });
        as_forger(stage, &object)?;
        let made = mine(stage, name)?;
        claim(at(&made, "/metadata/uid") != uid, || "a UID could be chosen".to_owned())?;
    }
    Ok(())
}

fn forged_status(victim: &Value) -> Value {
    json!({
        "observedGeneration": 1,
        "version": super::known_version(),
        "endpoint": at(victim, "/status/endpoint"),
        "controlPlaneEndpoint": at(victim, "/status/controlPlaneEndpoint"),
        "kubeconfigSecretRef": {"name": format!("{VICTIM}-kubeconfig")},
        "summary": "Running",
    })
}

fn mine(stage: &Stage, name: &str) -> Result<Value, Error> {
    stage.kubectl.read(&["--namespace", TEAM, "get", "tenantclusters.kaas.dev", name])
}

fn await_mine(
    stage: &Stage,
    name: &str,
    what: &str,
    accept: impl Fn(&Value) -> Result<(), String>,
) -> Result<Value, Error> {
    let args = ["--namespace", TEAM, "get", "tenantclusters.kaas.dev", name];
    stage.kubectl.await_object(&format!("TenantCluster {TEAM}/{name} {what}"), &args, SOON * 2, accept)
}

fn reason_of(
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
) -> impl Fn(&Value) -> Result<(), String> {
    move |object| {
        let conditions = at(object, "/status/conditions").as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| at(condition, "/type") == kind);
        match found.map(|found| (at(found, "/status") == status, at(found, "/reason") == reason)) {
            Some((true, true)) => Ok(()),
            _ => Err(format!("{kind}: {}", found.unwrap_or(&Value::Null))),
        }
    }
}

/// A port of the node belongs to one: the second is told, and gets no endpoint.
fn thief_gets_nothing(stage: &Stage, victim: &Value) -> Result<(), Error> {
    let told = |object: &Value| {
        let conditions = at(object, "/status/conditions").to_string();
        match conditions.contains("provided port is already allocated") {
            true => Ok(()),
            false => Err(conditions),
        }
    };
    let thief = await_mine(stage, THIEF, "to hear that its port is taken", told)?;
    claim(condition(&thief, "Ready") != Some("True"), || {
        "a tenant is Ready through another's port".to_owned()
    })?;
    claim(at(&thief, "/status/controlPlaneEndpoint") != at(victim, "/status/controlPlaneEndpoint"), || {
        format!("its status names the victim's endpoint {}", at(&thief, "/status/controlPlaneEndpoint"))
    })
}

/// Written by the platform's administrator, because the forger cannot: the operator puts the truth back.
fn forge_status(stage: &Stage, victim: &Value, endpoint: &Value) -> Result<(), Error> {
    let patch = json!({"status": forged_status(victim)}).to_string();
    let what = [
        "patch",
        "tenantclusters.kaas.dev",
        FORGED,
        "--subresource=status",
        "--type=merge",
        "--patch",
        &patch,
    ];
    stage.kubectl.run(&[&["--namespace", TEAM], what.as_slice()].concat())?;
    let truth = |object: &Value| {
        let reference = at(object, "/status/kubeconfigSecretRef/name");
        match at(object, "/status/controlPlaneEndpoint") == endpoint
            && reference != &format!("{VICTIM}-kubeconfig")
        {
            true => Ok(()),
            false => Err(format!("status: {}", at(object, "/status"))),
        }
    };
    await_mine(stage, FORGED, "to have its own status again", truth).map(drop)
}

fn secret_uid(stage: &Stage) -> Result<String, Error> {
    let name = format!("{FORGED}-kubeconfig");
    let path = "jsonpath={.metadata.uid} {.data.mine}";
    stage.kubectl.run(&["--namespace", TEAM, "get", "secret", &name, "--output", path])
}

/// The forger deletes its own tenants.
fn leave(stage: &Stage) -> Result<(), Error> {
    let what = ["delete", "tenantclusters.kaas.dev", FORGED, THIEF, "--wait=false"];
    stage.kubectl.run(&[&[USER, "--namespace", TEAM], what.as_slice()].concat())?;
    let gone = || {
        let args = ["--namespace", TEAM, "get", "tenantclusters.kaas.dev", "--output", "name"];
        match stage.kubectl.run(&args).map_err(|error| error.to_string())? {
            text if text.trim().is_empty() => Ok(()),
            text => Err(text),
        }
    };
    wait::until("the forged tenants to be gone", GONE, POLL, gone, || stage.kubectl.report())
}
