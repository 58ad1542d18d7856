//! Stand-in until the set-up verb is merged: unpacks a package of the distribution into the cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cmd;

/// A reason to need programs that the Rust toolchain does not bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The emulated machine that brings its own KVM.
    Lab,
    /// End-to-end tests.
    Tests,
    /// Lint and license checks.
    Lint,
}

/// Makes sure that what `purpose` needs is installed.
pub(crate) fn ensure(_purpose: Purpose) -> Result<()> {
    Ok(())
}

/// The unpacked tree of a package of the distribution, never installed on the host.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    let shown = cmd::text(Command::new("apt-cache").args(["depends", package]))?;
    let real = shown
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .unwrap_or(package)
        .to_owned();
    let place = cmd::cache()?.join("packages").join(&real);
    if !place.is_dir() {
        let parent = place.parent().context("the cache has a parent")?;
        std::fs::create_dir_all(parent)?;
        let fresh = tempfile::tempdir_in(parent)?;
        cmd::output(Command::new("apt-get").args(["download", &real]).current_dir(&fresh))?;
        let deb = std::fs::read_dir(&fresh)?.next().context("apt-get downloads a file")??.path();
        let tree = fresh.path().join("tree");
        cmd::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&tree))?;
        std::fs::rename(tree, &place)?;
    }
    Ok(place)
}
