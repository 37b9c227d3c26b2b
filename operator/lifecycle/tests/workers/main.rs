//! Pools and workers: tables, properties and the exhaustive model, on a world that only tests move.
#![cfg(test)]

mod anything;
mod breaches;
mod fleet;
mod model;
mod mutants;
mod pool;
mod properties;
mod report;
mod roll;
#[path = "../lifecycle/schema.rs"]
mod schema;
mod worker;
