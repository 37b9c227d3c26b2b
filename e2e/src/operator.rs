//! The product on the local cluster: its two charts installed with Helm, and tenants awaited. A release whose
//! chart and values are those that were installed is left alone, so that a second `up` changes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Error;
use crate::cluster::Cluster;
use crate::credentials::write_private;
use crate::digest::Hasher;
use crate::image::catalogue::REGISTRY;
use crate::invocation::Invocation;
use crate::kubectl::{Kubectl, at, condition};
use crate::layout::Repository;
use crate::network;
use crate::registry;

const NAMESPACE: &str = "kaas-system";
const DEPLOYMENT: &str = "kaas-operator";
const HELM_DEADLINE: Duration = Duration::from_secs(180);

/// A chart with the values that lead it to this cluster.
struct Release {
    name: &'static str,
    chart: PathBuf,
    values: Vec<(&'static str, Value)>,
}

impl Cluster {
    /// Installs or upgrades the operator, from the charts of the repository, and waits until it is available.
    ///
    /// # Errors
    /// Helm's or kubectl's words, with the report on the cluster.
    pub fn install_operator(&mut self, repository: &Repository) -> Result<(), Error> {
        self.install_operator_with(repository, &[])
    }

    /// The same with further values of the operator's chart.
    ///
    /// # Errors
    /// As [`Cluster::install_operator`].
    pub(crate) fn install_operator_with(
        &mut self,
        repository: &Repository,
        values: &[(&'static str, Value)],
    ) -> Result<(), Error> {
        let tag = self.operator_tag.clone().ok_or_else(|| {
            Error::Invalid(
                "the operator was not built for this cluster: start it with the operator".to_owned(),
            )
        })?;
        let charts = repository.root().join("charts");
        let releases = [
            Release { name: "kaas-crds", chart: charts.join("kaas-crds"), values: vec![] },
            Release {
                name: "kaas",
                chart: charts.join("kaas"),
                values: vec![
                    ("registry", json!(REGISTRY)),
                    ("image.tag", json!(tag)),
                    ("endpoint.nodePort.host", json!(self.address())),
                    ("catalogue.versions", json!(self.record.offered)),
                    ("workers.pod.enabled", json!(true)),
                    ("workers.pod.mirror", json!(registry::MIRROR)),
                    ("managementNetworks.pods", json!([network::POD_CIDR])),
                    ("managementNetworks.services", json!([network::SERVICE_CIDR])),
                    ("managementNetworks.nodes", json!([self.network.cidr()])),
                ]
                .into_iter()
                .chain(values.iter().cloned())
                .collect(),
            },
        ];
        let kubectl = self.kubectl()?;
        for release in &releases {
            let digest = release.digest()?;
            if self.record.releases.get(release.name) == Some(&digest) && self.is_deployed(&kubectl, release)
            {
                continue;
            }
            self.install(release, &kubectl)?;
            self.record.releases.insert(release.name.to_owned(), digest);
            self.record.write(&self.state)?;
        }
        kubectl.await_deployment(NAMESPACE, DEPLOYMENT, HELM_DEADLINE)
    }

    /// Somebody may have uninstalled it by hand.
    fn is_deployed(&self, kubectl: &Kubectl, release: &Release) -> bool {
        let selector = format!("owner=helm,name={},status=deployed", release.name);
        kubectl
            .run(&["--namespace", NAMESPACE, "get", "secrets", "--selector", &selector, "--output", "name"])
            .is_ok_and(|names| !names.trim().is_empty())
    }

    fn install(&self, release: &Release, kubectl: &Kubectl) -> Result<(), Error> {
        // A Helm that was killed leaves its release pending, and every later one refuses to touch it.
        let pending = format!(
            "owner=helm,name={},status in (pending-install,pending-upgrade,pending-rollback)",
            release.name
        );
        kubectl.run(&[
            "--namespace",
            NAMESPACE,
            "delete",
            "secrets",
            "--ignore-not-found",
            "--selector",
            &pending,
        ])?;
        let home = |name: &str| self.state.config().join("helm").join(name);
        let timeout = format!("{}s", HELM_DEADLINE.as_secs());
        let mut helm = Invocation::new(self.toolbox.program("helm")?)
            .env("KUBECONFIG", self.state.kubeconfig())
            .env("HELM_CACHE_HOME", home("cache"))
            .env("HELM_CONFIG_HOME", home("config"))
            .env("HELM_DATA_HOME", home("data"))
            .within(HELM_DEADLINE + Duration::from_secs(30))
            .args(["upgrade", "--install", release.name])
            .arg(&release.chart)
            .args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", &timeout]);
        for (name, value) in &release.values {
            helm = helm.arg("--set-json").arg(format!("{name}={value}"));
        }
        helm.run()
            .map(drop)
            .map_err(|error| Error::Reported { error: Box::new(error), report: kubectl.report() })
    }

    /// Waits until a tenant cluster is Ready as its newest spec wants it.
    ///
    /// # Errors
    /// [`Error::Deadline`] with the report on the cluster.
    pub fn await_tenant(&self, namespace: &str, name: &str, deadline: Duration) -> Result<Value, Error> {
        let what = format!("TenantCluster {namespace}/{name} to be Ready");
        let args = ["--namespace", namespace, "get", "tenantclusters.kaas.dev", name];
        self.kubectl()?.await_object(&what, &args, deadline, tenant_is_ready)
    }

    /// Writes a tenant's kubeconfig into the state directory.
    ///
    /// # Errors
    /// [`Error::Command`] when its Secret is not there.
    pub fn fetch_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let secret = format!("{name}-kubeconfig");
        let template = "go-template={{.data.value | base64decode}}";
        let text = self.kubectl()?.run(&[
            "--namespace",
            namespace,
            "get",
            "secret",
            &secret,
            "--output",
            template,
        ])?;
        let path = self.state.tenant_kubeconfig(name);
        write_private(&path, &text)?;
        Ok(path)
    }
}

impl Release {
    /// Over every file of the chart and every value.
    fn digest(&self) -> Result<String, Error> {
        let mut hasher = Hasher::new();
        for path in files(&self.chart)? {
            hasher.field(path.strip_prefix(&self.chart).unwrap_or(&path).as_os_str().as_encoded_bytes());
            hasher.field(&std::fs::read(&path).map_err(Error::io("read", &path))?);
        }
        for (name, value) in &self.values {
            hasher.field(name.as_bytes());
            hasher.field(value.to_string().as_bytes());
        }
        Ok(hasher.finish())
    }
}

/// Every file below a directory, in one order.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let path = entry.map_err(Error::io("read", directory))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Ready, of the newest spec; otherwise why not.
pub(crate) fn tenant_is_ready(object: &Value) -> Result<(), String> {
    let status = at(object, "/status");
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    if number(at(status, "/observedGeneration")) < number(at(object, "/metadata/generation")) {
        return Err("the operator has not seen its newest spec".to_owned());
    }
    match condition(object, "Ready") {
        Some("True") => Ok(()),
        other => Err(format!(
            "Ready is {}: {}",
            other.unwrap_or("not set"),
            at(status, "/summary").as_str().unwrap_or("no summary")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_ready_is_not_ready() {
        let tenant = |seen: i64, ready: &str| {
            json!({
                "metadata": {"generation": 2},
                "status": {
                    "observedGeneration": seen, "summary": "Starting",
                    "conditions": [{"type": "Ready", "status": ready}],
                },
            })
        };
        assert_eq!(tenant_is_ready(&tenant(2, "True")), Ok(()));
        assert!(tenant_is_ready(&tenant(1, "True")).is_err());
        assert_eq!(tenant_is_ready(&tenant(2, "False")), Err("Ready is False: Starting".to_owned()));
    }

    #[test]
    fn a_changed_chart_or_value_is_another_release() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("Chart.yaml"), "name: x").unwrap();
        let digest = |value: &str| {
            let values = vec![("registry", json!(value))];
            Release { name: "x", chart: directory.path().to_owned(), values }.digest().unwrap()
        };
        let first = digest("a");
        assert_eq!(first, digest("a"));
        assert_ne!(first, digest("b"));
        std::fs::write(directory.path().join("values.yaml"), "").unwrap();
        assert_ne!(first, digest("a"));
    }
}
