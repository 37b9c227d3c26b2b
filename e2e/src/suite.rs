//! `make test`: every check of the project in the order in which it is cheapest to fail, and one last line
//! that sums up what ran. A step that breaks does not hide the ones after it. It never passes when nothing
//! ran: a test run without a single test is a failure.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::compile;
use crate::flow;
use crate::layout::{Cache, Repository};
use crate::prerequisite;
use crate::tally::Tally;
use crate::terminal::say;

const LINTS_DEADLINE: Duration = Duration::from_secs(1500);
const TESTS_DEADLINE: Duration = Duration::from_secs(2400);
const SHORT_DEADLINE: Duration = Duration::from_secs(600);
const DENY_VERSION: &str = "0.20";
const POLL: Duration = Duration::from_millis(50);

/// Runs everything.
///
/// # Errors
/// [`Error::Prerequisite`] when nothing can run; [`Error::Invalid`] when a check failed.
pub fn run(repository: &Repository, cache: &Cache) -> Result<(), Error> {
    let started = Instant::now();
    prerequisite::ensure(repository, cache)?;
    let cargo = |args: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(repository.root()).args(args).env("CARGO_TARGET_DIR", cache.target());
        command
    };
    let mut tally = Tally::default();
    step("format", cargo(&["fmt", "--all", "--check"]), SHORT_DEADLINE, &mut tally);
    let mut gofmt = Command::new("sh");
    gofmt.current_dir(repository.root()).args(["-c", "gofmt -d e2e/go && [ -z \"$(gofmt -l e2e/go)\" ]"]);
    step("format of Go", gofmt, SHORT_DEADLINE, &mut tally);
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", cargo(&lints), LINTS_DEADLINE, &mut tally);
    let manifests = ["run", "--quiet", "--package", "kaas-crds", "--bin", "manifests", "--", "--check"];
    step("generated files", cargo(&manifests), SHORT_DEADLINE, &mut tally);
    let dependencies = deny(repository, cache).map(|program| {
        let mut command = Command::new(program);
        command.current_dir(repository.root()).args(["check", "bans", "licenses", "sources"]);
        command
    });
    match dependencies {
        Ok(command) => step("dependencies", command, SHORT_DEADLINE, &mut tally),
        Err(error) => fail("dependencies", &error, &mut tally),
    }
    programs(repository, cache, &mut tally);
    // Tests leave the processor idle a third of the time. What fails here is told by the flows, which build them too.
    let ahead = {
        let (repository, cache) = (repository.clone(), cache.clone());
        std::thread::spawn(move || compile::build_operators(&repository, &cache))
    };
    let tests = ["test", "--workspace", "--no-fail-fast"];
    tests_step(cargo(&tests), &mut |line| say(line), &mut tally);
    drop(ahead.join());
    match flow::run(repository, cache, None, flow::Extent::Short) {
        Ok(flows) => tally.add(flows),
        Err(error) => fail("flows", &error, &mut tally),
    }
    say(format!("all of it took {} s", started.elapsed().as_secs()));
    tally.conclude()
}

/// What tests start real servers from. The first build takes longer than any of them waits for one.
fn programs(repository: &Repository, cache: &Cache, tally: &mut Tally) {
    let started = Instant::now();
    match compile::build_all(repository, cache, &flow::order(false, flow::Extent::Short)) {
        Ok(_) => {
            say(format!("programs: ok ({} s)", started.elapsed().as_secs()));
            tally.passed += 1;
        }
        Err(error) => fail("programs", &error, tally),
    }
}

fn fail(name: &str, error: &Error, tally: &mut Tally) {
    say(format!("{name}: FAILED\n{error}"));
    tally.fail(name, &error.to_string());
}

fn step(name: &str, command: Command, deadline: Duration, tally: &mut Tally) {
    let started = Instant::now();
    let outcome = stream(command, deadline, &mut |line| say(line));
    let seconds = started.elapsed().as_secs();
    let word = if outcome { "ok" } else { "FAILED" };
    say(format!("{name}: {word} ({seconds} s)"));
    match outcome {
        true => tally.passed += 1,
        false => tally.fail(name, ""),
    }
}

/// Counts the single tests; a run that ends badly without a failed test (it did not compile, it crashed)
/// is a failure of its own, and so is one without any test.
fn tests_step(command: Command, show: &mut dyn FnMut(&str), tally: &mut Tally) {
    let started = Instant::now();
    let mut found = Tests::default();
    let outcome = stream(command, TESTS_DEADLINE, &mut |line| {
        found.read(line);
        show(line);
    });
    let broken = (!outcome && found.failed.is_empty()) || found.passed + found.failed.len() == 0;
    tally.passed += found.passed;
    for (name, why) in &found.failed {
        tally.fail(&format!("test {name}"), &why.join("\n"));
    }
    if broken {
        tally.fail("tests", "they did not compile, or ended before they said what they found");
    }
    let word = if outcome && !broken { "ok" } else { "FAILED" };
    show(&format!("tests: {word} ({} s)", started.elapsed().as_secs()));
}

/// What cargo's test programs print.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tests {
    passed: usize,
    /// Each with what it printed.
    failed: Vec<(String, Vec<String>)>,
    /// The one whose output is read now.
    telling: Option<usize>,
}

impl Tests {
    /// `test name ... FAILED`, `---- name stdout ----` and
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
    fn read(&mut self, line: &str) {
        let failed = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        let titled = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = failed {
            self.failed.push((name.to_owned(), Vec::new()));
        } else if let Some(title) = titled {
            self.telling = self.failed.iter().rposition(|(name, _)| name == title);
        } else if line == "failures:" {
            self.telling = None;
        } else if let Some((_, rest)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        {
            let passed = rest.split("; ").find_map(|part| part.strip_suffix(" passed"));
            self.passed += passed.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0);
        } else if let Some((_, told)) = self.telling.and_then(|index| self.failed.get_mut(index))
            && !line.trim().is_empty()
        {
            told.push(line.to_owned());
        }
    }
}

/// Runs a command with its standard output line by line; false when it fails or outlives its deadline.
fn stream(command: Command, deadline: Duration, each: &mut dyn FnMut(&str)) -> bool {
    let started = Instant::now();
    let mut command = crate::process::dying_with_us(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            say(format!("cannot start {:?}: {error}", command.get_program()));
            return false;
        }
    };
    let (lines, received) = std::sync::mpsc::channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
    }
    loop {
        while let Ok(line) = received.recv_timeout(POLL) {
            each(&line);
        }
        match child.try_wait() {
            Ok(Some(status)) => {
                // What was written before the end, and may still be on its way.
                while let Ok(line) = received.recv_timeout(POLL) {
                    each(&line);
                }
                return status.success();
            }
            Ok(None) if started.elapsed() < deadline => {}
            _ => {
                if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                say(format!("ended after {} s: too long", started.elapsed().as_secs()));
                return false;
            }
        }
    }
}

/// cargo-deny from the cache, installed there when it is missing.
fn deny(repository: &Repository, cache: &Cache) -> Result<PathBuf, Error> {
    let root = cache.root().join(format!("cargo-deny-{DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    say(format!("installing cargo-deny {DENY_VERSION} into {}", root.display()));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(repository.root())
        .args([
            "install",
            "cargo-deny",
            "--locked",
            "--quiet",
            "--version",
            &format!("^{DENY_VERSION}"),
            "--root",
        ])
        .arg(&root)
        .env("CARGO_TARGET_DIR", cache.target().join("tools"));
    if stream(command, LINTS_DEADLINE, &mut |line| say(line)) && program.exists() {
        // Its build output is of no more use.
        let _ = std::fs::remove_dir_all(cache.target().join("tools"));
        return Ok(program);
    }
    Err(Error::Prerequisite(format!(
        "cargo-deny could not be installed: cargo install cargo-deny --version {DENY_VERSION} shows why"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_summed() {
        let mut found = Tests::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test one ... ok",
            "test two ... FAILED",
            "",
            "failures:",
            "",
            "---- two stdout ----",
            "",
            "thread 'two' panicked at src/lib.rs:1:1:",
            "it is 3",
            "",
            "failures:",
            "    two",
            "",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        ] {
            found.read(line);
        }
        assert_eq!(found.passed, 4);
        let told = ["thread 'two' panicked at src/lib.rs:1:1:", "it is 3"].map(str::to_owned).to_vec();
        assert_eq!(found.failed, [("two".to_owned(), told)]);
    }

    #[test]
    fn a_broken_test_run_is_a_failure() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        for (script, passed, failed) in [
            ("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'", 2, 0),
            ("exit 101", 0, 1),
            ("true", 0, 1),
            (
                "echo 'test it ... FAILED'; echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101",
                2,
                1,
            ),
        ] {
            let mut tally = Tally::default();
            tests_step(shell(script), &mut |_| (), &mut tally); // quiet: these lines would be counted
            assert_eq!((tally.passed, tally.failed.len()), (passed, failed), "{script}");
        }
    }
}
