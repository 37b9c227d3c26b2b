//! A certificate that was read back. Decides from its bytes alone who it is for, until when, and who signed it.
//! Refuses anything but X.509 in PEM; never panics on foreign input.

use std::{fmt::Write, net::IpAddr};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    parse_x509_certificate,
    pem::Pem,
    time::ASN1Time,
    x509::AttributeTypeAndValue,
};

use crate::{Error, Usages};

/// The fields of a certificate that matter to Kubernetes, and the certificate itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Common name of the subject; empty if it has none.
    pub common_name: String,
    /// Organizations of the subject.
    pub organizations: Vec<String>,
    /// DNS names of the subject.
    pub dns_names: Vec<String>,
    /// IP addresses of the subject.
    pub ip_addresses: Vec<IpAddr>,
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
    /// What a leaf may be used for; an authority of ours names nothing.
    pub usages: Option<Usages>,
    /// Whether it may sign other certificates.
    pub is_authority: bool,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// Identifier of its own key in lower-case hexadecimal.
    pub subject_key_id: Option<String>,
    /// Identifier of the key that signed it in lower-case hexadecimal.
    pub authority_key_id: Option<String>,
    der: Vec<u8>,
}

impl Certificate {
    /// Reads exactly one certificate.
    pub fn parse(pem: &str) -> Result<Self, Error> {
        let mut certificates = Self::parse_bundle(pem)?;
        match (certificates.pop(), certificates.len()) {
            (Some(certificate), 0) => Ok(certificate),
            (_, others) => Err(refuse(format!("the text holds {} certificates, wanted one", others + 1))),
        }
    }

    /// Reads one or more certificates, as a file of trusted authorities holds them while they are rotated.
    pub fn parse_bundle(pem: &str) -> Result<Vec<Self>, Error> {
        let mut certificates = Vec::new();
        for block in Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(|error| refuse(format!("the PEM text is broken: {error}")))?;
            if block.label != "CERTIFICATE" {
                return Err(refuse(format!("it holds a block {:?}, wanted CERTIFICATE", block.label)));
            }
            certificates.push(Self::from_der(block.contents)?);
        }
        if certificates.is_empty() {
            return Err(refuse("there is no CERTIFICATE block in the text"));
        }
        Ok(certificates)
    }

    /// Whether `ca` is an authority, has the name this certificate gives as its issuer, and its key signed it.
    ///
    /// Says nothing about time: compare `not_before` and `not_after` of both.
    #[must_use]
    pub fn is_issued_by(&self, ca: &Self) -> bool {
        let (Ok((_, own)), Ok((_, issuer))) =
            (parse_x509_certificate(&self.der), parse_x509_certificate(&ca.der))
        else {
            return false;
        };
        ca.is_authority
            && own.issuer().as_raw() == issuer.subject().as_raw()
            && own.signature_algorithm == own.signature
            && own.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// SHA-256 of the subject's public key in lower-case hexadecimal: what `kubeadm join` pins an authority by.
    #[must_use]
    pub fn public_key_hash(&self) -> String {
        let key = parse_x509_certificate(&self.der).map(|(_, own)| own.public_key().raw.to_vec());
        hexadecimal(digest(&SHA256, &key.unwrap_or_default()).as_ref())
    }

    /// The bytes that the PEM text carried.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Reads one certificate from its bytes.
    pub fn from_der(der: Vec<u8>) -> Result<Self, Error> {
        let (rest, x509) =
            parse_x509_certificate(&der).map_err(|error| refuse(format!("not X.509: {error}")))?;
        if !rest.is_empty() {
            return Err(refuse(format!("{} bytes follow the certificate", rest.len())));
        }
        let (dns_names, ip_addresses) = alternative_names(&x509)?;
        let (subject_key_id, authority_key_id) = key_ids(&x509);
        Ok(Self {
            common_name: strings(x509.subject().iter_common_name())?.into_iter().next().unwrap_or_default(),
            organizations: strings(x509.subject().iter_organization())?,
            dns_names,
            ip_addresses,
            not_before: timestamp(x509.validity().not_before)?,
            not_after: timestamp(x509.validity().not_after)?,
            usages: usages(&x509)?,
            is_authority: is_authority(&x509)?,
            serial: hexadecimal(x509.raw_serial()),
            subject_key_id,
            authority_key_id,
            der,
        })
    }
}

fn alternative_names(x509: &X509Certificate<'_>) -> Result<(Vec<String>, Vec<IpAddr>), Error> {
    let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
    let extension =
        x509.subject_alternative_name().map_err(|error| extension("subject alternative name", error))?;
    for name in extension.iter().flat_map(|found| &found.value.general_names) {
        match alternative_name(name)? {
            Some(Name::Dns(name)) => dns_names.push(name),
            Some(Name::Address(address)) => ip_addresses.push(address),
            // It means nothing to Kubernetes.
            None => {}
        }
    }
    Ok((dns_names, ip_addresses))
}

/// A name that means something to Kubernetes.
pub(crate) enum Name {
    Dns(String),
    Address(IpAddr),
}

/// `None` for names of other kinds.
pub(crate) fn alternative_name(name: &GeneralName<'_>) -> Result<Option<Name>, Error> {
    Ok(match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::IPAddress(bytes) => Some(Name::Address(ip_address(bytes)?)),
        _ => None,
    })
}

fn ip_address(bytes: &[u8]) -> Result<IpAddr, Error> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(v4.into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(v6.into())
    } else {
        Err(refuse(format!("an IP address of {} bytes, wanted 4 or 16", bytes.len())))
    }
}

fn usages(x509: &X509Certificate<'_>) -> Result<Option<Usages>, Error> {
    let usage = x509.extended_key_usage().map_err(|error| extension("extended key usage", error))?;
    Ok(usage.and_then(|usage| Usages::from_flags(usage.value.server_auth, usage.value.client_auth)))
}

fn is_authority(x509: &X509Certificate<'_>) -> Result<bool, Error> {
    let constraints = x509.basic_constraints().map_err(|error| extension("basic constraints", error))?;
    let usage = x509.key_usage().map_err(|error| extension("key usage", error))?;
    Ok(constraints.is_some_and(|found| found.value.ca)
        && usage.is_none_or(|found| found.value.key_cert_sign()))
}

fn key_ids(x509: &X509Certificate<'_>) -> (Option<String>, Option<String>) {
    let (mut subject, mut authority) = (None, None);
    for extension in x509.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => subject = Some(hexadecimal(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority = id.key_identifier.as_ref().map(|id| hexadecimal(id.0));
            }
            _ => {}
        }
    }
    (subject, authority)
}

pub(crate) fn strings<'a>(
    attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<Vec<String>, Error> {
    attributes
        .map(|attribute| {
            let text =
                attribute.as_str().map_err(|error| refuse(format!("a name that is not text: {error}")))?;
            Ok(text.to_owned())
        })
        .collect()
}

fn timestamp(time: ASN1Time) -> Result<Timestamp, Error> {
    Timestamp::from_second(time.timestamp()).map_err(|error| refuse(format!("a time out of range: {error}")))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn extension(name: &str, error: impl std::fmt::Display) -> Error {
    refuse(format!("extension {name}: {error}"))
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::Certificate { reason: reason.into() }
}
