//! Images as `openshell-rootfs` makes and keeps them: asked for in a process of their own, and remembered.
//!
//! What was said of a reference to a registry is kept in `STATE/images`, so that the next start of a machine runs no other program. It
//! holds as long as the image is there and the cache's own file for the reference is the same. Invariant: what is remembered is never
//! trusted further than that, and a local source is looked at each time.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Places, PlacesError};
use crate::explain::Explain;
use crate::machines::Store;
use crate::machines::record::{self, Image, ImageProcess};

/// What a user may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An image, in the words of `openshell-rootfs`.
    Image(String),
    /// A disk with a root file system.
    Disk(PathBuf),
}

impl Source {
    /// Reads `IMAGE`, `./DIR`, `FILE.ext4`, `oci:DIR`, `docker-archive:FILE`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let prefixed = ["oci:", "docker-archive:", "rootfs-tar:", "dir:"];
        if prefixed.iter().any(|prefix| text.starts_with(prefix)) {
            return Self::Image(text.to_owned());
        }
        let path = Path::new(text);
        let is_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
        let is_path = is_path || text == "." || text == "..";
        if path.extension().is_some_and(|extension| extension == "ext4") {
            return Self::Disk(path.to_owned());
        }
        if is_path {
            return Self::Image(format!("dir:{text}"));
        }
        Self::Image(text.to_owned())
    }
}

/// When a registry is asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// When the image is not there.
    #[default]
    Missing,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Pull {
    /// Their names.
    pub const NAMES: [&'static str; 3] = ["missing", "always", "never"];

    /// The value of that name, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "missing" => Some(Self::Missing),
            "always" => Some(Self::Always),
            "never" => Some(Self::Never),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// How an image is asked for.
#[derive(Debug, Default, Clone)]
pub struct Wanted<'a> {
    /// When a registry is asked.
    pub pull: Pull,
    /// `linux/amd64` and so on, if not this host's.
    pub platform: Option<&'a str>,
    /// Nothing is shown.
    pub quiet: bool,
    /// Variables for the program that makes images.
    pub variables: Vec<(&'static str, String)>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No program that could make it.
    #[error(transparent)]
    Places(#[from] PlacesError),
    /// It did not start.
    #[error("cannot run {}", .0.display())]
    Run(PathBuf, #[source] io::Error),
    /// It failed. What it said is on standard error, above.
    #[error("there is no image {reference:?} to run{}", .said.as_deref().map_or_else(String::new, |said| format!(": {said}")))]
    Failed {
        /// The reference.
        reference: String,
        /// What it said last.
        said: Option<String>,
        /// What it said can be done.
        fix: Option<String>,
    },
    /// It said something else than an image.
    #[error("{} said what cannot be understood", .0.display())]
    Answer(PathBuf, #[source] serde_json::Error),
    /// A disk that the user named.
    #[error("cannot read the disk {}", .0.display())]
    Disk(PathBuf, #[source] io::Error),
}

impl Explain for ImageError {
    fn fix(&self) -> Option<String> {
        match self {
            Self::Places(error) => error.fix(),
            Self::Run(..) | Self::Answer(..) => {
                Some("use openshell-rootfs of the same release".to_owned())
            }
            Self::Failed { fix, .. } => Some(fix.clone().unwrap_or_else(|| {
                "check how it is written; `openshell-rootfs ls` lists what is on this host"
                    .to_owned()
            })),
            Self::Disk(..) => Some("check the path".to_owned()),
        }
    }
}

/// An image as it is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    schema: u32,
    platform: Option<String>,
    image: Image,
    bytes: u64,
    /// The cache's file for the reference, and when it was written.
    tag: PathBuf,
    tag_stamp: (u64, i64, i64),
}

/// What `openshell-rootfs pull --json` says. Further keys may come.
#[derive(Debug, Deserialize)]
struct Answer {
    key: String,
    path: PathBuf,
    size_bytes: u64,
    nodes: u64,
    process: ImageProcess,
    #[serde(default)]
    tag: Option<PathBuf>,
}

/// Finds what `source` names, and makes it when it is missing.
///
/// # Errors
/// [`ImageError`].
pub fn find(
    source: &Source,
    wanted: &Wanted<'_>,
    store: &Store,
    places: &Places,
) -> Result<Image, ImageError> {
    match source {
        Source::Disk(path) => disk(path),
        Source::Image(reference) => {
            let file = remembered_path(store, reference, wanted.platform);
            if wanted.pull != Pull::Always
                && let Some(image) = recall(&file, reference, wanted.platform)
            {
                return Ok(image);
            }
            let (image, remembered) = ask(reference, wanted, &places.rootfs()?)?;
            if let Some(remembered) = remembered {
                // Without it the next start asks again.
                drop(remember(&file, &remembered));
            }
            Ok(image)
        }
    }
}

fn disk(path: &Path) -> Result<Image, ImageError> {
    let absolute = fs::canonicalize(path).map_err(|e| ImageError::Disk(path.to_owned(), e))?;
    Ok(Image {
        reference: path.display().to_string(),
        key: String::new(),
        path: absolute,
        nodes: 0,
        process: ImageProcess::default(),
    })
}

fn ask(
    reference: &str,
    wanted: &Wanted<'_>,
    program: &Path,
) -> Result<(Image, Option<Remembered>), ImageError> {
    let mut command = Command::new(program);
    // Its errors are ours to tell; standard error is left to its progress.
    command.args(["--json", "--errors-on-stdout"]);
    command.args(["--progress", if wanted.quiet { "none" } else { "auto" }]);
    command.args(["pull", "--pull", wanted.pull.name()]);
    if let Some(platform) = wanted.platform {
        command.args(["--platform", platform]);
    }
    // Behind `--` nothing is read as an option.
    command.envs(wanted.variables.iter().map(|(name, value)| (name, value)));
    command.args(["--", reference]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|e| ImageError::Run(program.to_owned(), e))?;
    if !output.status.success() {
        let told: Option<Told> = serde_json::from_slice(&output.stdout).ok();
        let (said, fix) = told.map_or((None, None), |told| (Some(told.error), told.fix));
        return Err(ImageError::Failed { reference: reference.to_owned(), said, fix });
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| ImageError::Answer(program.to_owned(), error))?;
    let image = Image {
        reference: reference.to_owned(),
        key: answer.key,
        path: answer.path,
        nodes: answer.nodes,
        process: answer.process,
    };
    let stamp = answer.tag.as_deref().and_then(stamp);
    let remembered = match (answer.tag, stamp) {
        (Some(tag), Some(tag_stamp)) if !is_local(reference) => Some(Remembered {
            schema: record::SCHEMA,
            platform: wanted.platform.map(str::to_owned),
            image: image.clone(),
            bytes: answer.size_bytes,
            tag,
            tag_stamp,
        }),
        _ => None,
    };
    Ok((image, remembered))
}

#[derive(Deserialize)]
struct Told {
    error: String,
    fix: Option<String>,
}

fn is_local(reference: &str) -> bool {
    ["oci:", "docker-archive:", "rootfs-tar:", "dir:"]
        .iter()
        .any(|prefix| reference.starts_with(prefix))
}

fn remembered_path(store: &Store, reference: &str, platform: Option<&str>) -> PathBuf {
    let text = format!("{reference}\n{}", platform.unwrap_or_default());
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    store.root().join("images").join(format!("{hex}.json"))
}

fn recall(file: &Path, reference: &str, platform: Option<&str>) -> Option<Image> {
    let kept: Remembered = record::read(file).ok().flatten()?;
    let same = kept.image.reference == reference && kept.platform.as_deref() == platform;
    let bytes = fs::metadata(&kept.image.path).ok()?.len();
    if !same || bytes != kept.bytes || stamp(&kept.tag) != Some(kept.tag_stamp) {
        return None;
    }
    // The cache goes by this time when it gets too large.
    let sidecar = kept.image.path.with_file_name("image.json");
    drop(fs::File::open(sidecar).and_then(|file| file.set_modified(SystemTime::now())));
    Some(kept.image)
}

fn remember(file: &Path, remembered: &Remembered) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    record::replace(file, remembered)
}

/// What changes when the cache writes the file again.
fn stamp(tag: &Path) -> Option<(u64, i64, i64)> {
    let found = fs::metadata(tag).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn sources_are_told_by_their_form() {
        for (text, want) in [
            ("alpine", Source::Image("alpine".into())),
            ("localhost:5000/a/b:tag", Source::Image("localhost:5000/a/b:tag".into())),
            ("oci:dir:tag", Source::Image("oci:dir:tag".into())),
            ("docker-archive:x.tar", Source::Image("docker-archive:x.tar".into())),
            ("oci:/x.ext4", Source::Image("oci:/x.ext4".into())),
            ("./tree", Source::Image("dir:./tree".into())),
            ("/srv/tree", Source::Image("dir:/srv/tree".into())),
            (".", Source::Image("dir:.".into())),
            ("root.ext4", Source::Disk("root.ext4".into())),
            ("/x/root.ext4", Source::Disk("/x/root.ext4".into())),
        ] {
            assert_eq!(Source::parse(text), want, "{text}");
        }
    }

    /// A program in the place of openshell-rootfs that counts its calls.
    struct Stub {
        home: tempfile::TempDir,
    }

    impl Stub {
        fn new(script: &str) -> Self {
            let stub = Self { home: tempfile::tempdir().unwrap() };
            let program = stub.at("openshell-rootfs");
            let text =
                format!("#!/bin/sh\nD={}\necho x >>$D/calls\n{script}", stub.at("").display());
            fs::write(&program, text).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(stub.at("rootfs.ext4"), b"12345").unwrap();
            fs::write(stub.at("tag"), b"t").unwrap();
            stub
        }

        fn at(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        fn calls(&self) -> usize {
            fs::read_to_string(self.at("calls")).unwrap_or_default().lines().count()
        }

        fn find(&self, reference: &str, pull: Pull) -> Result<Image, ImageError> {
            let store = Store::at(self.at("state"));
            let wanted = Wanted { pull, quiet: true, ..Wanted::default() };
            let file = remembered_path(&store, reference, None);
            if pull != Pull::Always
                && let Some(image) = recall(&file, reference, None)
            {
                return Ok(image);
            }
            let (image, remembered) = ask(reference, &wanted, &self.at("openshell-rootfs"))?;
            if let Some(remembered) = remembered {
                remember(&file, &remembered).unwrap();
            }
            Ok(image)
        }
    }

    const SAYS: &str = r#"cat <<END
{"key":"sha256:aa","path":"$D/rootfs.ext4","size_bytes":5,"nodes":7,"tag":"$D/tag","more":1,
 "process":{"cmd":["sh"],"user":"app","labels":{}}}
END
"#;

    #[test]
    fn an_image_of_a_registry_is_asked_for_once_until_it_changes() {
        let stub = Stub::new(SAYS);
        let image = stub.find("name", Pull::Missing).unwrap();
        assert_eq!((image.process.cmd.as_slice(), image.nodes), (&["sh".to_owned()][..], 7));
        assert_eq!(stub.find("name", Pull::Missing).unwrap(), image);
        assert_eq!(stub.find("name", Pull::Never).unwrap(), image);
        assert_eq!(stub.calls(), 1);
        stub.find("other", Pull::Missing).unwrap();
        stub.find("name", Pull::Always).unwrap();
        assert_eq!(stub.calls(), 3);
        // The cache has written its file for the reference again.
        fs::write(stub.at("new"), b"u").unwrap();
        fs::rename(stub.at("new"), stub.at("tag")).unwrap();
        stub.find("name", Pull::Missing).unwrap();
        assert_eq!(stub.calls(), 4);
        fs::write(stub.at("rootfs.ext4"), b"1234").unwrap();
        stub.find("name", Pull::Missing).unwrap();
        assert_eq!(stub.calls(), 5);
        stub.find("oci:x", Pull::Missing).unwrap();
        stub.find("oci:x", Pull::Missing).unwrap();
        assert_eq!(stub.calls(), 7, "a local source is looked at each time");
    }

    #[test]
    fn a_refusal_is_told_with_its_fix() {
        let stub = Stub::new("echo '{\"error\":\"no such image\",\"fix\":\"log in\"}'; exit 1");
        let error = stub.find("name", Pull::Missing).unwrap_err();
        assert_eq!(error.to_string(), "there is no image \"name\" to run: no such image");
        assert_eq!(error.fix().as_deref(), Some("log in"));
        let stub = Stub::new("echo '{}'");
        let error = stub.find("name", Pull::Missing).unwrap_err();
        assert!(error.to_string().ends_with("cannot be understood"), "{error}");
    }
}
