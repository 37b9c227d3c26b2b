//! Findings about webhooks without whose answer nothing is written. One that nobody answers, and that is asked about what
//! an upgrade writes, stops it half-way; one that runs on the workers which the upgrade replaces may come to that.

use std::collections::BTreeSet;

use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;
use kube::core::SelectorExt;

use super::Finding;
use super::facts::{Facts, Rule, Webhook};

/// What an upgrade cannot do without: nodes that register, leaders of controllers, and what runs in `kube-system`.
const NEEDED: [(&str, &str, bool); 8] = [
    ("", "nodes", false),
    ("", "pods", true),
    ("", "configmaps", true),
    ("", "serviceaccounts", true),
    ("apps", "daemonsets", true),
    ("apps", "deployments", true),
    ("coordination.k8s.io", "leases", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
];

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    facts.webhooks.iter().filter_map(|webhook| finding(webhook, facts)).collect()
}

fn finding(webhook: &Webhook, facts: &Facts) -> Option<Finding> {
    let caught = caught(webhook, facts);
    let Webhook { kind, configuration, name, .. } = webhook;
    let finding = |reason, severity, message: String, evidence, fix: &str| Finding {
        reason,
        subject: format!("{configuration}/{name}"),
        severity,
        message: format!("webhook {name} of {kind} {configuration} {message}"),
        evidence,
        owner: Owner::Tenant,
        fix: fix.into(),
    };
    let about = || format!("it is asked about {} in kube-system", caught.join(", "));
    match &webhook.service {
        Some((namespace, service)) if !webhook.answered => {
            let severity = if caught.is_empty() { Severity::Warning } else { Severity::Error };
            let mut evidence = format!("Service {namespace}/{service} has no ready endpoint");
            if !caught.is_empty() {
                evidence = format!("{evidence}; {}", about());
            }
            Some(finding(
                Reason::WebhookUnavailable,
                severity,
                "must answer (failurePolicy: Fail), and nobody does".into(),
                evidence,
                "bring its pods back, or delete the webhook configuration",
            ))
        }
        _ if caught.is_empty() => None,
        _ => Some(finding(
            Reason::WebhookInTheWay,
            Severity::Warning,
            "must answer (failurePolicy: Fail) for what the upgrade itself writes".into(),
            about(),
            "exclude kube-system by its namespaceSelector, and nodes and leases by its rules",
        )),
    }
}

/// What of it an upgrade needs.
fn caught(webhook: &Webhook, facts: &Facts) -> Vec<String> {
    if webhook.picky {
        // Whether our objects are among those that it picks is not known.
        return Vec::new();
    }
    let system = webhook.namespaces.matches(&facts.system_labels);
    let needed = NEEDED.iter().filter(|(group, resource, namespaced)| {
        (system || !namespaced) && webhook.rules.iter().any(|rule| asks(rule, group, resource, *namespaced))
    });
    needed.map(|(_, resource, _)| (*resource).to_owned()).collect()
}

fn asks(rule: &Rule, group: &str, resource: &str, namespaced: bool) -> bool {
    let has = |set: &BTreeSet<String>, word: &str| set.contains(word) || set.contains("*");
    let scope = match rule.scope.as_str() {
        "Cluster" => !namespaced,
        "Namespaced" => namespaced,
        _ => true,
    };
    scope
        && has(&rule.groups, group)
        && (has(&rule.resources, resource) || rule.resources.contains("*/*"))
        && (has(&rule.operations, "CREATE") || rule.operations.contains("UPDATE"))
}
