//! How much of what is new in a version is in use: objects of new kinds, and objects that have new fields.

use std::collections::BTreeMap;

use kaas_lifecycle::upgrade::preflight::facts::Added;
use kube::api::DynamicObject;
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::{NAMED, list_pages, objects};

/// So many pages of one resource are looked at for fields.
const PAGES: usize = 20;

/// Where templates of pods are.
const TEMPLATES: [(&str, &str); 5] = [
    ("apps/v1/deployments", "spec.template."),
    ("apps/v1/statefulsets", "spec.template."),
    ("apps/v1/daemonsets", "spec.template."),
    ("batch/v1/jobs", "spec.template."),
    ("batch/v1/cronjobs", "spec.jobTemplate.spec.template."),
];

/// Looks for each of what a release adds, and gives what is in use. A resource is read once, however many of its fields
/// are new.
pub(super) async fn added(client: &Client, adds: &[String]) -> Result<Vec<Added>, kube::Error> {
    let mut by_resource: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for entry in adds {
        let resource = entry.split(':').next().unwrap_or_default();
        by_resource.entry(resource).or_default().push(entry.clone());
        if let Some(field) = entry.strip_prefix("v1/pods:").filter(|field| field.starts_with("spec.")) {
            for (owner, prefix) in TEMPLATES {
                by_resource.entry(owner).or_default().push(format!("{owner}:{prefix}{field}"));
            }
        }
    }
    let mut found = Vec::new();
    for (resource, entries) in by_resource {
        found.extend(look(client, resource, entries).await?);
    }
    found.retain(|added| added.stored > 0);
    Ok(found)
}

async fn look(client: &Client, resource: &str, entries: Vec<String>) -> Result<Vec<Added>, kube::Error> {
    let named = |what| Added { what, ..Added::default() };
    let mut found: Vec<Added> = entries.into_iter().map(named).collect();
    let Some((api, plural)) = resource.rsplit_once('/') else { return Ok(found) };
    // The kind is not asked for by anybody: lists have none of their items'.
    let objects = objects(client, api, plural, plural);
    let read = list_pages(&objects, PAGES, |object| {
        for added in &mut found {
            if added.what.split_once(':').is_none_or(|(_, path)| has(&object.data, path)) {
                added.stored = added.stored.saturating_add(1);
                if added.names.len() < NAMED {
                    added.names.push(told(&object));
                }
            }
        }
    });
    match read.await {
        Ok(all) => found.iter_mut().for_each(|added| added.all = all),
        // It is not served: nobody can have stored one.
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

fn told(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// Whether there is something at a path such as `spec.containers[].newField`.
fn has(value: &Value, path: &str) -> bool {
    if path.is_empty() {
        return !value.is_null();
    }
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let (field, of_each) = step.strip_suffix("[]").map_or((step, false), |field| (field, true));
    let Some(inner) = value.get(field) else { return false };
    match inner.as_array().filter(|_| of_each) {
        Some(items) => items.iter().any(|item| has(item, rest)),
        None => !of_each && has(inner, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_leads_through_lists() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "new": {"deep": 1}}], "flag": false, "none": null}});
        for (path, found) in [
            ("spec.containers[].new", true),
            ("spec.containers[].new.deep", true),
            ("spec.containers[].old", false),
            ("spec.containers.new", false),
            ("spec.flag", true),
            ("spec.flag[]", false),
            ("spec.none", false),
            ("spec.missing.field", false),
        ] {
            assert_eq!(has(&pod, path), found, "{path}");
        }
    }
}
