//! Asks the server, and collects every answer that is not as written, so that one run shows them all.

use std::time::Duration;

use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

use crate::crds;

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
        crds::install(&client).await;
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
