//! A certificate signing request that somebody else made. Decides from its bytes alone what is asked for; whatever it
//! says besides names is told in words, so that nobody approves what he did not see. Refuses anything but PKCS#10 in PEM
//! whose signature is its key's; never panics on foreign input.

use std::net::IpAddr;

use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::ParsedExtension,
    oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME},
    pem::Pem,
    prelude::FromDer,
};

use crate::{Error, certificate};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigningRequest {
    /// Common names of the subject: every one.
    pub common_names: Vec<String>,
    /// Organizations of the subject: every one.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// What else it says, in words: other parts of the subject, other kinds of names, other extensions.
    pub more: Vec<String>,
}

impl SigningRequest {
    /// Reads exactly one request.
    pub fn parse(pem: &[u8]) -> Result<Self, Error> {
        let mut blocks = Pem::iter_from_buffer(pem);
        let block = match (blocks.next(), blocks.next()) {
            (Some(Ok(block)), None) if block.label == "CERTIFICATE REQUEST" => block,
            _ => return Err(refuse("wanted one PEM block CERTIFICATE REQUEST")),
        };
        let (rest, request) = X509CertificationRequest::from_der(&block.contents)
            .map_err(|error| refuse(format!("not PKCS#10: {error}")))?;
        if !rest.is_empty() {
            return Err(refuse(format!("{} bytes follow the request", rest.len())));
        }
        request.verify_signature().map_err(|error| refuse(format!("its signature: {error}")))?;
        let subject = &request.certification_request_info.subject;
        let mut read = Self {
            common_names: certificate::strings(subject.iter_common_name())?,
            organizations: certificate::strings(subject.iter_organization())?,
            ..Self::default()
        };
        for part in subject.iter_attributes().map(|attribute| attribute.attr_type()) {
            if *part != OID_X509_COMMON_NAME && *part != OID_X509_ORGANIZATION_NAME {
                read.more.push(format!("subject part {part}"));
            }
        }
        for extension in request.requested_extensions().into_iter().flatten() {
            read.extension(extension)?;
        }
        // Of several lists of extensions each reader may take another one.
        let mut lists = 0;
        for attribute in request.certification_request_info.iter_attributes() {
            if attribute.oid.to_id_string() == EXTENSION_REQUEST && lists == 0 {
                lists += 1;
            } else {
                read.more.push(format!("attribute {}", attribute.oid));
            }
        }
        Ok(read)
    }

    fn extension(&mut self, extension: &ParsedExtension<'_>) -> Result<(), Error> {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match certificate::alternative_name(name)? {
                        Some(certificate::Name::Dns(name)) => self.dns_names.push(name),
                        Some(certificate::Name::Address(address)) => self.ip_addresses.push(address),
                        None => self.more.push(format!("name {name}")),
                    }
                }
            }
            // What it is for stands in the object around the request; the signer takes that.
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca => {}
            _ => self.more.push("an extension that kubelets do not ask for".to_owned()),
        }
        Ok(())
    }
}

/// Attribute that holds the extensions (RFC 2985, extensionRequest).
const EXTENSION_REQUEST: &str = "1.2.840.113549.1.9.14";

fn refuse(why: impl Into<String>) -> Error {
    Error::SigningRequest { reason: why.into() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:p-0");
        change(&mut params);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn what_kubelets_ask_for_is_read_whole() {
        let text = request(|params| {
            params.subject_alt_names =
                vec![SanType::DnsName("p-0".try_into().unwrap()), SanType::IpAddress([10, 0, 0, 1].into())];
        });
        let read = SigningRequest::parse(text.as_bytes()).unwrap();
        assert_eq!(read.common_names, ["system:node:p-0"]);
        assert_eq!(read.organizations, ["system:nodes"]);
        assert_eq!(read.dns_names, ["p-0"]);
        assert_eq!(read.ip_addresses, [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(read.more, [""; 0]);
        assert_eq!(SigningRequest::parse(request(|_| {}).as_bytes()).unwrap().dns_names, [""; 0]);
    }

    #[test]
    fn whatever_else_is_asked_for_is_told() {
        for (change, word) in [
            (
                (|params| params.distinguished_name.push(DnType::LocalityName, "x"))
                    as fn(&mut CertificateParams),
                "subject part",
            ),
            (
                |params| params.subject_alt_names = vec![SanType::URI("spiffe://a".try_into().unwrap())],
                "name",
            ),
            (
                |params| {
                    let extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                    params.custom_extensions = vec![extension];
                },
                "an extension",
            ),
        ] {
            let read = SigningRequest::parse(request(change).as_bytes()).unwrap();
            assert!(read.more.iter().any(|more| more.starts_with(word)), "{word}: {read:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = request(|_| {});
        let other = request(|params| params.distinguished_name.push(DnType::CountryName, "x"));
        let body = |pem: &str| Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap().contents;
        // The signature of one below the content of the other.
        let mut forged = body(&good);
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let encoded = {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(&forged)
        };
        let forged =
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{encoded}\n-----END CERTIFICATE REQUEST-----\n");
        for text in ["", "x", &good.replace("REQUEST", "CRL"), &format!("{good}{other}"), &forged] {
            let error = SigningRequest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("signing request cannot be read: "), "{error}");
        }
    }
}
