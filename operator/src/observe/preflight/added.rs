//! How much of what is new in a version is in use: objects of new kinds, and objects that have new fields.

use std::collections::BTreeMap;

use kaas_lifecycle::upgrade::preflight::facts::Added;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::{NAMED, PAGE};

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
    let whole = |what| Added { what, all: true, ..Added::default() };
    let mut found: Vec<Added> = entries.into_iter().map(whole).collect();
    let Some((api, plural)) = resource.rsplit_once('/') else { return Ok(found) };
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    // The kind is not asked for by anybody: lists have none of their items'.
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, plural), plural);
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let mut params = ListParams::default().limit(PAGE);
    for page in 1..=PAGES {
        let list = match objects.list(&params).await {
            // It is not served: nobody can have stored one.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            other => other?,
        };
        for object in &list.items {
            for added in &mut found {
                if added.what.split_once(':').is_none_or(|(_, path)| has(&object.data, path)) {
                    added.stored = added.stored.saturating_add(1);
                    if added.names.len() < NAMED {
                        added.names.push(told(object));
                    }
                }
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(_) if page == PAGES => found.iter_mut().for_each(|added| added.all = false),
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
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
    let Some((step, rest)) =
        path.split_once('.').map_or(Some((path, "")), Some).filter(|(step, _)| !step.is_empty())
    else {
        return !value.is_null();
    };
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
