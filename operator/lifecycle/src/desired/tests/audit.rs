//! APIs that are switched on, and the watch for their callers.

use super::*;

const BETA: &str = "networking.k8s.io/v1beta1";

fn template(world: &World) -> Value {
    let all = world.workloads();
    let servers = all.into_iter().find(|object| object.reference.name == "kube-apiserver").unwrap();
    servers.content["spec"]["template"].clone()
}

fn flags(world: &World, start: &str) -> Vec<String> {
    let command = template(world)["spec"]["containers"][0]["command"].clone();
    let flags: Vec<String> = serde_json::from_value(command).unwrap();
    flags.into_iter().filter(|flag| flag.starts_with(start)).collect()
}

/// Of a small cluster.
pub(super) fn watching(apis: &[&str]) -> World {
    World::small().with(|world| {
        world.watched = apis.iter().map(|api| (*api).to_owned()).collect();
        world.platform.operator_image = "ghcr.io/kaas-dev/kaas-operator:1".into();
    })
}

#[test]
fn apis_are_switched_as_the_spec_says_but_for_those_that_are_gone() {
    let world = World::small().with(|world| {
        let apis = [(BETA, true), ("resource.k8s.io/v1beta2", false), ("scheduling.k8s.io/v1alpha2", true)];
        world.spec.control_plane.runtime_config.0 = apis.map(|(api, on)| (api.to_owned(), on)).into();
        world.release.removes = vec![format!("{BETA}/ipaddresses"), "scheduling.k8s.io/v1alpha2".into()];
    });
    assert_eq!(
        flags(&world, "--runtime-config"),
        ["--runtime-config=networking.k8s.io/v1beta1=true,resource.k8s.io/v1beta2=false"]
    );
    assert!(flags(&World::small(), "--runtime-config").is_empty());
}

#[test]
fn who_switches_on_nothing_that_goes_pays_nothing() {
    let image = World::small().with(|world| world.platform.operator_image = "operator:1".into());
    assert_eq!(World::small().against(&image), "");
    let nobody = World::small().with(|world| world.watched = [BETA.to_owned()].into());
    assert_eq!(World::small().against(&nobody), "", "without an image nobody could watch");
}

#[test]
fn callers_are_watched_for_beside_each_api_server() {
    let world = watching(&[BETA]);
    insta::assert_snapshot!(World::small().against(&world), @r#"
    NetworkPolicy kube-apiserver: + spec.ingress[1]
    Deployment kube-apiserver: + spec.template.metadata.annotations={"kaas.dev/audit-policy":"{\"apiVersion\":\"audit.k8s.io/v1\",\"kind\":\"Policy\",\"omitManagedFields\":true,\"omitSt...
    Deployment kube-apiserver: + --audit-policy-file=/etc/kubernetes/audit/policy.yaml
    Deployment kube-apiserver: + --audit-webhook-config-file=/etc/kubernetes/audit/webhook.yaml
    Deployment kube-apiserver: + --audit-webhook-mode=batch
    Deployment kube-apiserver: + --audit-webhook-batch-buffer-size=1000
    Deployment kube-apiserver: + --audit-webhook-batch-max-wait=1s
    Deployment kube-apiserver: + --audit-webhook-initial-backoff=1s
    Deployment kube-apiserver: + spec.template.spec.containers[kube-apiserver].volumeMounts[audit]
    Deployment kube-apiserver: + spec.template.spec.containers[audit-callers]
    Deployment kube-apiserver: + spec.template.spec.volumes[audit]
    Deployment kube-apiserver: + spec.template.spec.volumes[audit-pki]
    "#);
    let template = template(&world);
    let command = &template["spec"]["containers"][2]["command"];
    assert_eq!(command[1], "audit-callers");
    assert_eq!(command[6], "--watch=networking.k8s.io/v1beta1");
    // It trusts whom its API server shows, and is asked by name where it is.
    let webhook: Value =
        serde_json::from_str(template["metadata"]["annotations"]["kaas.dev/audit-webhook"].as_str().unwrap())
            .unwrap();
    assert_eq!(webhook["clusters"][0]["cluster"]["server"], "https://127.0.0.1:8448/");
}

#[test]
fn events_are_of_the_watched_apis_alone() {
    let policy = |apis: &[&str]| -> Value {
        let template = template(&watching(apis));
        serde_json::from_str(template["metadata"]["annotations"]["kaas.dev/audit-policy"].as_str().unwrap())
            .unwrap()
    };
    let resources = |apis: &[&str]| policy(apis)["rules"][0]["resources"].clone();
    assert_eq!(
        resources(&["a.io/v1beta1/foos", "a.io/v1beta2/bars", "b.io/v1alpha1"]),
        json!([{"group": "a.io", "resources": ["bars", "foos"]}, {"group": "b.io"}])
    );
    assert_eq!(
        resources(&["a.io/v1beta1", "a.io/v1beta2/bars"]),
        json!([{"group": "a.io"}]),
        "a whole group and a part of it are the whole"
    );
    let rules = &policy(&[BETA])["rules"];
    assert_eq!((&rules[0]["level"], &rules[1]), (&json!("Metadata"), &json!({"level": "None"})));
}
