//! The network of one local cluster: a network namespace that is the node, joined by a veth pair to a bridge
//! on the host. The node has 10.77.N.1, the host 10.77.N.254. Pods, Services, forwarding, masquerading and
//! every firewall rule stay inside of the namespace; the host's own firewall is neither read nor written.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::Error;
use crate::invocation::Invocation;

/// Addresses of Services, inside of the node's namespace.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// Address of the API server's own Service.
pub(crate) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Address of the cluster's DNS.
pub(crate) const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Addresses of pods, inside of the node's namespace.
pub(crate) const POD_CIDR: &str = "10.244.0.0/16";
/// A node's part of the pod addresses: 4,094, for the 500 pods of a node and those that are ending.
pub(crate) const POD_MASK: u8 = 20;
/// The first such part: what the controller manager gives to the first node.
pub(crate) const NODE_POD_CIDR: &str = "10.244.0.0/20";

/// Names and addresses of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    name: String,
    index: u8,
}

impl Network {
    pub(crate) fn new(name: &str, index: u8) -> Self {
        Self { name: name.to_owned(), index }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn node(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.index, 1)
    }

    pub(crate) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.index, 254)
    }

    /// Addresses of the node and the host.
    pub(crate) fn cidr(&self) -> String {
        format!("10.77.{}.0/24", self.index)
    }

    fn veth(&self) -> String {
        format!("{}v", self.name)
    }

    /// Makes what is missing, with the node's end in a network namespace.
    pub(crate) fn create(&self, namespace: &Path) -> Result<(), Error> {
        let (name, veth) = (self.name.as_str(), self.veth());
        let inside = |program: &str, args: &[&str]| {
            let enter = format!("--net={}", namespace.display());
            Invocation::new("nsenter").args([&enter, "--", program]).args(args).run().map(drop)
        };
        if !link_exists(name) {
            ip(&["link", "add", name, "type", "bridge"])?;
        }
        ip(&["address", "replace", &format!("{}/24", self.host()), "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        if link_exists(&veth) && inside("ip", &["link", "show", "eth0"]).is_err() {
            ip(&["link", "delete", &veth])?; // its other end is in a namespace that is gone
        }
        if !link_exists(&veth) {
            let peer = namespace.display().to_string();
            ip(&["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &peer])?;
        }
        ip(&["link", "set", &veth, "master", name, "up"])?;
        inside("ip", &["link", "set", "lo", "up"])?;
        inside("ip", &["address", "replace", &format!("{}/24", self.node()), "dev", "eth0"])?;
        inside("ip", &["link", "set", "eth0", "up"])?;
        // No default route: nothing leaves the machine. Programs of the node reach Services all the same,
        // because the route only has to exist for the rule that rewrites the address to be asked.
        inside("ip", &["route", "replace", SERVICE_CIDR, "dev", "eth0"])?;
        inside("sysctl", &["--quiet", "--write", "net.ipv4.ip_forward=1"])
    }

    /// Removes the interfaces; what is gone already is no error.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        for link in [self.veth(), self.name.clone()] {
            if link_exists(&link) {
                ip(&["link", "delete", &link])?;
            }
        }
        Ok(())
    }

    /// What is left of it.
    pub(crate) fn remains(&self) -> Vec<String> {
        let links = [self.veth(), self.name.clone()];
        links.iter().filter(|link| link_exists(link)).map(|link| format!("interface {link}")).collect()
    }
}

/// Every IPv4 address of the host.
pub(crate) fn host_addresses() -> Result<Vec<Ipv4Addr>, Error> {
    let text = ip(&["-4", "-oneline", "address", "show"])?;
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    Ok(text.lines().filter_map(address).collect())
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn ip(args: &[&str]) -> Result<String, Error> {
    Invocation::new("ip").args(args).run()
}
