//! A second independent verifier: the `openssl` command. Without it these tests say so and pass.
#![cfg(test)]

use std::{
    path::Path,
    process::{Command, Output},
};

use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Certificate, Request, ServiceAccountKey, Usages, Validity};
use tempfile::TempDir;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn is_installed() -> bool {
    let found = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: the openssl command is not installed");
    }
    found
}

fn openssl(directory: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl").current_dir(directory).args(arguments).output().unwrap()
}

fn run(directory: &Path, arguments: &[&str]) -> String {
    let output = openssl(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write(directory: &TempDir, name: &str, text: &str) {
    std::fs::write(directory.path().join(name), text).unwrap();
}

fn request(usages: Usages) -> Request {
    Request {
        common_name: format!("system:node:{}", "n".repeat(253)),
        organizations: vec!["system:nodes".into(), "second".into()],
        dns_names: vec!["node.example".into()],
        ip_addresses: vec![[10, 0, 0, 7].into()],
        usages,
    }
}

fn verify(directory: &TempDir, purpose: &str, at: Timestamp) -> Result<(), String> {
    let time = at.as_second().to_string();
    let arguments =
        ["verify", "-x509_strict", "-purpose", purpose, "-attime", &time, "-CAfile", "ca.pem", "leaf.pem"];
    let output = openssl(directory.path(), &arguments);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
}

#[test]
fn chains_verify_strictly() {
    if !is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let ca = Authority::generate("ca", Validity::starting(now(), HOUR * 24)).unwrap();
    write(&directory, "ca.pem", ca.certificate_pem());
    for (usages, server, client) in
        [(Usages::Server, true, false), (Usages::Client, false, true), (Usages::ServerAndClient, true, true)]
    {
        let issued = ca.issue(&request(usages), Validity::starting(now(), HOUR)).unwrap();
        write(&directory, "leaf.pem", &issued.certificate_pem);
        assert_eq!(verify(&directory, "sslserver", now()).is_ok(), server, "{usages:?}");
        assert_eq!(verify(&directory, "sslclient", now()).is_ok(), client, "{usages:?}");
    }
    assert!(verify(&directory, "any", now() + HOUR * 2).unwrap_err().contains("expired"));
    let namesake = Authority::generate("ca", Validity::starting(now(), HOUR * 24)).unwrap();
    write(&directory, "ca.pem", namesake.certificate_pem());
    assert!(verify(&directory, "any", now()).is_err());
}

#[test]
fn extensions_are_as_kubernetes_expects() {
    if !is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let ca = Authority::generate("ca", Validity::starting(now(), HOUR * 24)).unwrap();
    write(&directory, "ca.pem", ca.certificate_pem());
    let text = run(directory.path(), &["x509", "-in", "ca.pem", "-noout", "-text"]);
    assert!(
        text.contains("X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0\n"),
        "{text}"
    );
    assert!(
        text.contains("X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n"),
        "{text}"
    );
    assert!(text.contains("X509v3 Subject Key Identifier"), "{text}");

    let issued = ca.issue(&request(Usages::ServerAndClient), Validity::starting(now(), HOUR)).unwrap();
    write(&directory, "leaf.pem", &issued.certificate_pem);
    write(&directory, "leaf.key", &issued.private_key_pem);
    let text = run(directory.path(), &["x509", "-in", "leaf.pem", "-noout", "-text"]);
    assert!(text.contains("X509v3 Basic Constraints: critical\n                CA:FALSE\n"), "{text}");
    assert!(text.contains("X509v3 Key Usage: critical\n                Digital Signature\n"), "{text}");
    assert!(text.contains("TLS Web Server Authentication, TLS Web Client Authentication\n"), "{text}");
    assert!(text.contains("DNS:node.example, IP Address:10.0.0.7\n"), "{text}");
    let subject = text.replace(" = ", "=");
    assert!(subject.contains("O=system:nodes, O=second, CN=system:node:nnn"), "{text}");
    assert!(text.contains("X509v3 Authority Key Identifier") && text.contains("Version: 3"), "{text}");
    assert!(text.contains("NIST CURVE: P-256") && text.contains("ecdsa-with-SHA256"), "{text}");
    let public = run(directory.path(), &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]);
    assert_eq!(
        public,
        run(directory.path(), &["pkey", "-in", "leaf.key", "-pubout"]),
        "the key is the leaf's"
    );
}

#[test]
fn service_account_public_keys_agree() {
    if !is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let generated = ServiceAccountKey::generate().unwrap();
    write(&directory, "sa.key", &generated.private_key_pem);
    assert_eq!(run(directory.path(), &["pkey", "-in", "sa.key", "-pubout"]), generated.public_key_pem);

    run(
        directory.path(),
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "rsa.key"],
    );
    let pem = std::fs::read_to_string(directory.path().join("rsa.key")).unwrap();
    let public = run(directory.path(), &["pkey", "-in", "rsa.key", "-pubout"]);
    assert_eq!(ServiceAccountKey::load(&pem).unwrap().public_key_pem, public);

    run(directory.path(), &["genpkey", "-algorithm", "ED25519", "-out", "ed.key"]);
    let pem = std::fs::read_to_string(directory.path().join("ed.key")).unwrap();
    assert!(ServiceAccountKey::load(&pem).unwrap_err().to_string().contains("Ed25519"));
}

/// Makes an authority with openssl itself: algorithm options and a subject.
fn foreign(directory: &TempDir, key: &[&str], subject: &str) -> (String, String) {
    let mut arguments = vec!["req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "100"];
    arguments.extend(["-utf8", "-subj", subject, "-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    arguments.extend(key);
    run(directory.path(), &arguments);
    let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    (read("ca.pem"), read("ca.key"))
}

#[test]
fn foreign_authorities_load_and_sign() {
    if !is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let p256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let p384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let rsa: &[&str] = &["-newkey", "rsa:2048"];
    let ed25519: &[&str] = &["-newkey", "ed25519"];
    for key in [p256, p384, rsa, ed25519] {
        let (certificate, private_key) =
            foreign(&directory, key, "/C=DE/ST=Thüringen/O=Example GmbH/CN=Root & Söhne");
        let ca = Authority::load(&certificate, &private_key).unwrap();
        let start = ca.certificate().not_before;
        let issued = ca.issue(&request(Usages::Server), Validity::starting(start, HOUR)).unwrap();
        write(&directory, "leaf.pem", &issued.certificate_pem);
        verify(&directory, "sslserver", start).unwrap();
        assert!(Certificate::parse(&issued.certificate_pem).unwrap().is_issued_by(ca.certificate()));
    }
    for subject in ["/O=a/O=b/CN=c", "/O=a+CN=b"] {
        let mut key = p256.to_vec();
        key.push("-multivalue-rdn");
        let (certificate, private_key) = foreign(&directory, &key, subject);
        let text = Authority::load(&certificate, &private_key).unwrap_err().to_string();
        assert!(text.contains("its subject is empty or repeats an attribute"), "{text}");
    }
}
