//! Keys, certificates and kubeconfigs of a management cluster: three authorities (cluster, etcd, front
//! proxy), a key for service accounts, and a leaf for each component. Made once for a state directory; a
//! marker written last tells a complete set from one that a crash interrupted.

use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Issued, Kubeconfig, Request, ServiceAccountKey, Usages, Validity};

use crate::Error;

/// A local cluster is thrown away long before.
const LIFETIME: SignedDuration = SignedDuration::from_hours(365 * 24);
const COMPLETE: &str = "complete";

/// Who is asked for: a file name, the subject, and what the certificate is for.
struct Leaf<'a> {
    file: &'a str,
    common_name: &'a str,
    organization: Option<&'a str>,
    names: &'a [&'a str],
    addresses: &'a [IpAddr],
    usages: Usages,
}

/// The directory that holds a complete set.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    directory: PathBuf,
}

/// What the set is made for.
pub(crate) struct Subject<'a> {
    /// The API server's URL in kubeconfigs.
    pub(crate) server: &'a str,
    /// Addresses of etcd and of the API server.
    pub(crate) addresses: &'a [IpAddr],
    /// Name of the node, if there is one.
    pub(crate) node: Option<&'a str>,
}

impl Credentials {
    /// The set in `directory`, made now unless it is complete already.
    pub(crate) fn create(directory: PathBuf, subject: &Subject<'_>) -> Result<Self, Error> {
        let set = Self { directory };
        if !set.path(COMPLETE).exists() {
            if set.directory.exists() {
                std::fs::remove_dir_all(&set.directory).map_err(Error::io("remove", &set.directory))?;
            }
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&set.directory).map_err(Error::io("create", &set.directory))?;
            set.make(subject)?;
            set.write(COMPLETE, "")?;
        }
        Ok(set)
    }

    /// A set that was made before.
    pub(crate) fn existing(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.path(file);
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))
    }

    /// Path of a file as an argument or configuration value.
    pub(crate) fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    fn make(&self, subject: &Subject<'_>) -> Result<(), Error> {
        let validity = Validity::starting(Timestamp::now(), LIFETIME);
        let cluster = self.authority("ca", "kaas-local-ca", validity)?;
        let etcd = self.authority("etcd-ca", "kaas-local-etcd-ca", validity)?;
        let proxy = self.authority("front-proxy-ca", "kaas-local-front-proxy-ca", validity)?;
        let key = ServiceAccountKey::generate()?;
        self.write("sa.key", &key.private_key_pem)?;
        self.write("sa.pub", &key.public_key_pem)?;

        let services = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let leaf = |file, common_name, organization| Leaf {
            file,
            common_name,
            organization,
            names: &[],
            addresses: &[],
            usages: Usages::Client,
        };
        let both = |file| Leaf {
            addresses: subject.addresses,
            names: &["localhost"],
            usages: Usages::ServerAndClient,
            ..leaf(file, "etcd", None)
        };
        self.leaf(&etcd, &both("etcd-server"), validity)?;
        self.leaf(&etcd, &both("etcd-peer"), validity)?;
        self.leaf(&etcd, &leaf("apiserver-etcd-client", "kube-apiserver", None), validity)?;
        self.leaf(&proxy, &leaf("front-proxy-client", "front-proxy-client", None), validity)?;
        let mut addresses = subject.addresses.to_vec();
        addresses.push(crate::network::SERVICE_ADDRESS.into());
        let server = Leaf {
            names: &services,
            addresses: &addresses,
            usages: Usages::Server,
            ..leaf("apiserver", "kube-apiserver", None)
        };
        self.leaf(&cluster, &server, validity)?;
        let masters = Some("system:masters");
        let kubelet_client = leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", masters);
        self.leaf(&cluster, &kubelet_client, validity)?;

        let mut users = vec![
            leaf("admin", "kubernetes-admin", masters),
            leaf("controller-manager", "system:kube-controller-manager", None),
            leaf("scheduler", "system:kube-scheduler", None),
        ];
        let node_user = subject.node.map(|node| format!("system:node:{node}"));
        if let (Some(node), Some(user)) = (subject.node, &node_user) {
            users.push(leaf("kube-proxy", "system:kube-proxy", None));
            users.push(leaf("kubelet", user, Some("system:nodes")));
            let serving = Leaf {
                names: &[node],
                addresses: subject.addresses,
                usages: Usages::Server,
                ..leaf("kubelet-server", user, Some("system:nodes"))
            };
            self.leaf(&cluster, &serving, validity)?;
        }
        for user in &users {
            let issued = self.leaf(&cluster, user, validity)?;
            let text = kaas_pki::kubeconfig(&Kubeconfig {
                name: "local",
                server: subject.server,
                certificate_authority_pem: cluster.certificate_pem(),
                client: Some(&issued),
                token: None,
                namespace: None,
            });
            self.write(&format!("{}.kubeconfig", user.file), &text)?;
        }
        Ok(())
    }

    /// A kubeconfig for any user, signed by the cluster's authority.
    pub(crate) fn kubeconfig_of(&self, server: &str, user: &str, groups: &[&str]) -> Result<String, Error> {
        let authority = Authority::load(&self.read("ca.crt")?, &self.read("ca.key")?)?;
        let request = Request {
            common_name: user.to_owned(),
            organizations: groups.iter().map(|name| (*name).to_owned()).collect(),
            dns_names: vec![],
            ip_addresses: vec![],
            usages: Usages::Client,
        };
        let issued = authority.issue(&request, Validity::starting(Timestamp::now(), LIFETIME))?;
        Ok(kaas_pki::kubeconfig(&Kubeconfig {
            name: "local",
            server,
            certificate_authority_pem: authority.certificate_pem(),
            client: Some(&issued),
            token: None,
            namespace: None,
        }))
    }

    fn authority(&self, file: &str, common_name: &str, validity: Validity) -> Result<Authority, Error> {
        let authority = Authority::generate(common_name, validity)?;
        self.write(&format!("{file}.crt"), authority.certificate_pem())?;
        self.write(&format!("{file}.key"), authority.private_key_pem())?;
        Ok(authority)
    }

    fn leaf(&self, authority: &Authority, leaf: &Leaf<'_>, validity: Validity) -> Result<Issued, Error> {
        let request = Request {
            common_name: leaf.common_name.to_owned(),
            organizations: leaf.organization.iter().map(|name| (*name).to_owned()).collect(),
            dns_names: leaf.names.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: leaf.addresses.to_vec(),
            usages: leaf.usages,
        };
        let issued = authority.issue(&request, validity)?;
        self.write(&format!("{}.crt", leaf.file), &issued.certificate_pem)?;
        self.write(&format!("{}.key", leaf.file), &issued.private_key_pem)?;
        Ok(issued)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        write_private(&self.path(file), text)
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(Error::io("create", path))?;
    file.write_all(text.as_bytes()).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_and_again_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let addresses = [IpAddr::from([10, 77, 0, 1])];
        let subject = Subject { server: "https://10.77.0.1:6443", addresses: &addresses, node: Some("n") };
        let make = || Credentials::create(directory.path().join("pki"), &subject).unwrap();
        let first = make().read("ca.crt").unwrap();
        assert_eq!(make().read("ca.crt").unwrap(), first);
        std::fs::remove_file(make().path(COMPLETE)).unwrap();
        assert_ne!(make().read("ca.crt").unwrap(), first);
        let leaf = kaas_pki::Certificate::parse(&make().read("kubelet.crt").unwrap()).unwrap();
        assert_eq!(leaf.organizations, ["system:nodes"]);
    }
}
