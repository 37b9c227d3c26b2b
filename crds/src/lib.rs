//! The `kaas.dev` API: kinds, names, quantities, conditions.
//!
//! Everything that both the operator and its users must agree on lives here, and nothing that does I/O.

#![allow(unreachable_pub, reason = "the KubeSchema derive repeats each type in a private scope")]

pub mod addons;
pub mod condition;
pub mod cpu;
pub mod instance_type;
pub mod kubernetes_release;
pub mod maintenance;
pub mod name;
pub mod node;
pub mod period;
pub mod preflight;
pub mod quantity;
pub mod runtime_config;
pub mod status;
pub mod tenant_cluster;
pub mod worker;
pub mod worker_pool;

pub use condition::{ConditionType, Reason};
pub use cpu::Cpu;
pub use instance_type::{InstanceType, InstanceTypeSpec};
pub use kubernetes_release::{KubernetesRelease, KubernetesReleaseSpec, KubernetesReleaseStatus};
pub use maintenance::Maintenance;
pub use period::Period;
pub use preflight::Preflight;
pub use quantity::Quantity;
pub use runtime_config::RuntimeConfig;
pub use status::TenantClusterStatus;
pub use tenant_cluster::{TenantCluster, TenantClusterSpec};
pub use worker::{Worker, WorkerSpec, WorkerStatus};
pub use worker_pool::{WorkerPool, WorkerPoolSpec, WorkerPoolStatus};
