//! Who may do what on the management cluster: the operator, and the people of a tenant.
//!
//! The operator gets exactly the verbs that it uses. Control planes live in namespaces that are made at run time,
//! so what it does in them can only be granted cluster-wide.
//! Tenants get the objects that they write, never `/status`, which the operator alone writes.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kaas_crds::name;
use serde::Serialize;
use serde_json::Value;

use super::Error;

const READ: [&str; 3] = ["get", "list", "watch"];

/// Generated files of the chart: name without extension, and documents.
pub(crate) fn files() -> Result<Vec<(&'static str, Vec<Value>)>, Error> {
    Ok(vec![
        ("operator", vec![document(operator_cluster_role())?, document(operator_role())?]),
        ("tenants", vec![document(tenant_view())?, document(tenant_edit())?, document(catalogue_view())?]),
    ])
}

/// Everything outside the operator's own namespace.
fn operator_cluster_role() -> ClusterRole {
    cluster_role(
        "kaas-operator",
        &[],
        vec![
            // Patch: the finalizer, by server-side apply.
            rule(name::GROUP, &["tenantclusters"], &["get", "list", "watch", "patch"]),
            rule(name::GROUP, &["workerpools"], &["get", "list", "watch", "patch"]),
            rule(name::GROUP, &["workers"], &WRITE),
            rule(name::GROUP, &["instancetypes", "kubernetesreleases"], &READ),
            rule(
                name::GROUP,
                &[
                    "kubernetesreleases/status",
                    "tenantclusters/status",
                    "workerpools/status",
                    "workers/status",
                ],
                &["update"],
            ),
            // Workers block the deletion of their pool: where API servers ask for a right to that, it is this one.
            rule(name::GROUP, &["workerpools/finalizers"], &["update"]),
            rule("", &["configmaps", "namespaces", "persistentvolumeclaims", "secrets", "services"], &WRITE),
            rule("apps", &["controllerrevisions", "deployments", "statefulsets"], &WRITE),
            rule("networking.k8s.io", &["networkpolicies"], &WRITE),
            rule("policy", &["poddisruptionbudgets"], &WRITE),
            // Pods are made by their controllers; the operator looks at them, labels them and restarts etcd's. To make
            // them, for workers that are pods, is a role of its own, which the chart has where they are switched on.
            rule("", &["pods"], &["get", "list", "watch", "patch", "delete"]),
            rule("events.k8s.io", &["events"], &["create", "patch"]),
        ],
    )
}

/// Create is needed besides patch: server-side apply of an object that does not exist yet is checked for both.
const WRITE: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

/// In the operator's own namespace (Helm's release namespace): the lease.
fn operator_role() -> Role {
    let update = ["get", "list", "watch", "create", "update"];
    Role {
        metadata: metadata("kaas-operator", &[]),
        rules: Some(vec![rule("coordination.k8s.io", &["leases"], &update)]),
    }
}

/// Read access for whoever has `view` in a namespace.
fn tenant_view() -> ClusterRole {
    let read = rule(name::GROUP, &["tenantclusters", "workerpools", "workers"], &READ);
    let scale = rule(name::GROUP, &["workerpools/scale"], &["get"]);
    cluster_role("kaas-tenant-view", &["view"], vec![read, scale])
}

/// Write access for whoever has `edit` or `admin` in a namespace. Workers are the operator's: who could write them could
/// name machines that are not his. They may be deleted, and their patches are kept to one annotation by an admission policy
/// of the chart.
fn tenant_edit() -> ClusterRole {
    let write = ["create", "delete", "deletecollection", "patch", "update"];
    let objects = rule(name::GROUP, &["tenantclusters", "workerpools"], &write);
    let scale = rule(name::GROUP, &["workerpools/scale"], &["patch", "update"]);
    let workers = rule(name::GROUP, &["workers"], &["delete", "patch"]);
    cluster_role("kaas-tenant-edit", &["edit", "admin"], vec![objects, scale, workers])
}

/// The catalogue, for whoever has `view` cluster-wide; the chart binds it to more groups.
fn catalogue_view() -> ClusterRole {
    cluster_role(
        "kaas-catalogue-view",
        &["view"],
        vec![rule(name::GROUP, &["instancetypes", "kubernetesreleases"], &READ)],
    )
}

fn cluster_role(name: &str, aggregate_to: &[&str], rules: Vec<PolicyRule>) -> ClusterRole {
    ClusterRole { metadata: metadata(name, aggregate_to), rules: Some(rules), aggregation_rule: None }
}

fn metadata(name: &str, aggregate_to: &[&str]) -> ObjectMeta {
    let mut labels = BTreeMap::from([("app.kubernetes.io/part-of".to_owned(), "kaas".to_owned())]);
    for role in aggregate_to {
        labels.insert(format!("rbac.authorization.k8s.io/aggregate-to-{role}"), "true".to_owned());
    }
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() }
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

fn document(role: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(role).map_err(|source| Error::Json { what: "a role".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `group/resource` and verb of every permission in some rules.
    fn permissions(rules: Option<Vec<PolicyRule>>) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for rule in rules.unwrap() {
            for resource in rule.resources.unwrap() {
                for verb in &rule.verbs {
                    all.push((format!("{}/{resource}", rule.api_groups.as_ref().unwrap()[0]), verb.clone()));
                }
            }
        }
        all
    }

    #[test]
    fn nothing_is_granted_by_wildcard_or_twice() {
        for rules in
            [operator_cluster_role().rules, operator_role().rules, tenant_edit().rules, tenant_view().rules]
        {
            let mut all = permissions(rules);
            assert!(all.iter().all(|(resource, verb)| !resource.contains('*') && verb != "*"), "{all:?}");
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn the_operator_cannot_raise_its_own_rights() {
        for (resource, verb) in permissions(operator_cluster_role().rules) {
            assert!(!resource.starts_with("rbac.authorization.k8s.io/"), "{resource}");
            assert!(!["escalate", "bind", "impersonate"].contains(&verb.as_str()), "{resource} {verb}");
            assert!(!(resource == "/pods" && verb == "create"));
        }
    }

    #[test]
    fn tenants_write_no_status_and_no_catalogue_and_make_no_worker() {
        let written = ["kaas.dev/tenantclusters", "kaas.dev/workerpools", "kaas.dev/workerpools/scale"];
        for (resource, verb) in [tenant_view().rules, tenant_edit().rules].into_iter().flat_map(permissions) {
            let allowed = ["get", "list", "watch", "delete", "patch"];
            let worker = resource == "kaas.dev/workers" && allowed.contains(&verb.as_str());
            assert!(worker || written.contains(&resource.as_str()), "{verb} {resource}");
        }
        assert!(permissions(catalogue_view().rules).iter().all(|(_, verb)| READ.contains(&verb.as_str())));
    }
}
