//! The rest of the management cluster: workload controllers, kubelets, the namespace controller, etcd's elections.

use std::collections::BTreeSet;
use std::sync::Arc;

use kaas_lifecycle::difference::digest;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::{Live, Member, Pod, Trouble};
use serde_json::json;

use super::{World, name};

impl World {
    /// Lets the workload controllers, the kubelets and the namespace controller go on by one step.
    pub(crate) fn controllers(&mut self) {
        let before = self.pods.clone();
        self.step();
        if self.pods != before {
            self.next();
        }
    }

    fn step(&mut self) {
        let (now, cramped) = (self.now, self.cramped);
        for pod in self.pods.iter_mut().filter(|pod| !pod.placed && !cramped) {
            (pod.placed, pod.placed_at, pod.trouble) = (true, Some(now), None);
        }
        let starting: Vec<usize> =
            (0..self.pods.len()).filter(|at| !self.pods[*at].ready && !self.pods[*at].terminating).collect();
        for at in starting {
            if self.pods[at].component == "etcd" {
                self.start_member(at);
            } else if self.pods[at].trouble.is_none() {
                self.pods[at].ready = true;
            }
        }
        self.pods.retain(|pod| !pod.terminating);
        let pods = &self.pods;
        let held = |claim: &Reference| pods.iter().any(|pod| claim.name.ends_with(&pod.name));
        self.objects
            .retain(|key, live| key.kind != Kind::PersistentVolumeClaim || !live.terminating || held(key));
        self.elect();
        self.raise();
        if self.namespaces.first().is_some_and(|namespace| namespace.terminating) {
            if self.pods.is_empty() {
                self.namespaces.clear();
                self.objects.clear();
                self.secrets.clear();
            }
            return;
        }
        let workloads: Vec<Reference> = self
            .objects
            .keys()
            .filter(|reference| matches!(reference.kind, Kind::StatefulSet | Kind::Deployment))
            .cloned()
            .collect();
        for reference in workloads {
            self.workload(&reference);
        }
    }

    /// Without a leader, a quorum gives itself another.
    fn elect(&mut self) {
        let Some(etcd) = self.etcd().filter(|etcd| etcd.leader == 0) else { return };
        let voters: Vec<&Member> = etcd.members.iter().filter(|member| !member.learner).collect();
        let up: Vec<u64> = voters.iter().filter(|member| member.healthy).map(|member| member.id).collect();
        if up.len() > voters.len() / 2 {
            self.leader = up[0];
            self.version += 1;
        }
    }

    /// A member's process starts: it founds the cluster, comes back to its data, joins as a learner, or cannot.
    fn start_member(&mut self, at: usize) {
        let pod = self.pods[at].clone();
        let home = self.tenant().control_plane_namespace();
        let exists =
            self.objects.contains_key(&Reference::namespaced(Kind::ConfigMap, &home, "etcd-identity"));
        let volume = self.volume_of(&pod.name).unwrap().to_owned();
        let data = self.data.get(&pod.name).is_some_and(|(on, _)| *on == volume);
        let member = self.members.iter().position(|member| name(member) == pod.name);
        let minor = self.minors[&pod.template_hash];
        let works = match member {
            // "cluster cannot be downgraded"
            _ if minor < self.format => false,
            // Its data says who it is; an ID that is no longer a member's is turned away.
            Some(at) if data => self.data[&pod.name].1 == self.members[at].id,
            // "cluster version of remote member is not compatible": nobody joins while the format is lowered.
            Some(at) if self.lowered.is_some() && self.members[at].name.is_empty() => false,
            // Somebody who was added and never started.
            Some(at) if self.members[at].name.is_empty() && self.may_start(&pod.name) => {
                self.members[at].name = pod.name.clone();
                self.data.insert(pod.name.clone(), (volume, self.members[at].id));
                true
            }
            // A member without its data, that nothing keeps from having a vote again. A lone one has nobody to ask.
            Some(at) if self.members.len() > 1 && self.may_start(&pod.name) => {
                panic!("{} starts with an empty log as {}", pod.name, self.members[at].id)
            }
            // "couldn't find local name in the initial cluster configuration"
            Some(_) => false,
            None if !exists && !data => {
                let id = self.members.len() as u64 + 1;
                self.members.push(Member { id, name: pod.name.clone(), ..Member::default() });
                self.data.insert(pod.name.clone(), (volume, id));
                true
            }
            None => false,
        };
        let stuck = pod.trouble.as_ref().is_some_and(|trouble| trouble.reason != "CrashLoopBackOff");
        let pod = &mut self.pods[at];
        if works && !stuck {
            pod.trouble = None;
            // A learner's readiness fails until it votes; this world calls a member up when its process is.
            pod.ready = true;
        } else if !stuck {
            pod.trouble = Some(Trouble { reason: "CrashLoopBackOff".into(), message: String::new() });
        }
    }

    /// Minor version of the process in a pod.
    fn minor_of(&self, member: &Member) -> Option<u32> {
        let pod = self.pods.iter().find(|pod| pod.name == name(member) && pod.ready && !pod.terminating)?;
        self.minors.get(&pod.template_hash).copied()
    }

    /// The newest of the members.
    pub(crate) fn newest(&self) -> u32 {
        self.members.iter().filter_map(|member| self.minor_of(member)).max().unwrap_or_default()
    }

    /// A member, with what it says of versions.
    pub(crate) fn versioned(&self, member: Member) -> Member {
        let Some(minor) = self.minor_of(&member) else { return member };
        Member { version: format!("3.{minor}.3"), storage_version: format!("3.{}.0", self.format), ..member }
    }

    /// Once all members are newer the data is of their format, unless they were told to lower it.
    fn raise(&mut self) {
        let running: Option<Vec<u32>> = self.members.iter().map(|member| self.minor_of(member)).collect();
        let Some(oldest) = running.as_ref().and_then(|all| all.iter().min()).copied() else { return };
        if self.lowered.is_some_and(|lowered| lowered == self.newest()) {
            // It is done.
            self.lowered = None;
        }
        if self.lowered.is_none() && oldest > self.format {
            self.format = oldest;
            self.version += 1;
        }
    }

    /// Whether a member without data finds its name among those that it is to start with. A founder always does.
    fn may_start(&self, member: &str) -> bool {
        let home = self.tenant().control_plane_namespace();
        let bootstrap = self.objects.get(&Reference::namespaced(Kind::ConfigMap, home, "etcd-bootstrap"));
        let cluster = bootstrap.and_then(|live| live.get("/data/ETCD_INITIAL_CLUSTER")?.as_str());
        cluster
            .into_iter()
            .flat_map(|cluster| cluster.split(','))
            .any(|entry| entry.split_once('=').is_some_and(|(name, _)| name == member))
    }

    /// Whether a member still has what it wrote.
    pub(crate) fn holds(&self, member: &Member) -> bool {
        let written = self.data.get(&member.name);
        // What is to go with its pod is as good as gone.
        let claim = format!("data-{}", member.name);
        let goes = |(key, live): (&Reference, &Arc<Live>)| key.name == claim && live.terminating;
        !self.objects.iter().any(goes)
            && written.is_some_and(|(on, id)| self.volume_of(&member.name) == Some(on) && *id == member.id)
    }

    /// What the data of the member of this name is on: its claim, or its pod.
    pub(crate) fn volume_of(&self, member: &str) -> Option<&str> {
        let claim = |key: &Reference| {
            key.kind == Kind::PersistentVolumeClaim && key.name.strip_prefix("data-") == Some(member)
        };
        let claim = self.objects.iter().find(|(key, _)| claim(key)).map(|(_, live)| live.uid.as_str());
        let pod = self.pods.iter().find(|pod| pod.name == member);
        claim.or(pod.map(|pod| pod.uid.as_str()))
    }

    fn workload(&mut self, reference: &Reference) {
        let live = self.objects[reference].clone();
        let hash = digest(live.get("/spec/template").unwrap());
        let set = reference.kind == Kind::StatefulSet;
        let wanted = usize::try_from(live.count("/spec/replicas")).unwrap();
        let first = usize::try_from(live.count("/spec/ordinals/start")).unwrap();
        self.note_servers(&reference.name, &hash, &live);
        if set {
            let image = live.get("/spec/template/spec/containers/0/image").unwrap().as_str().unwrap();
            let minor = image.rsplit(':').next().unwrap().split('.').nth(1).unwrap().parse().unwrap();
            self.minors.insert(hash.clone(), minor);
        }
        let component = reference.name.clone();
        let template = live.get("/spec/template").unwrap().to_string();
        if set {
            for index in first..first + wanted {
                let name = format!("{component}-{index}");
                self.claim(&live, &name);
                if !self.pods.iter().any(|pod| pod.name == name) {
                    self.start(name, &component, &hash, &template);
                }
            }
            let surplus = |pod: &Pod| {
                let index = pod.name.rsplit('-').next().unwrap().parse::<usize>().unwrap();
                !(first..first + wanted).contains(&index)
            };
            let gone: Vec<String> = self
                .pods
                .iter()
                .filter(|pod| pod.component == component && surplus(pod))
                .map(|pod| pod.name.clone())
                .collect();
            self.pods.retain(|pod| !gone.contains(&pod.name));
            self.objects.retain(|key, _| !gone.iter().any(|name| key.name == format!("data-{name}")));
        } else {
            // Surge one, and let an old one go when a new one is ready.
            let (new, old): (Vec<&Pod>, Vec<&Pod>) = self
                .pods
                .iter()
                .filter(|pod| pod.component == component)
                .partition(|pod| pod.template_hash == hash);
            let (fresh, ready) = (new.len(), new.iter().filter(|pod| pod.ready).count());
            let leaving = old.iter().find(|pod| !pod.terminating).map(|pod| pod.uid.clone());
            let surplus = new.get(wanted).map(|pod| pod.uid.clone());
            if fresh < wanted && fresh + old.len() <= wanted {
                let name = format!("{component}-{}", self.next());
                self.start(name, &component, &hash, &template);
                let image = live.text("/spec/template/spec/containers/0/image");
                let version = image.rsplit_once(':').unwrap().1.to_owned();
                self.servers.insert(hash.clone(), version);
            }
            for uid in leaving.filter(|_| ready > 0).into_iter().chain(surplus) {
                self.pods.iter_mut().filter(|pod| pod.uid == uid).for_each(|pod| {
                    pod.terminating = true;
                    pod.ready = false;
                });
            }
        }
        let pods: Vec<&Pod> =
            self.pods.iter().filter(|pod| pod.component == component && !pod.terminating).collect();
        let updated = pods.iter().filter(|pod| pod.template_hash == hash).count();
        let status = json!({
            "observedGeneration": live.count("/metadata/generation"),
            "replicas": pods.len(),
            "updatedReplicas": updated,
            // Whoever is there is available, so that there are no more states than there have to be.
            "availableReplicas": if self.unfound { 0 } else { pods.len() },
            "updateRevision": hash,
        });
        if live.get("/status") != Some(&status) {
            let version = self.next();
            let live = Arc::make_mut(self.objects.get_mut(reference).unwrap());
            live.content["status"] = status;
            live.resource_version = version;
        }
    }

    /// What API servers of this template dial.
    fn note_servers(&mut self, component: &str, template: &str, live: &Live) {
        if component != "kube-apiserver" || self.dialled.contains_key(template) {
            return;
        }
        let command = live.get("/spec/template/spec/containers/0/command").unwrap().as_array().unwrap();
        let flag =
            command.iter().find_map(|flag| flag.as_str().unwrap().strip_prefix("--etcd-servers=")).unwrap();
        let hosts = flag.split(',').map(|url| url["https://".len()..].split('.').next().unwrap().to_owned());
        self.dialled.insert(template.to_owned(), hosts.collect());
    }

    /// Whether somebody who votes answers an API server, or would if he had not died by himself.
    pub(crate) fn is_answered(&self, server: &Pod, lost: &BTreeSet<String>) -> bool {
        let up = |name: &str| self.pods.iter().any(|pod| pod.name == name && pod.ready && !pod.terminating);
        let votes = |name: &str| self.members.iter().any(|member| member.name == name && !member.learner);
        let dialled = self.dialled.get(&server.template_hash);
        dialled.into_iter().flatten().any(|name| votes(name) && up(name) || lost.contains(name))
    }

    fn claim(&mut self, set: &Live, pod: &str) {
        let home = self.tenant().control_plane_namespace();
        let claim = Reference::namespaced(Kind::PersistentVolumeClaim, home, format!("data-{pod}"));
        if set.get("/spec/volumeClaimTemplates").is_some() && !self.objects.contains_key(&claim) {
            let version = self.next();
            let live = Live {
                uid: format!("volume-{version}"),
                resource_version: version,
                terminating: false,
                content: json!({"metadata": {"creationTimestamp": self.now.to_string()}}),
            };
            self.objects.insert(claim, live.into());
        }
    }

    fn start(&mut self, name: String, component: &str, hash: &str, template: &str) {
        let uid = format!("pod-{}", self.next());
        let dead = self.dead.iter().any(|word| template.contains(word));
        let trouble = match (self.cramped, dead) {
            (true, _) => Some(("Unschedulable", "0/1 nodes")),
            (false, true) => Some(("ImagePullBackOff", "no such image")),
            (false, false) => None,
        };
        self.pods.push(Pod {
            name,
            uid,
            component: component.into(),
            template_hash: hash.into(),
            created: self.now,
            placed: !self.cramped,
            placed_at: (!self.cramped).then_some(self.now),
            ready: false,
            terminating: false,
            grace: 0,
            trouble: trouble
                .map(|(reason, message)| Trouble { reason: reason.into(), message: message.into() }),
        });
    }
}
