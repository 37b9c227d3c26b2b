//! What the operator does while it leads: one controller a kind, and the watches that wake them.

use std::pin::pin;

use futures::future::select;

use crate::run::Context;

mod kubernetes_release;
mod orphan;
mod tenant_cluster;

/// Runs every controller until it is told to stop.
pub async fn run(context: Context) {
    let (catalogue, refreshing) = kubernetes_release::catalogue(&context.client);
    let controllers = tenant_cluster::run(&context, catalogue);
    // The catalogue is only read: it ends with the controllers.
    select(pin!(controllers), pin!(refreshing)).await;
}
