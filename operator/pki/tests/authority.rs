//! Every field of what an authority makes is read back; what it must not make is refused.
#![cfg(test)]

use std::{collections::HashSet, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, CLOCK_SKEW, Certificate, Error, Request, ServiceAccountKey, Usages, Validity};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn now() -> Timestamp {
    "2026-03-01T12:00:00.25Z".parse().unwrap()
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap()
}

fn authority(name: &str) -> Authority {
    Authority::generate(name, Validity::starting(now(), HOUR * 24)).unwrap()
}

fn server() -> Request {
    Request {
        common_name: "kube-apiserver".into(),
        organizations: vec![],
        dns_names: vec!["kubernetes.default.svc".into(), "*.etcd.kaas-1.svc".into()],
        ip_addresses: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        usages: Usages::Server,
    }
}

fn client(organizations: &[&str]) -> Request {
    Request {
        common_name: "system:kube-controller-manager".into(),
        organizations: organizations.iter().map(|&name| name.into()).collect(),
        dns_names: vec![],
        ip_addresses: vec![],
        usages: Usages::Client,
    }
}

fn issue(ca: &Authority, request: &Request) -> Certificate {
    let issued = ca.issue(request, Validity::starting(now(), HOUR)).unwrap();
    Certificate::parse(&issued.certificate_pem).unwrap()
}

fn refusal(request: &Request) -> String {
    authority("ca").issue(request, Validity::starting(now(), HOUR)).unwrap_err().to_string()
}

#[test]
fn authority_reads_back() {
    let ca = authority("kubernetes-ca");
    let read = Certificate::parse(ca.certificate_pem()).unwrap();
    assert_eq!(&read, ca.certificate());
    assert_eq!(read.common_name, "kubernetes-ca");
    assert!(read.is_authority);
    assert_eq!(read.usages, None);
    assert_eq!(read.not_before, seconds(now() - CLOCK_SKEW));
    assert_eq!(read.not_after, seconds(now() + HOUR * 24));
    assert!(read.organizations.is_empty() && read.dns_names.is_empty() && read.ip_addresses.is_empty());
    assert!(read.is_issued_by(&read), "it signs itself");
    assert!(ca.private_key_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
}

#[test]
fn leaf_reads_back() {
    let ca = authority("kubernetes-ca");
    let issued = ca.issue(&server(), Validity::starting(now(), HOUR)).unwrap();
    let leaf = Certificate::parse(&issued.certificate_pem).unwrap();
    assert_eq!(leaf.common_name, "kube-apiserver");
    assert_eq!(leaf.dns_names, ["kubernetes.default.svc", "*.etcd.kaas-1.svc"]);
    assert_eq!(leaf.ip_addresses, ["10.96.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    assert_eq!(leaf.usages, Some(Usages::Server));
    assert!(!leaf.is_authority);
    assert_eq!(leaf.not_before, seconds(now() - CLOCK_SKEW));
    assert_eq!(leaf.not_after, seconds(now() + HOUR));
    assert!(leaf.subject_key_id.is_some());
    assert_eq!(leaf.authority_key_id, ca.certificate().subject_key_id);
    assert_ne!(leaf.authority_key_id, leaf.subject_key_id);
    assert!(leaf.is_issued_by(ca.certificate()));
    assert!(!ca.certificate().is_issued_by(&leaf), "a leaf signs nothing");
    assert!(!leaf.is_issued_by(&leaf));
    assert!(issued.private_key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
}

#[test]
fn usages_and_groups_read_back() {
    let ca = authority("ca");
    for usages in [Usages::Client, Usages::Server, Usages::ServerAndClient] {
        assert_eq!(issue(&ca, &Request { usages, ..server() }).usages, Some(usages));
    }
    for groups in [&[][..], &["kaas:admins"], &["b", "a"], &["same", "same"]] {
        assert_eq!(issue(&ca, &client(groups)).organizations, groups, "none dropped, order kept");
    }
}

#[test]
fn serial_numbers_are_long_and_differ() {
    let ca = authority("ca");
    let serials: HashSet<_> = (0..20).map(|_| issue(&ca, &client(&[])).serial).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|serial| serial.len() == 32), "{serials:?}");
}

#[test]
fn a_namesake_is_not_the_issuer() {
    let (ca, namesake, other) = (authority("ca"), authority("ca"), authority("other"));
    let leaf = issue(&ca, &server());
    assert!(leaf.is_issued_by(ca.certificate()));
    assert!(!leaf.is_issued_by(namesake.certificate()), "same name, other key");
    assert!(!leaf.is_issued_by(other.certificate()));
}

#[test]
fn a_loaded_authority_goes_on_signing() {
    let ca = authority("ca");
    let loaded = Authority::load(ca.certificate_pem(), ca.private_key_pem()).unwrap();
    let leaf = issue(&loaded, &server());
    assert!(leaf.is_issued_by(ca.certificate()));
    assert_eq!(leaf.authority_key_id, ca.certificate().subject_key_id);
    assert_eq!(loaded.certificate_pem(), ca.certificate_pem());
    assert_eq!(loaded.private_key_pem(), ca.private_key_pem());
}

#[test]
fn loading_refuses_what_is_no_authority() {
    let ca = authority("ca");
    let issued = ca.issue(&server(), Validity::starting(now(), HOUR)).unwrap();
    let error = Authority::load(&issued.certificate_pem, &issued.private_key_pem).unwrap_err();
    assert!(matches!(&error, Error::NotAuthority { subject, .. } if subject == "kube-apiserver"), "{error}");
    let error = Authority::load(ca.certificate_pem(), authority("ca").private_key_pem()).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
    for garbage in
        ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ca.certificate_pem()]
    {
        let error = Authority::load(ca.certificate_pem(), garbage).unwrap_err();
        assert!(matches!(error, Error::PrivateKey { .. }), "{error}");
    }
    assert!(matches!(Authority::load("", ca.private_key_pem()), Err(Error::Certificate { .. })));
}

#[test]
fn a_leaf_never_outlives_its_authority() {
    let ca = authority("ca");
    let issued = ca.issue(&server(), Validity::starting(now() + HOUR, HOUR * 1000)).unwrap();
    let leaf = Certificate::parse(&issued.certificate_pem).unwrap();
    assert_eq!(leaf.not_after, ca.certificate().not_after);
    assert_eq!(leaf.not_before, seconds(now() + HOUR - CLOCK_SKEW));

    let early = Validity { not_before: now() - HOUR, not_after: now() + HOUR };
    let leaf = Certificate::parse(&ca.issue(&server(), early).unwrap().certificate_pem).unwrap();
    assert_eq!(leaf.not_before, ca.certificate().not_before);
}

#[test]
fn an_expired_authority_refuses() {
    let ca = authority("ca");
    let end = ca.certificate().not_after;
    let second = SignedDuration::from_secs(1);
    for expired in [end, end + second, end + HOUR, end + HOUR * 1000] {
        let error = ca.issue(&server(), Validity::starting(expired, HOUR)).unwrap_err();
        assert!(matches!(&error, Error::AuthorityExpired { authority, .. } if authority == "ca"), "{error}");
    }
    assert!(ca.issue(&server(), Validity::starting(end - second, HOUR)).is_ok(), "still a second left");
    let before = Validity { not_before: now() - HOUR * 3, not_after: now() - HOUR };
    assert!(matches!(ca.issue(&server(), before), Err(Error::AuthorityExpired { .. })), "not yet valid");
}

#[test]
fn short_lives_work() {
    let ca = Authority::generate("ca", Validity::starting(now(), SignedDuration::from_secs(90))).unwrap();
    let issued = ca.issue(&server(), Validity::starting(now(), SignedDuration::from_secs(30))).unwrap();
    let leaf = Certificate::parse(&issued.certificate_pem).unwrap();
    assert_eq!(leaf.not_after, seconds(now() + SignedDuration::from_secs(30)));
}

#[test]
fn empty_and_inverted_periods_are_refused() {
    let ca = authority("ca");
    let refused = [
        Validity { not_before: now(), not_after: now() },
        Validity { not_before: now(), not_after: now() - HOUR },
        Validity { not_before: now(), not_after: now() + SignedDuration::from_millis(10) },
        Validity::starting(now(), SignedDuration::ZERO),
        Validity::starting(now(), -SignedDuration::from_secs(1)),
        Validity::starting(now(), SignedDuration::MIN),
        Validity::starting(Timestamp::MIN, HOUR),
    ];
    for validity in refused {
        let error = ca.issue(&server(), validity).unwrap_err();
        assert!(matches!(error, Error::Validity { .. }), "{validity:?}: {error}");
        assert!(matches!(Authority::generate("ca", validity), Err(Error::Validity { .. })), "{validity:?}");
    }
}

#[test]
fn far_ends_are_written() {
    for (from, to) in
        [("1950-01-01T00:00:00Z", "2049-12-31T23:59:59Z"), ("2050-01-01T00:00:00Z", "9999-12-30T00:00:00Z")]
    {
        let validity = Validity { not_before: from.parse().unwrap(), not_after: to.parse().unwrap() };
        let ca = Authority::generate("ca", validity).unwrap();
        assert_eq!(
            (ca.certificate().not_before, ca.certificate().not_after),
            (validity.not_before, validity.not_after)
        );
    }
    let endless = Authority::generate("ca", Validity::starting(now(), SignedDuration::MAX)).unwrap();
    assert_eq!(endless.certificate().not_after, seconds(Timestamp::MAX));
}

#[test]
fn unusable_names_are_refused_by_field_and_value() {
    let long = "a".repeat(64);
    for name in ["", "a..b", "-a", "a-", "a_b", "a b", "b.*.c", "*", "ä.de", "a.", &long, &"a.".repeat(130)]
    {
        let text = refusal(&Request { dns_names: vec![name.into()], ..server() });
        assert!(text.contains(&format!("dns_names {name:?}")) && text.contains("kube-apiserver"), "{text}");
    }
    let text = refusal(&Request { dns_names: vec!["10.0.0.1".into()], ..server() });
    assert!(text.contains("ip_addresses"), "{text}");
    let text = refusal(&Request { dns_names: vec![], ip_addresses: vec![], ..server() });
    assert!(text.contains("at least one DNS name or IP address"), "{text}");
    for name in ["", "a\nb", "a\0"] {
        let text = refusal(&Request { common_name: name.into(), ..server() });
        assert!(text.contains("common_name"), "{text}");
        assert!(matches!(
            Authority::generate(name, Validity::starting(now(), HOUR)),
            Err(Error::Name { .. })
        ));
    }
    assert!(refusal(&client(&["a", ""])).contains("organizations"));
    assert!(refusal(&client(&["a", "b", "c"])).contains("organizations \"c\": it is one too many"));
}

#[test]
fn a_long_user_name_is_kept() {
    let name = format!("system:node:{}", "n".repeat(253));
    let request = Request { common_name: name.clone(), ..client(&["system:nodes"]) };
    assert_eq!(issue(&authority("ca"), &request).common_name, name);
}

#[test]
fn parse_takes_exactly_one_and_parse_bundle_all() {
    let (old, new) = (authority("old"), authority("new"));
    let bundle = format!("# trusted\n{}{}", old.certificate_pem(), new.certificate_pem());
    assert!(Certificate::parse(&bundle).unwrap_err().to_string().contains("2 certificates"));
    let read = Certificate::parse_bundle(&bundle).unwrap();
    assert_eq!(read, [old.certificate().clone(), new.certificate().clone()]);
    let text = Certificate::parse(old.private_key_pem()).unwrap_err().to_string();
    assert!(text.contains("\"PRIVATE KEY\""), "{text}");
    assert!(Certificate::parse("").unwrap_err().to_string().contains("no CERTIFICATE block"));
    let cut = &old.certificate_pem()[..200];
    assert!(Certificate::parse(cut).is_err());
}

#[test]
fn debug_hides_private_keys() {
    let ca = authority("ca");
    let issued = ca.issue(&server(), Validity::starting(now(), HOUR)).unwrap();
    let key = ServiceAccountKey::generate().unwrap();
    for (text, secret) in [
        (format!("{ca:#?}"), ca.private_key_pem()),
        (format!("{issued:#?}"), &issued.private_key_pem),
        (format!("{key:#?}"), &key.private_key_pem),
    ] {
        assert!(text.contains("[redacted]"), "{text}");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        let body: Vec<_> = secret.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(body.iter().all(|line| !text.contains(line)), "{text}");
    }
}

#[test]
fn service_account_keys_load_again() {
    let key = ServiceAccountKey::generate().unwrap();
    assert!(key.private_key_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(key.public_key_pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
    assert_eq!(ServiceAccountKey::load(&key.private_key_pem).unwrap(), key);
    assert_ne!(ServiceAccountKey::generate().unwrap(), key);
    assert!(matches!(ServiceAccountKey::load(&key.public_key_pem), Err(Error::PrivateKey { .. })));
    assert!(matches!(ServiceAccountKey::load("nothing"), Err(Error::PrivateKey { .. })));
}
