//! The trial of one API server that has no clients yet: every verb, writes and a watch, asked of its pod directly.
//!
//! It answers one question once: may clients meet this server? What it writes is one ConfigMap of ours that it takes away
//! again. A webhook of the tenant's that refuses or cannot be reached is no fault of the server's.

use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;
use tokio::time::{Instant, timeout};

/// Rounds of all verbs; each on the same connection, as clients do.
const ROUNDS: u32 = 5;
/// One request takes no longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Half of the requests are answered faster: ten times what a small and busy machine takes.
const SLOW: Duration = Duration::from_secs(1);
/// What it writes. A name that no tenant's tool has a reason to touch, in a namespace that every cluster has.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "kaas-canary";
/// The name that every API server's certificate has.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// Asks everything of the server at this address: how many requests it answered, or what went wrong in a sentence.
pub(super) async fn run(base: &kube::Config, address: IpAddr, port: u16) -> Result<u32, String> {
    let authority = match address {
        IpAddr::V4(address) => format!("https://{address}:{port}"),
        IpAddr::V6(address) => format!("https://[{address}]:{port}"),
    };
    let mut config = base.clone();
    config.cluster_url = authority.parse().map_err(|error| format!("{authority} is no address: {error}"))?;
    config.tls_server_name = Some(SERVER_NAME.to_owned());
    let client = kube::Client::try_from(config).map_err(|error| error.to_string())?;
    let mut trial = Trial { api: Api::namespaced(client, NAMESPACE), took: Vec::new() };
    let result = trial.rounds().await;
    if result.is_err() {
        let _ = timeout(DEADLINE, trial.api.delete(NAME, &DeleteParams::default())).await;
    }
    match result {
        Ok(()) => trial.judge(),
        Err(Failure::Webhook) => Ok(u32::try_from(trial.took.len()).unwrap_or(u32::MAX)),
        Err(Failure::Server(words)) => Err(words),
    }
}

struct Trial {
    api: Api<ConfigMap>,
    took: Vec<Duration>,
}

enum Failure {
    /// Something of the tenant's stands between.
    Webhook,
    Server(String),
}

impl Trial {
    async fn rounds(&mut self) -> Result<(), Failure> {
        match timeout(DEADLINE, self.api.delete(NAME, &DeleteParams::default())).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            other => self.note("delete", Duration::ZERO, other)?,
        }
        for round in 0..ROUNDS {
            self.round(round).await?;
        }
        Ok(())
    }

    async fn round(&mut self, round: u32) -> Result<(), Failure> {
        let api = self.api.clone();
        let object = |data: &str| ConfigMap {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            data: Some([("round".to_owned(), format!("{round} {data}"))].into()),
            ..ConfigMap::default()
        };
        let made = self.ask("create", api.create(&PostParams::default(), &object("created"))).await?;
        let since = made.metadata.resource_version.clone().unwrap_or_default();
        self.ask("get", api.get(NAME)).await?;
        let listed = self.ask("list", api.list(&ListParams::default().fields(&only()))).await?;
        if !listed.items.iter().any(|item| item.metadata.name.as_deref() == Some(NAME)) {
            return Err(Failure::Server("a list did not have what was created before".into()));
        }
        let mut changed = object("updated");
        changed.metadata.resource_version = Some(since.clone());
        self.ask("update", api.replace(NAME, &PostParams::default(), &changed)).await?;
        let patch = json!({"data": {"round": format!("{round} patched")}});
        self.ask("patch", api.patch(NAME, &PatchParams::default(), &Patch::Merge(patch))).await?;
        self.ask("delete", async { api.delete(NAME, &DeleteParams::default()).await.map(drop) }).await?;
        let seen = self.ask("watch", watch(&api, &since)).await?;
        if seen != ["MODIFIED", "MODIFIED", "DELETED"] {
            return Err(Failure::Server(format!(
                "a watch told {} instead of two changes and the deletion",
                seen.join(", ")
            )));
        }
        Ok(())
    }

    async fn ask<T>(
        &mut self,
        verb: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let begin = Instant::now();
        let answer = timeout(DEADLINE, request).await;
        let mut found = None;
        self.note(verb, begin.elapsed(), answer.map(|answer| answer.map(|value| found = Some(value))))?;
        found.ok_or_else(|| Failure::Server(format!("{verb}: no answer")))
    }

    fn note<T>(
        &mut self,
        verb: &str,
        took: Duration,
        answer: Result<kube::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<(), Failure> {
        match answer {
            Ok(Ok(_)) => {
                self.took.push(took);
                Ok(())
            }
            Ok(Err(kube::Error::Api(status))) if of_webhook(&status.message) => Err(Failure::Webhook),
            Ok(Err(kube::Error::Api(status))) => Err(Failure::Server(format!(
                "it answered {verb} with {} {}: {}",
                status.code,
                status.reason,
                status.message.chars().take(200).collect::<String>()
            ))),
            Ok(Err(error)) => Err(Failure::Server(format!("{verb} failed: {error}"))),
            Err(_) => {
                Err(Failure::Server(format!("{verb} was not answered within {} s", DEADLINE.as_secs())))
            }
        }
    }

    fn judge(mut self) -> Result<u32, String> {
        self.took.sort_unstable();
        let median = self.took.get(self.took.len() / 2).copied().unwrap_or_default();
        if median > SLOW {
            return Err(format!("half of its answers took more than {:.1} s", median.as_secs_f32()));
        }
        Ok(u32::try_from(self.took.len()).unwrap_or(u32::MAX))
    }
}

/// What happened since the creation, until the deletion.
async fn watch(api: &Api<ConfigMap>, since: &str) -> kube::Result<Vec<&'static str>> {
    let params = WatchParams::default().fields(&only()).timeout(5);
    let mut events = api.watch(&params, since).await?.boxed();
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(_) => seen.push("ADDED"),
            WatchEvent::Modified(_) => seen.push("MODIFIED"),
            WatchEvent::Deleted(_) => {
                seen.push("DELETED");
                break;
            }
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(seen)
}

fn only() -> String {
    format!("metadata.name={NAME}")
}

/// API servers say so in these words, and only in words (apiserver's webhook errors).
pub(super) fn of_webhook(message: &str) -> bool {
    message.contains("admission webhook") || message.contains("failed calling webhook")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_webhook_did_is_told_from_what_the_server_did() {
        assert!(of_webhook("admission webhook \"a.example\" denied the request: no"));
        assert!(of_webhook("Internal error occurred: failed calling webhook \"a.example\": dial"));
        assert!(!of_webhook("etcdserver: request timed out"));
    }
}
