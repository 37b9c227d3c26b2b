//! What must never be seen of workers and their machines, whatever happened on the way.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::name;
use serde_json::Value;

use crate::player::{terminating, text};
use crate::record::Change;
use crate::wire::Scope;

/// Judges a whole life, in the order of the store.
pub(crate) fn judge(log: &[Change], scope: &Scope) -> Vec<String> {
    let mut judge = Judge::new(scope.machines());
    log.iter().for_each(|change| judge.see(change));
    for (worker, machines) in judge.machines.clone() {
        if !machines.is_empty() && !judge.workers.contains_key(&worker) {
            judge.breach(format!("{machines:?} has no worker at the end"));
        }
    }
    judge.found.into_iter().collect()
}

struct Judge {
    home: String,
    found: BTreeSet<String>,
    /// Workers that there are, and whether they go, by UID.
    workers: BTreeMap<String, bool>,
    /// Machines that there are, by UID of the worker.
    machines: BTreeMap<String, BTreeSet<String>>,
    /// Machines that there ever were, by UID of the worker.
    made: BTreeMap<String, BTreeSet<String>>,
    /// Most workers that may stay, by what pools ask for.
    most: u64,
}

impl Judge {
    fn new(home: String) -> Self {
        let (workers, machines, made) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Judge { home, found: BTreeSet::new(), workers, machines, made, most: 0 }
    }

    fn breach(&mut self, what: impl Into<String>) {
        self.found.insert(what.into());
    }

    fn see(&mut self, change: &Change) {
        let (kind, object_name) = &change.key;
        let object = &change.object;
        match *kind {
            "WorkerPool" => self.pool(change),
            "Worker" => self.worker(change),
            "Pod" if text(object, "/metadata/namespace") == self.home => self.machine(change),
            "Secret" if text(object, "/metadata/namespace") == self.home && !change.gone => {
                let worker = text(object, "/metadata/labels/kaas.dev~1worker-uid").to_owned();
                if !self.workers.contains_key(&worker) {
                    self.breach(format!("Secret {object_name} of machines is written for no worker"));
                }
            }
            _ => {}
        }
    }

    fn pool(&mut self, change: &Change) {
        let spec = &change.object["spec"];
        let surge = spec["rollout"]["maxSurge"].as_u64().unwrap_or(1);
        let removing = change.object.pointer("/status/removing").and_then(Value::as_array);
        if removing.is_some_and(|removing| removing.len() > 2) {
            self.breach("more workers were chosen to go than were asked to");
        }
        self.most = spec["replicas"].as_u64().unwrap_or_default() + surge;
    }

    fn worker(&mut self, change: &Change) {
        let object = &change.object;
        let (uid, worker) = (text(object, "/metadata/uid").to_owned(), &change.key.1);
        let finalizers = object["metadata"]["finalizers"].as_array();
        let kept = finalizers.is_some_and(|all| all.iter().any(|one| one == name::WORKER_FINALIZER));
        let machines = self.machines.get(&uid).cloned().unwrap_or_default();
        if (change.gone || !kept) && !machines.is_empty() {
            self.breach(format!("worker {worker} was let go before its machine {machines:?}"));
        }
        if change.gone {
            self.workers.remove(&uid);
            return;
        }
        let fresh = self.workers.insert(uid, terminating(object)).is_none();
        let staying = u64::try_from(self.workers.values().filter(|going| !**going).count()).unwrap();
        if fresh && staying > self.most {
            self.breach(format!("worker {worker} is one too many: {staying} where {} may be", self.most));
        }
    }

    fn machine(&mut self, change: &Change) {
        let object = &change.object;
        let worker = text(object, "/metadata/labels/kaas.dev~1worker-uid").to_owned();
        let (machine, uid) = (&change.key.1, text(object, "/metadata/uid").to_owned());
        let there = self.machines.entry(worker.clone()).or_default();
        if change.gone {
            there.remove(&uid);
            return;
        }
        there.insert(uid.clone());
        let several = there.len() > 1;
        let made = self.made.entry(worker.clone()).or_default();
        made.insert(uid);
        let again = made.len() > 1;
        if several {
            self.breach(format!("two machines of one worker, the second is {machine}"));
        }
        if again {
            self.breach(format!("machine {machine} was made a second time for one worker"));
        }
        if !self.workers.contains_key(&worker) {
            self.breach(format!("machine {machine} has no worker"));
        }
    }
}
