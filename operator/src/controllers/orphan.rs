//! Control-plane namespaces whose TenantCluster is gone: reported, never swept. They may hold somebody's only data.

use std::collections::BTreeSet;
use std::time::Duration;

use kaas_crds::name;
use kaas_lifecycle::object::Kind;
use kube::runtime::reflector::Store;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::tenant_cluster::Known;
use crate::cluster;
use crate::run::Context;

/// Looked for so often: an orphan is no emergency, and stays one until somebody decides.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Counts orphans for the metric, and names each in the log when it appears and when it is gone.
pub(super) async fn report(context: Context, clusters: Store<Known>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = BTreeSet::new();
    // Until the TenantClusters were read for the first time, everything would look orphaned.
    let _ = clusters.wait_until_ready().await;
    loop {
        ticks.tick().await;
        let selector = format!("{}={},{}", name::MANAGED_BY_LABEL, name::MANAGED_BY, name::TENANT_UID_LABEL);
        let namespaces = match cluster::list(&context.client, Kind::Namespace, None, &selector).await {
            Ok(found) => found,
            Err(error) => {
                debug!(%error, "namespaces were not read");
                continue;
            }
        };
        let living: BTreeSet<String> =
            clusters.state().iter().filter_map(|cluster| cluster.metadata.uid.clone()).collect();
        let orphans: BTreeSet<String> = namespaces
            .iter()
            .filter(|(_, live)| !live.terminating)
            .filter(|(_, live)| {
                let labels = live.get("/metadata/labels");
                let uid = labels.and_then(|labels| labels.get(name::TENANT_UID_LABEL)?.as_str());
                uid.is_some_and(|uid| !living.contains(uid))
            })
            .map(|(reference, _)| reference.name.clone())
            .collect();
        for namespace in orphans.difference(&known) {
            warn!(namespace, "a control plane without a TenantCluster: nothing is done about it unasked");
        }
        for namespace in known.difference(&orphans) {
            info!(namespace, "no longer without a TenantCluster");
        }
        context.metrics.tenants.orphaned(orphans.len());
        known = orphans;
    }
}
