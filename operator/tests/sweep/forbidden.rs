//! What must never be seen in the log of one tenant, whatever happened on the way.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::name;
use serde_json::Value;

use crate::record::{Change, Key};
use crate::wire::Scope;

/// Objects that may be deleted while their tenant lives: budgets and pods after scaling down, revisions of old.
const PASSING: [&str; 3] = ["PodDisruptionBudget", "Pod", "ControllerRevision"];

/// Judges a whole life, in the order of the store.
pub(crate) fn judge(log: &[Change], scope: &Scope) -> Vec<String> {
    let mut judge = Judge::new(scope);
    log.iter().for_each(|change| judge.see(change));
    judge.found.into_iter().collect()
}

struct Judge<'a> {
    scope: &'a Scope,
    found: BTreeSet<String>,
    /// UIDs by object: what is made twice was lost once.
    made: BTreeMap<Key, String>,
    authority: Option<Value>,
    namespaces: BTreeSet<String>,
    namespace_there: bool,
    finalizer: bool,
    deleting: bool,
    was_ready: bool,
    /// Members that serve, and the most there ever were.
    members: BTreeSet<String>,
    quorum: usize,
}

impl<'a> Judge<'a> {
    fn new(scope: &'a Scope) -> Self {
        Judge {
            scope,
            found: BTreeSet::new(),
            made: BTreeMap::new(),
            authority: None,
            namespaces: BTreeSet::new(),
            namespace_there: false,
            finalizer: false,
            deleting: false,
            was_ready: false,
            members: BTreeSet::new(),
            quorum: 0,
        }
    }

    fn breach(&mut self, what: impl Into<String>) {
        self.found.insert(what.into());
    }

    fn see(&mut self, change: &Change) {
        let object = &change.object;
        let (kind, object_name) = &change.key;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if ["WorkerPool", "Worker"].contains(kind)
            || object["metadata"]["namespace"].as_str() == Some(&self.scope.machines())
        {
            // They come and go under the same names.
            return;
        }
        if *kind != "Pod" && *kind != "PodDisruptionBudget" {
            let first = self.made.entry(change.key.clone()).or_insert_with(|| uid.to_owned());
            if first != uid {
                self.breach(format!("{kind} {object_name} was made a second time"));
            }
        }
        match *kind {
            "TenantCluster" => self.cluster(change),
            "Namespace" => self.namespace(change),
            "Secret" if object_name == "authority" => self.authority(change),
            "Pod" => self.pod(change),
            _ => {}
        }
        if change.gone && !self.deleting && !PASSING.contains(kind) && *kind != "TenantCluster" {
            self.breach(format!("{kind} {object_name} was deleted although its tenant lives"));
        }
    }

    fn cluster(&mut self, change: &Change) {
        let metadata = &change.object["metadata"];
        let finalizers = metadata["finalizers"].as_array();
        let has = finalizers.is_some_and(|all| all.iter().any(|one| one == name::FINALIZER));
        self.deleting |= metadata.get("deletionTimestamp").is_some();
        self.finalizer = has && !change.gone;
        if self.namespace_there && !self.finalizer {
            self.breach("the TenantCluster has no finalizer while its namespace exists");
        }
        let conditions = change.object.pointer("/status/conditions").and_then(Value::as_array);
        let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
        let is_ready = ready.is_some_and(|ready| ready["status"] == "True");
        if self.was_ready && !is_ready && !self.deleting {
            let said = ready.map_or("nothing", |ready| ready["message"].as_str().unwrap_or_default());
            self.breach(format!("Ready was taken back although every request would have succeeded: {said}"));
        }
        self.was_ready = is_ready;
    }

    fn namespace(&mut self, change: &Change) {
        let label =
            change.object.pointer("/metadata/labels").and_then(|all| all[name::TENANT_UID_LABEL].as_str());
        if label != Some(self.scope.uid.as_str()) {
            return;
        }
        let going = change.object.pointer("/metadata/deletionTimestamp").is_some();
        if going && !self.deleting {
            self.breach("the namespace is deleted although its TenantCluster is not");
        }
        let of_machines = change.key.1 == self.scope.machines();
        // That of the machines goes in its own time.
        let goes = change.gone || (of_machines && going);
        if !goes && !self.finalizer {
            self.breach("the namespace exists before the TenantCluster's finalizer, or after it");
        }
        if of_machines {
            return;
        }
        self.namespaces.insert(change.key.1.clone());
        if self.namespaces.len() > 1 {
            self.breach(format!("one tenant has several namespaces: {:?}", self.namespaces));
        }
        self.namespace_there = !change.gone;
    }

    fn authority(&mut self, change: &Change) {
        let content = change.object["data"].clone();
        match &self.authority {
            None => self.authority = Some(content),
            Some(first) if *first != content => self.breach("the authorities were made anew"),
            Some(_) => {}
        }
    }

    fn pod(&mut self, change: &Change) {
        let object = &change.object;
        let labels = &object["metadata"]["labels"];
        if labels[name::COMPONENT_LABEL] != name::component::ETCD || self.deleting {
            return;
        }
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let ready =
            conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
        let going = change.gone || object.pointer("/metadata/deletionTimestamp").is_some();
        if ready && !going {
            self.members.insert(change.key.1.clone());
            self.quorum = self.quorum.max(self.members.len() / 2 + 1);
        } else {
            self.members.remove(&change.key.1);
        }
        if self.members.len() < self.quorum {
            self.breach(format!("etcd has {} members where a quorum is {}", self.members.len(), self.quorum));
        }
    }
}
