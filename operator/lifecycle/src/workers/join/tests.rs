use super::*;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

fn worker(name: &str, token: &str, address: &str) -> Candidate {
    Candidate {
        name: name.into(),
        token_id: Some(token.into()),
        token_expires: Some(now() + SignedDuration::from_mins(30)),
        addresses: Some(BTreeSet::from([address.parse().unwrap()])),
        ..Candidate::default()
    }
}

fn workers() -> Vec<Candidate> {
    vec![worker("p-0", "aaaaaa", "10.0.0.7"), worker("p-1", "bbbbbb", "10.0.0.8")]
}

fn first() -> Request {
    Request {
        signer: CLIENT_SIGNER.into(),
        username: "system:bootstrap:aaaaaa".into(),
        groups: set(["system:bootstrappers", "system:authenticated"]),
        created: Some(now()),
        usages: set(["digital signature", "client auth"]),
        common_names: vec!["system:node:p-0".into()],
        organizations: vec!["system:nodes".into()],
        ..Request::default()
    }
}

fn renewal() -> Request {
    Request {
        username: "system:node:p-0".into(),
        groups: set(["system:nodes", "system:authenticated"]),
        ..first()
    }
}

fn server() -> Request {
    Request {
        signer: SERVING_SIGNER.into(),
        usages: set(["digital signature", "key encipherment", "server auth"]),
        dns_names: set(["p-0"]),
        addresses: BTreeSet::from(["10.0.0.7".parse().unwrap()]),
        ..renewal()
    }
}

fn judged(request: &Request) -> Judgement {
    judge(request, &workers(), &["10.96.0.0/12".parse().unwrap()], now())
}

fn denied(request: &Request, words: &str) {
    match judged(request) {
        Judgement::Deny(why) => assert!(why.contains(words), "{why} instead of {words}"),
        other => panic!("{other:?} instead of a denial with {words}"),
    }
}

type Change = fn(&mut Request);

fn with(mut request: Request, change: Change) -> Request {
    change(&mut request);
    request
}

#[test]
fn what_is_right_is_approved() {
    for request in [first(), renewal(), server()] {
        assert_eq!(judged(&request), Judgement::Approve("p-0".into()), "{request:?}");
    }
    let by_name = with(server(), |request| request.addresses.clear());
    assert_eq!(judged(&by_name), Judgement::Approve("p-0".into()));
}

#[test]
fn what_is_about_nobody_of_ours_is_ignored() {
    let cases: [Change; 4] = [
        |request| request.decided = true,
        |request| request.signer = "kubernetes.io/kube-apiserver-client".into(),
        |request| {
            request.username = "system:bootstrap:cccccc".into();
            request.common_names = vec!["system:node:own-machine".into()];
        },
        |request| {
            request.username = "alice".into();
            request.common_names = vec!["alice".into()];
        },
    ];
    for case in cases {
        assert_eq!(judged(&with(first(), case)), Judgement::Ignore);
    }
}

#[test]
fn a_forged_client_is_denied() {
    let cases: [(Change, &str); 14] = [
        (|r| r.common_names = vec!["system:node:p-1".into()], "the token of worker p-0 asks for worker p-1"),
        (|r| r.username = "system:bootstrap:cccccc".into(), "by its own token only"),
        (|r| r.username = "system:serviceaccount:default:x".into(), "by its own token only"),
        (|r| r.username = "system:node:p-1".into(), "the subject is not system:node:p-1"),
        (|r| r.common_names = vec!["system:node:else".into()], "the subject is not system:node:p-0"),
        (|r| r.common_names = vec!["system:node:p-0".into(), "system:admin".into()], "the subject is not"),
        (
            |r| r.organizations = vec!["system:nodes".into(), "system:masters".into()],
            "the organization is not",
        ),
        (|r| r.organizations = vec!["system:masters".into()], "the organization is not"),
        (|r| r.organizations.clear(), "the organization is not"),
        (|r| _ = r.groups.insert("system:masters".into()), "groups that it was not given"),
        (|r| r.usages = set(["client auth", "digital signature", "server auth"]), "not for client auth"),
        (|r| r.dns_names = set(["kubernetes"]), "no names but the subject's"),
        (|r| r.more = vec!["email a@b".into()], "more than a kubelet does"),
        (|r| r.created = Some(now() - SignedDuration::from_mins(61)), "not from the last hour"),
    ];
    for (case, words) in cases {
        // As a node the group is another one, which is missing.
        let request = with(first(), case);
        let words =
            if request.username == "system:node:p-1" { "has not the groups of a node" } else { words };
        denied(&request, words);
    }
    let other = with(renewal(), |request| request.username = "system:node:p-1".into());
    denied(&other, "the subject is not system:node:p-1");
    let masters: Change = |request| _ = request.groups.insert("system:masters".into());
    denied(&with(renewal(), masters), "has not the groups of a node");
    denied(&with(server(), masters), "asks for itself only");
}

#[test]
fn a_token_is_good_once_in_time_and_while_the_worker_stays() {
    let of = |change: fn(&mut Candidate)| {
        let mut workers = workers();
        change(&mut workers[0]);
        judge(&first(), &workers, &[], now())
    };
    assert_eq!(of(|_| {}), Judgement::Approve("p-0".into()));
    for (change, words) in [
        ((|worker| worker.token_used = true) as fn(&mut Candidate), "used before"),
        (|worker| worker.token_expires = Some(now()), "has ended"),
        (|worker| worker.going = true, "is being deleted"),
        (|worker| worker.token_id = None, "by its own token only"),
    ] {
        assert!(matches!(of(change), Judgement::Deny(why) if why.contains(words)), "{words}");
    }
    let unknown = of(|worker| worker.token_expires = None);
    assert!(matches!(&unknown, Judgement::Wait(why) if why.contains("was not found")), "{unknown:?}");
}

#[test]
fn a_forged_server_is_denied() {
    let cases: [(Change, &str); 10] = [
        (|r| _ = r.addresses.insert("10.0.0.9".parse().unwrap()), "10.0.0.9 is no address of worker p-0"),
        (|r| _ = r.addresses.insert("10.0.0.8".parse().unwrap()), "10.0.0.8 is no address of worker p-0"),
        (|r| _ = r.dns_names.insert("kubernetes.default.svc".into()), "is no name of worker p-0"),
        (|r| _ = r.dns_names.insert("p-1".into()), "p-1 is no name of worker p-0"),
        (|r| r.common_names = vec!["system:node:p-1".into()], "worker p-1 asks for itself only"),
        (|r| r.common_names = vec!["system:node:else".into()], "asks in another name"),
        (|r| r.username = "alice".into(), "asks for itself only"),
        (|r| r.groups.clear(), "asks for itself only"),
        (|r| r.usages = set(["digital signature", "client auth"]), "not for server auth"),
        (
            |r| {
                r.dns_names.clear();
                r.addresses.clear();
            },
            "no name and no address",
        ),
    ];
    for (case, words) in cases {
        denied(&with(server(), case), words);
    }
}

#[test]
fn nobody_gets_an_address_that_is_not_a_machines() {
    let claims = |address: &str, both: bool| {
        let address: IpAddr = address.parse().unwrap();
        let mut workers = workers();
        workers[0].addresses = Some(BTreeSet::from([address]));
        if both {
            workers[1].addresses = Some(BTreeSet::from([address]));
        }
        let request = Request { addresses: BTreeSet::from([address]), ..server() };
        judge(&request, &workers, &["10.96.0.0/12".parse().unwrap()], now())
    };
    assert_eq!(claims("10.0.0.9", false), Judgement::Approve("p-0".into()));
    for address in ["10.96.0.1", "127.0.0.1", "::1", "0.0.0.0", "224.0.0.1"] {
        assert!(matches!(claims(address, false), Judgement::Deny(_)), "{address}");
    }
    assert!(
        matches!(claims("10.0.0.9", true), Judgement::Deny(why) if why.contains("also an address of worker p-1"))
    );
}

#[test]
fn what_is_not_known_yet_is_waited_for() {
    let mut workers = workers();
    workers[0].addresses = None;
    assert!(matches!(judge(&server(), &workers, &[], now()), Judgement::Wait(_)));
    // What is wrong whatever the addresses are does not wait.
    let forged = with(server(), |request| request.organizations = vec!["system:masters".into()]);
    assert!(matches!(judge(&forged, &workers, &[], now()), Judgement::Deny(_)));
}

mod properties {
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::*;

    fn some(texts: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
        let most = texts.len();
        subsequence(texts.to_vec(), 0..=most)
            .prop_map(|chosen| chosen.into_iter().map(str::to_owned).collect())
    }

    /// One that is right, with some parts of any other.
    fn request() -> impl Strategy<Value = Request> {
        let bases = vec![first(), renewal(), server()];
        let parts = prop::collection::vec(prop::bool::weighted(0.15), 9);
        (select(bases), any_request(), parts).prop_map(|(mut request, other, parts)| {
            let takes = |at: usize| parts[at];
            if takes(0) {
                request.signer = other.signer;
            }
            if takes(1) {
                request.username = other.username;
            }
            if takes(2) {
                request.groups = other.groups;
            }
            if takes(3) {
                request.usages = other.usages;
            }
            if takes(4) {
                request.common_names = other.common_names;
            }
            if takes(5) {
                request.organizations = other.organizations;
            }
            if takes(6) {
                request.dns_names = other.dns_names;
            }
            if takes(7) {
                request.addresses = other.addresses;
            }
            if takes(8) {
                (request.more, request.created) = (other.more, other.created);
            }
            request
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let users = vec![
            "system:bootstrap:aaaaaa",
            "system:bootstrap:bbbbbb",
            "system:bootstrap:cccccc",
            "system:node:p-0",
            "system:node:p-1",
            "alice",
        ];
        let names = || {
            let names = vec!["system:node:p-0", "system:node:p-1", "system:node:other", "system:admin"];
            prop::collection::vec(select(names), 0..3)
        };
        let organizations = prop::collection::vec(select(vec!["system:nodes", "system:masters"]), 0..3);
        let groups = || {
            prop_oneof![
                Just(set(["system:nodes", "system:authenticated"])),
                Just(set(["system:bootstrappers", "system:authenticated"])),
                some(&["system:nodes", "system:bootstrappers", "system:authenticated", "system:masters"]),
            ]
        };
        let usages = prop_oneof![
            Just(set(["digital signature", "client auth"])),
            Just(set(["digital signature", "server auth"])),
            some(&["digital signature", "client auth", "server auth", "key encipherment", "cert sign"]),
        ];
        let addresses = some(&["10.0.0.7", "10.0.0.8", "10.96.0.1", "127.0.0.1"]);
        (
            (
                select(vec![CLIENT_SIGNER, SERVING_SIGNER, "kubernetes.io/kube-apiserver-client"]),
                select(users),
            ),
            (groups(), usages, names(), organizations),
            (some(&["p-0", "p-1", "kubernetes"]), addresses, prop::bool::weighted(0.1), -10i64..70),
        )
            .prop_map(
                |((signer, user), (groups, usages, names, organizations), (dns, addresses, more, age))| {
                    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
                    Request {
                        signer: signer.into(),
                        username: user.into(),
                        groups,
                        created: Some(now() - SignedDuration::from_mins(age)),
                        decided: false,
                        usages,
                        common_names: owned(names),
                        organizations: owned(organizations),
                        dns_names: dns,
                        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                        more: if more { vec!["a@b".into()] } else { Vec::new() },
                    }
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The rules once more, as they would be told.
        #[test]
        fn what_is_approved_is_what_the_worker_may_have(request in request()) {
            if let Judgement::Approve(worker) = judged(&request) {
                let (token, address) = if worker == "p-0" { ("aaaaaa", "10.0.0.7") } else { ("bbbbbb", "10.0.0.8") };
                prop_assert_eq!(&request.common_names, &[format!("system:node:{worker}")]);
                prop_assert_eq!(&request.organizations, &["system:nodes"]);
                prop_assert!(request.more.is_empty() && !request.groups.contains("system:masters"));
                let itself = request.username == format!("system:node:{worker}") && request.groups.contains("system:nodes");
                if request.signer == CLIENT_SIGNER {
                    let by_token = request.username.strip_prefix("system:bootstrap:") == Some(token);
                    prop_assert!(itself || by_token);
                    prop_assert!(request.usages.contains("client auth") && !request.usages.contains("server auth"));
                    prop_assert!(request.dns_names.is_empty() && request.addresses.is_empty());
                } else {
                    prop_assert!(itself && request.signer == SERVING_SIGNER);
                    prop_assert!(request.usages.contains("server auth") && !request.usages.contains("client auth"));
                    prop_assert!(request.dns_names.iter().all(|name| *name == worker));
                    prop_assert!(request.addresses.iter().all(|other| other.to_string() == address));
                }
                prop_assert!(!request.usages.contains("cert sign"));
            }
        }
    }

    #[test]
    fn some_are_approved() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::{Config, RngSeed, TestRunner};

        let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(37), ..Config::default() });
        let requests = request();
        let approved = (0..1000).filter(|_| {
            let request = requests.new_tree(&mut runner).unwrap().current();
            matches!(judged(&request), Judgement::Approve(_))
        });
        let approved = approved.count();
        assert!((100..900).contains(&approved), "{approved} of 1000: the property shows nothing");
    }
}
