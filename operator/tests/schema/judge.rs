//! Asks the server, and collects every answer that is not as written, so that one run shows them all.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Config};
use serde_json::Value;

const CRDS: [&str; 5] = [
    include_str!("../../../charts/kaas-crds/templates/tenantclusters.yaml"),
    include_str!("../../../charts/kaas-crds/templates/kubernetesreleases.yaml"),
    include_str!("../../../charts/kaas-crds/templates/instancetypes.yaml"),
    include_str!("../../../charts/kaas-crds/templates/workerpools.yaml"),
    include_str!("../../../charts/kaas-crds/templates/workers.yaml"),
];
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Judge {
    pub(crate) client: Client,
    pub(crate) failures: Vec<String>,
}

impl Judge {
    pub(crate) async fn install(kubeconfig: &str) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        for manifest in CRDS {
            let crd: CustomResourceDefinition = serde_yaml::from_str(manifest).unwrap();
            let name = api.create(&PostParams::default(), &crd).await.unwrap().metadata.name.unwrap();
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(DEADLINE, established)
                .await
                .expect("the CRD is established in time")
                .unwrap();
        }
        Judge { client, failures: Vec::new() }
    }

    /// What a user's `kubectl create --dry-run=server` does.
    pub(crate) async fn try_create(
        &self,
        api: &Api<DynamicObject>,
        object: &Value,
    ) -> Result<DynamicObject, kube::Error> {
        let path = format!("{}?dryRun=All&fieldValidation=Strict", api.resource_url());
        let body = serde_json::to_vec(object).unwrap();
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        self.client.request(request.body(body).unwrap()).await
    }

    pub(crate) fn expect_refusal<T>(&mut self, what: &str, answer: Result<T, kube::Error>, words: &[&str]) {
        let Err(error) = answer else { return self.failures.push(format!("{what}: was accepted")) };
        let message = error.to_string();
        let missing: Vec<_> = words.iter().filter(|word| !message.contains(**word)).collect();
        if !missing.is_empty() {
            self.failures.push(format!("{what}: {missing:?} not in: {message}"));
        }
    }

    pub(crate) fn expect_success<T>(&mut self, what: &str, answer: Result<T, kube::Error>) -> Option<T> {
        answer.map_err(|error| self.failures.push(format!("{what}: {error}"))).ok()
    }
}
