//! Everything that happens in the management cluster, as its watches tell it: what is there now, and each tenant's log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use tokio::sync::watch;

/// Kind, group, version and plural of what is recorded.
const KINDS: [(&str, &str, &str, &str); 14] = [
    ("TenantCluster", "kaas.dev", "v1alpha1", "tenantclusters"),
    ("WorkerPool", "kaas.dev", "v1alpha1", "workerpools"),
    ("Worker", "kaas.dev", "v1alpha1", "workers"),
    ("Namespace", "", "v1", "namespaces"),
    ("Secret", "", "v1", "secrets"),
    ("ConfigMap", "", "v1", "configmaps"),
    ("Service", "", "v1", "services"),
    ("Pod", "", "v1", "pods"),
    ("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims"),
    ("StatefulSet", "apps", "v1", "statefulsets"),
    ("Deployment", "apps", "v1", "deployments"),
    ("ControllerRevision", "apps", "v1", "controllerrevisions"),
    ("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
    ("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets"),
];

/// The resource of a recorded kind.
pub(crate) fn resource(kind: &str) -> ApiResource {
    let (kind, group, version, plural) = KINDS.iter().find(|(known, ..)| *known == kind).unwrap();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// Kinds that live in namespaces, those of the team left out.
pub(crate) fn namespaced_kinds() -> impl Iterator<Item = &'static str> {
    let kinds = KINDS.iter().filter(|(kind, group, ..)| *group != "kaas.dev" && *kind != "Namespace");
    kinds.map(|(kind, ..)| *kind)
}

/// Kind and name; the place (its namespace, or the namespace itself) is known where it is used.
pub(crate) type Key = (&'static str, String);

/// One event of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    /// Revision of the store.
    pub(crate) version: u64,
    pub(crate) gone: bool,
    pub(crate) object: Arc<Value>,
}

#[derive(Default)]
struct Place {
    live: BTreeMap<Key, Arc<Value>>,
    log: Vec<Change>,
    count: u64,
}

#[derive(Default)]
pub(crate) struct Record {
    places: Mutex<BTreeMap<String, Place>>,
    changed: watch::Sender<()>,
}

impl Record {
    /// Starts to record; ends with the runtime.
    pub(crate) fn start(client: &Client) -> Arc<Self> {
        let record = Arc::new(Record::default());
        for (kind, ..) in KINDS {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(kind));
            let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
            let record = record.clone();
            tokio::spawn(async move {
                while let Some(event) = events.next().await {
                    match event {
                        Ok(Event::Apply(object) | Event::InitApply(object)) => {
                            record.note(kind, object, false)
                        }
                        Ok(Event::Delete(object)) => record.note(kind, object, true),
                        Ok(Event::Init | Event::InitDone) => {}
                        Err(error) => eprintln!("watch of {kind}: {error}"),
                    }
                }
            });
        }
        record
    }

    fn note(&self, kind: &'static str, mut object: DynamicObject, gone: bool) {
        object.metadata.managed_fields = None;
        let metadata = &object.metadata;
        let name = metadata.name.clone().unwrap();
        let place = metadata.namespace.clone().unwrap_or_else(|| name.clone());
        let version = metadata.resource_version.as_ref().unwrap().parse().unwrap();
        let key = (kind, name);
        let object = Arc::new(serde_json::to_value(&object).unwrap());
        {
            let mut places = self.places.lock().unwrap();
            let place = places.entry(place).or_default();
            if !gone
                && place.live.get(&key).is_some_and(|known| {
                    known["metadata"]["resourceVersion"] == object["metadata"]["resourceVersion"]
                })
            {
                // A watch that began anew.
                return;
            }
            if gone {
                place.live.remove(&key);
            } else {
                place.live.insert(key.clone(), object.clone());
            }
            place.log.push(Change { key, version, gone, object });
            place.count += 1;
        }
        self.changed.send_replace(());
    }

    /// What is in a place now.
    pub(crate) fn live(&self, place: &str) -> BTreeMap<Key, Arc<Value>> {
        self.places.lock().unwrap().get(place).map(|place| place.live.clone()).unwrap_or_default()
    }

    /// One object.
    pub(crate) fn get(&self, place: &str, kind: &'static str, name: &str) -> Option<Arc<Value>> {
        self.places.lock().unwrap().get(place)?.live.get(&(kind, name.to_owned())).cloned()
    }

    /// Changes so far of these places.
    fn count(&self, places: &[&str]) -> u64 {
        let all = self.places.lock().unwrap();
        places.iter().filter_map(|place| all.get(*place)).map(|place| place.count).sum()
    }

    /// Once something in these places changed since `seen` changes; gives their number now.
    pub(crate) async fn changed(&self, places: &[&str], seen: u64) -> u64 {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let count = self.count(places);
            if count != seen {
                return count;
            }
            changed.changed().await.unwrap();
        }
    }

    /// Takes the log of these places, in the order of the store, and forgets it.
    pub(crate) fn take_log(&self, places: &[&str]) -> Vec<Change> {
        let mut all = self.places.lock().unwrap();
        let mut log: Vec<Change> =
            places.iter().filter_map(|place| all.remove(*place)).flat_map(|place| place.log).collect();
        log.sort_by_key(|change| change.version);
        log
    }
}
