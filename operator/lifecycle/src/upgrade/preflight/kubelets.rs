//! Findings about kubelets: they may lag behind API servers by some minor versions, and never lead.

use kaas_crds::KubernetesReleaseSpec;
use kaas_crds::condition::Reason;
use kaas_crds::preflight::Severity;
use kaas_crds::status::Owner;

use super::Finding;
use super::facts::Facts;
use crate::upgrade::path::{KUBELET_LAG, Version, kubelet_fits};

pub(super) fn findings(facts: &Facts, target: &KubernetesReleaseSpec) -> Vec<Finding> {
    let Ok(api) = target.version.parse::<Version>() else { return Vec::new() };
    let unfit = facts.kubelets.iter().filter_map(|(text, nodes)| {
        // A distribution's own suffix says nothing about skew.
        let kubelet: Version = text.split(['-', '+']).next()?.parse().ok()?;
        if kubelet_fits(kubelet, api) {
            return None;
        }
        let others = nodes.count.saturating_sub(nodes.names.len());
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let evidence = format!("kubelet {text}: {}{others}", nodes.names.join(", "));
        let (reason, message, fix) = if kubelet < api {
            (
                Reason::KubeletTooOld,
                format!("nodes run kubelet {text}, more than {KUBELET_LAG} minor versions behind {api}"),
                "replace them by nodes of the version that the control plane runs now",
            )
        } else {
            (
                Reason::KubeletTooNew,
                format!("nodes run kubelet {text}, which is ahead of {api}"),
                "replace them by nodes of the version that the control plane runs now, or choose a newer version",
            )
        };
        Some(Finding {
            reason,
            subject: text.clone(),
            severity: Severity::Error,
            message,
            evidence,
            owner: Owner::Tenant,
            fix: fix.into(),
        })
    });
    unfit.collect()
}
