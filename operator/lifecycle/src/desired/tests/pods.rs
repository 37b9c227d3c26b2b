//! What every pod template must be: safe, whole, and with the least of keys.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Every pod template with its component.
fn templates(world: &World) -> Vec<(String, Value)> {
    world
        .workloads()
        .into_iter()
        .chain(world.snapshot())
        .map(|object| (object.reference.name, object.content["spec"]["template"].clone()))
        .collect()
}

/// Every container there is.
fn containers(template: &Value) -> Vec<Value> {
    let lists = ["containers", "initContainers"];
    lists.iter().filter_map(|list| template["spec"][*list].as_array()).flatten().cloned().collect()
}

/// What of a pod the restricted standard refuses (pod-security-admission's checks, baseline and restricted).
fn violations(template: &Value) -> Vec<String> {
    let spec = &template["spec"];
    let pod = &spec["securityContext"];
    let mut found = Vec::new();
    let mut refuse = |bad: bool, why: String| found.extend(bad.then_some(why));
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        refuse(spec[field] == true, field.to_owned());
    }
    refuse(pod["sysctls"].is_array(), "sysctls".to_owned());
    let kinds = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let allowed =
            volume.as_object().unwrap().keys().all(|key| key == "name" || kinds.contains(&key.as_str()));
        refuse(!allowed, format!("volume {}", volume["name"]));
    }
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    for container in lists.iter().flat_map(|list| spec[*list].as_array().into_iter().flatten()) {
        let own = &container["securityContext"];
        let effective =
            |field: &str| if own[field].is_null() { pod[field].clone() } else { own[field].clone() };
        let name = container["name"].as_str().unwrap();
        refuse(own["privileged"] == true, format!("{name}: privileged"));
        refuse(own["allowPrivilegeEscalation"] != false, format!("{name}: allowPrivilegeEscalation"));
        refuse(effective("runAsNonRoot") != true, format!("{name}: runAsNonRoot"));
        refuse(effective("runAsUser") == 0, format!("{name}: runAsUser"));
        let profile = effective("seccompProfile")["type"].clone();
        refuse(profile != "RuntimeDefault" && profile != "Localhost", format!("{name}: seccompProfile"));
        let dropped = own["capabilities"]["drop"].as_array().is_some_and(|drop| drop.contains(&"ALL".into()));
        refuse(!dropped, format!("{name}: capabilities are not dropped"));
        let added = own["capabilities"]["add"].as_array().into_iter().flatten();
        refuse(
            added.clone().any(|added| added != "NET_BIND_SERVICE"),
            format!("{name}: capabilities are added"),
        );
        refuse(!own["procMount"].is_null(), format!("{name}: procMount"));
        for port in container["ports"].as_array().into_iter().flatten() {
            refuse(!port["hostPort"].is_null(), format!("{name}: hostPort"));
        }
    }
    found
}

#[test]
fn the_check_finds_what_the_standard_refuses() {
    let (_, good) = templates(&World::small()).remove(0);
    assert_eq!(violations(&good), Vec::<String>::new());
    let container = "/spec/containers/0/securityContext";
    for (pointer, value) in [
        ("/spec/hostNetwork".to_owned(), json!(true)),
        ("/spec/volumes".to_owned(), json!([{"name": "x", "hostPath": {"path": "/"}}])),
        ("/spec/securityContext/runAsNonRoot".to_owned(), json!(false)),
        ("/spec/securityContext/runAsUser".to_owned(), json!(0)),
        ("/spec/securityContext/seccompProfile".to_owned(), json!({"type": "Unconfined"})),
        (format!("{container}/allowPrivilegeEscalation"), json!(true)),
        (format!("{container}/privileged"), json!(true)),
        (format!("{container}/capabilities"), json!({"drop": ["NET_RAW"]})),
        (format!("{container}/capabilities"), json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    ] {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = value;
        assert_eq!(violations(&bad).len(), 1, "{pointer}: {:?}", violations(&bad));
    }
}

proptest! {
    #[test]
    fn pods_are_under_the_restricted_standard_and_more(world in any_world()) {
        for (component, template) in templates(&world) {
            prop_assert_eq!(violations(&template), Vec::<String>::new(), "{}", component);
            let spec = &template["spec"];
            prop_assert_eq!(&spec["automountServiceAccountToken"], false);
            prop_assert_eq!(&spec["enableServiceLinks"], false);
            for container in containers(&template) {
                prop_assert_eq!(&container["securityContext"]["readOnlyRootFilesystem"], true);
                prop_assert!(container["resources"]["limits"]["cpu"].is_null(), "CPU is never throttled");
                prop_assert!(container["resources"]["requests"]["memory"].is_string());
                for mount in container["volumeMounts"].as_array().unwrap() {
                    prop_assert!(mount["subPath"].is_null(), "files of a subPath never change");
                    let volume = &mount["name"];
                    let declared = spec["volumes"].as_array().unwrap().iter().any(|other| other["name"] == *volume);
                    prop_assert!(declared || *volume == "data", "{component}: {volume}");
                }
            }
            for container in spec["containers"].as_array().unwrap() {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    prop_assert!(container[probe]["httpGet"]["port"].is_number(), "{component}: {probe}");
                }
            }
            prop_assert!(!template.to_string().contains("checksum"));
        }
    }

    #[test]
    fn images_come_from_the_registry_of_the_platform(world in any_world()) {
        let images: BTreeSet<String> = templates(&world)
            .iter()
            .flat_map(|(_, template)| containers(template))
            .map(|container| container["image"].as_str().unwrap().to_owned())
            // It is given whole.
            .filter(|image| *image != world.platform.operator_image)
            .collect();
        let host = if world.platform.registry.is_empty() { "registry.k8s.io" } else { &world.platform.registry };
        let expected = [
            "etcd:3.7.3-0",
            "kas-network-proxy/proxy-server:v0.36.0",
            "kube-apiserver:v1.37.1",
            "kube-controller-manager:v1.37.1",
            "kube-scheduler:v1.37.1",
        ]
            .map(|image| format!("{host}/{image}"));
        prop_assert_eq!(images, BTreeSet::from(expected));
    }

    #[test]
    fn selectors_select_the_pods_of_their_component_alone(world in any_world()) {
        let mut templates: BTreeMap<String, Value> = templates(&world).into_iter().collect();
        let selected = |templates: &BTreeMap<String, Value>, selector: &Value| -> Vec<String> {
            let wanted = selector.as_object().unwrap();
            let labels = |template: &Value| template["metadata"]["labels"].clone();
            templates
                .iter()
                .filter(|(_, template)| wanted.iter().all(|(key, value)| labels(template)[key] == *value))
                .map(|(component, _)| component.clone())
                .collect()
        };
        for object in world.surroundings().iter().chain(&world.workloads()) {
            let spec = &object.content["spec"];
            let selector = match object.reference.kind {
                Kind::Service => &spec["selector"],
                Kind::StatefulSet | Kind::Deployment | Kind::PodDisruptionBudget => &spec["selector"]["matchLabels"],
                _ => continue,
            };
            let component = object.content["metadata"]["labels"][COMPONENT_LABEL].as_str().unwrap_or_default();
            // The controller of a StatefulSet tells its pods apart by one more label.
            let pod_name = &mut templates.get_mut("etcd").unwrap()["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"];
            *pod_name = object.reference.name.as_str().into();
            prop_assert_eq!(selected(&templates, selector), vec![component], "{}", object.reference);
        }
    }
}

#[test]
fn what_a_pod_reads_is_rendered() {
    for world in [World::small(), World::large()] {
        let maps: BTreeMap<String, Value> = world
            .surroundings()
            .into_iter()
            .filter(|object| object.reference.kind == Kind::ConfigMap)
            .map(|object| (object.reference.name, object.content["data"].clone()))
            .collect();
        for (component, template) in templates(&world) {
            for volume in template["spec"]["volumes"].as_array().unwrap() {
                let map = volume["configMap"]["name"].as_str();
                assert!(map.is_none_or(|map| maps.contains_key(map)), "{component}: {volume}");
            }
            for variable in
                containers(&template).iter().filter_map(|container| container["env"].as_array()).flatten()
            {
                let Some(source) = variable["valueFrom"].get("configMapKeyRef") else { continue };
                let value = maps
                    .get(source["name"].as_str().unwrap())
                    .map(|data| &data[source["key"].as_str().unwrap()]);
                // What is optional may be missing before a cluster exists, and then no longer.
                let may_miss = source["optional"] == true && !world.existing;
                assert!(may_miss || value.is_some_and(Value::is_string), "{component}: {variable}");
            }
        }
    }
}

/// Files of the key directory that are mounted into a container.
fn mounted(template: &Value, container: &Value) -> BTreeSet<String> {
    let directory = crate::key_material::DIRECTORY;
    let mount =
        container["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["mountPath"] == directory);
    let Some(name) = mount.map(|mount| &mount["name"]) else { return BTreeSet::new() };
    let volumes = template["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == *name).unwrap();
    let sources = volume["projected"]["sources"].as_array().unwrap();
    let items: Vec<String> = sources
        .iter()
        .flat_map(|source| source["secret"]["items"].as_array().unwrap())
        .map(|item| item["path"].as_str().unwrap().to_owned())
        .collect();
    let files: BTreeSet<String> = items.iter().cloned().collect();
    assert_eq!(files.len(), items.len(), "two Secrets have a file of one name");
    files
}

#[test]
fn a_component_has_the_keys_that_its_flags_name_and_no_others() {
    let prefix = format!("{}/", crate::key_material::DIRECTORY);
    for (component, template) in templates(&World::large()) {
        for container in containers(&template) {
            let flags = container["command"].as_array().unwrap().iter().filter_map(Value::as_str);
            let mut named: BTreeSet<String> =
                flags.filter_map(|flag| Some(flag.split_once(&prefix)?.1.to_owned())).collect();
            // A kubeconfig names files in its turn.
            for user in ["controller-manager", "scheduler", "konnectivity-client"] {
                if named.contains(&format!("{user}.kubeconfig")) {
                    named.extend([format!("{user}.crt"), format!("{user}.key"), "cluster-ca.crt".to_owned()]);
                }
            }
            assert_eq!(mounted(&template, &container), named, "{component}: {}", container["name"]);
        }
    }
}

#[test]
fn private_keys_are_where_they_are_needed_alone() {
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, template) in templates(&World::large()) {
        for container in containers(&template) {
            for file in mounted(&template, &container).into_iter().filter(|file| file.ends_with(".key")) {
                holders.entry(file).or_default().insert(container["name"].as_str().unwrap().to_owned());
            }
        }
    }
    let text: Vec<String> = holders
        .into_iter()
        .map(|(file, holders)| format!("{file}: {}", holders.into_iter().collect::<Vec<_>>().join(" ")))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
    cluster-ca.key: kube-controller-manager
    controller-manager.key: kube-controller-manager
    etcd-client.key: kube-apiserver
    front-proxy-client.key: kube-apiserver
    konnectivity-client.key: konnectivity-server
    konnectivity.key: konnectivity-server
    kubelet-client.key: kube-apiserver
    peer.key: etcd
    scheduler.key: kube-scheduler
    server.key: etcd save
    service-account.key: kube-apiserver kube-controller-manager
    tls.key: kube-apiserver
    "#);
}

#[test]
fn a_pod_lives_longer_than_its_longest_request() {
    let seconds = |flags: &Value, name: &str| -> i64 {
        let flag = flags
            .as_array()
            .unwrap()
            .iter()
            .find_map(|flag| flag.as_str()?.strip_prefix(name)?.strip_suffix('s'));
        flag.unwrap().parse().unwrap()
    };
    let (_, template) = templates(&World::small()).remove(1);
    let flags = &containers(&template)[0]["command"];
    let grace = template["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap();
    let delay = seconds(flags, "--shutdown-delay-duration=");
    assert!(grace >= delay + seconds(flags, "--request-timeout=") + 5);
    let (_, template) = templates(&World::small()).remove(2);
    let flags = &containers(&template)[0]["command"];
    let (lease, renew) =
        (seconds(flags, "--leader-elect-lease-duration="), seconds(flags, "--leader-elect-renew-deadline="));
    assert!(renew >= 7 + 3, "a restart of the only etcd member, and until it is dialled again");
    assert!(
        lease > renew + seconds(flags, "--leader-elect-retry-period="),
        "a holder exits before it is succeeded"
    );
    assert!(seconds(flags, "--controller-shutdown-timeout=") < lease, "two would lead at once");
}
