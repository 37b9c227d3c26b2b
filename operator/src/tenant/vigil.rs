//! The vigil over a control plane that changes: mixed verbs through the endpoint, on new connections and on a reused
//! one, and a watch that must miss and repeat nothing. It counts; nothing here judges.
//!
//! It is kept while an upgrade is under way: one ConfigMap for each kind of client in `kube-system`, about eight requests
//! a second. Nothing is ever asked twice: clients that do see less. What a webhook of the tenant's refuses is not counted.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kaas_lifecycle::observed::Vigil;
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use self::tally::Tally;
use super::trial::of_webhook;
use super::{WATCH, connect, locked};

mod tally;

/// Between two requests of one kind of client.
const PAUSE: Duration = Duration::from_millis(250);
/// Longer than any gap that is allowed somewhere, so that a gap is measured and not cut.
const DEADLINE: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "kube-system";
/// Label of what is written, and of what is watched.
const LABEL: &str = "kaas.dev/vigil";

/// What clients on new connections write, and what the one with a connection that is used again does.
const NAMES: [&str; 2] = ["kaas-vigil-new", "kaas-vigil-reused"];

/// A vigil that is kept until this goes.
pub(super) struct Kept {
    tally: Arc<Mutex<Tally>>,
    task: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kept {
    /// Begins.
    pub(super) fn begin(config: &kube::Config) -> Self {
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let (config, shared) = (config.clone(), tally.clone());
        let task = tokio::spawn(async move {
            let [name, other] = NAMES;
            let fresh = Writer { config: config.clone(), kept: None, name, tally: shared.clone() };
            let reused = Writer { kept: connect(config.clone()), name: other, ..fresh.clone() };
            futures::join!(fresh.go_on(), reused.go_on(), follow(config, shared));
        });
        Kept { tally, task: task.abort_handle() }
    }

    /// What was seen until now.
    pub(super) fn seen(&self) -> Vigil {
        locked(&self.tally).seen()
    }
}

/// Takes away what a vigil that has ended left.
pub(super) async fn clear(config: kube::Config) {
    let Some(client) = connect(config) else { return };
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    for name in NAMES {
        let _ = timeout(DEADLINE, api.delete(name, &DeleteParams::default())).await;
    }
}

/// One kind of client.
#[derive(Clone)]
struct Writer {
    config: kube::Config,
    /// The client that is used again; each request has one of its own otherwise.
    kept: Option<kube::Client>,
    name: &'static str,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Create,
    Get,
    List,
    Update,
    Patch,
    Delete,
}

const VERBS: [Verb; 6] = [Verb::Create, Verb::Get, Verb::List, Verb::Update, Verb::Patch, Verb::Delete];

impl Writer {
    async fn go_on(self) {
        loop {
            // What became of a request that failed is not known.
            if let Some(api) = self.api() {
                let _ = timeout(DEADLINE, api.delete(self.name, &DeleteParams::default())).await;
            }
            for round in 0_u32.. {
                if !self.round(round).await {
                    break;
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn api(&self) -> Option<Api<ConfigMap>> {
        let client = self.kept.clone().or_else(|| connect(self.config.clone()))?;
        Some(Api::namespaced(client, NAMESPACE))
    }

    /// All verbs, one after the other, until one fails.
    async fn round(&self, round: u32) -> bool {
        let mut object = ConfigMap::default();
        for verb in VERBS {
            let Some(api) = self.api() else { return false };
            let begin = Instant::now();
            let answer = timeout(DEADLINE, self.ask(&api, verb, round, &mut object)).await;
            let result = match answer {
                Ok(Ok(())) => Ok(()),
                // Neither a success nor a failure. What there is of the object is not known: begin anew, after a pause.
                Ok(Err(kube::Error::Api(status))) if of_webhook(&status.message) => return false,
                Ok(Err(error)) => Err(format!("{verb:?}: {error}")),
                Err(_) => Err(format!("{verb:?}: no answer within {} s", DEADLINE.as_secs())),
            };
            let succeeded = result.is_ok();
            locked(&self.tally).note(self.kept.is_some(), begin.elapsed(), result);
            sleep(PAUSE).await;
            if !succeeded {
                return false;
            }
        }
        true
    }

    async fn ask(
        &self,
        api: &Api<ConfigMap>,
        verb: Verb,
        round: u32,
        object: &mut ConfigMap,
    ) -> kube::Result<()> {
        let post = PostParams::default();
        let changed = match verb {
            Verb::Create => {
                let fresh = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(self.name.into()),
                        labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
                        ..ObjectMeta::default()
                    },
                    data: Some([("round".to_owned(), round.to_string())].into()),
                    ..ConfigMap::default()
                };
                api.create(&post, &fresh).await?
            }
            Verb::Get => return api.get(self.name).await.map(drop),
            Verb::List => {
                return api.list(&ListParams::default().labels(LABEL)).await.map(drop);
            }
            Verb::Update => {
                let mut next = object.clone();
                next.data = Some([("round".to_owned(), format!("{round} updated"))].into());
                api.replace(self.name, &post, &next).await?
            }
            Verb::Patch => {
                let patch = Patch::Merge(json!({"data": {"round": format!("{round} patched")}}));
                api.patch(self.name, &PatchParams::default(), &patch).await?
            }
            Verb::Delete => return api.delete(self.name, &DeleteParams::default()).await.map(drop),
        };
        locked(&self.tally).written(version_of(&changed));
        *object = changed;
        Ok(())
    }
}

fn version_of(object: &ConfigMap) -> u64 {
    // Comparable numbers since Kubernetes 1.35 says so; numbers always.
    object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Follows all changes, and goes on where a stream ended.
async fn follow(mut config: kube::Config, tally: Arc<Mutex<Tally>>) {
    config.read_timeout = Some(WATCH);
    let mut since: Option<String> = None;
    loop {
        if let Some(client) = connect(config.clone()) {
            let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
            match stream(&api, &mut since, &tally).await {
                Err(kube::Error::Api(status)) if status.code == 410 => since = None,
                Ok(()) | Err(_) => {}
            }
        }
        sleep(PAUSE).await;
    }
}

async fn stream(api: &Api<ConfigMap>, since: &mut Option<String>, tally: &Mutex<Tally>) -> kube::Result<()> {
    let from = match since {
        Some(version) => version.clone(),
        None => {
            let list = api.list(&ListParams::default().labels(LABEL)).await?;
            let version = list.metadata.resource_version.unwrap_or_default();
            locked(tally).listed(version.parse().unwrap_or_default());
            version
        }
    };
    *since = Some(from.clone());
    let params = WatchParams::default().labels(LABEL).timeout(60);
    let mut events = std::pin::pin!(api.watch(&params, &from).await?);
    while let Some(event) = events.try_next().await? {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                locked(tally).told(version_of(&object));
                object.metadata.resource_version
            }
            WatchEvent::Deleted(object) => object.metadata.resource_version,
            WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        };
        *since = version.or(since.take());
    }
    Ok(())
}
