//! What listens where pods and node ports are reached: TLS as the pod would speak it, with the key material that its
//! Secrets hold at this moment, and behind it the tenant's real API server or etcd.

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

/// A server behind a door, and how to speak to it.
#[derive(Clone)]
pub(crate) struct Behind {
    address: SocketAddr,
    protocol: &'static str,
    /// Without one it is spoken to in the clear.
    config: Option<Arc<ClientConfig>>,
}

/// Certificate, key, and authority of the clients, in PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) clients: String,
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    roots
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

impl Behind {
    /// A server that asks for a client certificate.
    pub(crate) fn tls(
        address: SocketAddr,
        protocol: &'static str,
        authority: &str,
        certificate: &str,
        key: &str,
    ) -> Self {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots(authority));
        let mut config = builder.with_client_auth_cert(chain(certificate), key).unwrap();
        config.alpn_protocols = vec![protocol.into()];
        Behind { address, protocol, config: Some(Arc::new(config)) }
    }

    /// A server without TLS.
    pub(crate) fn clear(address: SocketAddr, protocol: &'static str) -> Self {
        Behind { address, protocol, config: None }
    }
}

impl Identity {
    fn server(&self, protocol: &str) -> Option<Arc<ServerConfig>> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&self.clients))).build().ok()?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        let mut config = builder.with_single_cert(chain(&self.certificate), key).ok()?;
        config.alpn_protocols = vec![protocol.into()];
        Some(Arc::new(config))
    }
}

/// An open door; dropped, it closes with all its connections.
pub(crate) struct Door(AbortHandle);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Door {
    /// Opens a door. The identity is asked for at each connection, as a server reads its mounted files again.
    pub(crate) async fn open(
        address: SocketAddr,
        behind: Behind,
        identity: impl Fn() -> Option<Identity> + Send + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let serving = async move {
            let mut connections = JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok((stream, _)) = listener.accept().await else { continue };
                let Some(config) = identity().and_then(|identity| identity.server(behind.protocol)) else {
                    continue;
                };
                connections.spawn(pass(stream, config, behind.clone()));
            }
        };
        Ok(Door(tokio::spawn(serving).abort_handle()))
    }
}

/// One connection; whoever is refused or leaves ends it.
async fn pass(stream: TcpStream, config: Arc<ServerConfig>, behind: Behind) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut front = TlsAcceptor::from(config).accept(stream).await?;
    let mut stream = TcpStream::connect(behind.address).await?;
    let _ = stream.set_nodelay(true);
    let Some(config) = behind.config else {
        return copy_bidirectional(&mut front, &mut stream).await.map(drop);
    };
    let server = ServerName::from(behind.address.ip());
    let mut back = TlsConnector::from(config).connect(server, stream).await?;
    copy_bidirectional(&mut front, &mut back).await.map(drop)
}
