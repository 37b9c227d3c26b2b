//! Every decision of kaas: observe the world, decide purely, act in small guarded steps, say why.
//!
//! This crate knows no clock, no randomness, no environment and no network. Time is data.

pub mod action;
pub mod addons;
pub mod desired;
pub mod difference;
pub mod drain;
pub mod endpoint;
pub mod etcd;
pub mod key_material;
pub mod lint;
pub mod object;
pub mod observed;
pub mod plan;
pub mod report;
pub mod revision;
pub mod rollout;
pub mod tenant;
pub mod upgrade;
pub mod validated;
mod verdict;
pub mod workers;
