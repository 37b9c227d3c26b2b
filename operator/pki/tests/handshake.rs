//! Certificates in use: mutual TLS in memory, with rustls as an independent verifier.
#![cfg(test)]

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Issued, Request, Usages, Validity};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    time_provider::TimeProvider,
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const HOST: &str = "etcd-0.etcd.kaas-1.svc";

#[derive(Debug)]
struct Clock(Timestamp);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.as_second().try_into().unwrap())))
    }
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn authority() -> Authority {
    Authority::generate("etcd-ca", Validity::starting(now(), HOUR * 24)).unwrap()
}

fn issue(ca: &Authority, usages: Usages) -> Issued {
    let request = Request {
        common_name: "etcd-0".into(),
        organizations: vec!["etcd".into()],
        dns_names: vec![HOST.into()],
        ip_addresses: vec![[10, 0, 0, 7].into()],
        usages,
    };
    ca.issue(&request, Validity::starting(now(), HOUR)).unwrap()
}

fn roots(ca: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

fn identity(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_slice(issued.private_key_pem.as_bytes()).unwrap())
}

/// One side: its own certificate and the authority it trusts.
struct Side<'a>(&'a Issued, &'a Authority);

fn shake(server: &Side<'_>, client: &Side<'_>, host: &str, at: Timestamp) -> Result<(), rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(server.1), provider.clone()).build().unwrap();
    let (chain, key) = identity(server.0);
    let config = ServerConfig::builder_with_details(provider.clone(), Arc::new(Clock(at)))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    let mut server = ServerConnection::new(Arc::new(config))?;

    let (chain, key) = identity(client.0);
    let config = ClientConfig::builder_with_details(provider, Arc::new(Clock(at)))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(client.1))
        .with_client_auth_cert(chain, key)?;
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(host.to_owned()).unwrap())?;

    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        wire.clear();
        client.write_tls(&mut wire).unwrap();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert!(server.peer_certificates().is_some(), "the server saw the client's certificate");
    Ok(())
}

fn refusal(result: Result<(), rustls::Error>) -> String {
    format!("{:?}", result.unwrap_err())
}

#[test]
fn members_of_one_authority_trust_each_other() {
    let ca = authority();
    let (server, client) = (issue(&ca, Usages::Server), issue(&ca, Usages::Client));
    for host in [HOST, "10.0.0.7"] {
        shake(&Side(&server, &ca), &Side(&client, &ca), host, now()).unwrap();
    }
    let peer = issue(&ca, Usages::ServerAndClient);
    shake(&Side(&peer, &ca), &Side(&peer, &ca), HOST, now()).unwrap();

    let loaded = Authority::load(ca.certificate_pem(), ca.private_key_pem()).unwrap();
    shake(&Side(&issue(&loaded, Usages::Server), &ca), &Side(&client, &ca), HOST, now()).unwrap();
}

#[test]
fn another_authority_of_the_same_name_is_refused_by_both_sides() {
    let (ca, foreign) = (authority(), authority());
    let (server, client) = (issue(&ca, Usages::Server), issue(&ca, Usages::Client));
    let text = refusal(shake(&Side(&server, &ca), &Side(&client, &foreign), HOST, now()));
    assert!(text.contains("InvalidCertificate"), "{text}");
    let text = refusal(shake(&Side(&server, &foreign), &Side(&client, &ca), HOST, now()));
    assert!(text.contains("InvalidCertificate"), "{text}");
}

#[test]
fn usages_bind() {
    let ca = authority();
    let (server, client) = (issue(&ca, Usages::Server), issue(&ca, Usages::Client));
    let text = refusal(shake(&Side(&client, &ca), &Side(&client, &ca), HOST, now()));
    assert!(text.contains("InvalidPurpose"), "{text}");
    let text = refusal(shake(&Side(&server, &ca), &Side(&server, &ca), HOST, now()));
    assert!(text.contains("InvalidPurpose"), "{text}");
}

#[test]
fn other_names_are_refused() {
    let ca = authority();
    let (server, client) = (issue(&ca, Usages::Server), issue(&ca, Usages::Client));
    for host in ["etcd-1.etcd.kaas-1.svc", "10.0.0.8", "etcd-0"] {
        let text = refusal(shake(&Side(&server, &ca), &Side(&client, &ca), host, now()));
        assert!(text.contains("NotValidForName"), "{text}");
    }
}

#[test]
fn time_binds_but_a_clock_five_minutes_behind_is_fine() {
    let ca = authority();
    let (server, client) = (issue(&ca, Usages::Server), issue(&ca, Usages::Client));
    let at = |time| shake(&Side(&server, &ca), &Side(&client, &ca), HOST, time);
    let second = SignedDuration::from_secs(1);
    at(now() - SignedDuration::from_mins(5)).unwrap();
    at(now() + HOUR).unwrap();
    let text = refusal(at(now() + HOUR + second));
    assert!(text.contains("Expired"), "{text}");
    let text = refusal(at(now() - SignedDuration::from_mins(5) - second));
    assert!(text.contains("NotValidYet"), "{text}");
}
