//! How the operator talks to API servers: which one, and for how long at most.
//!
//! kube repeats refused requests (429, 503, 504) up to fifteen times by itself. That is switched off: every request
//! here has a deadline and a retry policy of its own, and a repeated one would outlive the check that allowed it.

use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{InClusterError, KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};

/// A host that does not answer is noticed after this, not after the kernel's two minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence on a connection on which something was asked. Watches end earlier by themselves, other requests have
/// shorter deadlines where they are made: this is for peers that died without a word.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A request that the kernel cannot hand over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a watch may ask the server to keep it, in seconds: below [`READ_TIMEOUT`], so that a quiet watch ends
/// in order.
pub const WATCH_SECONDS: u32 = 50;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KUBECONFIG, or the default file, is no use.
    #[error(
        "no management cluster: {0}; set KUBECONFIG to a kubeconfig file, or run as a pod with a service account"
    )]
    Kubeconfig(#[from] KubeconfigError),
    /// The pod's service account is no use.
    #[error("no management cluster: {0}; give the pod a service account and let its token be mounted")]
    InCluster(#[from] InClusterError),
    /// The settings make no client.
    #[error("no client for the management cluster: {0}")]
    Client(#[from] kube::Error),
}

/// A client of the management cluster: the one that KUBECONFIG names, else the one that this pod runs in, else the
/// user's default.
pub async fn connect() -> Result<Client, Error> {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let config = if !set("KUBECONFIG") && set("KUBERNETES_SERVICE_HOST") {
        Config::incluster()?
    } else {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await?
    };
    Ok(Client::try_from(bounded(config))?)
}

/// The same server and credentials, with our limits and our name.
pub fn bounded(mut config: Config) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    // Else the time that a connection lay idle in the pool counts as silence.
    config.reset_reader_on_write = true;
    config.headers.retain(|(name, _)| name != USER_AGENT);
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(concat!("kaas-operator/", env!("CARGO_PKG_VERSION")))));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_is_repeated_or_endless() {
        let mut config = Config::new(http::Uri::from_static("https://192.0.2.1:6443"));
        assert!(config.default_retry, "kube's own default: the reason for this module");
        config.headers.push((USER_AGENT, HeaderValue::from_static("somebody")));
        let config = bounded(config);
        assert!(!config.default_retry);
        assert!(
            config.connect_timeout.is_some()
                && config.read_timeout.is_some()
                && config.write_timeout.is_some()
        );
        assert!(Duration::from_secs(u64::from(WATCH_SECONDS) + 5) < config.read_timeout.unwrap());
        assert_eq!(config.headers.iter().filter(|(name, _)| name == USER_AGENT).count(), 1);
    }
}
