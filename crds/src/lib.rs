//! The `kaas.dev` API: kinds, names, quantities, conditions.
//!
//! Everything that both the operator and its users must agree on lives here, and nothing that does I/O.

#![allow(unreachable_pub, reason = "the KubeSchema derive repeats each type in a private scope")]

pub mod condition;
pub mod kubernetes_release;
pub mod name;
pub mod quantity;
pub mod status;
pub mod tenant_cluster;

pub use condition::{ConditionType, Reason};
pub use kubernetes_release::{KubernetesRelease, KubernetesReleaseSpec, KubernetesReleaseStatus};
pub use quantity::Quantity;
pub use status::TenantClusterStatus;
pub use tenant_cluster::{TenantCluster, TenantClusterSpec};
