//! Renders what is derived from the Rust types: CRDs and roles for the charts, and the API reference.
//!
//! `manifests` writes the files; `manifests --check` writes nothing, names every file that differs from what
//! would be written (also one too many in a folder that belongs to this program) and exits 1.
//! A schema with an unbounded list, string or integer is refused: see [`bounds`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "manifests/bounds.rs"]
mod bounds;
#[path = "manifests/crd.rs"]
mod crd;
#[path = "manifests/permission.rs"]
mod permission;
#[path = "manifests/reference.rs"]
mod reference;
#[path = "manifests/yaml.rs"]
mod yaml;

/// Folders in which every file is ours: one that is not rendered any more is drift.
const OWNED: [&str; 2] = ["charts/kaas-crds/templates", "charts/kaas/templates/generated"];

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("unknown argument '{0}'; usage: manifests [--check]")]
    Argument(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot serialize {what}: {source}")]
    Json { what: String, source: serde_json::Error },
    #[error("cannot write {what} as YAML: {source}")]
    Yaml { what: String, source: serde_yaml::Error },
    #[error("schema of {kind} is not bounded:\n  {}", problems.join("\n  "))]
    Unbounded { kind: String, problems: Vec<String> },
    #[error("files differ from what the sources say:\n  {}\nrun: cargo run -p kaas-crds --bin manifests", .0.join("\n  "))]
    Drift(Vec<String>),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "manifests: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let mut check = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            _ => return Err(Error::Argument(argument)),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rendered = render()?;
    let drift = find_drift(&root, &rendered)?;
    if check {
        return if drift.is_empty() { Ok(()) } else { Err(Error::Drift(drift)) };
    }
    for name in drift {
        let path = root.join(&name);
        match rendered.get(&name) {
            Some(text) => write_file(&path, text)?,
            None => fs::remove_file(&path).map_err(|source| Error::File { path, source })?,
        }
        let _ = writeln!(io::stderr(), "{name}");
    }
    Ok(())
}

/// Every generated file: path below the repository's root, and content.
fn render() -> Result<BTreeMap<String, String>, Error> {
    let crds = crd::all()?;
    let mut files = BTreeMap::new();
    for crd in &crds {
        let file = format!("charts/kaas-crds/templates/{}.yaml", crd.plural());
        files.insert(file, yaml::template(&crd.document)?);
    }
    for (name, documents) in permission::files()? {
        files.insert(format!("charts/kaas/templates/generated/{name}.yaml"), yaml::templates(&documents)?);
    }
    files.insert("docs/src/reference/api.md".into(), reference::page(&crds));
    Ok(files)
}

/// Names of the files that are not as rendered: missing, different, or one too many.
fn find_drift(root: &Path, rendered: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let mut drift = Vec::new();
    for (name, text) in rendered {
        if read_file(&root.join(name))?.as_deref() != Some(text) {
            drift.push(name.clone());
        }
    }
    for folder in OWNED {
        let path = root.join(folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::File { path, source }),
        };
        for entry in entries {
            let entry = entry.map_err(|source| Error::File { path: path.clone(), source })?;
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if !rendered.contains_key(&name) {
                drift.push(name);
            }
        }
    }
    drift.sort();
    Ok(drift)
}

fn read_file(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.to_owned(), source })?;
    fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_names_what_differs_is_missing_or_is_too_much() {
        let root = std::env::temp_dir().join(format!("kaas-manifests-{}", std::process::id()));
        let folder = root.join(OWNED[1]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("same.yaml"), "a").unwrap();
        fs::write(folder.join("different.yaml"), "a").unwrap();
        fs::write(folder.join("stale.yaml"), "a").unwrap();
        let name = |file: &str| format!("{}/{file}.yaml", OWNED[1]);
        let rendered = BTreeMap::from([
            (name("same"), "a".to_owned()),
            (name("different"), "b".to_owned()),
            (name("missing"), "a".to_owned()),
        ]);
        let drift = find_drift(&root, &rendered);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(drift.unwrap(), [name("different"), name("missing"), name("stale")]);
    }
}
