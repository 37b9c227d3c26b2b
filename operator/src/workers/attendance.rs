//! Who looks after a tenant with workers: a watch of its nodes, which wakes their workers when something that matters
//! changes, and a watch of certificate requests, which are answered at once.
//!
//! One small task a tenant. One that is down costs a connection attempt now and then, one that floods its own turns only.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, join};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use kaas_crds::TenantCluster;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::controllers::WATCH_TIMEOUT_SECONDS;
use crate::tenant::Access;
use crate::workers::certificate::{self, Outcome};
use crate::workers::{Yard, node};

/// A request that could not be answered is looked at again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// So many requests wait at most; a kubelet that is not heard asks again.
const WAITING: usize = 1000;

/// Those who look after tenants, by UID.
#[derive(Default)]
pub(crate) struct Attendants(Mutex<BTreeMap<String, Attendant>>);

struct Attendant {
    access: Access,
    task: AbortHandle,
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Attendants {
    /// Lets go of tenants that have no workers, or are gone.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| keep(uid));
    }
}

/// Sees to it that somebody looks after this tenant, over the connection that leads to it now.
pub(crate) fn ensure(yard: &Arc<Yard>, cluster: &TenantCluster, access: &Access) {
    let uid = cluster.uid().unwrap_or_default();
    let mut attendants = yard.attendants.0.lock().unwrap_or_else(PoisonError::into_inner);
    if attendants.get(&uid).is_some_and(|attendant| attendant.access.is(access)) {
        return;
    }
    let Some(client) = access.watching() else { return };
    let (yard, cluster, over) = (yard.clone(), cluster.clone(), access.clone());
    let work = async move {
        let stop = yard.context.stop.clone();
        let namespace = cluster.namespace().unwrap_or_default();
        let config = || watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS);
        let nodes = watcher(Api::<Node>::all(client.clone()), config()).default_backoff();
        let requests = watcher(Api::<CertificateSigningRequest>::all(client), config()).default_backoff();
        let watching = async {
            join!(watch_nodes(&yard, &namespace, nodes), answer_requests(&yard, &cluster, &over, requests))
        };
        tokio::select! {
            _ = watching => {}
            () = stop.cancelled() => {}
        }
    };
    let task = tokio::spawn(work).abort_handle();
    attendants.insert(uid, Attendant { access: access.clone(), task });
}

/// Wakes the worker of each node that changes.
async fn watch_nodes(
    yard: &Yard,
    namespace: &str,
    events: impl Stream<Item = Result<Event<Node>, watcher::Error>>,
) {
    let mut events = pin!(events);
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    let mut listed: BTreeMap<String, u64> = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(node)) => {
                listed.insert(node.name_any(), node::digest(&node));
            }
            Ok(Event::InitDone) => {
                for name in changed(&known, &listed) {
                    yard.fleet.wake_worker(namespace, name);
                }
                known = std::mem::take(&mut listed);
            }
            Ok(Event::Apply(node)) => {
                let digest = node::digest(&node);
                if known.insert(node.name_any(), digest) != Some(digest) {
                    yard.fleet.wake_worker(namespace, &node.name_any());
                }
            }
            Ok(Event::Delete(node)) => {
                known.remove(&node.name_any());
                yard.fleet.wake_worker(namespace, &node.name_any());
            }
            Err(error) => debug!(namespace, %error, "watch of nodes"),
        }
    }
}

/// Names that one of two looks has and the other has not, or not the same.
fn changed<'a>(
    before: &'a BTreeMap<String, u64>,
    after: &'a BTreeMap<String, u64>,
) -> impl Iterator<Item = &'a str> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let new = after.iter().filter(|(name, digest)| before.get(*name) != Some(digest)).map(|(name, _)| name);
    gone.chain(new).map(String::as_str)
}

/// Answers requests as they come; what cannot be answered yet is looked at again.
async fn answer_requests(
    yard: &Yard,
    cluster: &TenantCluster,
    access: &Access,
    events: impl Stream<Item = Result<Event<CertificateSigningRequest>, watcher::Error>>,
) {
    let mut events = pin!(events);
    let mut waiting: BTreeMap<String, CertificateSigningRequest> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            event = events.next() => Some(event),
            () = sleep(AGAIN), if !waiting.is_empty() => None,
        };
        let requests = match event {
            Some(None) => return,
            Some(Some(Ok(Event::Init))) => {
                waiting.clear();
                vec![]
            }
            Some(Some(Ok(Event::Apply(request) | Event::InitApply(request)))) => vec![request],
            Some(Some(Ok(Event::Delete(request)))) => {
                waiting.remove(&request.name_any());
                vec![]
            }
            Some(Some(Ok(Event::InitDone))) => vec![],
            Some(Some(Err(error))) => {
                debug!(%error, "watch of certificate requests");
                vec![]
            }
            None => waiting.values().cloned().collect(),
        };
        for request in requests {
            let name = request.name_any();
            match certificate::attend(yard, access, cluster, &request).await {
                Ok(Outcome::Done) => {
                    waiting.remove(&name);
                }
                Ok(Outcome::Later) if waiting.len() < WAITING => {
                    waiting.insert(name, request);
                }
                Ok(Outcome::Later) => warn!(request = name, "too many certificate requests wait"),
                Err(error) => {
                    debug!(request = name, %error, "a certificate request was not answered");
                    if waiting.len() < WAITING {
                        waiting.insert(name, request);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_two_looks() {
        let look = |entries: &[(&str, u64)]| -> BTreeMap<String, u64> {
            entries.iter().map(|(name, digest)| ((*name).to_owned(), *digest)).collect()
        };
        let (before, after) = (look(&[("a", 1), ("b", 1), ("c", 1)]), look(&[("a", 1), ("b", 2), ("d", 1)]));
        assert_eq!(changed(&before, &after).collect::<Vec<_>>(), ["c", "b", "d"]);
    }
}
