//! KubernetesReleases: the catalogue that reconciles read, and the word of who uses an entry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{Stream, StreamExt};
use kaas_crds::{KubernetesRelease, KubernetesReleaseSpec, KubernetesReleaseStatus, name};
use kube::api::{Api, PostParams};
use kube::runtime::reflector::{Store, reflector, store};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::tenant_cluster::{Known, World};
use crate::cluster::{DEADLINE, within};
use crate::run::Context;

/// Users are counted so often: a burst of creations is one write.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// So many users are named.
const NAMED: usize = 10;

/// The catalogue, kept up to date.
#[derive(Clone)]
pub(crate) struct Catalogue {
    store: Store<KubernetesRelease>,
    changed: watch::Receiver<u64>,
}

/// The catalogue, and the work that keeps it up to date.
pub(super) fn catalogue(client: &kube::Client) -> (Catalogue, impl Future<Output = ()> + use<>) {
    let (reader, writer) = store();
    let (announce, changed) = watch::channel(0_u64);
    let releases: Api<KubernetesRelease> = Api::all(client.clone());
    let offers = reader.clone();
    let refreshing = async move {
        let mut known = BTreeMap::new();
        let watched = watcher(releases, watcher::Config::default().timeout(55)).default_backoff();
        let mut events = std::pin::pin!(reflector(writer, watched).touched_objects());
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => {
                    // Every cluster looks again. The word of who uses an entry is no reason: it is written with each new
                    // cluster, and a thousand that look each time would hold up the next.
                    let now = offered(&offers);
                    if now != known {
                        known = now;
                        announce.send_modify(|count| *count = count.wrapping_add(1));
                    }
                }
                Err(error) => debug!(%error, "watch of the catalogue"),
            }
        }
    };
    (Catalogue { store: reader, changed }, refreshing)
}

impl Catalogue {
    /// Entries by version.
    pub(crate) fn releases(&self) -> BTreeMap<String, KubernetesReleaseSpec> {
        offered(&self.store)
    }

    /// Once the catalogue was read for the first time: before that it would look empty.
    pub(super) async fn ready(&self) {
        let _ = self.store.wait_until_ready().await;
    }

    /// An item for each change.
    pub(super) fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        futures::stream::unfold(self.changed.clone(), |mut changed| async move {
            changed.changed().await.ok()?;
            Some(((), changed))
        })
    }
}

fn offered(store: &Store<KubernetesRelease>) -> BTreeMap<String, KubernetesReleaseSpec> {
    store
        .state()
        .iter()
        .filter(|release| release.metadata.deletion_timestamp.is_none())
        .map(|release| (release.spec.version.clone(), release.spec.clone()))
        .collect()
}

/// Keeps the status of each entry in step with who uses it: a policy of the chart reads it when one is deleted.
pub(super) async fn keep_usage(
    context: Context,
    clusters: Store<Known>,
    catalogue: Catalogue,
    world: Arc<World>,
) {
    let mut ticks = interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Before the clusters were read for the first time nobody would seem to use anything.
    let _ = clusters.wait_until_ready().await;
    loop {
        ticks.tick().await;
        if context.stop.is_cancelled() {
            // The controllers end by themselves; this one has nothing under way.
            std::future::pending::<()>().await;
        }
        // Whoever was not read yet might use anything: nothing is said before all were.
        let users: Option<Vec<Vec<(String, String)>>> =
            clusters.state().iter().map(|cluster| uses(cluster, &world)).collect();
        let Some(users) = users.map(|users| users.concat()) else { continue };
        for release in catalogue.store.state() {
            let status = usage(&release.spec.version, &users);
            if release.status.as_ref() == Some(&status) || (release.status.is_none() && status.users == 0) {
                continue;
            }
            if context.gate.check().is_err() {
                break;
            }
            let result = write(&context, &release, &status).await;
            let failure = result.as_ref().err().map(|error| crate::class::classify(error).as_str());
            context.metrics.writes.count("KubernetesRelease", "status", failure);
        }
    }
}

/// The versions that a cluster needs, each with its name, once its spec was read.
fn uses(cluster: &Known, world: &World) -> Option<Vec<(String, String)>> {
    let metadata = &cluster.metadata;
    let releases = world.releases(metadata.uid.as_deref()?)?;
    let (namespace, name) = (metadata.namespace.as_deref()?, metadata.name.as_deref()?);
    Some(releases.into_iter().map(|version| (version, format!("{namespace}/{name}"))).collect())
}

fn usage(version: &str, users: &[(String, String)]) -> KubernetesReleaseStatus {
    let mut users: Vec<String> =
        users.iter().filter(|(wanted, _)| wanted == version).map(|(_, name)| name.clone()).collect();
    users.sort();
    let count = users.len();
    users.truncate(NAMED);
    let summary = match count.checked_sub(users.len()) {
        _ if count == 0 => String::new(),
        Some(rest) if rest > 0 => format!("{count}: {} and {rest} more", users.join(", ")),
        _ => format!("{count}: {}", users.join(", ")),
    };
    let summary = summary.chars().take(512).collect();
    KubernetesReleaseStatus { used_by: users, users: i32::try_from(count).unwrap_or(i32::MAX), summary }
}

async fn write(
    context: &Context,
    release: &KubernetesRelease,
    status: &KubernetesReleaseStatus,
) -> Result<(), kube::Error> {
    let own = release.metadata.name.as_deref().unwrap_or_default();
    let whole = KubernetesRelease { status: Some(status.clone()), ..release.clone() };
    let params = PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
    let releases: Api<KubernetesRelease> = Api::all(context.client.clone());
    within(DEADLINE, releases.replace_status(own, &params, &whole)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    #[test]
    fn who_uses_an_entry_changes_nothing_that_is_offered() {
        let release = |users: i32, gone: bool| -> KubernetesRelease {
            serde_json::from_value(json!({
                "apiVersion": "kaas.dev/v1alpha1", "kind": "KubernetesRelease",
                "metadata": {
                    "name": "v1.37.1", "deletionTimestamp": gone.then_some("2026-06-01T00:00:00Z"),
                },
                "spec": {
                    "version": "v1.37.1", "etcd": {"version": "3.7.3", "image": "etcd"},
                    "images": {"kubeApiserver": "a", "kubeControllerManager": "b", "kubeScheduler": "c"},
                },
                "status": {"usedBy": [], "users": users, "summary": ""},
            }))
            .unwrap()
        };
        let (reader, mut writer) = store();
        let mut after = |release| {
            writer.apply_watcher_event(&Event::Apply(release));
            offered(&reader)
        };
        let before = after(release(0, false));
        assert_eq!(before.len(), 1);
        assert_eq!(after(release(1, false)), before);
        assert!(after(release(1, true)).is_empty());
    }
}
