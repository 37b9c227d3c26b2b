//! What listens where pods and node ports are reached: TLS as the pod would speak it, with the key material that its
//! Secrets hold at this moment, and behind it the tenant's real API server or etcd.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::wire::{Side, Wire};

/// The wire of the operator that there is now: whoever speaks to the tenant's API is on it.
pub(crate) type Line = Arc<Mutex<Option<Arc<Wire>>>>;

/// What is behind a door.
#[derive(Clone)]
pub(crate) enum Behind {
    /// A server that is spoken to in the clear, by HTTP/2.
    Server(SocketAddr),
    /// The tenant's API.
    Api(Line),
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
    fn protocol(&self) -> &'static str {
        match self {
            Behind::Server(_) => "h2",
            Behind::Api(_) => "http/1.1",
        }
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
                let config = identity().and_then(|identity| identity.server(behind.protocol()));
                let Some(config) = config else {
                    continue;
                };
                connections.spawn(pass(stream, config, behind.clone()));
            }
        };
        Ok(Door(tokio::spawn(serving).abort_handle()))
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One connection; whoever is refused or leaves ends it.
async fn pass(stream: TcpStream, config: Arc<ServerConfig>, behind: Behind) -> Result<(), Error> {
    let _ = stream.set_nodelay(true);
    let mut front = TlsAcceptor::from(config).accept(stream).await?;
    match behind {
        Behind::Server(address) => {
            let mut stream = TcpStream::connect(address).await?;
            let _ = stream.set_nodelay(true);
            copy_bidirectional(&mut front, &mut stream).await?;
        }
        Behind::Api(line) => {
            let service = service_fn(move |request| carry(line.clone(), request));
            http1::Builder::new().serve_connection(TokioIo::new(front), service).await?;
        }
    }
    Ok(())
}

/// One request to the tenant's API.
async fn carry(line: Line, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    // They were made for this hop.
    for header in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::ACCEPT_ENCODING] {
        parts.headers.remove(header);
    }
    let body = body.collect().await?.to_bytes();
    let wire = line.lock().unwrap().clone().ok_or("there is no operator")?;
    let mut answer = wire.call(Side::Inside, Request::from_parts(parts, Body::from(body))).await?;
    for header in [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        answer.headers_mut().remove(header);
    }
    Ok(answer)
}
