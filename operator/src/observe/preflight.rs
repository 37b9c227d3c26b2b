//! What is inside a tenant that could speak against its next upgrade. It is read only while there is a version to go to, and
//! remembered for minutes: at rest nobody waits for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{RuleWithOperations, ServiceReference};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kaas_crds::KubernetesReleaseSpec;
use kaas_crds::name::{COMPONENT_LABEL, component};
use kaas_lifecycle::desired::CALLERS_PORT;
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::upgrade::preflight::facts::{Budget, Callers, Facts, Nodes, Removed, Rule, Webhook};
use kaas_lifecycle::upgrade::preflight::{self, api};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::{GroupVersionKind, Selector};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::pod;

mod added;

use crate::cluster::{DEADLINE, within};
use crate::keyring::Keyring;
use crate::tenant;

/// What was read is good for so long while nobody waits for it ...
const AT_REST: Duration = Duration::from_secs(5 * 60);
/// ... and for so long while somebody does.
const ASKED: Duration = Duration::from_secs(20);
/// So many nodes of one version are named.
const NAMED: usize = 3;
/// A page of what may be many.
const PAGE: u32 = 500;
/// A process beside an API server answers at once, or is not there.
const CALLERS: Duration = Duration::from_secs(3);
/// Services whose endpoints are looked for: a cluster with more webhooks than that has other worries.
const MOST_SERVICES: usize = 64;

/// What was read last.
#[derive(Default)]
pub(crate) struct Memory(Mutex<Option<Look>>);

/// A look inside.
struct Look {
    at: Instant,
    /// The version that it was for.
    target: String,
    /// `None` when it failed.
    facts: Option<Facts>,
}

impl Memory {
    /// What the last look for this version gave, if it is still good. One that failed is not tried again at once: who
    /// waits for it waits in a reconcile.
    fn recall(&self, target: &str, good_for: Duration) -> Option<Option<Facts>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let look = held.as_ref().filter(|look| look.target == target)?;
        let good_for = if look.facts.is_some() { good_for } else { ASKED };
        (look.at.elapsed() < good_for).then(|| look.facts.clone())
    }

    fn keep(&self, look: Option<Look>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }
}

/// What speaks against the next upgrade, as far as it is inside; `None` when there is no version to go to, or not all of it
/// could be read. The client is of an API that answers.
pub(super) async fn observe(
    client: Option<&Client>,
    memory: &Memory,
    observed: &Observed,
    pods: &[Pod],
    keyring: &Keyring,
) -> Option<Facts> {
    let Some(target) = preflight::target(observed) else {
        memory.keep(None);
        return None;
    };
    let good_for = if preflight::asked(observed) { ASKED } else { AT_REST };
    if let Some(facts) = memory.recall(&target.version, good_for) {
        return facts;
    }
    // While its API does not answer, what was seen a moment ago stands.
    let back = preflight::serving_release(observed)
        .filter(|from| preflight::back::is_back(&from.version, &target.version));
    let deadline = if back.is_some() { DEADLINE.saturating_mul(3) } else { DEADLINE };
    let read = within(deadline, read(client?, target, back)).await;
    let mut facts =
        read.inspect_err(|error| tracing::debug!(%error, "nothing was read for the preflight")).ok();
    if let Some(facts) = facts.as_mut().filter(|facts| !facts.removed.is_empty()) {
        facts.callers = callers(pods, keyring).await;
    }
    let target = target.version.clone();
    memory.keep(Some(Look { at: Instant::now(), target, facts: facts.clone() }));
    facts
}

/// Reads all of it, one after the other on the connection that is there; with the release that serves where the target is
/// the one before.
async fn read(
    client: &Client,
    target: &KubernetesReleaseSpec,
    back: Option<&KubernetesReleaseSpec>,
) -> Result<Facts, kube::Error> {
    let system = Api::<Namespace>::all(client.clone()).get_opt("kube-system").await?;
    Ok(Facts {
        target: target.version.clone(),
        kubelets: kubelets(client).await?,
        budgets: budgets(client).await?,
        webhooks: webhooks(client).await?,
        system_labels: system.map(|namespace| namespace.labels().clone()).unwrap_or_default(),
        removed: removed(client, target).await?,
        added: match back {
            Some(from) => added::added(client, &from.adds).await?,
            None => Vec::new(),
        },
        looked_for: back.map_or(0, |from| from.adds.len()),
        callers: None,
    })
}

/// Everything of a kind, page by page.
async fn list<K>(api: &Api<K>, each: impl FnMut(K)) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    list_pages(api, usize::MAX, each).await.map(drop)
}

/// So many pages of a kind; whether that was everything.
async fn list_pages<K>(api: &Api<K>, pages: usize, mut each: impl FnMut(K)) -> Result<bool, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    for _ in 0..pages {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut each);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(true),
        }
    }
    Ok(false)
}

/// Objects of a resource, by its group and version as one word.
fn objects(client: &Client, api: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let kind = GroupVersionKind::gvk(group, version, kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

async fn kubelets(client: &Client) -> Result<BTreeMap<String, Nodes>, kube::Error> {
    let mut found: BTreeMap<String, Nodes> = BTreeMap::new();
    list(&Api::<Node>::all(client.clone()), |node| {
        let name = node.name_any();
        let info = node.status.and_then(|status| status.node_info);
        // One that has not registered fully has no kubelet yet.
        let Some(version) = info.map(|info| info.kubelet_version).filter(|version| !version.is_empty())
        else {
            return;
        };
        let nodes = found.entry(version).or_default();
        nodes.count += 1;
        if nodes.names.len() < NAMED {
            nodes.names.push(name);
        }
    })
    .await?;
    Ok(found)
}

async fn budgets(client: &Client) -> Result<Vec<Budget>, kube::Error> {
    let mut found = Vec::new();
    list(&Api::<PodDisruptionBudget>::all(client.clone()), |budget| found.extend(blocking(&budget))).await?;
    Ok(found)
}

/// A budget that lets nobody go now, as far as its controller has looked at it.
fn blocking(budget: &PodDisruptionBudget) -> Option<Budget> {
    let (spec, status) = (budget.spec.as_ref()?, budget.status.as_ref()?);
    if status.disruptions_allowed > 0 || status.observed_generation < budget.metadata.generation {
        return None;
    }
    let text = |number: &IntOrString| match number {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(share) => share.clone(),
    };
    let rule = match (&spec.min_available, &spec.max_unavailable) {
        (Some(least), _) => format!("minAvailable: {}", text(least)),
        (None, Some(most)) => format!("maxUnavailable: {}", text(most)),
        (None, None) => String::new(),
    };
    let failed = status.conditions.iter().flatten().find(|condition| condition.reason == "SyncFailed");
    Some(Budget {
        namespace: budget.namespace().unwrap_or_default(),
        name: budget.name_any(),
        rule,
        expected: status.expected_pods,
        healthy: status.current_healthy,
        desired: status.desired_healthy,
        failed: failed.map(|condition| condition.message.clone()),
    })
}

/// Kinds of configurations of webhooks, which are written alike.
const CONFIGURATIONS: [(&str, &str); 2] = [
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
];

async fn webhooks(client: &Client) -> Result<Vec<Webhook>, kube::Error> {
    let mut found = Vec::new();
    for (kind, plural) in CONFIGURATIONS {
        let configurations = objects(client, "admissionregistration.k8s.io/v1", kind, plural);
        list(&configurations, |mut configuration| {
            let hooks = configuration.data.get_mut("webhooks").map(Value::take).unwrap_or_default();
            let hooks: Vec<Hook> = serde_json::from_value(hooks).unwrap_or_default();
            let name = configuration.name_any();
            found.extend(hooks.into_iter().filter_map(|hook| hook.facts(kind, &name)));
        })
        .await?;
    }
    let mut answered: BTreeMap<(String, String), bool> = BTreeMap::new();
    for webhook in &mut found {
        let Some(service) = &webhook.service else { continue };
        webhook.answered = match answered.get(service) {
            Some(known) => *known,
            // Not looked for is not known to be away.
            None if answered.len() >= MOST_SERVICES => true,
            None => is_answered(client, service).await?,
        };
        answered.insert(service.clone(), webhook.answered);
    }
    Ok(found)
}

/// A webhook as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    name: String,
    client_config: Called,
    failure_policy: Option<String>,
    #[serde(default)]
    rules: Vec<RuleWithOperations>,
    namespace_selector: Option<LabelSelector>,
    object_selector: Option<LabelSelector>,
    #[serde(default)]
    match_conditions: Vec<Value>,
}

/// Where it is called.
#[derive(Deserialize)]
struct Called {
    service: Option<ServiceReference>,
}

impl Hook {
    /// One without whose answer nothing is written.
    fn facts(self, kind: &str, configuration: &str) -> Option<Webhook> {
        let set = |texts: Option<Vec<String>>| texts.into_iter().flatten().collect();
        let rules = self.rules.into_iter().map(|rule| Rule {
            groups: set(rule.api_groups),
            resources: set(rule.resources),
            operations: set(rule.operations),
            scope: rule.scope.unwrap_or_else(|| "*".into()),
        });
        // Which objects these select is not judged here.
        let picky = !self.match_conditions.is_empty()
            || self.object_selector.is_some_and(|selector| selector != LabelSelector::default());
        // One that cannot be understood selects all: so much is safe to say.
        let namespaces = self.namespace_selector.and_then(|selector| Selector::try_from(selector).ok());
        (self.failure_policy.as_deref() != Some("Ignore")).then(|| Webhook {
            kind: kind.to_owned(),
            configuration: configuration.to_owned(),
            name: self.name,
            service: self.client_config.service.map(|service| (service.namespace, service.name)),
            answered: false,
            rules: rules.collect(),
            namespaces: namespaces.unwrap_or_default(),
            picky,
        })
    }
}

/// Whether a Service has a ready endpoint.
async fn is_answered(client: &Client, (namespace, service): &(String, String)) -> Result<bool, kube::Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().match_any().labels(&format!("kubernetes.io/service-name={service}"));
    let found = slices.list(&params).await?;
    let mut endpoints = found.items.iter().flat_map(|slice| slice.endpoints.iter());
    // Nothing said means ready.
    Ok(endpoints
        .any(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)))
}

/// Resources that are served and that the target does not have.
async fn removed(client: &Client, target: &KubernetesReleaseSpec) -> Result<Vec<Removed>, kube::Error> {
    if target.removes.is_empty() {
        return Ok(Vec::new());
    }
    let groups = client.list_api_groups().await?.groups;
    let served: Vec<String> =
        groups.into_iter().flat_map(|group| group.versions).map(|version| version.group_version).collect();
    let is_removed = |api: &str, resource: &str| {
        target.removes.iter().any(|entry| entry == api || *entry == format!("{api}/{resource}"))
    };
    let mut apis: Vec<&str> = target.removes.iter().map(|entry| api(entry)).collect();
    apis.sort_unstable();
    apis.dedup();
    let mut found = Vec::new();
    for name in apis.into_iter().filter(|name| served.iter().any(|served| served == name)) {
        let group = name.split('/').next().unwrap_or_default();
        let mut others = Vec::new();
        for other in served.iter().filter(|other| *other != name && other.starts_with(&format!("{group}/"))) {
            others.push((other.as_str(), client.list_api_group_resources(other).await?.resources));
        }
        let resources = client.list_api_group_resources(name).await?.resources;
        for resource in resources.iter().filter(|resource| !resource.name.contains('/')) {
            if !is_removed(name, &resource.name) {
                continue;
            }
            let elsewhere = others.iter().find(|(other, resources)| {
                !is_removed(other, &resource.name) && resources.iter().any(|own| own.name == resource.name)
            });
            let stored = match elsewhere {
                Some(_) => 0,
                None => count(client, name, resource).await?,
            };
            found.push(Removed {
                api: name.to_owned(),
                resource: resource.name.clone(),
                elsewhere: elsewhere.map(|(other, _)| (*other).to_owned()),
                stored,
            });
        }
    }
    Ok(found)
}

/// Who called, as all API servers that have clients saw it together; `None` when one of them was not heard.
async fn callers(pods: &[Pod], keyring: &Keyring) -> Option<Callers> {
    let servers = pods.iter().filter(|pod| {
        pod.labels().get(COMPONENT_LABEL).map(String::as_str) == Some(component::KUBE_APISERVER)
            && pod::is_ready(pod)
            && pod.metadata.deletion_timestamp.is_none()
    });
    let mut together: Option<Callers> = None;
    for server in servers {
        let watches = server.spec.iter().flat_map(|spec| &spec.containers);
        if !watches.into_iter().any(|container| container.name == component::AUDIT_CALLERS) {
            return None;
        }
        let address: IpAddr = server.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let url = format!("https://{}", SocketAddr::new(address, CALLERS_PORT));
        let request = http::Request::get("/callers").body(Vec::new()).ok()?;
        let asking = async { tenant::beside(&url, keyring)?.request::<Callers>(request).await.ok() };
        let heard = tokio::time::timeout(CALLERS, asking).await.ok().flatten()?;
        together = Some(match together {
            Some(mut all) => {
                all.since = all.since.max(heard.since);
                all.watched.retain(|api| heard.watched.contains(api));
                all.seen.extend(heard.seen);
                all
            }
            None => heard,
        });
    }
    together
}

/// How many objects of a resource are stored: one is read, and how many more there are is told.
async fn count(client: &Client, api: &str, resource: &APIResource) -> Result<u64, kube::Error> {
    if !resource.verbs.iter().any(|verb| verb == "list") {
        return Ok(0);
    }
    let page = objects(client, api, &resource.kind, &resource.name)
        .list_metadata(&ListParams::default().limit(1))
        .await?;
    let more = page.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok());
    Ok(more.unwrap_or_default().saturating_add(page.items.len() as u64))
}

#[cfg(test)]
mod tests;
