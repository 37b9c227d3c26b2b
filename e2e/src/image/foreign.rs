//! Archives of images, whoever made them: `docker save` in its old and its new form, `podman save`, OCI archives.
//! Each image in one becomes a directory in OCI layout, with the names that the archive gives it. Nothing is
//! compressed or written anew, so that an OCI archive's digests stay what they are.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::archive::{CONFIG, LAYER, MANIFEST, descriptor};
use crate::Error;
use crate::digest;
use crate::kubectl::at;
use crate::record::write_whole;

/// What an archive may be compressed with: first bytes, and the command that undoes it.
const COMPRESSED: &[(&[u8], &str)] =
    &[(b"\x1f\x8b", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ", "unxz"), (b"BZh", "bunzip2")];
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// One image of an archive.
#[derive(Debug)]
pub(crate) struct Layout {
    /// As the archive has them: perhaps without registry or tag.
    pub(crate) names: Vec<String>,
    /// In OCI layout, with this image alone.
    pub(crate) directory: PathBuf,
}

/// Unpacks an archive into a scratch directory.
pub(crate) fn unpack(archive: &Path, scratch: &Path) -> Result<Vec<Layout>, Error> {
    let refuse = |why: String| Error::Invalid(format!("{}: {why}", archive.display()));
    let start = first_bytes(archive)?;
    if let Some((_, undo)) = COMPRESSED.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(refuse(format!("it is compressed: {undo} it first")));
    }
    let content = scratch.join("content");
    let file = File::open(archive).map_err(Error::io("read", archive))?;
    tar::Archive::new(file).unpack(&content).map_err(|error| match of_system(&error) {
        Some(cause) => refuse(format!("it cannot be unpacked into {}: {cause}", content.display())),
        None => refuse("it is not a tar archive, or not all of one".to_owned()),
    })?;
    let content = Content { directory: content, scratch };
    let found = match (content.read("index.json")?, content.read("manifest.json")?) {
        // In docker's new form both are there; names that only the old one has count too.
        (Some(index), saved) => content.of_index(&index, saved.as_ref()),
        (None, Some(saved)) => content.of_saved(&saved),
        (None, None) => Err("it has neither index.json nor manifest.json: docker save, podman save or an \
            OCI archive is wanted"
            .to_owned()),
    };
    let found = found.map_err(refuse)?;
    if found.is_empty() {
        return Err(Error::Invalid(format!("{}: there is no image in it", archive.display())));
    }
    if let Some(nameless) = found.iter().position(|layout| layout.names.is_empty()) {
        return Err(Error::Invalid(format!(
            "{}: image {} of {} has no name: save it by its name, not by its ID",
            archive.display(),
            nameless + 1,
            found.len()
        )));
    }
    Ok(found)
}

/// An unpacked archive.
struct Content<'a> {
    directory: PathBuf,
    scratch: &'a Path,
}

impl Content<'_> {
    fn read(&self, name: &str) -> Result<Option<Value>, Error> {
        let path = self.directory.join(name);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::Invalid(format!("{name} of the archive: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// A file that the archive names: inside of it, or refused.
    fn place(&self, name: &Value) -> Result<PathBuf, String> {
        let name = name.as_str().ok_or("manifest.json names no file where one is wanted")?;
        let path = Path::new(name);
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("manifest.json names `{name}`, which is outside of the archive"));
        }
        let path = self.directory.join(path);
        let inside = path.canonicalize().is_ok_and(|real| {
            self.directory.canonicalize().is_ok_and(|directory| real.starts_with(directory))
        });
        if inside { Ok(path) } else { Err(format!("`{name}` is missing in it")) }
    }

    fn of_index(&self, index: &Value, saved: Option<&Value>) -> Result<Vec<Layout>, String> {
        let entries = at(index, "/manifests").as_array().ok_or("its index.json has no `manifests`")?;
        let mut found = Vec::new();
        for entry in entries {
            let mut names: Vec<String> = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .filter_map(|key| at(entry, "/annotations").get(key)?.as_str())
                // The second may be a tag alone.
                .filter(|name| name.contains(['/', ':']))
                .take(1)
                .map(str::to_owned)
                .collect();
            if names.is_empty() && entries.len() == 1 {
                names = saved.and_then(Value::as_array).into_iter().flatten().flat_map(tags).collect();
            }
            let blobs = self.directory.join("blobs");
            let directory =
                self.layout(found.len(), entry, |place| std::os::unix::fs::symlink(&blobs, place))?;
            // One image under several tags has an entry for each.
            found.push(Layout { names, directory });
        }
        Ok(found)
    }

    fn of_saved(&self, saved: &Value) -> Result<Vec<Layout>, String> {
        let entries = saved.as_array().ok_or("its manifest.json is not a list")?;
        let mut found = Vec::new();
        for entry in entries {
            let mut blobs = Vec::new();
            let mut blob = |path: PathBuf, kind: &str| {
                let describe = || Ok((digest::of_file(&path)?, size(&path)?));
                let (digest, size) = describe().map_err(|error: Error| error.to_string())?;
                let described = descriptor(kind, &digest, size);
                blobs.push((digest, path));
                Ok::<_, String>(described)
            };
            let config = blob(self.place(at(entry, "/Config"))?, CONFIG)?;
            let mut layers = Vec::new();
            for layer in at(entry, "/Layers").as_array().ok_or("its manifest.json has no `Layers`")? {
                let path = self.place(layer)?;
                let start = first_bytes(&path).map_err(|error| error.to_string())?;
                let compression = match &start {
                    start if start.starts_with(GZIP) => "+gzip",
                    start if start.starts_with(ZSTD) => "+zstd",
                    _ => "",
                };
                layers.push(blob(path, &format!("{LAYER}{compression}"))?);
            }
            let manifest =
                json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
            let manifest = manifest.to_string().into_bytes();
            let own = digest::of_bytes(&manifest);
            let described = descriptor(MANIFEST, &own, manifest.len() as u64);
            let directory = self.layout(found.len(), &described, |place| {
                let place = place.join("sha256");
                std::fs::create_dir_all(&place)?;
                std::fs::write(place.join(&own), &manifest)?;
                for (digest, path) in &blobs {
                    // The same layer may be there twice.
                    if !place.join(digest).exists() {
                        std::fs::hard_link(path.canonicalize()?, place.join(digest))?;
                    }
                }
                Ok(())
            })?;
            found.push(Layout { names: tags(entry).collect(), directory });
        }
        Ok(found)
    }

    /// Writes an index with one entry; `fill` makes `blobs`.
    fn layout(
        &self,
        number: usize,
        entry: &Value,
        fill: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<PathBuf, String> {
        let directory = self.scratch.join(format!("layout-{number}"));
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let write = || {
            write_whole(&directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            write_whole(&directory.join("index.json"), index.as_bytes())?;
            let blobs = directory.join("blobs");
            fill(&blobs).map_err(Error::io("fill", &blobs))
        };
        write().map_err(|error| error.to_string())?;
        Ok(directory)
    }
}

fn tags(saved: &Value) -> impl Iterator<Item = String> {
    let tags = at(saved, "/RepoTags").as_array().cloned().unwrap_or_default();
    tags.into_iter().filter_map(|tag| tag.as_str().map(str::to_owned))
}

fn first_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(8).read_to_end(&mut start).map_err(Error::io("read", path))?;
    Ok(start)
}

fn size(path: &Path) -> Result<u64, Error> {
    Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len())
}

/// What the system refused, if it did: a full disk is not the archive's fault. The other causes quote the
/// archive's bytes.
fn of_system<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let own = error.downcast_ref::<std::io::Error>().filter(|error| error.raw_os_error().is_some());
    own.or_else(|| of_system(error.source()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(directory: &Path, files: &[(&str, &[u8])]) -> PathBuf {
        let path = directory.join("image.tar");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.finish().unwrap();
        path
    }

    fn refusal(files: &[(&str, &[u8])]) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let path = archive(scratch.path(), files);
        unpack(&path, scratch.path()).unwrap_err().to_string()
    }

    #[test]
    fn docker_s_old_form_becomes_a_layout() {
        let scratch = tempfile::tempdir().unwrap();
        let manifest = br#"[{"Config":"c.json","RepoTags":["team/app:1","example.com/app:2"],"Layers":["l/layer.tar","z.tar"]}]"#;
        let files: &[(&str, &[u8])] = &[
            ("manifest.json", manifest),
            ("c.json", b"{}"),
            ("l/layer.tar", b"layer"),
            ("z.tar", b"\x1f\x8bzip"),
        ];
        let path = archive(scratch.path(), files);
        let found = unpack(&path, scratch.path()).unwrap();
        assert_eq!(found[0].names, ["team/app:1", "example.com/app:2"]);
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        let index = read(found[0].directory.join("index.json"));
        let blob = |digest: &Value| {
            found[0].directory.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
        };
        let manifest = read(blob(&index["manifests"][0]["digest"]));
        assert_eq!(manifest["layers"][0]["mediaType"], LAYER);
        assert_eq!(manifest["layers"][1]["mediaType"], format!("{LAYER}+gzip"));
        assert_eq!(std::fs::read(blob(&manifest["layers"][0]["digest"])).unwrap(), b"layer");
        assert_eq!(manifest["layers"][0]["size"], 5);
    }

    #[test]
    fn an_oci_archive_keeps_its_entries() {
        let scratch = tempfile::tempdir().unwrap();
        let index = br#"{"manifests":[
            {"digest":"sha256:a","annotations":{"io.containerd.image.name":"docker.io/x/one:1","org.opencontainers.image.ref.name":"1"}},
            {"digest":"sha256:b","annotations":{"org.opencontainers.image.ref.name":"example.com/two:2"}}]}"#;
        let path = archive(scratch.path(), &[("index.json", index), ("blobs/sha256/a", b"a")]);
        let found = unpack(&path, scratch.path()).unwrap();
        assert_eq!(found[0].names, ["docker.io/x/one:1"]);
        assert_eq!(found[1].names, ["example.com/two:2"]);
        assert_eq!(std::fs::read(found[1].directory.join("blobs/sha256/a")).unwrap(), b"a");
    }

    #[test]
    fn names_of_the_old_form_count_in_the_new_one() {
        let scratch = tempfile::tempdir().unwrap();
        let index = br#"{"manifests":[{"digest":"sha256:a","annotations":{"org.opencontainers.image.ref.name":"latest"}}]}"#;
        let saved = br#"[{"Config":"blobs/sha256/c","RepoTags":["app:1"],"Layers":[]}]"#;
        let files: &[(&str, &[u8])] =
            &[("index.json", index), ("manifest.json", saved), ("blobs/sha256/a", b"a")];
        let path = archive(scratch.path(), files);
        assert_eq!(unpack(&path, scratch.path()).unwrap()[0].names, ["app:1"]);
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_way_out() {
        assert!(refusal(&[("file", b"x")]).contains("neither index.json nor manifest.json"));
        assert!(refusal(&[("index.json", br#"{"manifests":[]}"#)]).contains("no image in it"));
        assert!(
            refusal(&[("index.json", br#"{"manifests":[{"digest":"sha256:a"}]}"#)]).contains("has no name")
        );
        assert!(refusal(&[("index.json", b"{")]).contains("index.json of the archive"));
        let outside = br#"[{"Config":"../../etc/passwd","RepoTags":["a:1"],"Layers":[]}]"#;
        assert!(refusal(&[("manifest.json", outside)]).contains("outside of the archive"));
        let missing = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":[]}]"#;
        assert!(refusal(&[("manifest.json", missing)]).contains("`c.json` is missing"));
        let scratch = tempfile::tempdir().unwrap();
        for (bytes, word) in
            [(&b"\x1f\x8b\x08"[..], "gunzip it first"), (&[b'x'; 600][..], "not a tar archive")]
        {
            let path = scratch.path().join("bad.tar");
            std::fs::write(&path, bytes).unwrap();
            let error = unpack(&path, scratch.path()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("bad.tar"), "{error}");
        }
        let error = unpack(&scratch.path().join("absent.tar"), scratch.path()).unwrap_err().to_string();
        assert!(error.contains("absent.tar"), "{error}");
    }
}
