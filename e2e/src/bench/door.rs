//! What listens where the clients of a played pod look for it: TLS as the pod would speak it, with the key material
//! that the operator made for it, and behind it a real server that many tenants share.
//!
//! What is of one tenant alone in that server, the endpoints of its `kubernetes` Service, is kept in a namespace of its
//! own there; whoever comes through the tenant's door sees it in `default`.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Error;
use crate::probe::Probe;

/// A server behind doors.
#[derive(Clone)]
pub(super) enum Behind {
    /// An API server, as the user of a probe, over HTTP/1.1, with the namespace that is the tenant's own there.
    Api(SocketAddr, Arc<ClientConfig>, Arc<str>),
    /// A server that speaks HTTP/2 in the clear.
    Clear(SocketAddr),
}

impl Behind {
    pub(super) fn api(probe: Probe, namespace: &str) -> Self {
        let (address, config) = probe.into_parts();
        Self::Api(address, config, namespace.into())
    }

    /// What is spoken inside of TLS.
    fn protocol(&self) -> &'static str {
        match self {
            Self::Api(..) => "http/1.1",
            Self::Clear(_) => "h2",
        }
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
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider))
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
        let config = Arc::new(identity.server(behind.protocol())?);
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

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, Failure>;

/// One connection; whoever is refused or leaves ends it.
async fn pass(stream: TcpStream, config: Arc<ServerConfig>, behind: Behind) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut front = TlsAcceptor::from(config).accept(stream).await?;
    let connect = async |address: SocketAddr| {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        std::io::Result::Ok(stream)
    };
    match behind {
        Behind::Clear(address) => {
            copy_bidirectional(&mut front, &mut connect(address).await?).await?;
        }
        Behind::Api(address, config, namespace) => {
            let back =
                TlsConnector::from(config).connect(address.ip().into(), connect(address).await?).await?;
            let (sender, connection) = handshake(TokioIo::new(back)).await?;
            let sender = Mutex::new(sender);
            let serve = service_fn(|request| forward(request, &sender, &namespace));
            let server = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                result = connection => result?,
                result = server.serve_connection(TokioIo::new(front), serve) => result?,
            }
        }
    }
    Ok(())
}

/// One request. Only those about a tenant's own objects are looked into: others may be watches.
async fn forward(
    request: Request<Incoming>,
    sender: &Mutex<SendRequest<Body>>,
    namespace: &str,
) -> Result<Response<Body>, Failure> {
    let (mut head, body) = request.into_parts();
    let target = head.uri.to_string();
    let Some(moved) = in_own_namespace(&target, namespace) else {
        let request = Request::from_parts(head, body.map_err(Failure::from).boxed());
        let answer = sender.lock().await.send_request(request).await?;
        return Ok(answer.map(|body| body.map_err(Failure::from).boxed()));
    };
    head.uri = moved.parse()?;
    head.headers.remove(CONTENT_LENGTH);
    let body = translate(&body.collect().await?.to_bytes(), "default", namespace);
    let answer = sender.lock().await.send_request(Request::from_parts(head, body)).await?;
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    head.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(head, translate(&body.collect().await?.to_bytes(), namespace, "default")))
}

/// Where a request for the endpoints of the `kubernetes` Service goes instead; `None` for every other one.
fn in_own_namespace(target: &str, namespace: &str) -> Option<String> {
    let (before, rest) = target.split_once("/namespaces/default/")?;
    let path = rest.split('?').next()?;
    matches!(path, "endpointslices/kubernetes" | "endpoints/kubernetes")
        .then(|| format!("{before}/namespaces/{namespace}/{rest}"))
}

/// An object of one namespace as one of another, in the compact form in which both sides write JSON.
fn translate(bytes: &Bytes, from: &str, to: &str) -> Body {
    let name = |namespace: &str| format!("\"namespace\":\"{namespace}\"");
    let text = String::from_utf8_lossy(bytes).replace(&name(from), &name(to));
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_endpoints_are_moved() {
        let moved = |path: &str| in_own_namespace(path, "t1");
        let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes?force=true";
        let there = "/apis/discovery.k8s.io/v1/namespaces/t1/endpointslices/kubernetes?force=true";
        assert_eq!(moved(slice).as_deref(), Some(there));
        assert_eq!(moved("/api/v1/namespaces/default"), None);
        assert_eq!(moved("/api/v1/namespaces/default/endpoints/other"), None);
    }

    #[tokio::test]
    async fn objects_are_translated() {
        let object = Bytes::from(r#"{"metadata":{"name":"kubernetes","namespace":"default"}}"#);
        let body = translate(&object, "default", "t1").collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"metadata":{"name":"kubernetes","namespace":"t1"}}"#);
    }
}
