//! Keys, certificate authorities, leaf certificates and kubeconfigs of a Kubernetes control plane.
//!
//! The crate knows no clock and no lifetime of its own: every call that dates a certificate takes a
//! [`Validity`]. All new keys are ECDSA P-256. Private keys never appear in a `Debug` output or an error.
//!
//! ```
//! use jiff::{SignedDuration, Timestamp};
//! use kaas_pki::{Authority, Certificate, Request, Usages, Validity};
//!
//! # fn main() -> Result<(), kaas_pki::Error> {
//! let now: Timestamp = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000);
//! let ca = Authority::generate("kubernetes-ca", Validity::starting(now, SignedDuration::from_hours(10 * 8766)))?;
//! let request = Request {
//!     common_name: "kube-apiserver".into(),
//!     organizations: vec![],
//!     dns_names: vec!["kubernetes.default.svc".into()],
//!     ip_addresses: vec![[10, 96, 0, 1].into()],
//!     usages: Usages::Server,
//! };
//! let issued = ca.issue(&request, Validity::starting(now, SignedDuration::from_hours(8766)))?;
//!
//! let leaf = Certificate::parse(&issued.certificate_pem)?;
//! assert!(leaf.is_issued_by(&Certificate::parse(ca.certificate_pem())?));
//! # Ok(())
//! # }
//! ```

mod authority;
mod certificate;
mod error;
mod key;
mod kubeconfig;
mod request;
mod signing_request;
mod validity;

pub use authority::{Authority, Issued};
pub use certificate::Certificate;
pub use error::Error;
pub use key::ServiceAccountKey;
pub use kubeconfig::{Kubeconfig, kubeconfig};
pub use request::{Request, Usages};
pub use signing_request::SigningRequest;
pub use validity::{CLOCK_SKEW, Validity};
