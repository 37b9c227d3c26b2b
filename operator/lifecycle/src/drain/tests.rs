use super::*;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn pod(name: &str) -> Pod {
    Pod {
        namespace: "web".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        controller: Some("ReplicaSet".into()),
        ..Pod::default()
    }
}

fn refused(pod: &Pod, refusal: Refusal) -> BTreeMap<String, Answer> {
    let answer = Answer { refusal, message: "no".into(), retry_at: later(5) };
    BTreeMap::from([(pod.uid.clone(), answer)])
}

fn judged<'a>(pods: &'a [Pod], answers: &BTreeMap<String, Answer>) -> Drain<'a> {
    drain(pods, false, answers, now(), later(600))
}

#[test]
fn pods_are_classified() {
    let of = |change: fn(&mut Pod)| {
        let mut pod = pod("a");
        change(&mut pod);
        classify(&pod, false, now())
    };
    assert_eq!(of(|_| {}), Class::Evictable);
    assert_eq!(of(|pod| pod.controller = None), Class::Evictable);
    assert_eq!(of(|pod| pod.local_data = true), Class::Evictable);
    assert_eq!(of(|pod| pod.controller = Some("DaemonSet".into())), Class::Stays);
    assert_eq!(of(|pod| pod.mirror = true), Class::Stays);
    assert_eq!(of(|pod| pod.finished = true), Class::Stays);
    assert_eq!(of(|pod| pod.gone_by = Some(later(30))), Class::Going);
    for (seconds, class) in [(30, Class::Going), (-30, Class::Going), (-31, Class::Stays)] {
        let mut pod = pod("a");
        (pod.finished, pod.gone_by) = (true, Some(later(seconds)));
        assert_eq!(
            classify(&pod, false, now()),
            class,
            "a pod that has finished and is told to go, {seconds} s"
        );
    }
    assert_eq!(of(|pod| pod.gone_by = Some(later(-30))), Class::Going);
    assert_eq!(of(|pod| pod.gone_by = Some(later(-31))), Class::Stuck);
    // It ends with the node, however long that takes.
    assert_eq!(
        of(|pod| {
            pod.gone_by = Some(later(-31));
            pod.mirror = true;
        }),
        Class::Stays
    );
}

#[test]
fn answers_are_told_apart() {
    let of = |code, cause: &str, message| {
        answer(now(), code, &[cause.to_owned()], message, None).map(|answer| answer.refusal)
    };
    assert_eq!(of(201, "", ""), None);
    assert_eq!(of(404, "", "pods \"a\" not found"), None);
    assert_eq!(of(429, "DisruptionBudget", "Cannot evict pod"), Some(Refusal::Budget));
    assert_eq!(of(429, "", "too many requests"), Some(Refusal::Overload));
    assert_eq!(of(503, "", "shutting down"), Some(Refusal::Overload));
    assert_eq!(of(403, "DisruptionBudget", "Forbidden"), Some(Refusal::InvalidBudget));
    assert_eq!(
        of(403, "", "pod disruption budget has negative allowance: disruption budget"),
        Some(Refusal::InvalidBudget)
    );
    assert_eq!(
        of(
            500,
            "",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        ),
        Some(Refusal::InvalidBudget)
    );
    assert_eq!(of(403, "", "User cannot create resource pods/eviction"), Some(Refusal::Denied));
    assert_eq!(of(500, "", "internal"), Some(Refusal::Overload));
    let told =
        answer(now(), 429, &["DisruptionBudget".into()], "", Some(SignedDuration::from_secs(10))).unwrap();
    assert_eq!(told.retry_at, later(10));
}

#[test]
fn done_is_when_nothing_is_left_that_has_to_go() {
    let daemon = Pod { controller: Some("DaemonSet".into()), ..pod("d") };
    let mirror = Pod { mirror: true, ..pod("m") };
    assert_eq!(judged(&[daemon, mirror], &BTreeMap::new()).progress, Progress::Done);
    // An accepted eviction is no end.
    let going = Pod { gone_by: Some(later(30)), ..pod("a") };
    let pods = [going];
    let drain = judged(&pods, &BTreeMap::new());
    assert_eq!((drain.progress, drain.evictions.len()), (Progress::Moving(1), 0));
}

#[test]
fn pods_without_data_go_first_and_not_all_at_once() {
    let mut pods: Vec<Pod> = (0..12).map(|at| pod(&format!("p{at:02}"))).collect();
    pods[0].local_data = true;
    pods[1].controller = None;
    let drain = judged(&pods, &BTreeMap::new());
    let names: Vec<&str> = drain.evictions.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["p02", "p03", "p04", "p05", "p06", "p07", "p08", "p09", "p10", "p11"]);
}

#[test]
fn what_keeps_a_pod_is_named_with_who_can_help() {
    let pods = [pod("a")];
    let of = |refusal| match judged(&pods, &refused(&pods[0], refusal)).progress {
        Progress::Blocked(1, words, owner) => (words, owner),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(Refusal::Budget), ("a disruption budget keeps Pod web/a: no".into(), Owner::Tenant));
    assert_eq!(of(Refusal::InvalidBudget).1, Owner::Tenant);
    assert_eq!(of(Refusal::Overload).1, Owner::Nobody);
    assert_eq!(of(Refusal::Denied).1, Owner::Tenant);
    let stuck = [Pod { gone_by: Some(later(-60)), ..pod("a") }];
    assert!(matches!(judged(&stuck, &BTreeMap::new()).progress, Progress::Blocked(1, ..)));
}

#[test]
fn one_that_is_kept_does_not_hold_up_the_others() {
    let pods = [pod("a"), pod("b")];
    let drain = judged(&pods, &refused(&pods[0], Refusal::Budget));
    assert_eq!(drain.progress, Progress::Moving(2));
    assert_eq!(drain.evictions, [&pods[1]]);
    assert_eq!(drain.wake_at, Some(later(5)));
    // Its pause is over: it is asked again, and still said to be kept.
    let answers = refused(&pods[0], Refusal::Budget);
    let pods = [pods[0].clone()];
    let again = super::drain(&pods, false, &answers, later(5), later(600));
    assert!(matches!(again.progress, Progress::Blocked(..)));
    assert_eq!(again.evictions.len(), 1);
}

#[test]
fn the_end_of_the_time_is_the_end() {
    let pods = [pod("a"), Pod { controller: None, ..pod("b") }];
    let drain = super::drain(&pods, false, &BTreeMap::new(), later(600), later(600));
    assert_eq!(
        drain.progress,
        Progress::Expired(vec!["web/a".into(), "web/b (nobody makes it again)".into()])
    );
    assert_eq!(drain.evictions, Vec::<&Pod>::new());
}

#[test]
fn addons_end_with_the_last_node_and_with_no_other() {
    let dns = Pod { addon: true, ..pod("dns") };
    let pods = [dns.clone(), pod("a")];
    let answers = refused(&dns, Refusal::Budget);
    let evicted = |last: bool| -> Vec<String> {
        let drain = drain(&pods, last, &BTreeMap::new(), now(), later(600));
        drain.evictions.into_iter().map(|pod| pod.name.clone()).collect()
    };
    assert_eq!(evicted(false), ["a", "dns"]);
    assert_eq!(evicted(true), ["a"], "the tenant's own are asked as ever");
    let kept = [dns];
    assert!(matches!(drain(&kept, false, &answers, now(), later(600)).progress, Progress::Blocked(1, ..)));
    assert_eq!(drain(&kept, true, &answers, now(), later(600)).progress, Progress::Done);
}
