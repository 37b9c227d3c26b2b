//! What runs inside a tenant: whole, harmless, and the same as what is looked at and taken away.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::addons::{Addons, Cni, NoNetwork, Switch};
use kaas_crds::name::BOOTSTRAP_GROUP;
use kaas_crds::node::{Taint, TaintEffect};
use kaas_crds::worker_pool::Kubelet;

use super::*;

/// Every switch off.
fn bare() -> Addons {
    Addons {
        kube_proxy: Switch { enabled: false },
        core_dns: Switch { enabled: false },
        cni: Cni { flannel: None, none: Some(NoNetwork {}) },
        metrics_server: Switch { enabled: false },
    }
}

/// Each choice of what is on.
fn choices() -> Vec<Addons> {
    (0..16_u8)
        .map(|bits| {
            let on = |bit: u8| bits & (1 << bit) != 0;
            Addons {
                kube_proxy: Switch { enabled: on(0) },
                core_dns: Switch { enabled: on(1) },
                cni: if on(2) { Cni::default() } else { bare().cni },
                metrics_server: Switch { enabled: on(3) },
            }
        })
        .collect()
}

fn references(objects: &[Object]) -> Vec<Reference> {
    objects.iter().map(|object| object.reference.clone()).collect()
}

/// Pod templates with what they are of.
fn templates(objects: &[Object]) -> BTreeMap<String, Value> {
    objects
        .iter()
        .filter(|object| matches!(object.reference.kind, Kind::DaemonSet | Kind::Deployment))
        .map(|object| (object.reference.name.clone(), object.content["spec"]["template"].clone()))
        .collect()
}

fn containers(template: &Value) -> Vec<&Value> {
    let lists = ["initContainers", "containers"];
    lists.iter().filter_map(|list| template["spec"][*list].as_array()).flatten().collect()
}

#[test]
fn everything_that_runs_inside() {
    let objects: Vec<Value> = World::small().inside().into_iter().map(|object| object.content).collect();
    insta::with_settings!({sort_maps => true}, { insta::assert_yaml_snapshot!(objects) });
}

#[test]
fn kubernetes_knows_every_field_of_it() {
    for object in World::small().inside() {
        assert_eq!(known(&object), object.content, "{}", object.reference);
        let mut found = Vec::new();
        empty(&object.content, "", &mut found);
        assert_eq!(found, Vec::<String>::new(), "{}", object.reference);
    }
}

#[test]
fn what_is_on_and_what_is_off_are_all_that_there_is() {
    let all = addon_references();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(references(&World::small().inside()), all, "in the same order");
    for spec in choices() {
        let world = World::small().with(|world| world.spec.addons = spec.clone());
        let (on, off) = (references(&world.inside()), unwanted_addons(&spec));
        assert!(on.iter().all(|reference| !off.contains(reference)), "{spec:?}");
        let both: BTreeSet<&Reference> = on.iter().chain(&off).collect();
        assert_eq!(both, all.iter().collect(), "{spec:?}");
    }
    assert_eq!(unwanted_addons(&Addons::default()), []);
    let left = World::small().with(|world| world.spec.addons = bare()).inside();
    assert_eq!(
        templates(&left).keys().collect::<Vec<_>>(),
        ["konnectivity-agent"],
        "the tunnel is no choice"
    );
}

#[test]
fn before_the_first_worker_there_is_what_admits_it() {
    let world = World::small();
    let ahead = super::addons(&world.inputs(), false);
    let all = super::addons(&world.inputs(), true);
    assert_eq!(ahead.as_slice(), &all[..ahead.len()], "the first of all");
    assert_eq!(templates(&ahead), BTreeMap::new());
    let rights = |objects: &[Object]| {
        objects.iter().filter(|object| object.content["subjects"].to_string().contains(SERVER_USER)).count()
    };
    assert_eq!(rights(&ahead), rights(&all), "tunnels' servers ask with the first API server");
}

#[test]
fn a_revision_has_what_restarts_something_whatever_is_switched_on() {
    let one = World::small();
    let held = super::rendering(&one.inputs());
    for spec in choices() {
        let other = one.clone().with(|world| world.spec.addons = spec);
        assert_eq!(super::rendering(&other.inputs()), held);
    }
    let revised_ones: Vec<Object> =
        super::addons(&one.inputs(), true).into_iter().filter(|object| revised(&object.reference)).collect();
    assert_eq!(held, [one.workloads(), revised_ones].concat());
    // What runs does not depend on where the API is: a revision is stored before that is known.
    let names: Vec<String> = held.iter().skip(3).map(|object| object.reference.to_string()).collect();
    insta::assert_snapshot!(names.join("\n"), @"
    ConfigMap kube-system/flannel
    DaemonSet kube-system/flannel
    ConfigMap kube-system/kube-proxy
    DaemonSet kube-system/kube-proxy
    DaemonSet kube-system/konnectivity-agent
    ConfigMap kube-system/coredns
    Deployment kube-system/coredns
    Deployment kube-system/metrics-server
    ");
}

#[test]
fn words_become_facts() {
    for host in ["10.77.0.1", "2001:db8::1", "api.example"] {
        let objects = super::addons(&World::small().inputs(), true);
        let filled: Vec<Object> = objects.into_iter().map(|object| fill(object, &facts(host))).collect();
        let text = filled.iter().map(|object| object.content.to_string()).collect::<String>();
        let left: Vec<&str> = text.split('@').skip(1).step_by(2).collect();
        assert!(left.iter().all(|word| ["MTU", "SUBNET"].contains(word)), "{left:?}");
        let agent = &templates(&filled)["konnectivity-agent"]["spec"];
        let named = host.parse::<std::net::IpAddr>().is_err();
        assert_eq!(agent["hostAliases"].is_null(), named, "{host}");
        let flag =
            if named { "--proxy-server-host=api.example" } else { "--proxy-server-host=konnectivity-server" };
        assert!(agent.to_string().contains(flag), "{host}");
        let url = if host.contains(':') {
            "https://[2001:db8::1]:30443".into()
        } else {
            format!("https://{host}:30443")
        };
        assert!(text.contains(&url), "{host}");
    }
}

#[test]
fn a_release_without_images_for_workers_has_nothing_inside() {
    assert_eq!(World::small().with(|world| world.release.addons = None).inside(), []);
}

#[test]
fn only_what_is_ours_is_taken_away() {
    let live = |labels: Value| crate::observed::Live {
        uid: "1".into(),
        resource_version: "1".into(),
        terminating: false,
        content: json!({"metadata": {"labels": labels}}),
    };
    assert!(ours(&live(json!({MANAGED_BY_LABEL: MANAGED_BY}))));
    assert!(!ours(&live(json!({MANAGED_BY_LABEL: "Helm"}))));
    assert!(!ours(&live(json!({}))));
}

#[test]
fn the_names_inside_are_those_that_are_listed() {
    let objects = tenant_objects(&World::small().inputs(), &["10.77.0.1".parse().unwrap()], 6443);
    assert_eq!(references(&objects), tenant_references());
}

/// Roles that every cluster has.
const BUILT_IN: [&str; 4] = [
    "extension-apiserver-authentication-reader",
    "system:auth-delegator",
    "system:node-bootstrapper",
    "system:node-proxier",
];

#[test]
fn what_an_object_names_is_there() {
    for spec in choices() {
        let objects = World::small().with(|world| world.spec.addons = spec).inside();
        let all: BTreeSet<Reference> = references(&objects).into_iter().collect();
        let there = |kind, name: &Value| {
            all.contains(&Reference::namespaced(kind, "kube-system", name.as_str().unwrap()))
        };
        let mut accounts = BTreeSet::new();
        for (name, template) in templates(&objects) {
            let pod = &template["spec"];
            assert!(there(Kind::ServiceAccount, &pod["serviceAccountName"]), "{name}");
            accounts.insert(pod["serviceAccountName"].clone().to_string());
            let mut volumes = BTreeSet::new();
            for volume in pod["volumes"].as_array().unwrap() {
                volumes.insert(volume["name"].to_string());
                let map = &volume["configMap"]["name"];
                assert!(map.is_null() || there(Kind::ConfigMap, map), "{name}: {volume}");
            }
            for container in containers(&template) {
                for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                    assert!(volumes.contains(&mount["name"].to_string()), "{name}: {mount}");
                    assert!(mount["subPath"].is_null(), "files of a subPath never change");
                }
            }
        }
        for object in &objects {
            let content = &object.content;
            if let Some(role) = content.get("roleRef") {
                let name = role["name"].as_str().unwrap();
                let listed = if role["kind"] == "Role" {
                    let namespace = object.reference.namespace.clone().unwrap();
                    Reference::namespaced(Kind::Role, namespace, name)
                } else {
                    Reference::cluster(Kind::ClusterRole, name)
                };
                assert!(all.contains(&listed) || BUILT_IN.contains(&name), "{}: {name}", object.reference);
            }
            for subject in content["subjects"].as_array().into_iter().flatten() {
                let account = subject["kind"] == "ServiceAccount";
                assert!(!account || there(Kind::ServiceAccount, &subject["name"]), "{}", object.reference);
            }
            let service = &content["spec"]["service"]["name"];
            assert!(service.is_null() || there(Kind::Service, service), "{}", object.reference);
            let selector = match object.reference.kind {
                Kind::Service => &content["spec"]["selector"],
                Kind::PodDisruptionBudget | Kind::DaemonSet | Kind::Deployment => {
                    &content["spec"]["selector"]["matchLabels"]
                }
                Kind::ServiceAccount => {
                    let used = accounts.contains(&Value::from(object.reference.name.clone()).to_string());
                    assert!(used, "{}", object.reference);
                    continue;
                }
                _ => continue,
            };
            let selected = templates(&objects);
            let selected = selected.values().filter(|template| template["metadata"]["labels"] == *selector);
            assert_eq!(selected.count(), 1, "{}", object.reference);
        }
    }
}

#[test]
fn images_are_the_catalogues_under_the_registry_of_the_platform() {
    for registry in ["", "mirror.example"] {
        let world = World::small().with(|world| world.platform.registry = registry.into());
        let images: BTreeSet<String> = templates(&world.inside())
            .values()
            .flat_map(|template| containers(template).into_iter().cloned().collect::<Vec<_>>())
            .map(|container| container["image"].as_str().unwrap().to_owned())
            .collect();
        let AddonImages { kube_proxy, core_dns, flannel, konnectivity_agent, metrics_server, .. } =
            addon_images();
        let wanted = [kube_proxy, core_dns, flannel, konnectivity_agent, metrics_server];
        let wanted: BTreeSet<String> = wanted.iter().map(|image| world.platform.image(image)).collect();
        assert_eq!(images, wanted);
        assert!(registry.is_empty() || images.iter().all(|image| image.starts_with(registry)));
    }
}

/// What a pod has beyond what the restricted standard allows, and no more than is needed: each with its reason beside
/// the builder.
#[test]
fn who_may_more_than_others() {
    let mut text = Vec::new();
    for (name, template) in templates(&World::small().inside()) {
        let pod = &template["spec"];
        for flag in ["hostNetwork", "hostPID", "hostIPC"] {
            text.extend((pod[flag] == true).then(|| format!("{name}: {flag}")));
        }
        for volume in pod["volumes"].as_array().unwrap() {
            text.extend(
                volume["hostPath"]["path"].as_str().map(|path| format!("{name}: {path} of the node")),
            );
        }
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in containers(&template) {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert!(container["resources"]["limits"]["cpu"].is_null(), "{name}: CPU is never throttled");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            let container = container["name"].as_str().unwrap();
            if context["privileged"] == true {
                text.push(format!("{name}, {container}: privileged"));
                continue;
            }
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            if let Some(added) = context["capabilities"]["add"].as_array() {
                let added: Vec<&str> = added.iter().filter_map(Value::as_str).collect();
                text.push(format!("{name}, {container}: {}", added.join(" ")));
            }
        }
    }
    insta::assert_snapshot!(text.join("\n"), @r#"
    coredns, coredns: NET_BIND_SERVICE
    flannel: hostNetwork
    flannel: /etc/cni/net.d of the node
    flannel, flanneld: NET_ADMIN NET_RAW
    konnectivity-agent: hostNetwork
    kube-proxy: hostNetwork
    kube-proxy: /lib/modules of the node
    kube-proxy, kube-proxy: privileged
    "#);
}

/// Who is given which role.
#[test]
fn who_is_given_what() {
    let mut text = Vec::new();
    for object in World::small().inside() {
        for rule in object.content["rules"].as_array().into_iter().flatten() {
            let rule = rule.to_string();
            for never in
                ["*", "secrets", "certificatesigningrequests", "approve", "sign", "impersonate", "escalate"]
            {
                assert!(!rule.contains(&format!("{never:?}")), "{}: {rule}", object.reference);
            }
        }
        let role = object.content["roleRef"]["name"].as_str();
        for subject in object.content["subjects"].as_array().into_iter().flatten() {
            let name = subject["name"].as_str().unwrap();
            let scope = object.reference.namespace.as_deref().unwrap_or("everywhere");
            text.push(format!("{name}: {} {scope}", role.unwrap()));
        }
    }
    text.sort();
    insta::assert_snapshot!(text.join("\n"), @r#"
    coredns: kaas:coredns everywhere
    flannel: kaas:flannel everywhere
    konnectivity-agent: kaas:konnectivity-agent kube-system
    kube-proxy: system:node-proxier everywhere
    metrics-server: extension-apiserver-authentication-reader kube-system
    metrics-server: kaas:metrics-server everywhere
    metrics-server: system:auth-delegator everywhere
    system:anonymous: kaas:cluster-info kube-public
    system:bootstrappers:kaas: kaas:join everywhere
    system:bootstrappers:kaas: kaas:join kube-system
    system:bootstrappers:kaas: system:node-bootstrapper everywhere
    system:konnectivity-server: kaas:konnectivity-server everywhere
    system:konnectivity-server: kaas:konnectivity-server kube-system
    system:nodes: kaas:join kube-system
    "#);
    assert!(BOOTSTRAP_GROUP.starts_with("system:bootstrappers:"), "the API server takes no other prefix");
}

#[test]
fn configuration_is_what_programs_read() {
    let objects = World::small().with(|world| {
        world.spec.network.pod_cidr = "10.1.0.0/16".into();
        world.spec.network.service_cidr = "10.2.0.0/20".into();
        world.spec.network.domain = "blue.example".into();
    });
    let objects = objects.inside();
    let data = |name: &str, key: &str| -> String {
        let map = objects
            .iter()
            .find(|object| object.reference.kind == Kind::ConfigMap && object.reference.name == name);
        map.unwrap().content["data"][key].as_str().unwrap().to_owned()
    };
    let network: Value = serde_json::from_str(&data("flannel", "net-conf.json")).unwrap();
    assert_eq!(network["Network"], "10.1.0.0/16");
    let plugins = data("flannel", "cni.json").replace("@MTU@", "1450").replace("@SUBNET@", "10.1.3.0/24");
    let plugins: Value = serde_json::from_str(&plugins).unwrap();
    assert_eq!(plugins["plugins"][0]["mtu"], 1450);
    assert_eq!(plugins["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.1.3.0/24");
    // What a worker begins with differs by what it waits for.
    let early = early_network(&Addons::default()).unwrap();
    let mut early: Value =
        serde_json::from_str(&early.replace("@MTU@", "1450").replace("{{.PodCIDR}}", "10.1.3.0/24")).unwrap();
    let first = early["plugins"].as_array_mut().unwrap().remove(0);
    assert_eq!(first, json!({"type": "await", "file": "/etc/cni/net.d/10-flannel.conflist"}));
    assert_eq!(early, plugins);
    let own = Addons { cni: Cni { flannel: None, none: Some(NoNetwork {}) }, ..Addons::default() };
    assert_eq!(early_network(&own), None);
    let proxy: Value = serde_yaml::from_str(&data("kube-proxy", "config.conf")).unwrap();
    assert_eq!((&proxy["mode"], &proxy["clusterCIDR"]), (&json!("nftables"), &json!("10.1.0.0/16")));
    let kubelet: Value = serde_yaml::from_str(&data("kubelet-config", "kubelet")).unwrap();
    assert_eq!(
        (&kubelet["clusterDNS"], &kubelet["clusterDomain"]),
        (&json!(["10.2.0.10"]), &json!("blue.example"))
    );
    assert!(data("coredns", "Corefile").contains("kubernetes blue.example in-addr.arpa ip6.arpa {"));
    let dns = objects.iter().find(|object| object.reference.name == "kube-dns").unwrap();
    assert_eq!(dns.content["spec"]["clusterIP"], "10.2.0.10");
    let info: Value = serde_yaml::from_str(&data("cluster-info", "kubeconfig")).unwrap();
    assert_eq!(info["clusters"][0]["cluster"]["server"], "https://10.77.0.1:30443");
    let kubeadm: Value = serde_yaml::from_str(&data("kubeadm-config", "ClusterConfiguration")).unwrap();
    assert_eq!(kubeadm["controlPlaneEndpoint"], "10.77.0.1:30443");
    assert_eq!(kubeadm["kubernetesVersion"], "v1.37.1");
}

#[test]
fn the_tenth_address() {
    for (range, address) in [("100.64.0.0/16", "100.64.0.10"), ("10.0.0.240/28", "10.0.0.250")] {
        assert_eq!(dns_address(range), Some(address.parse().unwrap()));
    }
    assert_eq!(dns_address("nonsense"), None);
}

#[test]
fn a_kubelet_is_set_by_its_machine_and_its_pool() {
    let network = World::small().spec.network;
    let taints = [Taint { key: "a.b/gpu".into(), value: "yes".into(), effect: TaintEffect::NoSchedule }];
    let kubelet = Kubelet {
        max_pods: 42,
        pod_pids_limit: Some(512),
        container_log_max_size: Some("20Mi".parse().unwrap()),
    };
    let own = Settings { machine: Machine::Own, kubelet: &Kubelet::default(), taints: &[] };
    insta::assert_snapshot!(kubelet_configuration(&network, &own));
    let pod = Settings { machine: Machine::Pod, kubelet: &kubelet, taints: &taints };
    insta::assert_snapshot!(kubelet_configuration(&network, &pod));
}
