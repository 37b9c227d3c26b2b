//! Container images without a container engine: an OCI archive of one layer that holds a program (with the
//! libraries it is linked to, where it is), certificates, and the few files that programs expect. The same
//! content gives the same digest, so an image that is imported already is told by its digest alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Error;
use crate::compile::Toolbox;
use crate::component::{self, Component};
use crate::digest::{self, Hasher};
use crate::invocation::Invocation;
use crate::layout::Cache;
use crate::lock::Lock;

/// Host part of every image of the local cluster.
pub(crate) const REGISTRY: &str = "kaas.local";
/// The image of pod sandboxes.
pub(crate) const PAUSE: &str = "kaas.local/pause:1";
/// A shell with the usual tools.
pub(crate) const BUSYBOX: &str = "kaas.local/busybox:1";

/// Changes when the layout of images changes: part of each image's key.
const FORMAT: &str = "1";
const BUSYBOX_PROGRAM: &str = "/bin/busybox";
/// User and group of programs that need no rights.
const NONROOT: &str = "65532:65532";

/// What goes into one image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) reference: String,
    /// Program by its path in the image.
    programs: BTreeMap<String, PathBuf>,
    /// Link target by path.
    links: BTreeMap<String, String>,
    entrypoint: Vec<String>,
    user: Option<&'static str>,
}

/// An image as a file.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    pub(crate) reference: String,
    /// Digest of the manifest.
    pub(crate) digest: String,
    pub(crate) path: PathBuf,
}

impl Image {
    fn of_programs<'a>(
        reference: String,
        programs: impl IntoIterator<Item = &'a Path>,
        user: Option<&'static str>,
    ) -> Self {
        let place = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (format!("usr/local/bin/{name}"), path.to_owned())
        };
        let programs = programs.into_iter().map(place).collect();
        Self { reference, programs, links: BTreeMap::new(), entrypoint: vec![], user }
    }

    /// Images that the cluster runs, and those that tenants' control planes are made of.
    pub(crate) fn all(toolbox: &Toolbox, operator: Option<(&Path, &str)>) -> Result<Vec<Self>, Error> {
        let mut images = vec![Self::pause(), Self::busybox()?];
        let kubernetes = component::KUBERNETES;
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            let reference = format!("{REGISTRY}/{name}:{kubernetes}");
            images.push(Self::of_programs(reference, [toolbox.program(name)?], None));
        }
        let etcd = ["etcd", "etcdctl", "etcdutl"].map(|name| toolbox.program(name));
        let etcd = etcd.into_iter().collect::<Result<Vec<_>, _>>()?;
        images.push(Self::of_programs(format!("{REGISTRY}/etcd:{}-0", component::ETCD), etcd, None));
        for name in ["coredns", "local-path-provisioner"] {
            let reference = addon_reference(name)?;
            images.push(Self::of_programs(reference, [toolbox.program(name)?], None));
        }
        if let Some((program, tag)) = operator {
            let reference = format!("{REGISTRY}/kaas-dev/kaas-operator:{tag}");
            let mut image = Self::of_programs(reference, [program], Some(NONROOT));
            image.entrypoint = vec!["/usr/local/bin/kaas-operator".to_owned()];
            images.push(image);
        }
        Ok(images)
    }

    fn pause() -> Self {
        Self {
            reference: PAUSE.to_owned(),
            programs: BTreeMap::from([("bin/busybox".to_owned(), BUSYBOX_PROGRAM.into())]),
            links: BTreeMap::new(),
            entrypoint: ["/bin/busybox", "sleep", "infinity"].map(str::to_owned).to_vec(),
            user: Some(NONROOT),
        }
    }

    fn busybox() -> Result<Self, Error> {
        let applets = Invocation::new(BUSYBOX_PROGRAM).arg("--list").run()?;
        let links = applets
            .lines()
            .filter(|name| *name != "busybox")
            .map(|name| (format!("bin/{name}"), "busybox".to_owned()))
            .collect();
        Ok(Self {
            reference: BUSYBOX.to_owned(),
            programs: BTreeMap::from([("bin/busybox".to_owned(), BUSYBOX_PROGRAM.into())]),
            links,
            entrypoint: vec![],
            user: None,
        })
    }

    /// The archive from the cache, made first if its content was never archived.
    pub(crate) fn archive(&self, cache: &Cache) -> Result<Archive, Error> {
        let files = self.files()?;
        let key = self.key(&files)?;
        let directory = cache.images();
        let path = directory.join(format!("{key}.tar"));
        let sum = directory.join(format!("{key}.digest"));
        let _lock = Lock::exclusive(&cache.locks().join("images"), std::time::Duration::from_secs(300))?;
        let digest = match std::fs::read_to_string(&sum) {
            Ok(digest) if path.exists() => {
                [&path, &sum].into_iter().for_each(|file| crate::cache::touch(file));
                digest
            }
            _ => {
                std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
                let digest = self.write(&files, &path)?;
                crate::record::write_whole(&sum, digest.as_bytes())?;
                digest
            }
        };
        Ok(Archive { reference: self.reference.clone(), digest, path })
    }

    /// Every regular file: programs, their libraries, and the authorities that TLS clients trust.
    fn files(&self) -> Result<BTreeMap<String, Source>, Error> {
        let mut files = BTreeMap::new();
        for (place, path) in &self.programs {
            files.insert(place.clone(), Source::File(path.clone(), 0o755));
            for library in libraries(path)? {
                let place = library.trim_start_matches('/').to_owned();
                files.insert(place, Source::File(library.into(), 0o755));
            }
        }
        let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if authorities.exists() {
            let place = "etc/ssl/certs/ca-certificates.crt".to_owned();
            files.insert(place, Source::File(authorities.to_owned(), 0o644));
        }
        let text = |text: &str| Source::Text(text.to_owned());
        files.insert(
            "etc/passwd".to_owned(),
            text("root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/home/nonroot:/bin/false\n"),
        );
        files.insert("etc/group".to_owned(), text("root:x:0:\nnonroot:x:65532:\n"));
        files.insert("etc/nsswitch.conf".to_owned(), text("hosts: files dns\n"));
        Ok(files)
    }

    fn key(&self, files: &BTreeMap<String, Source>) -> Result<String, Error> {
        let mut hasher = Hasher::new();
        hasher.field(FORMAT.as_bytes());
        hasher.field(self.reference.as_bytes());
        hasher.field(self.config_options().to_string().as_bytes());
        for (place, target) in &self.links {
            hasher.field(place.as_bytes());
            hasher.field(target.as_bytes());
        }
        for (place, source) in files {
            hasher.field(place.as_bytes());
            match source {
                Source::File(path, _) => hasher.field(digest::of_file(path)?.as_bytes()),
                Source::Text(text) => hasher.field(text.as_bytes()),
            }
        }
        Ok(digest::short(&hasher.finish(), 24))
    }

    fn config_options(&self) -> serde_json::Value {
        json!({
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Entrypoint": self.entrypoint,
            "User": self.user.unwrap_or_default(),
            "WorkingDir": "/",
        })
    }

    /// Writes the archive; returns the digest of its manifest.
    fn write(&self, files: &BTreeMap<String, Source>, path: &Path) -> Result<String, Error> {
        let unfinished = path.with_extension("layer");
        let layer = write_layer(&unfinished, files, &self.links)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": self.config_options(),
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &digest::of_bytes(&config), config.len() as u64),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer.digest, layer.size)],
        });
        let manifest = manifest.to_string().into_bytes();
        let manifest_digest = digest::of_bytes(&manifest);
        let mut entry =
            descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_digest, manifest.len() as u64);
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("annotations".to_owned(), json!({"io.containerd.image.name": self.reference}));
            fields.insert("platform".to_owned(), json!({"os": "linux", "architecture": architecture()}));
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();

        let temporary = path.with_extension("new");
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let fail = |error| Error::io("write", &temporary)(error);
        let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        let blob = |digest: &str| format!("blobs/sha256/{digest}");
        append_bytes(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(fail)?;
        append_bytes(&mut archive, "index.json", &index).map_err(fail)?;
        append_bytes(&mut archive, &blob(&manifest_digest), &manifest).map_err(fail)?;
        append_bytes(&mut archive, &blob(&digest::of_bytes(&config)), &config).map_err(fail)?;
        let mut source = File::open(&unfinished).map_err(Error::io("read", &unfinished))?;
        append(&mut archive, &blob(&layer.digest), layer.size, 0o644, &mut source).map_err(fail)?;
        archive.into_inner().and_then(|mut writer| writer.flush()).map_err(fail)?;
        std::fs::rename(&temporary, path).map_err(Error::io("create", path))?;
        std::fs::remove_file(&unfinished).map_err(Error::io("remove", &unfinished))?;
        Ok(format!("sha256:{manifest_digest}"))
    }
}

/// Reference of the image of an add-on: its program's name and version.
pub(crate) fn addon_reference(program: &str) -> Result<String, Error> {
    let component = Component::of_program(program)
        .ok_or_else(|| Error::Invalid(format!("no component builds `{program}`")))?;
    Ok(format!("{REGISTRY}/{program}:{}", component.version))
}

enum Source {
    File(PathBuf, u32),
    Text(String),
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

fn write_layer(
    path: &Path,
    files: &BTreeMap<String, Source>,
    links: &BTreeMap<String, String>,
) -> Result<Layer, Error> {
    let fail = |error| Error::io("write", path)(error);
    let file = File::create(path).map_err(Error::io("create", path))?;
    let measured =
        Measured { inner: BufWriter::with_capacity(1 << 20, file), hasher: Hasher::new(), size: 0 };
    let mut layer = tar::Builder::new(measured);
    for (directory, mode) in directories(files.keys().chain(links.keys())) {
        append_kind(&mut layer, tar::EntryType::Directory, &directory, mode, None).map_err(fail)?;
    }
    for (place, source) in files {
        match source {
            Source::File(from, mode) => {
                let mut content = File::open(from).map_err(Error::io("read", from))?;
                let size = content.metadata().map_err(Error::io("read", from))?.len();
                append(&mut layer, place, size, *mode, &mut content).map_err(fail)?;
            }
            Source::Text(text) => append_bytes(&mut layer, place, text.as_bytes()).map_err(fail)?,
        }
    }
    for (place, target) in links {
        append_kind(&mut layer, tar::EntryType::Symlink, place, 0o777, Some(target)).map_err(fail)?;
    }
    let mut measured = layer.into_inner().map_err(fail)?;
    measured.flush().map_err(fail)?;
    Ok(Layer { digest: measured.hasher.finish(), size: measured.size })
}

/// Every directory above the given files, outermost first, and those that programs expect to exist.
fn directories<'a>(places: impl Iterator<Item = &'a String>) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::from([("tmp".to_owned(), 0o1777), ("root".to_owned(), 0o700)]);
    for place in places {
        for above in Path::new(place).ancestors().skip(1) {
            let above = above.to_string_lossy().into_owned();
            if !above.is_empty() {
                all.entry(above).or_insert(0o755);
            }
        }
    }
    all
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

fn append_bytes<W: Write>(archive: &mut tar::Builder<W>, place: &str, bytes: &[u8]) -> std::io::Result<()> {
    append(archive, place, bytes.len() as u64, 0o644, &mut &*bytes)
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

fn descriptor(kind: &str, digest: &str, size: u64) -> serde_json::Value {
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

/// The shared libraries that a program is linked to, and its loader; none for a static one.
fn libraries(program: &Path) -> Result<Vec<String>, Error> {
    match Invocation::new("ldd").arg(program).run() {
        Ok(text) => parse_libraries(&text, program),
        Err(Error::Command { output, .. }) if output.contains("not a dynamic executable") => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn parse_libraries(text: &str, program: &Path) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("not found") {
            return Err(Error::Invalid(format!("{} needs a library: {line}", program.display())));
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let found = parse_libraries(text, Path::new("p")).unwrap();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(parse_libraries("\tstatically linked\n", Path::new("p")).unwrap(), [""; 0]);
        assert!(parse_libraries("\tlibx.so => not found\n", Path::new("p")).is_err());
    }

    #[test]
    fn the_same_content_gives_the_same_digest() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::write(&program, "content").unwrap();
        let image = Image::of_programs("kaas.local/program:1".into(), [program.as_path()], Some(NONROOT));
        let write = |name: &str| {
            let files =
                BTreeMap::from([("usr/local/bin/program".into(), Source::File(program.clone(), 0o755))]);
            image.write(&files, &directory.path().join(name)).unwrap()
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
        assert_eq!(names.len(), 5, "{names:?}");
    }
}
