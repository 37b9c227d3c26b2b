//! A certificate authority: makes itself from a name and a period or from PEM, and signs leaves. Refuses a certificate
//! that is no authority, a foreign key, and any leaf that would outlive it.

use std::fmt;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber,
};
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use crate::{
    CLOCK_SKEW, Certificate, Error, Request, Validity,
    key::{REDACTED, generate_key, load_key},
};

/// A leaf certificate and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate in PEM.
    pub certificate_pem: String,
    /// The private key in PEM (PKCS#8).
    pub private_key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .field("private_key_pem", &REDACTED)
            .finish()
    }
}

/// A certificate authority with its private key.
pub struct Authority {
    certificate: Certificate,
    certificate_pem: String,
    private_key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new self-signed authority that may sign leaves but no further authorities.
    pub fn generate(common_name: &str, validity: Validity) -> Result<Self, Error> {
        if common_name.is_empty() || common_name.chars().any(char::is_control) {
            return Err(Error::Name {
                request: common_name.to_owned(),
                field: "common_name",
                value: common_name.to_owned(),
                reason: "it must not be empty or contain control characters",
            });
        }
        let key = generate_key(common_name)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial_number(common_name)?);
        (params.not_before, params.not_after) = validity.encode()?;
        let certificate_pem = params.self_signed(&key).map_err(|error| signing(common_name, &error))?.pem();
        Ok(Self {
            certificate: Certificate::parse(&certificate_pem)?,
            certificate_pem,
            private_key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes an existing authority.
    pub fn load(certificate_pem: &str, private_key_pem: &str) -> Result<Self, Error> {
        let certificate = Certificate::parse(certificate_pem)?;
        let refuse =
            |reason: String| Error::NotAuthority { subject: certificate.common_name.clone(), reason };
        if !certificate.is_authority {
            return Err(refuse("it lacks CA:TRUE or the key usage keyCertSign".to_owned()));
        }
        let (_, x509) =
            parse_x509_certificate(certificate.der()).map_err(|error| refuse(error.to_string()))?;
        if !has_plain_subject(&x509) {
            return Err(refuse("its subject is empty or repeats an attribute, which would be lost in the issuer of its leaves".to_owned()));
        }
        let key = load_key(&certificate.common_name, private_key_pem)?;
        if key.subject_public_key_info() != x509.public_key().raw {
            return Err(Error::KeyMismatch { authority: certificate.common_name.clone() });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.der().into(), key)
            .map_err(|error| refuse(format!("its subject cannot be read: {error}")))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            private_key_pem: private_key_pem.to_owned(),
            issuer,
            certificate,
        })
    }

    /// The authority's own certificate in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's private key in PEM.
    #[must_use]
    pub fn private_key_pem(&self) -> &str {
        &self.private_key_pem
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Makes a new key and signs a leaf for it, with a random serial number.
    ///
    /// Where `validity` reaches beyond the authority's own, the leaf is cut to it. If that leaves nothing after
    /// [`CLOCK_SKEW`], the authority has expired for the caller's clock and the request is refused.
    pub fn issue(&self, request: &Request, validity: Validity) -> Result<Issued, Error> {
        let mut params = request.encode()?;
        (params.not_before, params.not_after) = self.clamp(validity)?.encode()?;
        params.serial_number = Some(serial_number(&request.common_name)?);
        let key = generate_key(&request.common_name)?;
        let signed =
            params.signed_by(&key, &self.issuer).map_err(|error| signing(&request.common_name, &error))?;
        let certificate_pem = signed.pem();
        // A loaded authority may have a name or an algorithm that does not survive; better here than at a client.
        if !Certificate::parse(&certificate_pem)?.is_issued_by(&self.certificate) {
            return Err(Error::NotAuthority {
                subject: self.certificate.common_name.clone(),
                reason: "what it signs cannot be traced back to it; generate a new authority".to_owned(),
            });
        }
        Ok(Issued { certificate_pem, private_key_pem: key.serialize_pem() })
    }

    fn clamp(&self, asked: Validity) -> Result<Validity, Error> {
        asked.encode()?;
        let own = Validity { not_before: self.certificate.not_before, not_after: self.certificate.not_after };
        let clamped = Validity {
            not_before: asked.not_before.max(own.not_before),
            not_after: asked.not_after.min(own.not_after),
        };
        let is_cut = clamped.not_after < asked.not_after;
        let starts = asked.not_before.checked_add(CLOCK_SKEW).unwrap_or(asked.not_before);
        if (is_cut && clamped.not_after <= starts) || clamped.encode().is_err() {
            return Err(Error::AuthorityExpired {
                authority: self.certificate.common_name.clone(),
                not_before: own.not_before,
                not_after: own.not_after,
                requested: asked.not_before,
            });
        }
        Ok(clamped)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificate_pem", &self.certificate_pem)
            .field("private_key_pem", &REDACTED)
            .finish_non_exhaustive()
    }
}

/// Whether the library can write the subject again as it is: it keeps one value per attribute type, and one
/// attribute per set.
fn has_plain_subject(x509: &X509Certificate<'_>) -> bool {
    let mut seen = Vec::new();
    for set in x509.subject().iter() {
        let mut attributes = set.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else { return false };
        if seen.contains(&attribute.attr_type()) {
            return false;
        }
        seen.push(attribute.attr_type());
    }
    !seen.is_empty()
}

/// 128 random bits, positive and never shorter: the second highest bit is set.
fn serial_number(subject: &str) -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|error| Error::Crypto {
        operation: "drawing a serial number",
        subject: subject.to_owned(),
        reason: error.to_string(),
    })?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn signing(subject: &str, error: &rcgen::Error) -> Error {
    Error::Crypto {
        operation: "signing a certificate",
        subject: subject.to_owned(),
        reason: error.to_string(),
    }
}
