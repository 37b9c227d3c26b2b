//! Findings about PodDisruptionBudgets: one that never lets a pod go holds up the drain of every worker it has a pod on.

use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;

use super::Finding;
use super::facts::{Budget, Facts};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    // Without nodes there is nothing to drain.
    if facts.kubelets.is_empty() {
        return Vec::new();
    }
    facts.budgets.iter().filter_map(finding).collect()
}

fn finding(budget: &Budget) -> Option<Finding> {
    let Budget { namespace, name, rule, expected, healthy, desired, failed } = budget;
    let finding = |message, evidence: String, fix: &str| Finding {
        reason: Reason::BudgetBlocksDrain,
        subject: format!("{namespace}/{name}"),
        severity: Severity::Error,
        message,
        evidence,
        owner: Owner::Tenant,
        fix: fix.into(),
    };
    if let Some(why) = failed {
        return Some(finding(
            format!("PodDisruptionBudget {namespace}/{name} lets no pod go: its controller cannot judge it"),
            why.clone(),
            "select pods of a Deployment, StatefulSet or ReplicaSet, or take the budget away",
        ));
    }
    // Pods that are merely unwell now get well; here none may go even when all are.
    (*expected > 0 && desired >= expected).then(|| {
        finding(
            format!("PodDisruptionBudget {namespace}/{name} never lets a pod go"),
            format!("{rule} of {expected} pods, {healthy} healthy: none may go even when all are healthy"),
            "allow one disruption (maxUnavailable: 1) or run one replica more",
        )
    })
}
