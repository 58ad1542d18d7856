//! How `cargo xtask bench` calls a benchmark program.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Names the directory of kernels, disks and the command.
const FIXTURES: &str = "OPENSHELL_VMM_FIXTURES";

/// What the program is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Word {
    /// Measure on this machine.
    Host,
    /// Measure in the lab.
    Lab,
    /// Print the table of what was measured.
    Report,
}

/// A peer as it is named on the command line: `NAME=PATH`.
///
/// # Errors
/// When there is no `=`.
pub fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("a peer is NAME=PATH")?;
    Ok((name.to_owned(), path.into()))
}

/// The path of a fixture.
///
/// # Errors
/// When the environment names no directory or the file is not there.
pub fn fixture(name: &str) -> Result<PathBuf> {
    let directory =
        env::var_os(FIXTURES).with_context(|| format!("{FIXTURES} names no directory"))?;
    let path = PathBuf::from(directory).join(name);
    anyhow::ensure!(path.exists(), "no fixture {}", path.display());
    Ok(path)
}
