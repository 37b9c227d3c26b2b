//! The real client-go against a tenant: the program of `e2e/go/load` from outside, through the endpoint, and from a pod
//! in the tenant through its `kubernetes` Service. A pod may be moved in the meantime: what each has seen is kept in the
//! tenant. Beside it run the pods whose output both follow.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::{POLL, SOON, Stage};
use crate::Error;
use crate::image::catalogue;
use crate::kubectl::{Kubectl, at};
use crate::terminal::say;
use crate::wait;

mod report;

pub(crate) use report::{Kind, Report};

/// Everything of a load in the tenant is in this namespace.
const NAMESPACE: &str = "traffic";
const INSIDE: &str = "load";
/// Pods that say something every second.
const SPEAKERS: &str = "app=speaker";
/// By its name, as every program in a cluster finds it.
const SERVICE: &str = "https://kubernetes.default.svc";
/// How long the load from outside may take to have made as many requests as it was told.
const LONGEST: Duration = Duration::from_secs(3600);
/// A load that ends waits for requests under way, and for what its watches have still to tell.
const END: Duration = Duration::from_secs(60);

/// The load from outside, until it is finished.
pub(crate) struct Outside {
    child: Child,
    output: JoinHandle<String>,
    /// How long it may take to end.
    patience: Duration,
}

impl Outside {
    /// Starts it with a kubeconfig; it writes in this namespace, and makes so many requests before it ends.
    pub(crate) fn start(
        program: &Path,
        kubeconfig: &Path,
        namespace: &str,
        at_least: u64,
        pods: Option<&str>,
    ) -> Result<Self, Error> {
        let mut command = std::process::Command::new(program);
        command
            .arg(format!("-kubeconfig={}", kubeconfig.display()))
            .arg("-until-stdin-closes")
            .args([format!("-namespace={namespace}"), format!("-at-least={at_least}")])
            .args(pods.map(|selector| format!("-pods={selector}")));
        let mut command = crate::process::dying_with_us(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(Error::io("start", "the load"))?;
        let mut out = child.stdout.take();
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = out.as_mut().map(|out| out.read_to_string(&mut text));
            text
        });
        let patience = if at_least > 0 { LONGEST } else { END };
        Ok(Self { child, output, patience })
    }

    /// Begins its end, which takes as long as its last request.
    fn stop(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Until it has ended.
    fn await_end(&self) -> Result<(), Error> {
        let ended = || match self.output.is_finished() {
            true => Ok(()),
            false => Err("it goes on".to_owned()),
        };
        wait::until("the load from outside to end", self.patience, POLL, ended, String::new)
    }

    /// Ends it; what it saw.
    pub(crate) fn finish(mut self) -> Result<Report, Error> {
        self.stop();
        let outcome = self.await_end();
        if outcome.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let text = self.output.join().unwrap_or_default();
        outcome?;
        Report::parse(&text)
    }
}

/// Both loads, until they are finished.
pub(super) struct Traffic {
    kubectl: Kubectl,
    outside: Outside,
}

impl Traffic {
    /// Starts them with the tenant's kubeconfig, once the pods that they need are there. The one from outside goes on until
    /// it has made so many requests, also when it is told to finish.
    pub(super) fn start(stage: &Stage, name: &str, at_least: u64) -> Result<Self, Error> {
        let kubectl = stage.tenant_kubectl(name)?;
        // Names are answered before anybody is counted who asks for them.
        kubectl.await_deployment("kube-system", "coredns", SOON)?;
        kubectl.apply(&manifest().to_string())?;
        kubectl.await_deployment(NAMESPACE, "speaker", SOON)?;
        kubectl.await_deployment(NAMESPACE, INSIDE, SOON)?;
        stage.ground.iter().for_each(super::Ground::await_builder);
        let program = stage.ground()?.cluster.borrow().toolbox.program("load")?.to_owned();
        let outside = Outside::start(&program, kubectl.kubeconfig(), NAMESPACE, at_least, Some(SPEAKERS))?;
        Ok(Self { kubectl, outside })
    }

    /// Ends both, tells and returns what they saw: first the one from outside, then each pod that had the one inside.
    pub(super) fn finish(mut self) -> Result<Vec<Report>, Error> {
        self.outside.stop();
        // The one inside keeps it company.
        if self.outside.patience > END {
            self.outside.await_end()?;
        }
        let scale = ["scale", "deployment", INSIDE, "--replicas=0"];
        self.kubectl.run(&[&["--namespace", NAMESPACE], scale.as_slice()].concat())?;
        let mut reports = vec![self.outside.finish()?];
        reports.extend(inside(&self.kubectl)?);
        for (index, report) in reports.iter().enumerate() {
            let from = if index == 0 { "outside" } else { "inside" };
            let (requests, begun, seconds) = (report.requests(), &report.begun, report.seconds);
            say(format!("  clients from {from}, {requests} requests in {seconds:.0} s since {begun}:"));
            report.lines().iter().for_each(|line| say(format!("    {line}")));
        }
        Ok(reports)
    }
}

/// Nothing failed that may not, in any of the loads.
pub(super) fn judge(reports: &[Report]) -> Result<(), Error> {
    let breaches = reports.iter().enumerate().flat_map(|(index, report)| {
        let from = if index == 0 { "outside" } else { "inside" };
        report.breaches().into_iter().map(move |breach| format!("from {from}: {breach}"))
    });
    let breaches: Vec<_> = breaches.collect();
    super::claim(breaches.is_empty(), || format!("what clients saw is above; {}", breaches.join("; ")))
}

/// What each pod has left, when all of them have ended.
fn inside(kubectl: &Kubectl) -> Result<Vec<Report>, Error> {
    let list = |what: &str, selector: &str| {
        let found = kubectl.read(&["--namespace", NAMESPACE, "get", what, "--selector", selector])?;
        Ok::<_, Error>(at(&found, "/items").as_array().cloned().unwrap_or_default())
    };
    let ended = || match list("pods", &format!("app={INSIDE}")) {
        Ok(pods) if pods.is_empty() => Ok(()),
        Ok(pods) => Err(format!("{} pods", pods.len())),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the load inside to end", END, POLL, ended, || kubectl.report())?;
    let results = list("configmaps", "kaas-load-result=true")?;
    super::claim(!results.is_empty(), || "the load inside has left no result".to_owned())?;
    results
        .iter()
        .map(|result| Report::parse(at(result, "/data/result").as_str().unwrap_or_default()))
        .collect()
}

/// Everything that is in the tenant.
fn manifest() -> Value {
    let account = json!({"name": INSIDE, "namespace": NAMESPACE});
    let rule = |resources: &[&str], verbs: &[&str]| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
    let speak = "while date; do sleep 1; done";
    let load = json!({
        "serviceAccountName": INSIDE,
        "terminationGracePeriodSeconds": END.as_secs(),
        "containers": [{
            "name": INSIDE,
            "image": catalogue::load_reference(),
            "args": [
                format!("-server={SERVICE}"), format!("-namespace={NAMESPACE}"), format!("-pods={SPEAKERS}"),
                "-result=$(POD)",
            ],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        }],
    });
    let speaker = json!({
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": "speaker"}},
        }],
        "containers": [{
            "name": "speaker",
            "image": super::workers::agnhost(),
            "command": ["sh", "-c", speak],
            "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
        }],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": account,
            "rules": [
                rule(&["configmaps"], &["*"]), rule(&["pods", "pods/log"], &["get", "list"]),
                rule(&["pods/exec"], &["get", "create"]),
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": account,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": INSIDE},
            "subjects": [{"kind": "ServiceAccount", "name": INSIDE, "namespace": NAMESPACE}],
        },
        deployment("speaker", 2, &speaker),
        deployment(INSIDE, 1, &load),
    ]})
}

fn deployment(name: &str, replicas: usize, pod: &Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    })
}
