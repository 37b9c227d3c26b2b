//! What a leaf certificate is asked for. Refuses names that clients would not match or that a certificate cannot hold.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};

use crate::Error;

/// What a certificate's holder may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Usages {
    /// Be the server of a TLS connection.
    Server,
    /// Be the client of a TLS connection.
    Client,
    /// Be either, as members of etcd are among each other.
    ServerAndClient,
}

impl Usages {
    /// Whether a server may present the certificate.
    #[must_use]
    pub fn is_server(self) -> bool {
        matches!(self, Self::Server | Self::ServerAndClient)
    }

    /// Whether a client may present the certificate.
    #[must_use]
    pub fn is_client(self) -> bool {
        matches!(self, Self::Client | Self::ServerAndClient)
    }

    pub(crate) fn from_flags(server: bool, client: bool) -> Option<Self> {
        match (server, client) {
            (true, true) => Some(Self::ServerAndClient),
            (true, false) => Some(Self::Server),
            (false, true) => Some(Self::Client),
            (false, false) => None,
        }
    }
}

/// Subject, names and usages of a leaf certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Common name; to Kubernetes the user name of a client.
    pub common_name: String,
    /// Organizations, at most two; to Kubernetes the groups of a client.
    pub organizations: Vec<String>,
    /// DNS names a server is reached by. `*.example.com` stands for one label.
    pub dns_names: Vec<String>,
    /// Addresses a server is reached by.
    pub ip_addresses: Vec<IpAddr>,
    /// What the holder may do.
    pub usages: Usages,
}

impl Request {
    /// The request in the library's terms, still without validity and serial number.
    pub(crate) fn encode(&self) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject()?;
        params.subject_alt_names = self.alternative_names()?;
        // Says CA:FALSE and makes the library write the subject key identifier.
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if self.usages.is_server() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.usages.is_client() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        Ok(params)
    }

    fn subject(&self) -> Result<DistinguishedName, Error> {
        let mut subject = DistinguishedName::new();
        // The library keeps one value per attribute type and would drop all but the last; the same type written
        // as a bare identifier counts as another one. There is no third way to write it.
        let mut types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])].into_iter();
        for organization in &self.organizations {
            self.check_attribute("organizations", organization)?;
            let Some(kind) = types.next() else {
                return Err(self.refuse(
                    "organizations",
                    organization,
                    "it is one too many: give at most two",
                ));
            };
            subject.push(kind, organization.as_str());
        }
        self.check_attribute("common_name", &self.common_name)?;
        subject.push(DnType::CommonName, self.common_name.as_str());
        Ok(subject)
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, Error> {
        if self.usages.is_server() && self.dns_names.is_empty() && self.ip_addresses.is_empty() {
            let reason = "a server certificate needs at least one DNS name or IP address, clients ignore the common name";
            return Err(self.refuse("dns_names", "", reason));
        }
        let mut names = Vec::with_capacity(self.dns_names.len() + self.ip_addresses.len());
        for name in &self.dns_names {
            check_dns_name(name).map_err(|reason| self.refuse("dns_names", name, reason))?;
            let name =
                name.as_str().try_into().map_err(|_| self.refuse("dns_names", name, "it is not ASCII"))?;
            names.push(SanType::DnsName(name));
        }
        names.extend(self.ip_addresses.iter().copied().map(SanType::IpAddress));
        Ok(names)
    }

    fn check_attribute(&self, field: &'static str, value: &str) -> Result<(), Error> {
        if value.is_empty() {
            return Err(self.refuse(field, value, "it must not be empty"));
        }
        if value.chars().any(char::is_control) {
            return Err(self.refuse(field, value, "it must not contain control characters"));
        }
        Ok(())
    }

    fn refuse(&self, field: &'static str, value: &str, reason: &'static str) -> Error {
        Error::Name { request: self.common_name.clone(), field, value: value.to_owned(), reason }
    }
}

/// RFC 1123 host names of at most 253 characters, with an optional wildcard as the first label.
fn check_dns_name(name: &str) -> Result<(), &'static str> {
    if name.parse::<IpAddr>().is_ok() {
        return Err("it is an IP address: clients look for those in ip_addresses");
    }
    if name.is_empty() || name.len() > 253 {
        return Err("a DNS name has 1 to 253 characters");
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(is_label) {
        Ok(())
    } else {
        Err("each label between dots has 1 to 63 letters, digits or inner hyphens; only the first may be *")
    }
}
