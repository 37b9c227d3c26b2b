//! Foreign input never panics, and whatever a request may hold comes back.
#![cfg(test)]

use std::sync::LazyLock;

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Certificate, Request, ServiceAccountKey, Usages, Validity};
use proptest::prelude::*;

static CA: LazyLock<Authority> = LazyLock::new(|| Authority::generate("ca", validity()).unwrap());

static LEAF: LazyLock<Certificate> = LazyLock::new(|| {
    let request = Request {
        common_name: "leaf".into(),
        organizations: vec!["a".into(), "b".into()],
        dns_names: vec!["a.example".into()],
        ip_addresses: vec![[10, 0, 0, 1].into()],
        usages: Usages::ServerAndClient,
    };
    Certificate::parse(&CA.issue(&request, validity()).unwrap().certificate_pem).unwrap()
});

fn validity() -> Validity {
    Validity::starting(Timestamp::UNIX_EPOCH, SignedDuration::from_hours(24))
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der))
}

fn read_all(text: &str) {
    let _ = Certificate::parse(text);
    let _ = Certificate::parse_bundle(text);
    let _ = ServiceAccountKey::load(text);
    let _ = Authority::load(text, CA.private_key_pem());
    let _ = Authority::load(CA.certificate_pem(), text);
}

/// What the signature covers. The name of the algorithm behind it is not covered: it has to repeat the one inside
/// (RFC 5280, 4.1.1.2), but a reader may take several encodings of it for the same one.
fn signed(der: &[u8]) -> Vec<u8> {
    x509_parser::parse_x509_certificate(der).unwrap().1.tbs_certificate.as_ref().to_vec()
}

#[test]
fn every_bit_of_what_is_signed_counts() {
    for (index, bit) in (0..LEAF.der().len()).flat_map(|index| (0..8).map(move |bit| (index, bit))) {
        let mut der = LEAF.der().to_vec();
        der[index] ^= 1 << bit;
        if let Ok(damaged) = Certificate::parse(&pem(&der)) {
            let forged = damaged.is_issued_by(CA.certificate()) && signed(&der) != signed(LEAF.der());
            assert!(!forged, "bit {bit} of byte {index}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_never_panics(text in any::<String>()) {
        read_all(&text);
    }

    #[test]
    fn pem_like_text_never_panics(text in "(-----BEGIN (CERTIFICATE|PRIVATE KEY|)-----\n?[A-Za-z0-9+/=\n]{0,200}\n?(-----END [A-Z ]{0,12}-----\n?)?){0,3}") {
        read_all(&text);
    }

    #[test]
    fn bytes_in_pem_never_panic(der in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&pem(&der));
    }

    #[test]
    fn damaged_certificates_never_panic_nor_verify(
        authority in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        length in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let original = if authority { CA.certificate() } else { &*LEAF };
        let mut der = original.der().to_vec();
        for (index, byte) in changes {
            let index = index.index(der.len());
            der[index] = byte;
        }
        if let Some(length) = length {
            der.truncate(length.index(der.len()));
        }
        let text = pem(&der);
        read_all(&text);
        if let Ok(damaged) = Certificate::parse(&text) {
            prop_assert!(signed(&der) == signed(original.der()) || !damaged.is_issued_by(CA.certificate()));
        }
    }

    #[test]
    fn requests_come_back(
        common_name in "[^\\p{Cc}]{1,80}",
        organizations in prop::collection::vec("[^\\p{Cc}]{1,40}", 0..=2),
        dns_names in prop::collection::vec("(\\*\\.)?[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{1,10}){0,3}", 1..4),
        ip_addresses in prop::collection::vec(any::<std::net::IpAddr>(), 0..4),
        usages in prop::sample::select(vec![Usages::Server, Usages::Client, Usages::ServerAndClient]),
    ) {
        let request = Request { common_name, organizations, dns_names, ip_addresses, usages };
        let read = Certificate::parse(&CA.issue(&request, validity()).unwrap().certificate_pem).unwrap();
        prop_assert!(read.is_issued_by(CA.certificate()));
        prop_assert_eq!(read.usages, Some(request.usages));
        prop_assert_eq!(read.common_name, request.common_name);
        prop_assert_eq!(read.organizations, request.organizations);
        prop_assert_eq!(read.dns_names, request.dns_names);
        prop_assert_eq!(read.ip_addresses, request.ip_addresses);
    }
}
