//! What the operator does while it leads: one controller a kind, and the watches that wake them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select;
use futures::join;
use futures::stream::{self, Stream};
use kaas_crds::name;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{Lookup, ObjectRef};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::run::Context;
use crate::tenant::{Name, Tenants};
use crate::workers::attendance::Attendants;
use crate::workers::fleet::{Fleet, wakes};
use crate::workers::{Yard, orphan as worker_orphan};

mod back_off;
mod kubernetes_release;
mod orphan;
mod tenant_cluster;
mod turn;
mod worker;
mod worker_pool;

pub(crate) use kubernetes_release::Catalogue;

/// Wakes that come together are served together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A watch that says nothing for so long is asked again: a dead connection must not look like a quiet world.
pub(crate) const WATCH_TIMEOUT_SECONDS: u32 = 55;

/// Runs every controller until it is told to stop.
pub async fn run(context: Context) {
    let client = &context.client;
    let (catalogue, refreshing) = kubernetes_release::catalogue(client);
    let (wakes, woken) = wakes();
    let (fleet, events, watching) = Fleet::watch(client, wakes);
    let told = fleet.clone();
    let bell = Arc::new(move |(namespace, cluster): &Name| told.cluster_turned(namespace, cluster));
    let tenants = Tenants::new(bell, context.settings.probe_interval, context.metrics.clone());
    let (pools, workers) = fleet.stores();
    let yard = Yard::new(context.clone(), catalogue.clone(), fleet, tenants.clone(), Attendants::default());
    let reporter = Reporter {
        controller: name::FIELD_MANAGER.into(),
        instance: Some(context.settings.identity.clone()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let controllers = async {
        join!(
            tenant_cluster::run(&context, catalogue, &yard, recorder.clone(), woken.clusters),
            turn::run(yard.clone(), recorder.clone(), pools, events.pools, woken.pools),
            turn::run(yard.clone(), recorder.clone(), workers, events.workers, woken.workers),
        );
    };
    // The rest only reads, or is cut off between two writes: it ends with the controllers.
    let rest = async {
        join!(refreshing, watching, worker_orphan::sweep(yard.clone()));
    };
    select(pin!(controllers), pin!(rest)).await;
}

/// Objects that somebody woke by name.
fn named<K: Lookup>(woken: UnboundedReceiver<Name>) -> impl Stream<Item = ObjectRef<K>>
where
    K::DynamicType: Default,
{
    stream::unfold(woken, |mut woken| async move {
        let (namespace, name) = woken.recv().await?;
        Some((ObjectRef::new(&name).within(&namespace), woken))
    })
}
