//! Machines that are pods of the management cluster: each a privileged one, in the namespace of its cluster's machines.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kaas_crds::name;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::workers::action::MachineRequest;
use kaas_lifecycle::workers::infrastructure::Failure;
use kaas_lifecycle::workers::machine::{self, Place};
use kaas_lifecycle::workers::observed::Machine;
use kaas_lifecycle::workers::orphan::Listed;
use kube::api::{Api, ListParams, PostParams};

use super::{Answer, Infrastructure, Materials, Refusal};
use crate::class::{Class, classify};
use crate::cluster::{self, DEADLINE, within};
use crate::workers::fleet::machine_selector;

/// The infrastructure.
pub(crate) struct Pods {
    client: kube::Client,
}

impl Pods {
    pub(crate) fn new(client: kube::Client) -> Self {
        Pods { client }
    }

    fn pods(&self, cluster_uid: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &name::workers_namespace(cluster_uid))
    }

    async fn create(&self, request: &MachineRequest, materials: Materials<'_>) -> Result<(), Refusal> {
        let object = machine::pod(request, &materials.place, materials.images, materials.platform);
        let pod: Pod = serde_json::from_value(object.content).map_err(|error| Refusal {
            failure: Failure::Denied,
            message: format!("the pod of worker {} cannot be written: {error}", request.name),
        })?;
        let params = PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
        let api = self.pods(materials.place.cluster_uid);
        match within(DEADLINE, api.create(&params, &pod)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.replace(&api, &materials.place).await
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// There is a pod of that name: the machine itself, or one that has to go first.
    async fn replace(&self, api: &Api<Pod>, place: &Place<'_>) -> Result<(), Refusal> {
        let found = within(DEADLINE, api.get_opt(place.worker)).await.map_err(|error| refusal(&error))?;
        let Some(pod) = found else { return Err(busy("a pod of that name has just gone")) };
        if machine::is_machine(&pod, place.worker_uid) {
            return Ok(());
        }
        if machine::made_for(&pod) == Some(place.worker_uid) {
            // It was evicted, or its node was shut down: it never runs again.
            let uid = pod.metadata.uid.unwrap_or_default();
            self.remove(place, &uid).await?;
            return Err(busy("its pod had ended and is taken away"));
        }
        Err(busy("the machine of an earlier worker of that name is still there"))
    }

    async fn remove(&self, place: &Place<'_>, uid: &str) -> Result<(), Refusal> {
        let home = name::workers_namespace(place.cluster_uid);
        let reference = Reference::namespaced(Kind::Pod, home, place.worker);
        cluster::delete(&self.client, &reference, uid, None).await.map_err(|error| refusal(&error))
    }

    /// The Secret of a worker that goes: without it no later worker of that name meets it.
    async fn remove_secret(&self, place: &Place<'_>) -> Result<(), Refusal> {
        let home = name::workers_namespace(place.cluster_uid);
        let reference = Reference::namespaced(Kind::Secret, home, place.worker);
        let found = cluster::get(&self.client, &reference).await.map_err(|error| refusal(&error))?;
        let own = found.filter(|live| {
            let labels = live.get("/metadata/labels");
            labels.and_then(|labels| labels.get(name::WORKER_UID_LABEL)?.as_str()) == Some(place.worker_uid)
        });
        match own {
            Some(live) => cluster::delete_surely(&self.client, &reference, &live.uid, None)
                .await
                .map_err(|error| refusal(&error)),
            None => Ok(()),
        }
    }
}

impl Infrastructure for Pods {
    fn ensure<'a>(&'a self, request: &'a MachineRequest, materials: Materials<'a>) -> Answer<'a, ()> {
        Box::pin(self.create(request, materials))
    }

    fn observe<'a>(&'a self, place: Place<'a>) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let api = self.pods(place.cluster_uid);
            let found = within(DEADLINE, api.get_opt(place.worker)).await.map_err(|error| refusal(&error))?;
            Ok(found.filter(|pod| machine::is_machine(pod, place.worker_uid)).map(|pod| machine::facts(&pod)))
        })
    }

    fn list(&self) -> Answer<'_, Vec<Listed>> {
        Box::pin(async move {
            let api: Api<Pod> = Api::all(self.client.clone());
            let params = ListParams::default().labels(&machine_selector());
            let found =
                within(DEADLINE, api.list_metadata(&params)).await.map_err(|error| refusal(&error))?;
            let listed = found.items.into_iter().map(|pod| {
                let metadata = pod.metadata;
                let label = |key: &str| {
                    metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default()
                };
                Listed {
                    worker_uid: label(name::WORKER_UID_LABEL),
                    cluster_uid: label(name::TENANT_UID_LABEL),
                    stopping: metadata.deletion_timestamp.is_some(),
                    name: metadata.name.unwrap_or_default(),
                    id: metadata.uid.unwrap_or_default(),
                }
            });
            Ok(listed.collect())
        })
    }

    fn delete<'a>(&'a self, place: Place<'a>, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.remove(&place, id).await?;
            self.remove_secret(&place).await
        })
    }

    fn clear<'a>(&'a self, place: Place<'a>) -> Answer<'a, ()> {
        Box::pin(async move { self.remove_secret(&place).await })
    }

    fn dissolve<'a>(&'a self, cluster_uid: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let home = name::workers_namespace(cluster_uid);
            let api: Api<Namespace> = Api::all(self.client.clone());
            let found =
                within(DEADLINE, api.get_metadata_opt(&home)).await.map_err(|error| refusal(&error))?;
            let Some(uid) = found
                .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
                .and_then(|namespace| namespace.metadata.uid)
            else {
                return Ok(());
            };
            let reference = Reference::cluster(Kind::Namespace, home);
            cluster::delete(&self.client, &reference, &uid, None).await.map_err(|error| refusal(&error))
        })
    }
}

fn busy(words: &str) -> Refusal {
    Refusal { failure: Failure::Transient, message: words.to_owned() }
}

/// What an answer of the API server means for a machine.
fn refusal(error: &kube::Error) -> Refusal {
    let message = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    let failure = match classify(error) {
        // Admission of quotas has no reason of its own.
        Class::Denied if message.contains("exceeded quota") => Failure::Quota,
        Class::Denied | Class::Invalid | Class::Bug => Failure::Denied,
        Class::Unreachable => Failure::Unknown,
        Class::Transient | Class::Conflict | Class::NotFound | Class::NotLeading => Failure::Transient,
    };
    Refusal { failure, message }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn answers_are_typed() {
        let of = |code: u16, reason: &str, message: &str| {
            let status = Status { code, reason: reason.into(), message: message.into(), ..Status::default() };
            refusal(&kube::Error::Api(Box::new(status))).failure
        };
        assert_eq!(of(403, "Forbidden", "pods \"p-0\" is forbidden: exceeded quota: cpu"), Failure::Quota);
        assert_eq!(of(403, "Forbidden", "violates PodSecurity"), Failure::Denied);
        assert_eq!(of(422, "Invalid", "spec"), Failure::Denied);
        assert_eq!(of(429, "TooManyRequests", "later"), Failure::Transient);
        assert_eq!(of(500, "InternalError", ""), Failure::Transient);
        assert_eq!(of(404, "NotFound", "namespace"), Failure::Transient);
    }
}
