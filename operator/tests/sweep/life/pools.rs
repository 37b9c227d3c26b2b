//! What happens to a pool in the life of its tenant, and when it is done.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kaas_crds::{Worker, WorkerPool, name};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{CLUSTER, Life, Operation};
use crate::kubelets;
use crate::player::{of, terminating, text};
use crate::world::INSTANCE_TYPE;

/// The pool; its workers are named after it.
pub(crate) const POOL: &str = "p";

impl Life {
    pub(super) async fn ask_of_pool(&mut self, operation: Operation) {
        let admin = || self.world.admin.clone();
        let pools: Api<WorkerPool> = Api::namespaced(admin(), &self.scope.team);
        let workers: Api<Worker> = Api::namespaced(admin(), &self.scope.team);
        let params = PatchParams::default();
        let scale = async |replicas: u8| {
            let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
            pools.patch(POOL, &params, &patch).await.unwrap();
        };
        let first_to_go = async |worker: &str| {
            let patch =
                Patch::Merge(json!({"metadata": {"annotations": {name::DELETE_FIRST_ANNOTATION: "true"}}}));
            workers.patch(worker, &params, &patch).await.unwrap();
        };
        match operation {
            Operation::PoolCreation => {
                let pool = serde_json::from_value(json!({
                    "apiVersion": "kaas.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": POOL},
                    "spec": {
                        "clusterName": CLUSTER, "replicas": 2, "instanceTypes": [INSTANCE_TYPE],
                        "infrastructure": {"pod": {}},
                        "template": {
                            "labels": {"example.com/role": "web"},
                            "taints": [{"key": "example.com/only", "value": "web", "effect": "NoSchedule"}],
                        },
                    },
                }));
                pools.create(&PostParams::default(), &pool.unwrap()).await.unwrap();
            }
            Operation::PoolGrowth => scale(3).await,
            Operation::Withdrawal => {
                scale(2).await;
                workers.delete("p-2", &DeleteParams::default()).await.unwrap();
            }
            Operation::Draining => {
                kubelets::populate(self.tenant(), "p-2").await;
                first_to_go("p-2").await;
                scale(2).await;
            }
            Operation::PoolShrinking => {
                first_to_go("p-1").await;
                scale(1).await;
            }
            Operation::Replacement => {
                let patch = json!({"spec": {"template": {"kubelet": {"maxPods": 50}}}});
                pools.patch(POOL, &params, &Patch::Merge(patch)).await.unwrap();
            }
            Operation::ByHand => {
                let all = workers.list(&ListParams::default()).await.unwrap();
                let worker = all.items.first().unwrap();
                self.deleted = worker.uid();
                workers.delete(&worker.name_any(), &DeleteParams::default()).await.unwrap();
            }
            Operation::PoolDeletion => drop(pools.delete(POOL, &DeleteParams::default()).await.unwrap()),
            // Nothing is asked for.
            _ => {}
        }
    }

    /// Whether pools and workers look done.
    pub(super) fn pools_are_settled(&self, operation: Operation) -> bool {
        let live = self.world.record.live(&self.scope.team);
        let is = |object: &Value, kind: &str, status: &str| {
            let conditions = object["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|one| one["type"] == kind && one["status"] == status)
        };
        let told =
            |object: &Value| object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let workers = || of(&live, "Worker");
        if operation == Operation::PoolDeletion || operation.deletes() {
            let machines = self.world.record.live(&self.scope.machines());
            let pool_done =
                |pool: &Value| operation != Operation::PoolDeletion && is(pool, "Reconciling", "False");
            return workers().count() == 0
                && of(&live, "WorkerPool").all(|pool| pool_done(pool))
                && of(&machines, "Pod").count() == 0;
        }
        let wanted: u64 = of(&live, "WorkerPool").filter_map(|pool| pool["spec"]["replicas"].as_u64()).sum();
        let here = u64::try_from(workers().count()).unwrap();
        here == wanted
            && workers().all(|worker| {
                !terminating(worker)
                    && Some(text(worker, "/metadata/uid")) != self.deleted.as_deref()
                    && is(worker, "Ready", "True")
                    && is(worker, "Reconciling", "False")
            })
            && of(&live, "WorkerPool").all(|pool| {
                told(pool)
                    && is(pool, "Ready", "True")
                    && is(pool, "UpToDate", "True")
                    && is(pool, "Reconciling", "False")
                    && pool["status"]["replicas"] == pool["spec"]["replicas"]
            })
    }

    /// What there is of workers inside the tenant: nodes, tokens, pods; of requests, whether they were approved.
    pub(super) async fn workers_inside(&self) -> Vec<(String, Value)> {
        let all = ListParams::default();
        let tenant = || self.tenant().clone();
        let mut found = Vec::new();
        for node in Api::<Node>::all(tenant()).list(&all).await.unwrap().items {
            found.push((format!("inside: Node {}", node.name_any()), serde_json::to_value(node).unwrap()));
        }
        for secret in Api::<Secret>::namespaced(tenant(), "kube-system").list(&all).await.unwrap().items {
            let name = secret.name_any();
            if name.starts_with("bootstrap-token-") {
                found.push((format!("inside: Secret {name}"), json!({"metadata": {"name": name}})));
            }
        }
        for pod in Api::<Pod>::default_namespaced(tenant()).list(&all).await.unwrap().items {
            let name = pod.name_any();
            found.push((format!("inside: Pod {name}"), json!({"metadata": {"name": name}})));
        }
        let live = self.world.record.live(&self.scope.team);
        let workers: Vec<&str> = of(&live, "Worker").map(|worker| text(worker, "/metadata/uid")).collect();
        for request in Api::<CertificateSigningRequest>::all(tenant()).list(&all).await.unwrap().items {
            let uid = request.labels().get(name::WORKER_UID_LABEL).map_or("", String::as_str);
            if workers.contains(&uid) {
                let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
                let answers: Vec<&str> = conditions.map(|one| one.type_.as_str()).collect();
                found.push((format!("inside: request {}", request.name_any()), json!({"answers": answers})));
            }
        }
        found
    }
}
