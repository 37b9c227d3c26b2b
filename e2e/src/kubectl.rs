//! kubectl against one cluster: applying manifests, reading objects, and the report on a cluster in which
//! something did not happen in time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Error;
use crate::invocation::Invocation;

/// Our field manager for everything that `up` applies.
const FIELD_MANAGER: &str = "kaas-local";
/// Lines of each log in a report.
const LOG_LINES: &str = "--tail=15";
const POLL: Duration = Duration::from_millis(200);

/// kubectl with a kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// A kubectl program and the kubeconfig it uses.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    /// The kubeconfig it uses.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn invocation(&self, args: &[&str]) -> Invocation {
        let new = Invocation::new(&self.program).args(args);
        self.environment().into_iter().fold(new, |invocation, (name, value)| invocation.env(name, value))
    }

    /// For who wants to start it by himself: it does not end on its own.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).envs(self.environment());
        command
    }

    fn environment(&self) -> [(&'static str, PathBuf); 2] {
        // Its discovery cache would be written to the home directory.
        [("KUBECONFIG", self.kubeconfig.clone()), ("KUBECACHEDIR", self.kubeconfig.with_extension("cache"))]
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    /// [`Error::Command`] with kubectl's own words.
    pub fn run(&self, args: &[&str]) -> Result<String, Error> {
        self.invocation(args).run()
    }

    /// Applies a manifest on the server's side. Unchanged objects are not written.
    ///
    /// # Errors
    /// [`Error::Command`] with kubectl's own words.
    pub fn apply(&self, manifest: &str) -> Result<(), Error> {
        let manager = format!("--field-manager={FIELD_MANAGER}");
        self.invocation(&["apply", "--server-side", "--force-conflicts", &manager, "--filename", "-"])
            .input(manifest)
            .within(Duration::from_secs(60))
            .run()
            .map(drop)
    }

    /// Reads as JSON.
    ///
    /// # Errors
    /// [`Error::Command`] with kubectl's own words, [`Error::Invalid`] when it is not JSON.
    pub fn read(&self, args: &[&str]) -> Result<Value, Error> {
        let text = self.invocation(args).args(["--output", "json"]).run()?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Invalid(format!("kubectl {}: {error}", args.join(" "))))
    }

    /// Waits until `accept` is content with an object; its refusal is the reason that the error tells.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the report on the cluster.
    pub fn await_object(
        &self,
        what: &str,
        args: &[&str],
        deadline: Duration,
        accept: impl Fn(&Value) -> Result<(), String>,
    ) -> Result<Value, Error> {
        let check = || {
            let object = self.read(args).map_err(|error| error.to_string())?;
            accept(&object).map(|()| object)
        };
        crate::wait::until(what, deadline, POLL, check, || self.report())
    }

    /// Waits until a Deployment has all its replicas available, of the newest generation.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the report on the cluster.
    pub fn await_deployment(&self, namespace: &str, name: &str, deadline: Duration) -> Result<(), Error> {
        let args = ["--namespace", namespace, "get", "deployment", name];
        let what = format!("deployment {namespace}/{name} to be available");
        self.await_object(&what, &args, deadline, deployment_is_available).map(drop)
    }

    /// Pods, recent events, and the logs of containers that are not ready: for a person to read.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = String::new();
        let mut add = |title: &str, args: &[&str]| {
            let text = self.run(args).unwrap_or_else(|error| error.to_string());
            report.push_str(&format!("--- {title}\n{}\n", text.trim_end()));
        };
        add("nodes", &["get", "nodes", "--output", "wide"]);
        add("pods", &["get", "pods", "--all-namespaces", "--output", "wide"]);
        add(
            "events that are not normal",
            &[
                "get",
                "events",
                "--all-namespaces",
                "--field-selector=type!=Normal",
                "--sort-by=.lastTimestamp",
            ],
        );
        // Only where the operator is installed.
        if self.run(&["get", "crd", "tenantclusters.kaas.dev"]).is_ok() {
            add("tenant clusters", &["describe", "tenantclusters", "--all-namespaces"]);
            add("pools and workers", &["get", "workerpools,workers", "--all-namespaces", "--output", "wide"]);
            add("operator", &["--namespace", "kaas-system", "logs", "deployment/kaas-operator", "--tail=40"]);
        }
        for (namespace, pod) in self.pods_not_ready() {
            add(
                &format!("log of {namespace}/{pod}"),
                &["--namespace", &namespace, "logs", &pod, "--all-containers", "--prefix", LOG_LINES],
            );
        }
        report
    }

    fn pods_not_ready(&self) -> Vec<(String, String)> {
        let pods = self.read(&["get", "pods", "--all-namespaces"]).unwrap_or_default();
        let text = |pod: &Value, field: &str| {
            at(pod, &format!("/metadata/{field}")).as_str().unwrap_or_default().to_owned()
        };
        let ready = |pod: &Value| condition(pod, "Ready").is_some_and(|status| status == "True");
        let all = at(&pods, "/items").as_array().cloned().unwrap_or_default();
        all.iter().filter(|pod| !ready(pod)).map(|pod| (text(pod, "namespace"), text(pod, "name"))).collect()
    }
}

/// A value inside of an object, by JSON pointer; null where there is none.
pub(crate) fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    object.pointer(pointer).unwrap_or(&NULL)
}

/// Status of a condition: True, False or Unknown.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    of_condition(object, kind, "/status")
}

/// Reason of a condition.
#[must_use]
pub fn reason<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    of_condition(object, kind, "/reason")
}

fn of_condition<'a>(object: &'a Value, kind: &str, field: &str) -> Option<&'a str> {
    let conditions = at(object, "/status/conditions").as_array()?;
    at(conditions.iter().find(|condition| at(condition, "/type") == kind)?, field).as_str()
}

fn deployment_is_available(object: &Value) -> Result<(), String> {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (status, wanted) = (at(object, "/status"), at(object, "/spec/replicas").as_i64().unwrap_or(1));
    if number(at(status, "/observedGeneration")) < number(at(object, "/metadata/generation")) {
        return Err("its controller has not seen the newest generation".to_owned());
    }
    let (updated, available) =
        (number(at(status, "/updatedReplicas")), number(at(status, "/availableReplicas")));
    let all = number(at(status, "/replicas"));
    if updated == wanted && available == wanted && all == wanted {
        return Ok(());
    }
    Err(format!("{wanted} replicas wanted: {updated} updated, {available} available, {all} in all"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_old_pod_beside_the_new_one_is_not_available() {
        let deployment = |all: i64, seen: i64| {
            json!({
                "metadata": {"generation": 2},
                "spec": {"replicas": 1},
                "status": {"observedGeneration": seen, "replicas": all, "updatedReplicas": 1, "availableReplicas": 1},
            })
        };
        assert_eq!(deployment_is_available(&deployment(1, 2)), Ok(()));
        assert!(deployment_is_available(&deployment(2, 2)).is_err());
        assert!(deployment_is_available(&deployment(1, 1)).is_err());
    }
}
