//! Execution of what plans for pools and workers ask for: wave by wave, each action under its own precondition, until one
//! fails. What the infrastructure refuses is told apart: it has a type, a status and a next attempt.

use k8s_openapi::api::core::v1::Node;
use kaas_crds::worker_pool::InfrastructureKind;
use kaas_crds::{Worker, WorkerPool, name};
use kaas_lifecycle::workers::action::{Action, tell};
use kaas_lifecycle::workers::observed::PoolObserved;
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::info;

use crate::cluster::{DEADLINE, within};
use crate::execute::Error;
use crate::tenant::Access;
use crate::workers::infrastructure::{Materials, Refusal};
use crate::workers::observe::Sight;
use crate::workers::{Yard, bootstrap, drain, node};

/// Executes a plan for a pool.
pub(crate) async fn pool(yard: &Yard, observed: &PoolObserved, waves: &[Vec<Action>]) -> Result<(), Error> {
    for action in waves.iter().flatten() {
        guarded(yard, action, on_pool(yard, observed, action)).await?;
    }
    Ok(())
}

/// Executes a plan for a worker. `Some` is what the infrastructure refused: nothing after it was done.
pub(crate) async fn worker(
    yard: &Yard,
    sight: &Sight,
    waves: &[Vec<Action>],
) -> Result<Option<Refusal>, Error> {
    for action in waves.iter().flatten() {
        if let Some(refusal) = guarded(yard, action, on_worker(yard, sight, action)).await? {
            return Ok(Some(refusal));
        }
    }
    Ok(None)
}

/// One action, if this operator still leads; counted either way.
async fn guarded<T>(
    yard: &Yard,
    action: &Action,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    yard.context.gate.check().map_err(|_| Error::NotLeading)?;
    info!(action = tell(action), "act");
    let result = work.await;
    let (kind, verb) = label(action);
    let failure = result.as_ref().err().map(|error| error.class().as_str());
    yard.context.metrics.writes.count(kind, verb, failure);
    result
}

/// Kind and verb for the metric of writes.
fn label(action: &Action) -> (&'static str, &'static str) {
    match action {
        Action::AddPoolFinalizer { .. } | Action::RemovePoolFinalizer { .. } => ("WorkerPool", "apply"),
        Action::Record { .. } => ("WorkerPool", "status"),
        Action::Create { .. } => ("Worker", "create"),
        Action::Delete { .. } => ("Worker", "delete"),
        Action::AddFinalizer { .. } | Action::RemoveFinalizer { .. } => ("Worker", "apply"),
        Action::IssueBootstrap { .. } => ("Secret", "apply"),
        Action::RevokeBootstrap { .. } => ("Secret", "delete"),
        Action::EnsureMachine(_) => ("Machine", "create"),
        Action::DeleteMachine { .. } => ("Machine", "delete"),
        Action::ConfigureNode(_) | Action::MarkNode { .. } => ("Node", "patch_inside"),
        Action::Evict { .. } => ("Pod", "evict_inside"),
        Action::DeletePod { .. } => ("Pod", "delete_inside"),
        Action::DeleteNode { .. } => ("Node", "delete_inside"),
    }
}

fn write(action: &Action) -> impl FnOnce(kube::Error) -> Error {
    let what = tell(action);
    move |source| Error::Write { what, source }
}

async fn on_pool(yard: &Yard, observed: &PoolObserved, action: &Action) -> Result<(), Error> {
    let client = &yard.context.client;
    let namespace = observed.pool.metadata.namespace.as_deref().unwrap_or_default();
    let pools: Api<WorkerPool> = Api::namespaced(client.clone(), namespace);
    let workers: Api<Worker> = Api::namespaced(client.clone(), namespace);
    let metadata = &observed.pool.metadata;
    match action {
        Action::AddPoolFinalizer { resource_version } => {
            finalizer(&pools, "WorkerPool", metadata, name::POOL_FINALIZER, resource_version, true).await
        }
        Action::RemovePoolFinalizer { resource_version } => {
            finalizer(&pools, "WorkerPool", metadata, name::POOL_FINALIZER, resource_version, false).await
        }
        Action::Create { worker, pool_generation } => {
            // What was asked for may have changed since: a worker too many would live for a drain.
            let now = within(DEADLINE, pools.get_metadata(observed.name())).await.map_err(write(action))?;
            if now.metadata.generation != Some(*pool_generation) || now.metadata.uid != metadata.uid {
                return Err(Error::Changed(tell(action)));
            }
            let params =
                PostParams { field_manager: Some(name::FIELD_MANAGER.into()), ..PostParams::default() };
            match within(DEADLINE, workers.create(&params, worker)).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                Err(error) => Err(write(action)(error)),
            }
        }
        Action::Delete { name, uid } => {
            let preconditions = Some(Preconditions { uid: Some(uid.clone()), resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::background() };
            match within(DEADLINE, workers.delete(name, &params)).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
                Err(error) => Err(write(action)(error)),
            }
        }
        // The choice is part of the status, which is written as a whole.
        Action::Record { .. } => Ok(()),
        _ => Err(Error::Misplaced(tell(action))),
    }
}

async fn on_worker(yard: &Yard, sight: &Sight, action: &Action) -> Result<Option<Refusal>, Error> {
    let client = &yard.context.client;
    let place = sight.place();
    let metadata = &sight.observed.worker.metadata;
    let workers: Api<Worker> = Api::namespaced(client.clone(), place.namespace);
    let mirror = &yard.context.settings.mirror;
    let refused = |result: Result<(), Refusal>| Ok(result.err());
    match action {
        Action::AddFinalizer { resource_version } => {
            finalizer(&workers, "Worker", metadata, name::WORKER_FINALIZER, resource_version, true).await?;
        }
        Action::RemoveFinalizer { resource_version } => {
            // One that ends before it had a machine, or after it lost it, has these still.
            if !sight.observed.forsaken() {
                bootstrap::withdraw(inside(sight)?, place.worker_uid).await?;
            }
            if sight.observed.worker.spec.infrastructure.kind() == Some(InfrastructureKind::Pod)
                && let Err(refusal) = yard.pods.clear(place).await
            {
                return Ok(Some(refusal));
            }
            finalizer(&workers, "Worker", metadata, name::WORKER_FINALIZER, resource_version, false).await?;
        }
        Action::IssueBootstrap { token_id, expires, precondition } => {
            let access = inside(sight)?;
            bootstrap::issue(client, sight, access, mirror, token_id, *expires, precondition).await?;
        }
        Action::RevokeBootstrap { .. } => {
            bootstrap::revoke(client, sight, inside(sight)?, mirror).await?;
        }
        Action::EnsureMachine(request) => {
            let release = yard.release(&request.version);
            let Some(images) = release.as_ref().and_then(|release| release.addons.as_ref()) else {
                return Err(Error::Changed(tell(action)));
            };
            let platform = &yard.context.settings.platform;
            return refused(yard.pods.ensure(request, Materials { place, images, platform }).await);
        }
        Action::DeleteMachine { id } => return refused(yard.pods.delete(place, id).await),
        Action::ConfigureNode(change) => {
            node::configure(&nodes(sight)?, place.worker, change).await.map_err(write(action))?;
        }
        Action::MarkNode { uid, resource_version, cordon, conditions } => {
            node::mark(&nodes(sight)?, place.worker, (uid, resource_version), *cordon, conditions)
                .await
                .map_err(write(action))?;
        }
        Action::Evict { namespace, name, uid } => {
            let access = inside(sight)?;
            let answer = drain::evict(&access.client, namespace, name, uid).await.map_err(write(action))?;
            yard.note_answer(place.worker_uid, uid, answer);
        }
        Action::DeletePod { namespace, name, uid } => {
            let access = inside(sight)?;
            drain::delete(&access.client, namespace, name, uid).await.map_err(write(action))?;
        }
        Action::DeleteNode { uid } => {
            node::delete(&nodes(sight)?, place.worker, uid).await.map_err(write(action))?;
        }
        _ => return Err(Error::Misplaced(tell(action))),
    }
    Ok(None)
}

fn inside(sight: &Sight) -> Result<&Access, Error> {
    sight.access.as_ref().ok_or(Error::NoClient)
}

fn nodes(sight: &Sight) -> Result<Api<Node>, Error> {
    Ok(Api::all(inside(sight)?.client.clone()))
}

/// Sets or clears our finalizer, on the version that was read: the others stay as they were read. Not by server-side apply,
/// which would take away whatever else of a Worker we made and do not name here.
async fn finalizer<K>(
    api: &Api<K>,
    kind: &str,
    metadata: &ObjectMeta,
    finalizer: &str,
    version: &str,
    present: bool,
) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let own = metadata.name.as_deref().unwrap_or_default();
    let others = metadata.finalizers.iter().flatten().map(String::as_str).filter(|other| *other != finalizer);
    let finalizers: Vec<&str> = others.chain(present.then_some(finalizer)).collect();
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
    match within(DEADLINE, api.patch(own, &PatchParams::default(), &Patch::Merge(&patch))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 && !present => Ok(()),
        Err(source) => Err(Error::Write { what: format!("finalizer of {kind} {own}"), source }),
    }
}
