//! What goes through the tunnel while API servers come and go: logs, exec, forwarded ports, kubelets, pods by the API
//! server's proxy, an aggregated API and a webhook. Each is asked for again and again, each time on a new connection;
//! none may fail. What is asked for here is asked once; kubectl goes by its own rules. What streams lives at least as
//! long as a server that ends serves.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::forward::Forward;
use super::gate::{Gate, WORDS};
use super::{TENANT, await_pod, daily, names, nodes, pool_of_two, until};
use crate::Error;
use crate::flow::{SOON, Stage, claim, scale};
use crate::kubectl::Kubectl;
use crate::probe::Probe;
use crate::terminal::say;

const POD: &str = "far-end";
/// Between two requests of one kind.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two programs: to start one costs much more than what it asks for.
const PROGRAM_PAUSE: Duration = Duration::from_millis(700);
/// A server that is told to end serves for so long.
const DELAY: Duration = Duration::from_secs(10);
/// So many that hardly ever all of them are with the one of three servers that stays.
const STREAMS: usize = 4;
/// What is told of the failures of one kind.
const TOLD: usize = 4;

pub(super) fn goes_on_while_servers_roll(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let gate = Gate::build(&kubectl, "tollgate")?;
    let result = play(stage, &kubectl, &gate);
    let _ = kubectl.run(&["delete", "pod", POD, "--ignore-not-found", "--grace-period=1", "--wait=false"]);
    result.and(gate.remove())
}

fn play(stage: &Stage, kubectl: &Kubectl, gate: &Gate<'_>) -> Result<(), Error> {
    let workers = names(&nodes(kubectl)?);
    daily::run(kubectl, POD, workers.first().map(String::as_str).unwrap_or_default())?;
    await_pod(kubectl, POD)?;
    gate.close()?;
    let kinds = Kind::all(kubectl, gate, &workers)?;
    for kind in &kinds {
        // What was never there would fail for another reason.
        until(kubectl, kind.what, SOON, || (kind.ask)())?;
    }
    let load = Repeated::start(kinds);
    let rolled = roll(stage, kubectl);
    let counts = load.finish();
    for count in &counts {
        say(format!("  {count}"));
    }
    rolled?;
    for count in counts {
        claim(count.failures.is_empty(), || format!("through the tunnel: {count}"))?;
        claim(count.requests > 10, || format!("it came to a halt: {count}"))?;
    }
    Ok(())
}

/// One server becomes three, and three become one.
fn roll(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let to = |replicas: usize| {
        stage.change(TENANT, &json!({"controlPlane": {"replicas": replicas}}))?;
        stage.await_settled(TENANT)?;
        scale::await_pods(stage, TENANT, "kube-apiserver", replicas)
    };
    let grown = scale::under_load_of(stage, TENANT, "3 API servers", || to(3))?;
    let streams = (0..STREAMS).map(|_| Stream::open(kubectl)).collect::<Result<Vec<_>, Error>>()?;
    let mut lived = Vec::new();
    let shrunk = scale::under_load_of(stage, TENANT, "1 API server", || {
        let begun = Instant::now();
        to(1)?;
        lived = streams.into_iter().map(|stream| stream.ended(begun)).collect();
        Ok(())
    })?;
    let ended: Vec<f32> = lived.iter().flatten().map(Duration::as_secs_f32).collect();
    say(format!(
        "  of {STREAMS} streams of exec {} ended with their server, after {ended:.1?} s",
        ended.len()
    ));
    scale::nothing_failed(&grown)?;
    scale::nothing_failed(&shrunk)?;
    let short = lived.iter().flatten().find(|lived| **lived < DELAY);
    claim(short.is_none(), || format!("a stream was cut after {short:?}, before the delay of {DELAY:?}"))
}

/// One kind of request.
struct Kind {
    what: &'static str,
    pause: Duration,
    ask: Box<dyn Fn() -> Result<(), String> + Send>,
}

impl Kind {
    fn all(kubectl: &Kubectl, gate: &Gate<'_>, workers: &[String]) -> Result<Vec<Self>, Error> {
        let text =
            std::fs::read_to_string(kubectl.kubeconfig()).map_err(Error::io("read", kubectl.kubeconfig()))?;
        let probe = Probe::of_kubeconfig(&text)?;
        let get = |what, path: &str, expected: &'static str| {
            let (probe, path) = (probe.clone(), path.to_owned());
            Kind { what, pause: PAUSE, ask: Box::new(move || heard(&probe, "GET", &path, None, expected)) }
        };
        let pods = format!("/api/v1/namespaces/default/pods/{POD}");
        let mut all = vec![
            get("log", &format!("{pods}/log?tailLines=1"), "log.go"),
            get("proxy to a pod", &format!("{pods}:8080/proxy/hostname"), POD),
            get("aggregated API", "/apis/metrics.k8s.io/v1beta1/nodes", "NodeMetricsList"),
        ];
        for worker in workers {
            all.push(get("kubelet", &format!("/api/v1/nodes/{worker}/proxy/healthz"), "ok"));
        }
        let object = gate.stopped();
        all.push(Kind {
            what: "webhook",
            pause: PAUSE,
            ask: Box::new(move || {
                heard(&probe, "POST", "/api/v1/namespaces/default/configmaps", Some(&object), WORDS)
            }),
        });
        let client = kubectl.clone();
        all.push(Kind {
            what: "kubectl exec",
            pause: PROGRAM_PAUSE,
            ask: Box::new(move || match client.run(&["exec", POD, "--", "hostname"]) {
                Ok(name) if name.trim() == POD => Ok(()),
                Ok(name) => Err(format!("it says `{name}`")),
                Err(error) => Err(error.to_string()),
            }),
        });
        let client = kubectl.clone();
        all.push(Kind {
            what: "kubectl port-forward",
            pause: PROGRAM_PAUSE,
            ask: Box::new(move || {
                let forward = Forward::start(&client, &format!("pod/{POD}"), 8080);
                let forward = forward.map_err(|error| error.to_string())?;
                match forward.ask("/hostname") {
                    Ok(answer) if answer.ends_with(POD) => Ok(()),
                    Ok(answer) => Err(format!("it says `{answer}`")),
                    Err(error) => Err(error.to_string()),
                }
            }),
        });
        Ok(all)
    }
}

fn heard(
    probe: &Probe,
    method: &str,
    path: &str,
    body: Option<&Value>,
    expected: &str,
) -> Result<(), String> {
    let answer = probe.request(method, path, body)?;
    let text = String::from_utf8_lossy(&answer.body);
    match text.contains(expected) {
        true => Ok(()),
        false => Err(format!("{}: {}", answer.code, text.chars().take(300).collect::<String>())),
    }
}

/// What one kind of request went through.
struct Count {
    what: &'static str,
    requests: usize,
    slowest: Duration,
    /// Each with its time since the beginning.
    failures: Vec<(Duration, String)>,
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slowest = self.slowest.as_secs_f32();
        write!(f, "{}: {} of {} failed", self.what, self.failures.len(), self.requests)?;
        write!(f, ", the slowest took {slowest:.2} s")?;
        for (since, why) in self.failures.iter().take(TOLD) {
            write!(f, "\n    +{:.2} s {why}", since.as_secs_f32())?;
        }
        Ok(())
    }
}

/// All kinds at the same time, until it is finished.
struct Repeated {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Count>>,
}

impl Repeated {
    fn start(kinds: Vec<Kind>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let threads = kinds.into_iter().map(|kind| {
            let stopped = Arc::clone(&stop);
            std::thread::spawn(move || repeat(&kind, begun, &stopped))
        });
        Self { threads: threads.collect(), stop }
    }

    fn finish(self) -> Vec<Count> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    }
}

fn repeat(kind: &Kind, begun: Instant, stopped: &AtomicBool) -> Count {
    let mut count = Count { what: kind.what, requests: 0, slowest: Duration::ZERO, failures: Vec::new() };
    while !stopped.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if let Err(why) = (kind.ask)() {
            count.failures.push((asked.duration_since(begun), why));
        }
        count.requests += 1;
        count.slowest = count.slowest.max(asked.elapsed());
        std::thread::sleep(kind.pause);
    }
    count
}

/// A program in the pod that says something again and again, until its stream is cut.
struct Stream {
    child: Child,
    end: JoinHandle<Instant>,
}

impl Stream {
    fn open(kubectl: &Kubectl) -> Result<Self, Error> {
        let line = "while echo still here; do sleep 0.2; done";
        let command = kubectl.command(&["exec", POD, "--", "sh", "-c", line]);
        let mut command = crate::process::dying_with_us(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(Error::io("start", "kubectl exec"))?;
        let mut out = child.stdout.take();
        let mut buffer = [0; 64];
        // It is open when it has said something; one that ends at once says nothing.
        let first = out.as_mut().and_then(|out| out.read(&mut buffer).ok()).unwrap_or(0);
        let end = std::thread::spawn(move || {
            while out.as_mut().is_some_and(|out| out.read(&mut buffer).is_ok_and(|read| read > 0)) {}
            Instant::now()
        });
        let stream = Self { child, end };
        match first {
            0 => {
                stream.ended(Instant::now());
                Err(Error::Invalid(format!("kubectl exec into {POD} says nothing")))
            }
            _ => Ok(stream),
        }
    }

    /// How long after a moment it was cut, if it was; it ends now.
    fn ended(mut self, begun: Instant) -> Option<Duration> {
        let cut = matches!(self.child.try_wait(), Ok(Some(_)));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let end = self.end.join().ok()?;
        cut.then(|| end.saturating_duration_since(begun))
    }
}
