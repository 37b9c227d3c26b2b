//! A Secret's facts: what its certificates say, and not one byte of a key.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kaas_crds::name;
use kaas_lifecycle::action::Authority;
use kaas_lifecycle::observed::{Certificate, Secret as Facts};
use serde_json::Value;

use crate::keyring::Keyring;

/// Which authority should have signed a certificate: everything of etcd and the front proxy by name, the rest by the
/// cluster's.
fn authority(secret: &str, certificate: &str) -> Authority {
    match (secret, certificate) {
        ("etcd", _) | (_, "etcd-client" | "etcd") => Authority::Etcd,
        (_, "front-proxy-client") => Authority::FrontProxy,
        _ => Authority::Cluster,
    }
}

pub(super) fn facts(secret: &Secret, keyring: &Keyring) -> Facts {
    let metadata = &secret.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let entries: BTreeMap<&String, &[u8]> =
        secret.data.iter().flatten().map(|(key, bytes)| (key, bytes.0.as_slice())).collect();
    let kubeconfig = entries.get(&name::KUBECONFIG_KEY.to_owned()).and_then(|bytes| kubeconfig(bytes));
    let mut certificates = BTreeMap::new();
    for (key, bytes) in &entries {
        let Some(part) = key.strip_suffix(".crt") else { continue };
        if let Some(facts) = certificate(bytes, authority(name, part), keyring) {
            certificates.insert(part.to_owned(), facts);
        }
    }
    if let Some(facts) =
        kubeconfig.as_ref().and_then(|(_, pem)| certificate(pem, Authority::Cluster, keyring))
    {
        certificates.insert("kubeconfig".to_owned(), facts);
    }
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned();
    Facts {
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        owner_uid: owner.map(|owner| owner.uid.clone()),
        keys: entries.keys().map(|key| (*key).clone()).collect(),
        certificates,
        applied_hash: annotation(name::APPLIED_HASH_ANNOTATION),
        kubeconfig_server: kubeconfig.map(|(server, _)| server),
        renewed: annotation(name::RENEWED_ANNOTATION),
    }
}

fn certificate(pem: &[u8], authority: Authority, keyring: &Keyring) -> Option<Certificate> {
    let parsed = kaas_pki::Certificate::parse(std::str::from_utf8(pem).ok()?).ok()?;
    let issuer =
        keyring.authority_certificate(authority).and_then(|pem| kaas_pki::Certificate::parse(pem).ok());
    Some(Certificate {
        signed: issuer.is_some_and(|issuer| parsed.is_issued_by(&issuer)),
        common_name: parsed.common_name,
        organizations: parsed.organizations.into_iter().collect(),
        dns_names: parsed.dns_names.into_iter().collect(),
        ip_addresses: parsed.ip_addresses.into_iter().collect(),
        not_before: parsed.not_before,
        not_after: parsed.not_after,
    })
}

/// Server and client certificate of a kubeconfig that we wrote.
fn kubeconfig(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    use base64::Engine as _;
    let document: Value = serde_yaml::from_slice(bytes).ok()?;
    let server = document.pointer("/clusters/0/cluster/server")?.as_str()?.to_owned();
    let encoded = document.pointer("/users/0/user/client-certificate-data")?.as_str()?;
    Some((server, base64::engine::general_purpose::STANDARD.decode(encoded).ok()?))
}
