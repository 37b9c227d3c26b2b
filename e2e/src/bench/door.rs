//! What listens where the clients of a played pod look for it: TLS as the pod would speak it, with the key material
//! that the operator made for it, and behind it a real server that many tenants share.
//!
//! What is of one tenant alone in that server is kept apart there: objects of the namespaces that every cluster has are
//! in namespaces named after the tenant, and its nodes carry its name in a label. Whoever comes through the tenant's door
//! sees only these, in the usual namespaces. Objects without a namespace, which are the same for all tenants, are shared.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::line::{self, Body, Failure, Line};
use crate::Error;
use crate::kubectl::at;

/// Namespaces that every cluster has, in which each tenant has objects of its own.
pub(super) const NAMESPACES: [&str; 3] = ["default", "kube-public", "kube-system"];
/// Whose node it is.
pub(super) const NODE_LABEL: &str = "played.kaas.dev/tenant";
const NODES: &str = "/api/v1/nodes";

/// Where a namespace of a tenant is in the server that all share.
pub(super) fn namespace_of(tenant: &str, namespace: &str) -> String {
    format!("{tenant}-{namespace}")
}

/// A server behind doors.
#[derive(Clone)]
pub(super) enum Behind {
    /// An API server, and the tenant whose objects there are seen.
    Api(Arc<Line>, Arc<str>),
    /// A server that speaks HTTP/2 in the clear.
    Clear(SocketAddr),
}

impl Behind {
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

/// One connection; whoever is refused or leaves ends it.
async fn pass(stream: TcpStream, config: Arc<ServerConfig>, behind: Behind) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut front = TlsAcceptor::from(config).accept(stream).await?;
    match behind {
        Behind::Clear(address) => {
            let mut back = TcpStream::connect(address).await?;
            back.set_nodelay(true)?;
            copy_bidirectional(&mut front, &mut back).await?;
        }
        Behind::Api(line, tenant) => {
            let serve = service_fn(|request| forward(request, &line, &tenant));
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(front), serve).await?;
        }
    }
    Ok(())
}

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
enum About {
    /// Objects in a namespace of the tenant: it goes there.
    Own(String),
    /// Objects wherever they are: what is another tenant's is left out of the answer.
    Everywhere,
    /// The tenant's nodes: it asks for no others.
    Nodes(String),
    /// What all tenants share.
    Shared,
}

impl About {
    fn of(method: &Method, target: &str, tenant: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if let Some((before, rest)) = path.split_once("/namespaces/")
            && let Some((namespace, object)) = rest.split_once('/')
            && NAMESPACES.contains(&namespace)
        {
            let own = namespace_of(tenant, namespace);
            return Self::Own(format!("{before}/namespaces/{own}/{object}?{query}"));
        }
        let listed = method == Method::GET && !query.contains("watch=");
        match path {
            NODES if method == Method::GET => Self::Nodes(format!(
                "{NODES}?{query}&labelSelector={}%3D{tenant}",
                NODE_LABEL.replace('/', "%2F")
            )),
            _ if listed && query.contains("labelSelector=") => Self::Everywhere,
            _ => Self::Shared,
        }
    }
}

/// One request. Only what is kept apart is looked into: others may be watches.
async fn forward(request: Request<Incoming>, line: &Line, tenant: &str) -> Result<Response<Body>, Failure> {
    let (mut head, body) = request.into_parts();
    let about = About::of(&head.method, &head.uri.to_string(), tenant);
    let body = match &about {
        About::Own(target) => {
            head.uri = target.parse()?;
            head.headers.remove(CONTENT_LENGTH);
            line::whole(translate(&read(body).await?, tenant, Way::In))
        }
        About::Nodes(target) => {
            head.uri = target.parse()?;
            body.map_err(Failure::from).boxed()
        }
        About::Everywhere | About::Shared => body.map_err(Failure::from).boxed(),
    };
    let (mut head, body) = line.pass(Request::from_parts(head, body)).await?.into_parts();
    head.version = Version::HTTP_11;
    let body = match about {
        About::Own(_) => translate(&read(body).await?, tenant, Way::Out),
        About::Everywhere => own_items(&read(body).await?, tenant)?,
        About::Nodes(_) | About::Shared => {
            return Ok(Response::from_parts(head, body.map_err(Failure::from).boxed()));
        }
    };
    head.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(head, line::whole(body)))
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    Ok(body.collect().await?.to_bytes())
}

/// Through a door.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// Names of namespaces as they are on the other side, in the compact form in which both sides write JSON.
fn translate(bytes: &Bytes, tenant: &str, way: Way) -> Bytes {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for namespace in NAMESPACES {
        let [inside, outside] = [namespace_of(tenant, namespace), namespace.to_owned()]
            .map(|name| format!("\"namespace\":\"{name}\""));
        text = match way {
            Way::In => text.replace(&outside, &inside),
            Way::Out => text.replace(&inside, &outside),
        };
    }
    Bytes::from(text)
}

/// A list without the objects of other tenants. What has no namespace is everybody's.
fn own_items(bytes: &Bytes, tenant: &str) -> Result<Bytes, Failure> {
    let mut list: Value = serde_json::from_slice(bytes)?;
    let own = NAMESPACES.map(|namespace| namespace_of(tenant, namespace));
    if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
        items.retain(|item| match at(item, "/metadata/namespace").as_str() {
            Some(namespace) => own.iter().any(|own| own == namespace),
            None => true,
        });
    }
    Ok(translate(&Bytes::from(list.to_string()), tenant, Way::Out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_tenants_own_is_kept_apart() {
        let about = |method: &Method, target: &str| About::of(method, target, "t1");
        let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes?force=true";
        let there = "/apis/discovery.k8s.io/v1/namespaces/t1-default/endpointslices/kubernetes?force=true";
        assert_eq!(about(&Method::PATCH, slice), About::Own(there.to_owned()));
        assert_eq!(about(&Method::GET, "/api/v1/namespaces/default"), About::Shared);
        assert_eq!(about(&Method::GET, "/api/v1/configmaps?labelSelector=a"), About::Everywhere);
        assert_eq!(about(&Method::GET, "/api/v1/configmaps?watch=true&labelSelector=a"), About::Shared);
        let nodes = "/api/v1/nodes?watch=true&labelSelector=played.kaas.dev%2Ftenant%3Dt1";
        assert_eq!(about(&Method::GET, "/api/v1/nodes?watch=true"), About::Nodes(nodes.to_owned()));
        assert_eq!(about(&Method::GET, "/api/v1/nodes/p-0"), About::Shared);
    }

    #[test]
    fn objects_are_translated_both_ways() {
        let object = Bytes::from(r#"{"metadata":{"name":"kubernetes","namespace":"kube-system"}}"#);
        let there = translate(&object, "t1", Way::In);
        assert_eq!(there, r#"{"metadata":{"name":"kubernetes","namespace":"t1-kube-system"}}"#);
        assert_eq!(translate(&there, "t1", Way::Out), object);
        assert_eq!(translate(&there, "t", Way::Out), there);
    }

    #[test]
    fn a_list_has_no_objects_of_others() {
        let item = |namespace: &str| serde_json::json!({"metadata": {"namespace": namespace}});
        let list = serde_json::json!({"items": [item("t1-default"), item("t11-default"), item("t1"), {}]});
        let seen: Value =
            serde_json::from_slice(&own_items(&list.to_string().into(), "t1").unwrap()).unwrap();
        assert_eq!(seen, serde_json::json!({"items": [item("default"), {}]}));
    }
}
