//! A real Kubernetes on one machine.
//!
//! [`cluster`] is a whole local cluster: etcd, control plane, containerd, kubelet, kube-proxy, DNS and storage,
//! in a network namespace of its own. `kaas-local` is its command line.
//!
//! [`apiserver`] is a real kube-apiserver with its etcd and nothing else, ready in seconds: what contract tests
//! talk to. Both build what they run when the cache lacks it.

mod addon;
pub mod apiserver;
mod audit;
pub mod bench;
mod cache;
mod cgroup;
pub mod cluster;
pub mod compile;
mod component;
mod control_plane;
mod credentials;
mod demo;
mod digest;
mod error;
pub mod flow;
pub mod footprint;
mod image;
mod invocation;
mod journal;
pub mod journey;
pub mod kubectl;
pub mod layout;
mod lock;
mod machine;
mod namespace;
mod network;
mod node;
mod operator;
pub mod prerequisite;
mod probe;
mod process;
mod record;
pub mod registry;
pub mod release;
pub mod suite;
pub mod tally;
pub mod terminal;
mod wait;

pub use error::Error;
