//! The harness for contract tests, tested itself: two servers side by side, real answers, and nothing left
//! when they go, in whatever way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test states its expectations bluntly")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kaas_e2e::apiserver::Apiserver;

fn processes_in(directory: &str) -> usize {
    let cmdline = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| String::from_utf8_lossy(&cmdline(pid)).contains(directory))
        .count()
}

fn directory_of(server: &Apiserver) -> String {
    server.audit_log().parent().unwrap().display().to_string()
}

#[test]
fn two_side_by_side_and_nothing_left() {
    let started = Instant::now();
    let (first, second) = (Apiserver::start().unwrap(), Apiserver::start().unwrap());
    println!("two API servers were ready after {:?}", started.elapsed());
    first.kubectl().run(&["create", "namespace", "only-here"]).unwrap();
    assert!(first.kubectl().run(&["get", "namespace", "only-here"]).is_ok());
    assert!(second.kubectl().run(&["get", "namespace", "only-here"]).is_err());
    assert!(std::fs::read_to_string(first.audit_log()).unwrap().contains("only-here"));

    let stranger = first.kubeconfig_of("jane", &["team-a"]).unwrap();
    let path = std::path::Path::new(&directory_of(&first)).join("jane.kubeconfig");
    std::fs::write(&path, stranger).unwrap();
    let refusal = first.kubectl().run(&["get", "secrets", "-A", "--kubeconfig", path.to_str().unwrap()]);
    assert!(refusal.unwrap_err().to_string().contains("jane"), "RBAC is on");

    let directories = [directory_of(&first), directory_of(&second)];
    assert!(directories.iter().all(|directory| processes_in(directory) == 2));
    drop((first, second));
    for directory in directories {
        assert_eq!(processes_in(&directory), 0);
        assert!(!std::path::Path::new(&directory).exists());
    }
}

/// Run by the test below in a process of its own, which is then killed.
#[test]
fn held_until_killed() {
    let Some(file) = std::env::var_os("KAAS_TEST_HOLD") else { return };
    // A thread that ends at once must not take the server with it.
    let server = std::thread::spawn(|| Apiserver::start().unwrap()).join().unwrap();
    std::fs::write(file, directory_of(&server)).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_test_leaves_no_process() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("directory");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "held_until_killed"])
        .env("KAAS_TEST_HOLD", &file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let await_fact = |seconds: u64, fact: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !fact() {
            assert!(started.elapsed() < Duration::from_secs(seconds), "not within {seconds} s");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // It may have to build the servers first.
    await_fact(1800, &|| std::fs::read_to_string(&file).is_ok_and(|text| !text.is_empty()));
    let directory = std::fs::read_to_string(&file).unwrap();
    assert_eq!(processes_in(&directory), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    await_fact(120, &|| processes_in(&directory) == 0);
    // What it left is removed by the next start.
    drop(Apiserver::start().unwrap());
    assert!(!std::path::Path::new(&directory).exists());
}
