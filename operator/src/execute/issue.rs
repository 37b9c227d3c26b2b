//! Making key material: the only place where keys come into being.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kaas_crds::name::KUBECONFIG_KEY;
use kaas_lifecycle::action::{Authority, CertificateRequest, Issue, Material, Usage};
use kaas_lifecycle::object::Object;
use kaas_pki::{Issued, Kubeconfig, Request, ServiceAccountKey, Usages, Validity};
use serde_json::Value;

use super::{Error, Lifetimes};
use crate::keyring::Keyring;

/// A Secret that was made.
pub(crate) struct Made {
    /// Its name.
    pub(super) secret: String,
    /// Its entries.
    pub(super) entries: BTreeMap<String, String>,
    /// The object to apply.
    pub(super) object: Object,
}

/// Makes what is asked for; the authorities come from the keyring.
pub(super) fn make(
    issue: &Issue,
    keyring: &Keyring,
    lifetimes: Lifetimes,
    now: Timestamp,
) -> Result<Made, Error> {
    let what = issue.reference.to_string();
    let fail = |source| Error::KeyMaterial { what: what.clone(), source };
    let mut entries = BTreeMap::new();
    match &issue.material {
        Material::Authorities => {
            let validity = Validity::starting(now, lifetimes.authority);
            for authority in Authority::ALL {
                let name = authority.file();
                let made = kaas_pki::Authority::generate(&format!("kaas {name}"), validity).map_err(fail)?;
                entries.insert(format!("{name}.crt"), made.certificate_pem().to_owned());
                entries.insert(format!("{name}.key"), made.private_key_pem().to_owned());
            }
            let key = ServiceAccountKey::generate().map_err(fail)?;
            entries.insert("service-account.key".into(), key.private_key_pem);
            entries.insert("service-account.pub".into(), key.public_key_pem);
        }
        Material::Leaves { certificates, files } => {
            for request in certificates {
                let issued = sign(request, keyring, lifetimes, now, &what)?;
                entries.insert(format!("{}.crt", request.name), issued.certificate_pem);
                entries.insert(format!("{}.key", request.name), issued.private_key_pem);
            }
            entries.extend(files.iter().cloned());
        }
        Material::Kubeconfig { certificate, server, name } => {
            let issued = sign(certificate, keyring, lifetimes, now, &what)?;
            let authority = keyring
                .authority_certificate(certificate.authority)
                .ok_or_else(|| Error::NoAuthority(what.clone()))?;
            let document = kaas_pki::kubeconfig(&Kubeconfig {
                name,
                server,
                certificate_authority_pem: authority,
                client: Some(&issued),
                token: None,
                namespace: None,
            });
            entries.insert(KUBECONFIG_KEY.into(), document);
        }
    }
    let mut object = issue.frame.clone();
    if let Some(document) = object.content.as_object_mut() {
        use base64::Engine as _;
        let encode = |text: &String| Value::from(base64::engine::general_purpose::STANDARD.encode(text));
        let data = entries.iter().map(|(key, text)| (key.clone(), encode(text))).collect();
        document.insert("data".into(), Value::Object(data));
    }
    Ok(Made { secret: issue.reference.name.clone(), entries, object })
}

fn sign(
    request: &CertificateRequest,
    keyring: &Keyring,
    lifetimes: Lifetimes,
    now: Timestamp,
    what: &str,
) -> Result<Issued, Error> {
    let fail = |source| Error::KeyMaterial { what: format!("{what}, certificate {}", request.name), source };
    let authority = keyring
        .authority(request.authority)
        .ok_or_else(|| Error::NoAuthority(what.to_owned()))?
        .map_err(fail)?;
    let wanted = Request {
        common_name: request.common_name.clone(),
        organizations: request.organizations.clone(),
        dns_names: request.dns_names.clone(),
        ip_addresses: request.ip_addresses.clone(),
        usages: match request.usage {
            Usage::Server => Usages::Server,
            Usage::Client => Usages::Client,
            Usage::Both => Usages::ServerAndClient,
        },
    };
    authority.issue(&wanted, Validity::starting(now, lifetimes.leaf)).map_err(fail)
}

#[cfg(test)]
mod tests {
    #[test]
    fn renewal_counts_with_the_backdating_that_issuance_does() {
        assert_eq!(kaas_lifecycle::key_material::BACKDATED, kaas_pki::CLOCK_SKEW);
    }
}
