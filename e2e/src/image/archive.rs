//! The file of an image: an OCI archive of one layer, which images that differ only in how they run may share. Owners,
//! times and order are fixed, so that the same content gives the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Error;
use crate::digest::{self, Hasher};

pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Where the content of a file comes from, and its mode.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(PathBuf, u32),
    Text(String, u32),
}

/// Everything in the one layer, by path without the leading slash.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) files: BTreeMap<String, Source>,
    /// Link target by path.
    pub(super) links: BTreeMap<String, String>,
    /// Empty directories, with their mode.
    pub(super) directories: BTreeMap<String, u32>,
}

impl Content {
    /// Adds all that tells this content from another.
    pub(super) fn hash(&self, hasher: &mut Hasher) -> Result<(), Error> {
        for (place, target) in &self.links {
            hasher.field(place.as_bytes());
            hasher.field(target.as_bytes());
        }
        for (place, source) in &self.files {
            hasher.field(place.as_bytes());
            match source {
                Source::File(path, mode) => {
                    hasher.field(&mode.to_le_bytes());
                    hasher.field(digest::of_file(path)?.as_bytes());
                }
                Source::Text(text, mode) => {
                    hasher.field(&mode.to_le_bytes());
                    hasher.field(text.as_bytes());
                }
            }
        }
        for (place, mode) in &self.directories {
            hasher.field(place.as_bytes());
            hasher.field(&mode.to_le_bytes());
        }
        Ok(())
    }

    /// Everything of another one too.
    pub(super) fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.links.extend(other.links);
        self.directories.extend(other.directories);
    }

    /// The same below a directory.
    pub(super) fn below(&self, directory: &str) -> Self {
        let place = |place: &String| format!("{directory}/{place}");
        Self {
            files: self.files.iter().map(|(at, source)| (place(at), source.clone())).collect(),
            links: self.links.iter().map(|(at, target)| (place(at), target.clone())).collect(),
            directories: self.all_directories().iter().map(|(at, mode)| (place(at), *mode)).collect(),
        }
    }

    /// Every directory above what is there, outermost first, and those that programs expect to exist.
    fn all_directories(&self) -> BTreeMap<String, u32> {
        let mut all = BTreeMap::from([("tmp".to_owned(), 0o1777), ("root".to_owned(), 0o700)]);
        all.extend(self.directories.clone());
        for place in self.files.keys().chain(self.links.keys()).chain(self.directories.keys()) {
            for above in Path::new(place).ancestors().skip(1) {
                let above = above.to_string_lossy().into_owned();
                if !above.is_empty() {
                    all.entry(above).or_insert(0o755);
                }
            }
        }
        all
    }

    fn write_layer(&self, path: &Path) -> Result<Layer, Error> {
        let fail = |error| Error::io("write", path)(error);
        let file = File::create(path).map_err(Error::io("create", path))?;
        let measured =
            Measured { inner: BufWriter::with_capacity(1 << 20, file), hasher: Hasher::new(), size: 0 };
        let mut layer = tar::Builder::new(measured);
        for (directory, mode) in self.all_directories() {
            append_kind(&mut layer, tar::EntryType::Directory, &directory, mode, None).map_err(fail)?;
        }
        for (place, source) in &self.files {
            match source {
                Source::File(from, mode) => {
                    let mut content = File::open(from).map_err(Error::io("read", from))?;
                    let size = content.metadata().map_err(Error::io("read", from))?.len();
                    append(&mut layer, place, size, *mode, &mut content).map_err(fail)?;
                }
                Source::Text(text, mode) => {
                    append_bytes(&mut layer, place, text.as_bytes(), *mode).map_err(fail)?;
                }
            }
        }
        for (place, target) in &self.links {
            append_kind(&mut layer, tar::EntryType::Symlink, place, 0o777, Some(target)).map_err(fail)?;
        }
        let mut measured = layer.into_inner().map_err(fail)?;
        measured.flush().map_err(fail)?;
        Ok(Layer { digest: measured.hasher.finish(), size: measured.size })
    }
}

/// Writes the archive of one content under these references, each with what containers of it run; returns the digest of
/// the first one's manifest.
pub(super) fn write(variants: &[(&str, Value)], content: &Content, path: &Path) -> Result<String, Error> {
    let unfinished = path.with_extension("layer");
    let layer = content.write_layer(&unfinished)?;
    let mut blobs = BTreeMap::new();
    let mut entries = Vec::new();
    for (reference, options) in variants {
        entries.push(entry(reference, options, &layer, &mut blobs));
    }
    let first =
        entries.first().and_then(|entry| entry.get("digest")?.as_str()).unwrap_or_default().to_owned();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes();

    let temporary = path.with_extension("new");
    let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    let fail = |error| Error::io("write", &temporary)(error);
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    let blob = |digest: &str| format!("blobs/sha256/{digest}");
    let mut add = |place: &str, bytes: &[u8]| append_bytes(&mut archive, place, bytes, 0o644).map_err(fail);
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index)?;
    for (digest, bytes) in &blobs {
        add(&blob(digest), bytes)?;
    }
    let mut source = File::open(&unfinished).map_err(Error::io("read", &unfinished))?;
    append(&mut archive, &blob(&layer.digest), layer.size, 0o644, &mut source).map_err(fail)?;
    archive.into_inner().and_then(|mut writer| writer.flush()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(Error::io("create", path))?;
    std::fs::remove_file(&unfinished).map_err(Error::io("remove", &unfinished))?;
    Ok(first)
}

/// One image's line in the index; what it points to is added to the blobs.
fn entry(reference: &str, options: &Value, layer: &Layer, blobs: &mut BTreeMap<String, Vec<u8>>) -> Value {
    let mut keep = |kind: &str, content: &Value| {
        let bytes = content.to_string().into_bytes();
        let digest = digest::of_bytes(&bytes);
        let descriptor = descriptor(kind, &digest, bytes.len() as u64);
        blobs.insert(digest, bytes);
        descriptor
    };
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": options,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": keep(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer.digest, layer.size)],
    });
    let mut entry = keep(MANIFEST, &manifest);
    if let Some(fields) = entry.as_object_mut() {
        fields.insert("annotations".to_owned(), json!({"io.containerd.image.name": reference}));
        fields.insert("platform".to_owned(), json!({"os": "linux", "architecture": architecture()}));
    }
    entry
}

struct Layer {
    digest: String,
    size: u64,
}

/// Hashes and counts what passes through.
struct Measured<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.bytes(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    place: &str,
    size: u64,
    mode: u32,
    content: &mut dyn Read,
) -> std::io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Regular, size, mode), place, content.take(size))
}

fn append_bytes<W: Write>(
    archive: &mut tar::Builder<W>,
    place: &str,
    bytes: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    append(archive, place, bytes.len() as u64, mode, &mut &*bytes)
}

fn append_kind<W: Write>(
    archive: &mut tar::Builder<W>,
    kind: tar::EntryType,
    place: &str,
    mode: u32,
    target: Option<&str>,
) -> std::io::Result<()> {
    let mut header = header(kind, 0, mode);
    match target {
        Some(target) => archive.append_link(&mut header, place, target),
        None => archive.append_data(&mut header, place, std::io::empty()),
    }
}

pub(super) fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size})
}

/// Go's name of this machine's architecture, as images want it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_gives_the_same_digest() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::write(&program, "content").unwrap();
        let content = Content {
            files: BTreeMap::from([("usr/bin/program".into(), Source::File(program.clone(), 0o755))]),
            links: BTreeMap::from([("bin/other".into(), "/usr/bin/program".into())]),
            directories: BTreeMap::from([("var/empty".into(), 0o700)]),
        };
        let write = |name: &str| {
            let twin = ("kaas.local/program:2", json!({"Env": ["A=b"]}));
            let variants = [("kaas.local/program:1", json!({})), twin];
            write(&variants, &content, &directory.path().join(name)).unwrap()
        };
        let first = write("one.tar");
        assert_eq!(first, write("two.tar"));
        std::fs::write(&program, "other").unwrap();
        assert_ne!(first, write("three.tar"));
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(File::open(directory.path().join("one.tar")).unwrap());
        for entry in archive.entries().unwrap() {
            names.push(entry.unwrap().path().unwrap().display().to_string());
        }
        // The layer is there once.
        assert_eq!(names.len(), 7, "{names:?}");
        let below = content.below("images/1").all_directories();
        assert_eq!((below["images/1/tmp"], below["images/1/usr"], below["images"]), (0o1777, 0o755, 0o755));
        let all = content.all_directories();
        assert_eq!(
            all.keys().collect::<Vec<_>>(),
            ["bin", "root", "tmp", "usr", "usr/bin", "var", "var/empty"]
        );
    }
}
