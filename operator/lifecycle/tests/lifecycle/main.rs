//! Scenarios: days in the life of a tenant cluster, with a clock that only tests move.
#![cfg(test)]

mod anything;
mod breaches;
mod creation;
mod deletion;
mod etcd_snapshot;
mod etcd_version;
mod membership;
mod model;
mod properties;
mod revisions;
mod safety;
mod schema;
mod tunnel;
mod upgrade;
mod world;
