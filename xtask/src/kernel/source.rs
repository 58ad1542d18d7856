//! The kernel source: the tarball of the distribution's package, checked against the versions we have tested before a
//! byte of it is unpacked.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::setup::{output_of, step, upgrade};

/// Parts of the tree that no profile compiles: their sources stay in the tarball, their Kconfig files do not.
const UNUSED: &[&str] = &[
    "Documentation/*/*",
    "drivers/gpu/*.[ch]",
    "drivers/infiniband/*.[ch]",
    "drivers/media/*.[ch]",
    "drivers/net/ethernet/*.[ch]",
    "drivers/net/wireless/*.[ch]",
    "drivers/scsi/*.[ch]",
    "drivers/staging/*.[ch]",
    "drivers/usb/*.[ch]",
    "sound/*.[ch]",
    "tools/testing",
    "tools/perf",
    "arch/[!x]*/*.[chS]",
    "arch/[!x]*/boot",
];

/// `kernel/versions.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Versions {
    /// The series the fragments are written for, such as `6.1`.
    pub(super) series: String,
    /// The Debian package that installs the tarball.
    pub(super) package: String,
    /// What was built and tested.
    pub(super) tested: Vec<Tested>,
}

/// One tested source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tested {
    /// Package version.
    pub(super) version: String,
    /// Hash of the tarball.
    pub(super) sha256: String,
}

/// What to do with a source of some version and hash.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is one that we tested.
    Build,
    /// It is newer than what we tested: build and say so.
    Notice(String),
    /// It is older than what we tested: a newer one is to be installed.
    Outdated(String),
    /// It is not one that we build.
    Refuse(String),
}

/// An accepted source tarball.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) package: String,
    pub(super) version: String,
    pub(super) sha256: String,
    tarball: PathBuf,
}

impl Versions {
    /// The table of this repository.
    pub(super) fn load() -> Result<Self> {
        toml::from_str(include_str!("../../../kernel/versions.toml"))
            .context("kernel/versions.toml")
    }

    /// Decides on package version `version` with tarball hash `sha256`.
    pub(super) fn decide(&self, version: &str, sha256: &str) -> Decision {
        let Some(patch) = patch_level(&self.series, version) else {
            return Decision::Refuse(format!(
                "kernel {version} is not of the {} series",
                self.series
            ));
        };
        if let Some(tested) = self.tested.iter().find(|tested| tested.version == version) {
            if tested.sha256 == sha256 {
                return Decision::Build;
            }
            let known = &tested.sha256;
            return Decision::Refuse(format!(
                "the source of {version} has hash {sha256}, tested was {known}: reinstall the package"
            ));
        }
        let newest = self
            .tested
            .iter()
            .filter_map(|tested| patch_level(&self.series, &tested.version))
            .max();
        match newest {
            Some(newest) if patch < newest => {
                Decision::Outdated(format!("kernel {version} is older than every tested one"))
            }
            _ => Decision::Notice(format!(
                "kernel {version} is newer than the tested ones: building it"
            )),
        }
    }
}

impl Source {
    /// The installed source package, if it is one that we build; one that is too old is upgraded first.
    ///
    /// # Errors
    /// It is not installed, refused by [`Versions::decide`], or too old where nothing newer can be installed.
    pub(super) fn find() -> Result<Self> {
        let versions = Versions::load()?;
        let source = Self::installed(&versions.package)?;
        let Decision::Outdated(text) = source.accepted(&versions)? else {
            return Ok(source);
        };
        writeln!(std::io::stderr(), "kernel: {text}")?;
        upgrade(&versions.package)?;
        let source = Self::installed(&versions.package)?;
        match source.accepted(&versions)? {
            Decision::Outdated(text) => bail!("{text}, and the package lists name nothing newer"),
            _ => Ok(source),
        }
    }

    fn installed(package: &str) -> Result<Self> {
        let version =
            output_of(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))?;
        let tarball = Path::new("/usr/src").join(format!("{package}.tar.xz"));
        let sha256 = hash_file(&tarball)?;
        Ok(Self { package: package.to_owned(), version, sha256, tarball })
    }

    /// What [`Versions::decide`] says, with a notice shown and a refusal as the error.
    fn accepted(&self, versions: &Versions) -> Result<Decision> {
        let decision = versions.decide(&self.version, &self.sha256);
        match &decision {
            Decision::Build | Decision::Outdated(_) => {}
            Decision::Notice(text) => writeln!(std::io::stderr(), "kernel: {text}")?,
            Decision::Refuse(text) => bail!("{text}"),
        }
        Ok(decision)
    }

    /// Unpacks into `dir` and returns the top of the tree.
    pub(super) fn unpack(&self, dir: &Path) -> Result<PathBuf> {
        step("kernel: unpacking the source", || {
            let mut tar = Command::new("tar");
            tar.arg("--extract").arg("--file").arg(&self.tarball).arg("--directory").arg(dir);
            tar.arg("--wildcards");
            tar.args(UNUSED.iter().map(|path| format!("--exclude={}/{path}", self.package)));
            output_of(&mut tar).map(drop)
        })?;
        Ok(dir.join(&self.package))
    }
}

/// The order of a version within `series`: patch level, then packaging revision. `None`: of another series.
fn patch_level(series: &str, version: &str) -> Option<(u32, u32)> {
    let rest = version.strip_prefix(series)?.strip_prefix('.')?;
    let (patch, revision) = rest.split_once('-').unwrap_or((rest, "0"));
    let digits = revision.find(|c: char| !c.is_ascii_digit()).unwrap_or(revision.len());
    Some((patch.parse().ok()?, revision[..digits].parse().unwrap_or(0)))
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path)
        .with_context(|| format!("opening the kernel source {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let length =
            file.read(&mut block).with_context(|| format!("reading {}", path.display()))?;
        if length == 0 {
            return Ok(super::hex(&hash.finalize()));
        }
        hash.update(&block[..length]);
    }
}
