//! What listens where the clients of a played pod look for it: TLS as the pod would speak it, with the key material
//! that the operator made for it, and behind it a real server that many tenants share.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Error;
use crate::probe::Probe;

/// A server behind doors.
#[derive(Clone)]
pub(super) struct Behind {
    address: SocketAddr,
    /// How to speak to it; without one in the clear.
    config: Option<Arc<ClientConfig>>,
    /// What is spoken inside of TLS.
    protocol: &'static str,
}

impl Behind {
    /// A server that wants TLS and HTTP/1.1, as the user of a probe.
    pub(super) fn api(probe: Probe) -> Self {
        let (address, config) = probe.into_parts();
        Self { address, config: Some(config), protocol: "http/1.1" }
    }

    /// A server that speaks HTTP/2 in the clear.
    pub(super) fn clear(address: SocketAddr) -> Self {
        Self { address, config: None, protocol: "h2" }
    }
}

/// Certificate, key, and the authority of the clients, in PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) clients: String,
}

impl Identity {
    fn server(&self, protocol: &str) -> Result<ServerConfig, Error> {
        let fail = |error: &dyn std::fmt::Display| Error::Invalid(format!("TLS of a played pod: {error}"));
        let chain = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| fail(&error))
        };
        let mut clients = RootCertStore::empty();
        for authority in chain(&self.clients)? {
            clients.add(authority).map_err(|error| fail(&error))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider))
                .build()
                .map_err(|error| fail(&error))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| fail(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain(&self.certificate)?, key)
            .map_err(|error| fail(&error))?;
        config.alpn_protocols = vec![protocol.into()];
        Ok(config)
    }
}

/// An open door; dropped, it closes with all its connections.
pub(super) struct Door(AbortHandle);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Door {
    pub(super) async fn open(
        address: SocketAddr,
        behind: Behind,
        identity: &Identity,
    ) -> Result<Self, Error> {
        let config = Arc::new(identity.server(behind.protocol)?);
        let listener =
            TcpListener::bind(address).await.map_err(Error::io("listen at", address.to_string()))?;
        let serving = async move {
            let mut connections = JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok((stream, _)) = listener.accept().await else { continue };
                connections.spawn(pass(stream, Arc::clone(&config), behind.clone()));
            }
        };
        Ok(Self(tokio::spawn(serving).abort_handle()))
    }
}

/// One connection; whoever is refused or leaves ends it.
async fn pass(stream: TcpStream, config: Arc<ServerConfig>, behind: Behind) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut front = TlsAcceptor::from(config).accept(stream).await?;
    let mut stream = TcpStream::connect(behind.address).await?;
    stream.set_nodelay(true)?;
    let Some(config) = behind.config else {
        return copy_bidirectional(&mut front, &mut stream).await.map(drop);
    };
    let mut back = TlsConnector::from(config).connect(ServerName::from(behind.address.ip()), stream).await?;
    copy_bidirectional(&mut front, &mut back).await.map(drop)
}
