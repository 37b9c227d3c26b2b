//! etcd goes to its next minor version and back while clients go on: no request on a new connection fails but for what
//! etcd drops when its leadership moves, no change is lost, and every member says itself which version it is.

use serde_json::{Value, json};

use super::scale::{self, membership, nothing_failed_but_with_the_leader, under_load_of};
use super::{NAMESPACE, Stage, claim, small};
use crate::Error;
use crate::kubectl::at;
use crate::release::{NEWEST, oldest};

pub(super) const NAME: &str = "etcd 3.6 -> 3.7 and back, of one member and of three, under load";

/// Where the operator keeps what was saved before a change.
const SNAPSHOT: &str = "data-etcd-snapshot-0";

pub(super) fn there_and_back(stage: &Stage) -> Result<(), Error> {
    let old = oldest()?.etcd;
    [1, 3].into_iter().try_for_each(|members| walk(stage, members, &[old, NEWEST.etcd, old, NEWEST.etcd]))
}

fn walk(stage: &Stage, members: usize, versions: &[&str]) -> Result<(), Error> {
    let Some((first, others)) = versions.split_first() else { return Ok(()) };
    let name = format!("versions-{members}");
    let mut spec = small(NEWEST.kubernetes);
    if let Some(etcd) = spec.get_mut("etcd").and_then(Value::as_object_mut) {
        etcd.insert("version".to_owned(), json!(first));
        etcd.insert("replicas".to_owned(), json!(members));
    }
    stage.apply_tenant(&name, spec)?;
    stage.await_settled(&name)?;
    runs(stage, &name, members, first)?;
    // What clients saw is judged at the end: the later steps are of interest when an earlier one was noticed too.
    let mut seen = Ok(());
    for (step, version) in others.iter().enumerate() {
        let kubectl = stage.tenant_kubectl(&name)?;
        let before = membership(stage, &name)?;
        let mark = format!("before-step-{step}");
        kubectl.run(&["create", "configmap", &mark, "--from-literal=etcd=known"])?;
        let outcome = under_load_of(stage, &name, &format!("{members} members to {version}"), || {
            change(stage, &name, members, version)
        })?;
        let after = membership(stage, &name)?;
        claim(after.cluster == before.cluster, || {
            format!("cluster {} became cluster {}: the data was made anew", before.cluster, after.cluster)
        })?;
        let read = kubectl.run(&["get", "configmap", &mark, "--output", "jsonpath={.data.etcd}"])?;
        claim(read == "known", || format!("what was written before the step reads `{read}` after it"))?;
        seen = seen.and(nothing_failed_but_with_the_leader(&outcome));
    }
    super::chaos::remove(stage, &name)?;
    seen
}

/// Asks for this version, until every member is of it. What was before is kept.
pub(super) fn change(stage: &Stage, name: &str, members: usize, version: &str) -> Result<(), Error> {
    stage.change(name, &json!({"etcd": {"version": version}}))?;
    stage.await_settled(name)?;
    scale::await_pods(stage, name, "etcd", members)?;
    runs(stage, name, members, version)?;
    kept(stage, name)
}

/// A snapshot of before is on a volume of its own, history says where, and what took it is gone.
fn kept(stage: &Stage, name: &str) -> Result<(), Error> {
    let tenant = stage.tenant(name)?;
    let last = at(&tenant, "/status/history/0");
    let result = format!("Succeeded; the data of before is in PersistentVolumeClaim {SNAPSHOT}");
    claim(at(last, "/type") == "UpgradeEtcd" && at(last, "/result") == result.as_str(), || {
        format!("status.history of {NAMESPACE}/{name} begins with {last}")
    })?;
    let home = stage.home(name)?;
    let get = |what: &[&str]| stage.kubectl.run(&[&["--namespace", &home, "get"], what].concat());
    let phase = get(&["persistentvolumeclaim", SNAPSHOT, "--output", "jsonpath={.status.phase}"])?;
    claim(phase == "Bound", || format!("PersistentVolumeClaim {SNAPSHOT} of {name} is {phase}"))?;
    let selector = "app.kubernetes.io/name=etcd-snapshot";
    let left = get(&["statefulsets,pods,networkpolicies", "--selector", selector, "--output", "name"])?;
    claim(left.is_empty(), || format!("after the change of {name} there is still {left}"))
}

/// So many members vote, and each is of this version, by its own word.
fn runs(stage: &Stage, name: &str, members: usize, version: &str) -> Result<(), Error> {
    let voters = membership(stage, name)?.voters;
    claim(voters.len() == members, || format!("{members} members are wanted, {voters:?} vote"))?;
    for member in &voters {
        let status = scale::etcdctl_in(stage, name, member, &["endpoint", "status"])?;
        let told = at(&status, "/0/Status/version");
        claim(told == version, || format!("{member} of {name} is of {told}, not of {version}"))?;
    }
    Ok(())
}
