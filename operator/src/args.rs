//! What the operator is told when it starts: flags, each with an environment variable, and the settings that they
//! make. Refused with the flag's name, the value and what would do: whatever could only fail later.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use jiff::SignedDuration;
use kaas_lifecycle::tenant::Platform;
use kaas_lifecycle::workers::observed::Offer;

use crate::telemetry;

/// The longest pause between two probes of a tenant: two tries of five seconds come after it.
const LONGEST_PROBE_INTERVAL: SignedDuration = SignedDuration::from_secs(15);

/// Turns TenantClusters into hosted control planes.
#[derive(Clone, Debug, Parser)]
#[command(name = "kaas-operator", version)]
pub struct Args {
    /// Namespace that the operator runs in; its Lease is there.
    #[arg(long, env = "POD_NAMESPACE", value_parser = label)]
    pub namespace: String,

    /// Name of this process, as shown in the Lease: its pod's name.
    #[arg(long, env = "POD_NAME", value_parser = subdomain)]
    pub identity: String,

    /// Registry (host, port and path) that replaces the host part of every image's name. Empty: the official names.
    #[arg(long, env = "KAAS_REGISTRY", default_value = "", value_parser = registry)]
    pub registry: String,

    /// The image of this program, whole, which also runs beside API servers to count callers of APIs that go. Empty: it does not.
    #[arg(long, env = "KAAS_IMAGE", default_value = "")]
    pub image: String,

    /// Address or DNS name under which tenants reach NodePorts. Empty: endpoints of type NodePort are not offered.
    #[arg(long, env = "KAAS_NODE_PORT_HOST", default_value = "", value_parser = host)]
    pub node_port_host: String,

    /// PriorityClass of control-plane pods. Empty: none.
    #[arg(long, env = "KAAS_PRIORITY_CLASS", default_value = "", value_parser = optional_subdomain)]
    pub priority_class: String,

    /// Address and port of /healthz, /readyz and /metrics.
    #[arg(long, env = "KAAS_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Name of the Lease by which one of the operator's processes leads.
    #[arg(long, env = "KAAS_LEASE_NAME", default_value = "kaas-operator", value_parser = subdomain)]
    pub lease_name: String,

    /// How long a leader that has fallen silent keeps the Lease, in whole seconds. 10s lets a standby take over
    /// within 15 s of a kill and lets a leader live through 7 s without an answer from the API server.
    #[arg(long, env = "KAAS_LEASE_DURATION", default_value = "10s", value_parser = lease_duration)]
    pub lease_duration: Duration,

    /// Pause between two requests through a tenant's endpoint, which prove that it is Ready.
    #[arg(long, env = "KAAS_PROBE_INTERVAL", default_value = "5s", value_parser = probe_interval)]
    pub probe_interval: Duration,

    /// How many tenants are worked on at once.
    #[arg(long, env = "KAAS_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,

    /// Lifetime of tenants' certificates, renewed after two thirds of it.
    #[arg(long, env = "KAAS_LEAF_LIFETIME", default_value = "8760h", value_parser = lifetime)]
    pub leaf_lifetime: SignedDuration,

    /// Lifetime of tenants' certificate authorities.
    #[arg(long, env = "KAAS_AUTHORITY_LIFETIME", default_value = "87600h", value_parser = lifetime)]
    pub authority_lifetime: SignedDuration,

    /// Offer workers that are privileged pods of this cluster: for trying out, and for tenants who are trusted with it.
    #[arg(long, env = "KAAS_POD_WORKERS")]
    pub pod_workers: bool,

    /// URL of a registry that workers which are pods take for the mirror of every registry. Empty: none.
    #[arg(long, env = "KAAS_POD_WORKERS_MIRROR", default_value = "", value_parser = mirror)]
    pub pod_workers_mirror: String,

    /// A network of this cluster, as pods=10.0.0.0/16, services=10.1.0.0/16 or nodes=192.0.2.0/24; may be repeated.
    /// Workers that are pods cannot be of clusters whose networks overlap one of them.
    #[arg(long = "management-network", env = "KAAS_MANAGEMENT_NETWORKS", value_delimiter = ',', value_parser = network)]
    pub management_networks: Vec<(String, IpNet)>,

    /// Form of the log.
    #[arg(long, env = "KAAS_LOG_FORMAT", default_value = "json")]
    pub log_format: telemetry::Format,

    /// What is logged: a level, or levels by module such as kaas_operator=debug,info.
    #[arg(long, env = "KAAS_LOG", default_value = "info")]
    pub log: String,
}

/// What the operator works by.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What the platform says about all tenants.
    pub platform: Platform,
    /// Name of this process, as shown in the Lease.
    pub identity: String,
    /// Where /healthz, /readyz and /metrics are served.
    pub listen: SocketAddr,
    /// Name of the Lease, in the operator's namespace.
    pub lease_name: String,
    /// How long a silent leader keeps it.
    pub lease_duration: Duration,
    /// Pause between two probes of a tenant.
    pub probe_interval: Duration,
    /// How many tenants are worked on at once.
    pub concurrency: usize,
    /// Lifetime of certificates.
    pub leaf_lifetime: SignedDuration,
    /// Lifetime of certificate authorities.
    pub authority_lifetime: SignedDuration,
    /// What pools may ask for.
    pub offer: Offer,
    /// Mirror of every registry for workers that are pods; empty: none.
    pub mirror: String,
}

/// Flags that are good alone but not together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A certificate cannot outlive its authority.
    #[error(
        "--leaf-lifetime {leaf:#} is longer than --authority-lifetime {authority:#}: make it at most as long"
    )]
    Lifetimes {
        /// Of certificates.
        leaf: SignedDuration,
        /// Of authorities.
        authority: SignedDuration,
    },
}

impl TryFrom<Args> for Settings {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let (leaf, authority) = (args.leaf_lifetime, args.authority_lifetime);
        if leaf > authority {
            return Err(Error::Lifetimes { leaf, authority });
        }
        Ok(Settings {
            platform: Platform {
                registry: args.registry,
                node_port_host: args.node_port_host,
                priority_class: args.priority_class,
                operator_namespace: args.namespace,
                operator_image: args.image,
            },
            identity: args.identity,
            listen: args.listen,
            lease_name: args.lease_name,
            lease_duration: args.lease_duration,
            probe_interval: args.probe_interval,
            concurrency: usize::from(args.concurrency),
            leaf_lifetime: leaf,
            authority_lifetime: authority,
            offer: Offer { pods: args.pod_workers, networks: args.management_networks },
            mirror: args.pod_workers_mirror,
        })
    }
}

/// A time such as `90s`, `1h 30m` or `8760h`, within bounds.
fn between(text: &str, shortest: SignedDuration, longest: SignedDuration) -> Result<SignedDuration, String> {
    let duration: SignedDuration = text.parse().map_err(|_| {
        "not a duration; write hours, minutes and seconds, such as 90s, 1h30m or 8760h".to_owned()
    })?;
    if duration < shortest || duration > longest {
        return Err(format!("must be from {shortest:#} to {longest:#}"));
    }
    Ok(duration)
}

/// A Lease holds whole seconds; below 3 s one slow answer loses it, above a minute nobody wants to wait.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = between(text, SignedDuration::from_secs(3), SignedDuration::from_secs(60))?;
    if duration.subsec_nanos() != 0 {
        return Err("must be whole seconds: a Lease holds nothing finer".to_owned());
    }
    Ok(duration.unsigned_abs())
}

/// Ready must be False within 30 s of the first failed request, so the pause has to stay well below.
fn probe_interval(text: &str) -> Result<Duration, String> {
    Ok(between(text, SignedDuration::from_millis(500), LONGEST_PROBE_INTERVAL)?.unsigned_abs())
}

/// From a minute (rehearsing renewal) to a hundred years.
fn lifetime(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_mins(1), SignedDuration::from_hours(876_000))
}

/// A DNS label (RFC 1123), as namespaces are named.
fn label(text: &str) -> Result<String, String> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err("must be a DNS label: at most 63 of a-z, 0-9 and -, with a letter or digit first and last".to_owned())
}

/// A DNS subdomain (RFC 1123), as most objects are named.
fn subdomain(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("must be a DNS name: at most 253 of a-z, 0-9, - and ., each part with a letter or digit first and last"
        .to_owned())
}

fn optional_subdomain(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { subdomain(text) }
}

fn is_label(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// An address or a DNS name, without scheme and port: the port is each tenant's own.
fn host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<std::net::IpAddr>().is_ok() || subdomain(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err("must be an IP address or a DNS name in lower case, without scheme, port or path, such as 192.0.2.7 or \
         nodes.example.com"
        .to_owned())
}

/// The part of an image's name that the official hosts are replaced by.
fn registry(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.is_empty() {
        return Ok(String::new());
    }
    let (authority, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (authority, None),
    };
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if subdomain(name).is_ok() && port_fits && path.is_none_or(|path| path.split('/').all(part)) {
        return Ok(text.to_owned());
    }
    Err("must be a registry as in an image's name, without scheme and tag, such as mirror.example.com:5000/k8s"
        .to_owned())
}

/// A registry as containerd's configuration names it: with its scheme.
fn mirror(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if text.is_empty() || host.is_some_and(|host| registry(host).is_ok_and(|host| !host.is_empty())) {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err("must be the URL of a registry, such as https://mirror.example.com:5000".to_owned())
}

/// What for, and the network.
fn network(text: &str) -> Result<(String, IpNet), String> {
    let parsed = text.split_once('=').and_then(|(what, network)| Some((what, network.parse().ok()?)));
    match parsed {
        Some((what @ ("pods" | "services" | "nodes"), network)) => Ok((what.to_owned(), network)),
        _ => Err("must be pods, services or nodes, and a network, such as pods=10.0.0.0/16".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Settings, String> {
        let given = ["kaas-operator", "--namespace=kaas-system", "--identity=kaas-operator-abc"];
        let args = Args::try_parse_from(given.iter().chain(flags)).map_err(|error| error.to_string())?;
        Settings::try_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound_and_every_flag_has_a_variable() {
        Args::command().debug_assert();
        for flag in Args::command()
            .get_arguments()
            .filter(|flag| !["help", "version"].contains(&flag.get_id().as_str()))
        {
            let variable = flag.get_env().unwrap_or_else(|| panic!("{} has none", flag.get_id()));
            let variable = variable.to_str().unwrap();
            assert!(variable.starts_with("KAAS_") || variable.starts_with("POD_"), "{variable}");
        }
    }

    #[test]
    fn defaults() {
        let settings = parse(&[]).unwrap();
        assert_eq!(
            settings,
            Settings {
                platform: Platform { operator_namespace: "kaas-system".to_owned(), ..Platform::default() },
                identity: "kaas-operator-abc".to_owned(),
                listen: ([0, 0, 0, 0], 8080).into(),
                lease_name: "kaas-operator".to_owned(),
                lease_duration: Duration::from_secs(10),
                probe_interval: Duration::from_secs(5),
                concurrency: 64,
                leaf_lifetime: SignedDuration::from_hours(365 * 24),
                authority_lifetime: SignedDuration::from_hours(3650 * 24),
                offer: Offer::default(),
                mirror: String::new(),
            }
        );
    }

    #[test]
    fn workers_as_pods_are_offered_when_asked_for() {
        let settings = parse(&[
            "--pod-workers",
            "--pod-workers-mirror=http://registry.kaas-registry.svc.cluster.local:5000/",
            "--management-network=pods=10.0.0.0/16",
            "--management-network=nodes=192.0.2.7/32",
        ])
        .unwrap();
        assert!(settings.offer.pods);
        assert_eq!(settings.mirror, "http://registry.kaas-registry.svc.cluster.local:5000");
        let networks: Vec<String> =
            settings.offer.networks.iter().map(|(what, network)| format!("{what} {network}")).collect();
        assert_eq!(networks, ["pods 10.0.0.0/16", "nodes 192.0.2.7/32"]);
    }

    #[test]
    fn good_values() {
        for flags in [
            &["--registry=kaas.local"][..],
            &["--registry=mirror.example.com:5000/k8s/v1_x"],
            &["--registry=10.0.0.1:5000"],
            &["--registry=localhost"],
            &["--registry="],
            &["--node-port-host=10.77.0.1"],
            &["--node-port-host=fd00::1"],
            &["--node-port-host=nodes.example.com"],
            &["--node-port-host="],
            &["--priority-class=kaas-control-plane"],
            &["--listen=[::]:9000"],
            &["--lease-duration=1m"],
            &["--probe-interval=500ms"],
            &["--concurrency=1"],
            &["--leaf-lifetime=3m", "--authority-lifetime=1h"],
            &["--leaf-lifetime=1h 30m"],
            &["--log-format=text", "--log=kaas_operator=debug,info"],
        ] {
            assert!(parse(flags).is_ok(), "{flags:?}: {:?}", parse(flags));
        }
        let settings = parse(&["--registry=mirror.example.com/"]).unwrap();
        assert_eq!(settings.platform.registry, "mirror.example.com");
    }

    #[test]
    fn bad_values_are_refused_with_flag_value_and_way_out() {
        for (flags, parts) in [
            (&["--registry=https://mirror"][..], ["--registry", "https://mirror", "without scheme"]),
            (&["--registry=mirror/k8s:v1"], ["--registry", "mirror/k8s:v1", "without scheme and tag"]),
            (&["--pod-workers-mirror=mirror.example"], ["--pod-workers-mirror", "mirror.example", "URL"]),
            (&["--management-network=10.0.0.0/8"], ["--management-network", "10.0.0.0/8", "such as pods="]),
            (&["--management-network=pods=10.0.0.0"], ["--management-network", "pods=10.0.0.0", "such as"]),
            (&["--registry=mirror:0"], ["--registry", "mirror:0", "such as"]),
            (&["--registry=mirror//x"], ["--registry", "mirror//x", "such as"]),
            (&["--registry=Mirror"], ["--registry", "Mirror", "such as"]),
            (&["--node-port-host=node:30443"], ["--node-port-host", "node:30443", "without scheme, port"]),
            (&["--node-port-host=https://node"], ["--node-port-host", "https://node", "such as"]),
            (&["--priority-class=High"], ["--priority-class", "High", "DNS name"]),
            (&["--lease-name=-x"], ["--lease-name", "-x", "DNS name"]),
            (&["--listen=8080"], ["--listen", "8080", "socket address"]),
            (&["--lease-duration=10"], ["--lease-duration", "10", "such as 90s"]),
            (&["--lease-duration=2s"], ["--lease-duration", "2s", "from 3s to 1m"]),
            (&["--lease-duration=5m"], ["--lease-duration", "5m", "from 3s to 1m"]),
            (&["--lease-duration=3500ms"], ["--lease-duration", "3500ms", "whole seconds"]),
            (&["--lease-duration=10s ago"], ["--lease-duration", "10s ago", "from 3s to 1m"]),
            (&["--probe-interval=0s"], ["--probe-interval", "0s", "from 500ms to 15s"]),
            (&["--concurrency=0"], ["--concurrency", "0", "1..=1024"]),
            (&["--leaf-lifetime=365d"], ["--leaf-lifetime", "365d", "8760h"]),
            (&["--leaf-lifetime=10s"], ["--leaf-lifetime", "10s", "from 1m"]),
            (
                &["--leaf-lifetime=2h", "--authority-lifetime=1h"],
                ["--leaf-lifetime 2h", "--authority-lifetime 1h", "at most as long"],
            ),
            (&["--log-format=xml"], ["--log-format", "xml", "json"]),
        ] {
            let refusal = parse(flags).unwrap_err();
            for part in parts {
                assert!(refusal.contains(part), "{flags:?}: {part:?} is not in {refusal}");
            }
        }
        let name = "x".repeat(64);
        for namespace in ["", "a.b", "A", "a-", name.as_str()] {
            let refusal =
                Args::try_parse_from(["kaas-operator", "--identity=x", &format!("--namespace={namespace}")])
                    .unwrap_err()
                    .to_string();
            assert!(refusal.contains("DNS label") || refusal.contains("value is required"), "{refusal}");
        }
    }

    #[test]
    fn what_identifies_a_process_is_never_guessed() {
        let refusal = Args::try_parse_from(["kaas-operator"]).unwrap_err().to_string();
        assert!(refusal.contains("--namespace") && refusal.contains("--identity"), "{refusal}");
    }
}
