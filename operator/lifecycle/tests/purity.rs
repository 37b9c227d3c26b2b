//! The crate that decides cannot do anything else: no runtime and no client is in its build, and what its own
//! clippy.toml bans is banned on top of what the workspace bans.
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "this test reads files and runs cargo; the crate does not")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// Crates that do I/O, or are there for those that do.
const IMPURE: [&str; 15] = [
    "aws-lc-rs",
    "etcd-client",
    "h2",
    "hyper",
    "hyper-util",
    "kube-client",
    "kube-runtime",
    "mio",
    "reqwest",
    "rustls",
    "tokio",
    "tokio-rustls",
    "tokio-util",
    "tower",
    "tracing-subscriber",
];

/// Asked when the test runs: a target folder that checkouts share may hold a test that another one built.
fn here() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this test").into()
}

/// The packages that a package is built with, by name.
fn built_with(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--offline", "--locked"];
    let output = Command::new(cargo).args(arguments).current_dir(here()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn impure(packages: &BTreeSet<String>) -> Vec<&str> {
    IMPURE.into_iter().filter(|name| packages.contains(*name)).collect()
}

#[test]
fn it_is_built_with_nothing_that_does_io() {
    let packages = built_with("kaas-lifecycle");
    assert!(packages.contains("kaas-crds") && packages.contains("serde_json"), "{packages:?}");
    assert_eq!(impure(&packages), [""; 0]);
}

#[test]
fn what_does_io_would_be_seen() {
    let packages = built_with("kaas-operator");
    for name in ["tokio", "hyper", "rustls", "kube-client", "etcd-client"] {
        assert!(impure(&packages).contains(&name), "{name} is not in {packages:?}");
    }
}

/// The settings of a clippy.toml, each entry of a list for itself, without comments and spaces.
fn settings(text: &str) -> BTreeSet<String> {
    let mut settings = BTreeSet::new();
    let mut list = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line {
            "]" => list.clear(),
            _ if line.ends_with('[') => list = line.to_owned(),
            _ => {
                settings.insert(format!("{list} {}", line.trim_end_matches(',')));
            }
        }
    }
    settings
}

#[test]
fn its_lint_settings_repeat_those_of_the_workspace() {
    let read = |path: &str| std::fs::read_to_string(here().join(path)).unwrap();
    let (ours, root) = (settings(&read("clippy.toml")), settings(&read("../../clippy.toml")));
    assert!(!root.is_empty());
    let missing: Vec<_> = root.difference(&ours).collect();
    assert!(missing.is_empty(), "a nested clippy.toml replaces the root's, and lacks {missing:?}");
}

#[test]
fn it_bans_clocks_randomness_surroundings_and_unordered_maps() {
    let ours = std::fs::read_to_string(here().join("clippy.toml")).unwrap();
    let banned = [
        "std::collections::HashMap",
        "std::collections::HashSet",
        "std::time::SystemTime",
        "std::time::Instant",
        "jiff::Timestamp::now",
        "jiff::Zoned::now",
        "std::env::var",
        "std::thread::sleep",
    ];
    for path in banned {
        assert!(ours.contains(&format!("\"{path}\"")), "{path} may be used");
    }
}
