//! Container images without a container engine: an OCI archive of one layer that holds programs (with the
//! libraries they are linked to, where they are), certificates, and the few files that programs expect. The
//! same content gives the same digest, so an image that is there already is told by its digest alone.

mod archive;
pub(crate) mod catalogue;
pub(crate) mod foreign;
mod library;
mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use self::archive::{Content, Source};
use crate::Error;
use crate::digest::{self, Hasher};
use crate::invocation::Invocation;
use crate::layout::Cache;
use crate::lock::Lock;

/// Changes when the layout of images changes: part of each image's key.
const FORMAT: &str = "2";
const BUSYBOX: &str = "/bin/busybox";
/// Another clone may be writing all of them.
const LOCK_DEADLINE: Duration = Duration::from_secs(300);
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What goes into one image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) reference: String,
    /// Program by its path in the image; its libraries come along.
    programs: BTreeMap<String, PathBuf>,
    /// Libraries that a program loads by itself, at the paths where the machine has them.
    loaded: Vec<PathBuf>,
    /// Texts with their mode, by path.
    texts: BTreeMap<String, (String, u32)>,
    links: BTreeMap<String, String>,
    directories: BTreeMap<String, u32>,
    /// What else is in it, as it is.
    others: Content,
    entrypoint: Vec<String>,
    command: Vec<String>,
    user: &'static str,
    /// The same content under other references, each with an environment of its own.
    twins: Vec<(String, Vec<String>)>,
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
    fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            programs: BTreeMap::new(),
            loaded: Vec::new(),
            texts: BTreeMap::new(),
            links: BTreeMap::new(),
            directories: BTreeMap::new(),
            others: Content::default(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            user: "",
            twins: Vec::new(),
        }
    }

    /// A program at an absolute path.
    fn program(mut self, place: &str, program: &Path) -> Self {
        self.programs.insert(place.trim_start_matches('/').to_owned(), program.to_owned());
        self
    }

    /// A program in a directory, under its own name.
    fn program_in(self, directory: &str, program: &Path) -> Self {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        self.program(&format!("{directory}/{name}"), program)
    }

    /// A program at an absolute path that containers of the image run.
    fn started_by(mut self, place: &str, program: &Path) -> Self {
        self.entrypoint = vec![place.to_owned()];
        self.program(place, program)
    }

    fn text(mut self, place: &str, text: &str, mode: u32) -> Self {
        self.texts.insert(place.trim_start_matches('/').to_owned(), (text.to_owned(), mode));
        self
    }

    fn link(mut self, place: &str, target: &str) -> Self {
        self.links.insert(place.trim_start_matches('/').to_owned(), target.to_owned());
        self
    }

    fn directory(mut self, place: &str, mode: u32) -> Self {
        self.directories.insert(place.trim_start_matches('/').to_owned(), mode);
        self
    }

    fn with(mut self, others: Content) -> Self {
        self.others.add(others);
        self
    }

    fn user(mut self, user: &'static str) -> Self {
        self.user = user;
        self
    }

    /// Under another reference too, told from the others by its environment alone: the archive has the content once.
    fn twin(mut self, reference: String, environment: Vec<String>) -> Self {
        self.twins.push((reference, environment));
        self
    }

    /// Programs of the machine, below /usr/bin and /usr/sbin as there.
    fn tools(mut self, names: &[&str]) -> Result<Self, Error> {
        for name in names {
            let path = library::find(name)?;
            let directory = if path.starts_with("/usr/sbin") || path.starts_with("/sbin") {
                "/usr/sbin"
            } else {
                "/usr/bin"
            };
            self = self.program_in(directory, &path);
        }
        Ok(self)
    }

    /// A shell with the usual tools, below /bin; what is in /usr has precedence.
    fn shell(mut self) -> Result<Self, Error> {
        let applets = Invocation::new(BUSYBOX).arg("--list").run()?;
        for name in applets.lines().filter(|name| *name != "busybox") {
            self = self.link(&format!("/bin/{name}"), "busybox");
        }
        Ok(self.program("/bin/busybox", BUSYBOX.as_ref()))
    }

    /// What translates addresses: nft, conntrack, and iptables in its nftables variant with all extensions.
    fn packet_filter(self) -> Result<Self, Error> {
        let mut image = self.tools(&["nft", "conntrack", "xtables-nft-multi"])?;
        for family in ["iptables", "ip6tables"] {
            for action in ["", "-save", "-restore"] {
                for variant in ["", "-nft"] {
                    let place = format!("/usr/sbin/{family}{variant}{action}");
                    image = image.link(&place, "xtables-nft-multi");
                }
            }
        }
        image.loaded = library::iptables_extensions()?;
        Ok(image)
    }

    /// The archive from the cache, made first if its content was never archived.
    pub(crate) fn archive(&self, cache: &Cache) -> Result<Archive, Error> {
        let content = self.content()?;
        let key = self.key(&content)?;
        let directory = cache.images();
        let path = directory.join(format!("{key}.tar"));
        let sum = directory.join(format!("{key}.digest"));
        let _lock = Lock::exclusive(&cache.locks().join("images"), LOCK_DEADLINE)?;
        let digest = match std::fs::read_to_string(&sum) {
            Ok(digest) if path.exists() => {
                [&path, &sum].into_iter().for_each(|file| crate::cache::touch(file));
                digest
            }
            _ => {
                std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
                let digest = archive::write(&self.variants(), &content, &path)?;
                crate::record::write_whole(&sum, digest.as_bytes())?;
                digest
            }
        };
        Ok(Archive { reference: self.reference.clone(), digest, path })
    }

    /// Every file: programs, their libraries, and the authorities that TLS clients trust.
    fn content(&self) -> Result<Content, Error> {
        let mut files = BTreeMap::new();
        let mut add = |path: String| {
            files.insert(path.trim_start_matches('/').to_owned(), Source::File(path.into(), 0o755));
        };
        for program in self.programs.values() {
            library::of(std::slice::from_ref(program))?.into_iter().for_each(&mut add);
        }
        library::of(&self.loaded)?.into_iter().for_each(&mut add);
        self.loaded.iter().for_each(|path| add(path.display().to_string()));
        for (place, path) in &self.programs {
            files.insert(place.clone(), Source::File(path.clone(), 0o755));
        }
        let authorities = "/etc/ssl/certs/ca-certificates.crt";
        if Path::new(authorities).exists() {
            let place = authorities.trim_start_matches('/').to_owned();
            files.insert(place, Source::File(authorities.into(), 0o644));
        }
        for (place, text) in [
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/home/nonroot:/bin/false\n",
            ),
            ("etc/group", "root:x:0:\nnonroot:x:65532:\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
        ] {
            files.insert(place.to_owned(), Source::Text(text.to_owned(), 0o644));
        }
        for (place, (text, mode)) in &self.texts {
            files.insert(place.clone(), Source::Text(text.clone(), *mode));
        }
        // What is there as a file is not also a link.
        let mut links = self.links.clone();
        links.retain(|place, _| !files.contains_key(place));
        let mut content = Content { files, links, directories: self.directories.clone() };
        content.add(self.others.clone());
        Ok(content)
    }

    fn key(&self, content: &Content) -> Result<String, Error> {
        let mut hasher = Hasher::new();
        hasher.field(FORMAT.as_bytes());
        for (reference, options) in self.variants() {
            hasher.field(reference.as_bytes());
            hasher.field(options.to_string().as_bytes());
        }
        content.hash(&mut hasher)?;
        Ok(digest::short(&hasher.finish(), 24))
    }

    /// Every reference with what containers of it run, its own first.
    fn variants(&self) -> Vec<(&str, serde_json::Value)> {
        let twins =
            self.twins.iter().map(|(reference, environment)| (reference.as_str(), self.options(environment)));
        std::iter::once((self.reference.as_str(), self.options(&[]))).chain(twins).collect()
    }

    fn options(&self, environment: &[String]) -> serde_json::Value {
        let variables = std::iter::once(PATH).chain(environment.iter().map(String::as_str));
        json!({
            "Env": variables.collect::<Vec<_>>(),
            "Entrypoint": self.entrypoint,
            "Cmd": self.command,
            "User": self.user,
            "WorkingDir": "/",
        })
    }
}
