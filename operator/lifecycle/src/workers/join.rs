//! Certificate requests of kubelets: from what a request says and from the workers that there are to a judgement.
//!
//! A worker gets its first client certificate by its own token, once, in time, and in its own name; it renews it in its
//! own name; and it gets a serving certificate for addresses that the infrastructure says are its. What is not about a
//! worker of ours is left to whoever it is about; what names one and is not right is denied, with the reason.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use kaas_crds::name::BOOTSTRAP_GROUP;

/// Signs clients of the API server that are kubelets.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs kubelets' own servers.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Users of bootstrap tokens are this and the public part of the token.
pub const BOOTSTRAP_USER: &str = "system:bootstrap:";
/// Nodes are this and their name.
pub const NODE_USER: &str = "system:node:";
/// Group, and organization, of nodes.
const NODE_GROUP: &str = "system:nodes";
/// Groups that a node has. One with more of them was made by somebody else.
const NODE_GROUPS: [&str; 2] = [NODE_GROUP, "system:authenticated"];
/// Groups that a bootstrap token of ours gives.
const BOOTSTRAP_GROUPS: [&str; 3] = ["system:bootstrappers", BOOTSTRAP_GROUP, "system:authenticated"];
/// A request that waited so long is not the answer to what is going on now: the kubelet makes another one.
const LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// A CertificateSigningRequest, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Who is to sign it.
    pub signer: String,
    /// Who asks.
    pub username: String,
    /// Groups of who asks.
    pub groups: BTreeSet<String>,
    /// When it was made; `None` when that is not known.
    pub created: Option<Timestamp>,
    /// Whether it has been approved or denied.
    pub decided: bool,
    /// What the certificate is wanted for.
    pub usages: BTreeSet<String>,
    /// Common names of the subject: every one.
    pub common_names: Vec<String>,
    /// Organizations of the subject: every one.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: BTreeSet<String>,
    /// IP addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Whatever else it says: other parts of the subject, other kinds of names, extensions that are not names or usages,
    /// and whether it could not be parsed.
    pub more: Vec<String>,
}

/// A worker, as far as certificates are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, and its node's.
    pub name: String,
    /// Whether its deletion has begun.
    pub going: bool,
    /// Public part of its token, while there is one.
    pub token_id: Option<String>,
    /// When that token ends.
    pub token_expires: Option<Timestamp>,
    /// Whether a client certificate was approved by that token, or the node is there.
    pub token_used: bool,
    /// Addresses that the infrastructure says are its; `None` while that is not known.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Names that the infrastructure says are its, besides its own.
    pub dns_names: BTreeSet<String>,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is approved, for this worker.
    Approve(String),
    /// It is denied, for this reason.
    Deny(String),
    /// It is about no worker of ours, or decided already.
    Ignore,
    /// It cannot be judged yet.
    Wait(String),
}

/// Judges a request. `reserved` are networks that no machine may claim addresses of: pods', Services', the endpoint's.
pub fn judge(request: &Request, workers: &[Candidate], reserved: &[IpNet], now: Timestamp) -> Judgement {
    if request.decided {
        return Judgement::Ignore;
    }
    let judged = match request.signer.as_str() {
        CLIENT_SIGNER => client(request, workers, now),
        SERVING_SIGNER => serving(request, workers, reserved),
        _ => return Judgement::Ignore,
    };
    match judged {
        Ok(worker) if old(request, now) => {
            Judgement::Deny(format!("the request for worker {worker} is not from the last hour"))
        }
        Ok(worker) => Judgement::Approve(worker),
        Err(judgement) => judgement,
    }
}

fn old(request: &Request, now: Timestamp) -> bool {
    request.created.is_none_or(|created| now.duration_since(created) > LIFETIME)
}

fn deny<T>(why: impl Into<String>) -> Result<T, Judgement> {
    Err(Judgement::Deny(why.into()))
}

fn require(holds: bool, why: impl FnOnce() -> String) -> Result<(), Judgement> {
    if holds { Ok(()) } else { deny(why()) }
}

/// The worker that the request names; one that is not about a worker of ours is nobody's here.
fn named<'a>(request: &Request, workers: &'a [Candidate]) -> Option<&'a Candidate> {
    request.common_names.iter().find_map(|name| {
        let node = name.strip_prefix(NODE_USER)?;
        workers.iter().find(|worker| worker.name == node)
    })
}

fn client(request: &Request, workers: &[Candidate], now: Timestamp) -> Result<String, Judgement> {
    let holder = request
        .username
        .strip_prefix(BOOTSTRAP_USER)
        .and_then(|token| workers.iter().find(|worker| worker.token_id.as_deref() == Some(token)));
    let named = named(request, workers);
    // Renewed by the node itself.
    let itself = request
        .username
        .strip_prefix(NODE_USER)
        .and_then(|node| workers.iter().find(|worker| worker.name == node));
    let worker = match (holder, itself, named) {
        (Some(holder), _, Some(named)) if holder.name != named.name => {
            return deny(format!("the token of worker {} asks for worker {}", holder.name, named.name));
        }
        (Some(holder), ..) => {
            in_time(holder, now)?;
            let groups = |group: &String| BOOTSTRAP_GROUPS.contains(&group.as_str());
            require(request.groups.iter().all(groups), || {
                "the token has groups that it was not given".into()
            })?;
            holder
        }
        (None, Some(itself), _) => {
            require(is_node(request), || format!("{} has not the groups of a node", request.username))?;
            itself
        }
        (None, None, Some(named)) => {
            return deny(format!(
                "worker {} asks by its own token only, not as {}",
                named.name, request.username
            ));
        }
        (None, None, None) => return Err(Judgement::Ignore),
    };
    subject(request, worker)?;
    require(request.dns_names.is_empty() && request.addresses.is_empty(), || {
        "a client certificate has no names but the subject's".into()
    })?;
    usages(request, "client auth")?;
    Ok(worker.name.clone())
}

fn in_time(worker: &Candidate, now: Timestamp) -> Result<(), Judgement> {
    require(!worker.token_used, || format!("the token of worker {} was used before", worker.name))?;
    // A denied kubelet gives up: one that shows a token which was not found is not answered, and asks again.
    let Some(expires) = worker.token_expires else {
        return Err(Judgement::Wait(format!("the token of worker {} was not found", worker.name)));
    };
    require(now < expires, || format!("the token of worker {} has ended", worker.name))
}

fn serving(request: &Request, workers: &[Candidate], reserved: &[IpNet]) -> Result<String, Judgement> {
    let Some(worker) = named(request, workers) else {
        // A node that is a worker of ours may ask for nobody else.
        let asks = request.username.strip_prefix(NODE_USER);
        return match asks.filter(|node| workers.iter().any(|worker| worker.name == *node)) {
            Some(node) => deny(format!("worker {node} asks in another name")),
            None => Err(Judgement::Ignore),
        };
    };
    let own = request.username.strip_prefix(NODE_USER) == Some(worker.name.as_str());
    require(own && is_node(request), || {
        format!("worker {} asks for itself only, not {}", worker.name, request.username)
    })?;
    subject(request, worker)?;
    usages(request, "server auth")?;
    require(!request.dns_names.is_empty() || !request.addresses.is_empty(), || {
        "it is for no name and no address".into()
    })?;
    if let Some(name) =
        request.dns_names.iter().find(|name| **name != worker.name && !worker.dns_names.contains(*name))
    {
        return deny(format!("{name} is no name of worker {}", worker.name));
    }
    let Some(addresses) = &worker.addresses else {
        return Err(Judgement::Wait(format!("the addresses of worker {} are not known yet", worker.name)));
    };
    for address in &request.addresses {
        require(addresses.contains(address), || {
            format!("{address} is no address of worker {}", worker.name)
        })?;
        let taken = reserved.iter().any(|network| network.contains(address))
            || address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast();
        require(!taken, || format!("{address} is not an address that a machine may have"))?;
        let other = workers.iter().filter(|other| other.name != worker.name);
        let mut shared =
            other.filter(|other| other.addresses.iter().flatten().any(|theirs| theirs == address));
        if let Some(other) = shared.next() {
            return deny(format!("{address} is also an address of worker {}", other.name));
        }
    }
    Ok(worker.name.clone())
}

/// Whether who asks has the groups of a node, and no others.
fn is_node(request: &Request) -> bool {
    request.groups.contains(NODE_GROUP)
        && request.groups.iter().all(|group| NODE_GROUPS.contains(&group.as_str()))
}

/// A subject that says that this worker is a node, and nothing else.
fn subject(request: &Request, worker: &Candidate) -> Result<(), Judgement> {
    require(!worker.going, || format!("worker {} is being deleted", worker.name))?;
    let name = format!("{NODE_USER}{}", worker.name);
    require(request.common_names == [name.as_str()], || format!("the subject is not {name}"))?;
    require(request.organizations == [NODE_GROUP], || format!("the organization is not {NODE_GROUP} alone"))?;
    require(request.more.is_empty(), || {
        format!("it says more than a kubelet does: {}", request.more.join(", "))
    })
}

/// What kubelets ask for: signatures and one purpose; with RSA keys, which may encipher keys, that too.
fn usages(request: &Request, purpose: &str) -> Result<(), Judgement> {
    let mut left: BTreeSet<&str> = request.usages.iter().map(String::as_str).collect();
    left.remove("key encipherment");
    require(left == BTreeSet::from(["digital signature", purpose]), || {
        let usages: Vec<&str> = request.usages.iter().map(String::as_str).collect();
        format!("it is for {}, not for {purpose}", usages.join(", "))
    })
}

#[cfg(test)]
mod tests;
