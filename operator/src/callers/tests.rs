use std::fs;
use std::path::Path;

use jiff::SignedDuration;
use kaas_lifecycle::upgrade::preflight::facts::Callers;
use kaas_pki::{Authority, Issued, Request as Asked, Usages, Validity};
use kube::client::Body;
use kube::config::AuthInfo;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A server with an authority of its own.
struct Stage {
    authority: Authority,
    address: SocketAddr,
    _directory: TempDir,
}

fn issue(authority: &Authority, name: &str, organization: &str, usages: Usages) -> Issued {
    let request = Asked {
        common_name: name.into(),
        organizations: vec![organization.into()],
        dns_names: if usages.is_server() { vec![name.into()] } else { Vec::new() },
        ip_addresses: if usages.is_server() { vec![[127, 0, 0, 1].into()] } else { Vec::new() },
        usages,
    };
    let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(1));
    authority.issue(&request, validity).unwrap()
}

fn written(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

impl Stage {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(1));
        let authority = Authority::generate("cluster-ca", validity).unwrap();
        let directory = TempDir::new().unwrap();
        let own = issue(&authority, "kube-apiserver", "kaas", Usages::Server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let args = Args {
            listen: address,
            certificate: written(directory.path(), "tls.crt", &own.certificate_pem),
            key: written(directory.path(), "tls.key", &own.private_key_pem),
            authority: written(directory.path(), "ca.crt", authority.certificate_pem()),
            watched: vec!["networking.k8s.io/v1beta1".into()],
        };
        tokio::spawn(serve(listener, args));
        Stage { authority, address, _directory: directory }
    }

    /// A client with a certificate that this authority issued.
    fn client(&self, authority: &Authority, organization: Option<&str>) -> kube::Client {
        use base64::Engine as _;
        let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().unwrap());
        config.root_cert = Some(vec![self.authority.certificate().der().to_vec()]);
        config.default_retry = false;
        if let Some(organization) = organization {
            let own = issue(authority, "somebody", organization, Usages::Client);
            config.auth_info = AuthInfo {
                client_certificate_data: Some(encode(&own.certificate_pem)),
                client_key_data: Some(encode(&own.private_key_pem).into()),
                ..AuthInfo::default()
            };
        }
        kube::Client::try_from(config).unwrap()
    }
}

async fn ask(client: &kube::Client, method: Method, path: &str, body: Vec<u8>) -> Option<(u16, String)> {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    let response = client.send(request).await.ok()?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.ok()?.to_bytes();
    Some((code, String::from_utf8(bytes.to_vec()).unwrap()))
}

#[tokio::test]
async fn masters_bring_events_and_read_and_strangers_ask_whether_it_is_alive() {
    let stage = Stage::start().await;
    let master = stage.client(&stage.authority, Some("system:masters"));
    let events = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "items": [{
        "auditID": "1", "stage": "ResponseComplete", "verb": "list", "userAgent": "lister/v1",
        "user": {"username": "system:serviceaccount:demo:lister"},
        "objectRef": {"resource": "ipaddresses", "apiGroup": "networking.k8s.io", "apiVersion": "v1beta1"},
        "stageTimestamp": "2026-11-22T03:00:00.000000Z",
    }]});
    let sent = ask(&master, Method::POST, "/?timeout=30s", events.to_string().into_bytes()).await;
    assert_eq!(sent, Some((200, String::new())));
    let (code, text) = ask(&master, Method::GET, "/callers", Vec::new()).await.unwrap();
    let callers: Callers = serde_json::from_str(&text).unwrap();
    assert_eq!((code, callers.seen[0].user.as_str()), (200, "system:serviceaccount:demo:lister"));
    assert_eq!(ask(&master, Method::POST, "/", b"junk".to_vec()).await.unwrap().0, 400);
    assert_eq!(ask(&master, Method::GET, "/", Vec::new()).await.unwrap().0, 404);

    for stranger in
        [stage.client(&stage.authority, None), stage.client(&stage.authority, Some("system:nodes"))]
    {
        assert_eq!(ask(&stranger, Method::GET, "/healthz", Vec::new()).await.unwrap().0, 200);
        assert_eq!(ask(&stranger, Method::GET, "/callers", Vec::new()).await.unwrap().0, 403);
        assert_eq!(ask(&stranger, Method::POST, "/", Vec::new()).await.unwrap().0, 403);
    }
    // A master of somebody else's is none.
    let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(1));
    let other = Authority::generate("cluster-ca", validity).unwrap();
    assert_eq!(
        ask(&stage.client(&other, Some("system:masters")), Method::GET, "/callers", Vec::new()).await,
        None
    );
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = TempDir::new().unwrap();
    let args = |certificate: PathBuf| Args {
        listen: ([127, 0, 0, 1], 0).into(),
        key: certificate.clone(),
        authority: certificate.clone(),
        certificate,
        watched: Vec::new(),
    };
    let missing = configuration(&args(directory.path().join("none"))).unwrap_err().to_string();
    assert!(missing.contains("none"), "{missing}");
    let junk = written(directory.path(), "junk", "junk");
    assert!(configuration(&args(junk)).unwrap_err().to_string().contains("junk"));
}
