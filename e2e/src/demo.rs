//! The demo of `up`: a tenant with two workers, and in it a Deployment that is reached through its Service by name.
//! What is there already is left as it is, so that a second `up` only looks; asked for another version than the tenant
//! has, it says who may change it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Error;
use crate::cluster::Cluster;
use crate::component::KUBERNETES;
use crate::kubectl::{Kubectl, at};
use crate::layout::{Repository, State};
use crate::release::{NEWEST, Release};
use crate::wait;

const NAMESPACE: &str = "demo";
/// As `examples/demo.yaml` names it.
pub(crate) const TENANT: &str = "blue";
const WORKERS: i64 = 2;
/// As `examples/hello.yaml` names it.
const SERVICE: &str = "hello";
const READY_DEADLINE: Duration = Duration::from_secs(300);
/// The first addons and the workload are pulled on the way.
const WORKLOAD_DEADLINE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(200);

impl Cluster {
    /// Makes the demo tenant with its workers, and waits until it and they are Ready; writes its kubeconfig into the
    /// state directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it runs another version than the one asked for, [`Error::Deadline`] with the report on
    /// the cluster.
    pub fn demonstrate(&self, repository: &Repository, asked: Option<&Release>) -> Result<(), Error> {
        let kubectl = self.kubectl()?;
        let running = version_of_demo(&kubectl)?;
        if let (Some(running), Some(asked)) = (&running, asked) {
            stays(running, asked, kubectl.kubeconfig())?;
        }
        let version = running.unwrap_or_else(|| asked.unwrap_or(&NEWEST).kubernetes.to_owned());
        kubectl.apply(&example(repository, "demo.yaml")?.replace(KUBERNETES, &version))?;
        self.await_tenant(NAMESPACE, TENANT, READY_DEADLINE)?;
        self.fetch_kubeconfig(NAMESPACE, TENANT)?;
        let args = ["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev", TENANT];
        let what = format!("the workers of TenantCluster {NAMESPACE}/{TENANT} to be Ready");
        kubectl
            .await_object(&what, &args, READY_DEADLINE, |object| workers_are_ready(object, WORKERS))
            .map(drop)
    }

    /// Runs the demo Deployment in the tenant, and waits until it answers by the name of its Service.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the report on the tenant.
    pub fn greet(&self, repository: &Repository) -> Result<(), Error> {
        let kubectl = self.tenant_kubectl()?;
        kubectl.apply(&example(repository, "hello.yaml")?)?;
        kubectl.await_deployment("default", SERVICE, WORKLOAD_DEADLINE)?;
        let what = format!("Service {SERVICE} of the tenant to answer by its name");
        let answers = || answer(&kubectl).map_err(|error| error.to_string());
        wait::until(&what, WORKLOAD_DEADLINE, POLL, answers, || kubectl.report()).map(drop)
    }

    /// kubectl as the demo tenant's administrator.
    pub(crate) fn tenant_kubectl(&self) -> Result<Kubectl, Error> {
        Ok(Kubectl::new(self.toolbox.program("kubectl")?, &self.state.tenant_kubeconfig(TENANT)))
    }
}

/// Refuses another version than that of a demo tenant that runs, before anything is built for it. A cluster that does
/// not answer has none.
///
/// # Errors
/// [`Error::Invalid`] with the way out.
pub(crate) fn accepts(state: &State, asked: &Release) -> Result<(), Error> {
    let kubectl = Kubectl::new(&state.bin().join("kubectl"), &state.kubeconfig());
    match version_of_demo(&kubectl) {
        Ok(Some(running)) => stays(&running, asked, kubectl.kubeconfig()),
        Ok(None) | Err(_) => Ok(()),
    }
}

fn version_of_demo(kubectl: &Kubectl) -> Result<Option<String>, Error> {
    let get = ["get", "tenantclusters.kaas.dev", TENANT, "--ignore-not-found", "--request-timeout=5s"];
    let version = ["--namespace", NAMESPACE, "--output", "jsonpath={.spec.version}"];
    let found = kubectl.run(&[get.as_slice(), version.as_slice()].concat())?;
    Ok(Some(found).filter(|version| !version.is_empty()))
}

fn stays(running: &str, asked: &Release, kubeconfig: &Path) -> Result<(), Error> {
    let asked = asked.kubernetes;
    if running == asked {
        return Ok(());
    }
    let mut newer =
        Release::all().map(|release| release.kubernetes).take_while(|version| *version != running);
    let way = match newer.any(|version| version == asked) {
        true => {
            format!(", or upgrade it:\n  kubectl --kubeconfig {} {}", kubeconfig.display(), change(asked))
        }
        false => String::new(),
    };
    Err(Error::Invalid(format!(
        "TenantCluster {NAMESPACE}/{TENANT} has {running}, not {asked}, and is left as it is: `make down` ends it{way}"
    )))
}

/// What to tell kubectl for another version of the demo tenant.
pub(crate) fn change(version: &str) -> String {
    let patch = serde_json::json!({"spec": {"version": version}});
    format!("-n {NAMESPACE} patch tenantcluster {TENANT} --type merge -p '{patch}'")
}

/// What a pod hears that asks the Service: the name of one of the pods behind it.
fn answer(kubectl: &Kubectl) -> Result<String, Error> {
    let url = format!("http://{SERVICE}.default.svc.cluster.local/hostname");
    let place = format!("deployment/{SERVICE}");
    let heard = kubectl.run(&["exec", &place, "--", "timeout", "5", "wget", "-q", "-O", "-", &url])?;
    match heard.starts_with(SERVICE) {
        true => Ok(heard),
        false => Err(Error::Invalid(format!("{url} answers `{heard}`"))),
    }
}

fn example(repository: &Repository, file: &str) -> Result<String, Error> {
    let path = repository.root().join("examples").join(file);
    std::fs::read_to_string(&path).map_err(Error::io("read", &path))
}

/// So many are wanted, and all of them are Ready.
pub(crate) fn workers_are_ready(object: &Value, count: i64) -> Result<(), String> {
    let workers = at(object, "/status/workers");
    match (at(workers, "/ready").as_i64(), at(workers, "/desired").as_i64()) {
        (Some(ready), Some(desired)) if ready == count && desired == count => Ok(()),
        _ => {
            let conditions = at(object, "/status/conditions").as_array().into_iter().flatten();
            let told: Vec<String> = conditions
                .filter(|condition| {
                    at(condition, "/type") == "WorkersReady" || at(condition, "/type") == "AddonsReady"
                })
                .map(|condition| format!("{}: {}", at(condition, "/type"), at(condition, "/message")))
                .collect();
            Err(format!("workers {}; {}", at(workers, "/summary"), told.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component;
    use serde_json::json;

    #[test]
    fn ready_of_fewer_is_not_ready() {
        let tenant = |ready: i64, desired: i64| {
            json!({"status": {
                "workers": {"ready": ready, "desired": desired, "summary": format!("{ready}/{desired}")},
                "conditions": [{"type": "WorkersReady", "message": "general-1: joining"}],
            }})
        };
        assert_eq!(workers_are_ready(&tenant(2, 2), 2), Ok(()));
        assert!(workers_are_ready(&tenant(0, 0), 2).is_err());
        let told = workers_are_ready(&tenant(1, 2), 2).unwrap_err();
        assert!(told.contains("1/2") && told.contains("general-1: joining"), "{told}");
    }

    #[test]
    fn a_tenant_that_runs_is_left_as_it_is() {
        let (newest, older) = (&NEWEST, Release::of("v1.36.3").unwrap());
        let kubeconfig = Path::new(".local/kubeconfig");
        assert!(stays("v1.36.3", older, kubeconfig).is_ok());
        let told = stays("v1.36.3", newest, kubeconfig).unwrap_err().to_string();
        assert!(told.contains("demo/blue has v1.36.3") && told.contains("make down"), "{told}");
        assert!(
            told.contains(r#"patch tenantcluster blue --type merge -p '{"spec":{"version":"v1.37.1"}}'"#),
            "{told}"
        );
        let told = stays("v1.37.1", older, kubeconfig).unwrap_err().to_string();
        assert!(told.contains("make down") && !told.contains("patch"), "{told}");
    }

    #[test]
    fn the_examples_fit() {
        let repository = Repository::find().unwrap();
        let demo = example(&repository, "demo.yaml").unwrap();
        assert!(
            demo.contains(&format!("replicas: {WORKERS}\n")) && demo.contains(&format!("name: {TENANT}\n"))
        );
        assert_eq!(demo.matches(&format!("version: {KUBERNETES}\n")).count(), 1);
        assert_eq!(demo.matches(KUBERNETES).count(), 1);
        let hello = example(&repository, "hello.yaml").unwrap();
        assert!(hello.contains(&format!("agnhost:{}\n", component::AGNHOST)), "{hello}");
    }
}
