//! The small JSON files of a machine's directory.
//!
//! Invariant: a file is replaced whole, so that a reader finds the old or the new one; one of a version that is not known is never
//! guessed at. `machine.json` says what the machine is, `process.json` which process runs it, `result.json` how the last run ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// The version of all of them.
pub const SCHEMA: u32 = 1;
/// More than any of these files has.
const MAX_BYTES: u64 = 8 << 20;

/// What a machine is: `machine.json`. Environment variables are in it, so only its owner reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name; the id when it was given none.
    pub name: String,
    /// When it was created, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// It goes away, with all that it wrote, when it ends.
    pub ephemeral: bool,
    /// The words of `run` that it was created with, read again at each start.
    pub words: Vec<String>,
    /// Where they were written: relative paths are meant from there.
    pub cwd: PathBuf,
    /// The image, as it was found when the machine was created.
    pub image: Option<Image>,
    /// What runs in it.
    pub process: Option<Process>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Number of vCPUs.
    pub cpus: u64,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// Published ports, as `ADDRESS:PORT -> PORT/PROTOCOL`.
    #[serde(default)]
    pub ports: Vec<String>,
}

/// An image on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the user wrote it.
    pub reference: String,
    /// The digest that the disk is known by; empty for a disk that the user named.
    pub key: String,
    /// The disk.
    pub path: PathBuf,
    /// Files and directories on it: how many inodes a disk above it may need.
    pub nodes: u64,
    /// What it says of the process in it.
    pub process: ImageProcess,
}

/// What an image says of the process in it, as `openshell-rootfs` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProcess {
    /// `user`, `uid`, `user:group`; empty for root.
    #[serde(default)]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments behind the entry point, or the program.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Where it starts; empty for `/`.
    #[serde(default)]
    pub working_dir: String,
    /// Which signal ends it; empty for SIGTERM.
    #[serde(default)]
    pub stop_signal: String,
}

/// The main process of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`; of equal names the last counts.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: String,
    /// Who it is, in the guest's words.
    pub user: String,
    /// The console is its terminal.
    pub tty: bool,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// How long it may take then, in milliseconds.
    pub stop_grace_ms: u64,
}

/// The process that runs a machine: `process.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which process.
    pub process: Identity,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
}

/// The part of `result.json` that is of interest here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Who decided the code.
    pub source: String,
    /// The exit code.
    pub code: u8,
    /// What happened.
    pub reason: String,
    /// Why.
    pub detail: Option<String>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The host.
    #[error("cannot read {}", .0.display())]
    Host(PathBuf, #[source] io::Error),
    /// What is in it.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// A version that this program does not know.
    #[error("{} is of version {found}, and this program knows version {SCHEMA}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// Reads a file; none when it is missing.
///
/// # Errors
/// [`ReadError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let host = |source| ReadError::Host(path.to_owned(), source);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(host)?,
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut text).map_err(host)?;
    let damaged = |source| ReadError::Damaged(path.to_owned(), source);
    if let Ok(read) = serde_json::from_slice::<Schema>(&text)
        && read.schema != u64::from(SCHEMA)
    {
        return Err(ReadError::Version { path: path.to_owned(), found: read.schema });
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

#[derive(Deserialize)]
struct Schema {
    schema: u64,
}

/// Replaces a file in one step.
///
/// # Errors
/// What the host said.
pub fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&text)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_and_other_versions_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("process.json");
        assert!(read::<Running>(&path).unwrap().is_none());
        let process = Identity { pid: 1, start_ticks: 2, boot_id: "b".to_owned() };
        let running = Running { schema: SCHEMA, process, started_unix_ms: 3 };
        replace(&path, &running).unwrap();
        replace(&path, &running).unwrap();
        assert_eq!(read::<Running>(&path).unwrap(), Some(running));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
        for (text, want) in [
            (r#"{"schema":2,"new":true}"#, "version 2, and this program knows version 1"),
            (r#"{"schema":1}"#, "is damaged"),
            ("", "is damaged"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read::<Running>(&path).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
