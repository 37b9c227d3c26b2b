//! Certificates that are near their end, and how many of them there still are.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kaas_crds::name;
use kaas_pki::{Authority, Certificate, Kubeconfig, Request, Usages, Validity};
use kube::api::{Api, Patch, PatchParams};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{CLUSTER, Life};
use crate::player::entry;

impl Life {
    /// Replaces every leaf by one that says the same and is near its end.
    pub(super) async fn age(&mut self) {
        let home = self.scope.home();
        let authority = self.world.record.get(&home, "Secret", "authority").unwrap();
        let now = Timestamp::now();
        let authorities = ["cluster-ca", "etcd-ca", "front-proxy-ca"].map(|name| {
            let part = |kind: &str| entry(&authority, &format!("{name}.{kind}")).unwrap();
            older(&part("crt"), &part("key"))
        });
        // Ten of these twelve minutes have passed since they were made (and backdated by five); two are enough for a run.
        let minutes = SignedDuration::from_mins;
        let validity = Validity { not_before: now - minutes(15), not_after: now + minutes(2) };
        let again = |pem: &str| {
            let old = Certificate::parse(pem).unwrap();
            let signer = authorities.iter().find(|signer| old.is_issued_by(signer.certificate())).unwrap();
            let request = Request {
                common_name: old.common_name,
                organizations: old.organizations,
                dns_names: old.dns_names,
                ip_addresses: old.ip_addresses,
                usages: old.usages.unwrap_or(Usages::Client),
            };
            (signer, signer.issue(&request, validity).unwrap())
        };
        let kubeconfig = name::kubeconfig_secret(CLUSTER);
        let places = [(home, None), (self.scope.team.clone(), Some(kubeconfig))];
        for (place, only) in places {
            for ((kind, name), secret) in self.world.record.live(&place) {
                if kind != "Secret" || name == "authority" || only.as_ref().is_some_and(|only| *only != name)
                {
                    continue;
                }
                let mut data = BTreeMap::new();
                for key in secret["data"].as_object().unwrap().keys() {
                    if let Some(part) = key.strip_suffix(".crt") {
                        let (_, issued) = again(&entry(&secret, key).unwrap());
                        data.insert(key.clone(), issued.certificate_pem);
                        data.insert(format!("{part}.key"), issued.private_key_pem);
                    } else if key == name::KUBECONFIG_KEY {
                        let document: Value = serde_yaml::from_str(&entry(&secret, key).unwrap()).unwrap();
                        let encoded =
                            json!({"data": {"pem": document["users"][0]["user"]["client-certificate-data"]}});
                        let (signer, issued) = again(&entry(&encoded, "pem").unwrap());
                        let text = kaas_pki::kubeconfig(&Kubeconfig {
                            name: CLUSTER,
                            server: document["clusters"][0]["cluster"]["server"].as_str().unwrap(),
                            certificate_authority_pem: signer.certificate_pem(),
                            client: Some(&issued),
                            token: None,
                            namespace: None,
                        });
                        data.insert(key.clone(), text);
                    }
                }
                let secrets: Api<Secret> = Api::namespaced(self.world.admin.clone(), &place);
                let patch = Patch::Merge(json!({"stringData": data}));
                let patched = secrets.patch(&name, &PatchParams::default(), &patch).await.unwrap();
                self.aged.insert((place.clone(), name), patched.metadata.resource_version.unwrap());
            }
        }
    }

    /// Secrets with aged certificates still.
    pub(super) fn still_aged(&self) -> Vec<&(String, String)> {
        let aged = self.aged.iter().filter(|((place, name), version)| {
            let live = self.world.record.get(place, "Secret", name);
            live.is_some_and(|live| live["metadata"]["resourceVersion"] == version.as_str())
        });
        aged.map(|(secret, _)| secret).collect()
    }
}

/// The same authority as if it had been made a day before: no leaf may be older than the one that signs it.
fn older(certificate: &str, key: &str) -> Authority {
    let known = Certificate::parse(certificate).unwrap();
    let pair = KeyPair::from_pem(key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, known.common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from_unix_timestamp(known.not_before.as_second() - 86_400).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(known.not_after.as_second()).unwrap();
    Authority::load(&params.self_signed(&pair).unwrap().pem(), key).unwrap()
}
