//! The operator: observes the world, lets `kaas-lifecycle` decide, acts in small guarded steps, says why.

pub mod admin;
pub mod args;
pub mod callers;
pub mod class;
pub mod client;
mod cluster;
pub mod controllers;
mod etcd;
mod execute;
mod inside;
mod keyring;
pub mod leader;
pub mod metrics;
mod observe;
mod publish;
pub mod run;
pub mod telemetry;
mod tenant;
mod workers;
