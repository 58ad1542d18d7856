//! What happened to all machines, one JSON object a line, in two files that together stay small.
//!
//! Invariant: a line is written in one call to a file opened for appending, so that processes write side by side; readers skip what is no
//! line of ours. Any process.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Machine, Store};
use crate::logbook::now_unix_ms;

const NAMES: [&str; 2] = ["events.0", "events.1"];
/// A file that is larger becomes the older one.
const LIMIT_BYTES: u64 = 1 << 20;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// `create`, `start`, `pause`, `resume`, `stop`, `kill`, `die`, `remove`.
    pub event: String,
    /// The machine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The exit code of one that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

impl Event {
    /// Something that happens to `machine` now.
    #[must_use]
    pub fn now(event: &str, machine: &Machine) -> Self {
        let record = &machine.record;
        Self {
            unix_ms: now_unix_ms(),
            event: event.to_owned(),
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.as_ref().map(|image| image.reference.clone()),
            code: None,
        }
    }
}

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    file: Option<File>,
}

impl Journal {
    /// Opens it. A journal that cannot be written is none: what it tells of goes on all the same.
    #[must_use]
    pub fn open(store: &Store) -> Self {
        let [current, older] = NAMES.map(|name| store.root().join(name));
        if fs::metadata(&current).is_ok_and(|found| found.len() > LIMIT_BYTES) {
            drop(fs::rename(&current, older));
        }
        let file = File::options().append(true).create(true).mode(0o600).open(current);
        Self { file: file.ok() }
    }

    /// Adds a line; makes only calls that a confined event loop may make.
    pub fn add(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        if let Some(file) = &mut self.file {
            drop(file.write_all(&line));
        }
    }
}

/// Reads the journal, also while others write it.
#[derive(Debug)]
pub struct Events {
    paths: [PathBuf; 2],
    /// The inode of the newer file, and how much of it was read.
    at: Option<(u64, u64)>,
}

impl Events {
    /// A reader from the beginning.
    #[must_use]
    pub fn of(store: &Store) -> Self {
        Self { paths: NAMES.map(|name| store.root().join(name)), at: None }
    }

    /// What was added since the last call.
    pub fn more(&mut self) -> Vec<Event> {
        let [current, older] = &self.paths;
        let inode = fs::metadata(current).map_or(0, |found| found.ino());
        let mut events = Vec::new();
        let begin = match self.at {
            Some((known, read)) if known == inode => read,
            // It was replaced: the rest of what was read is in the older one.
            Some((known, read)) if fs::metadata(older).is_ok_and(|found| found.ino() == known) => {
                events.extend(lines(older, read).0);
                0
            }
            _ => {
                events.extend(lines(older, 0).0);
                0
            }
        };
        let (more, read) = lines(current, begin);
        events.extend(more);
        self.at = Some((inode, begin + read));
        events
    }
}

/// Whole lines from `offset` on, and their bytes.
fn lines(path: &PathBuf, offset: u64) -> (Vec<Event>, u64) {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.take(16 * LIMIT_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return (Vec::new(), 0);
    }
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|&byte| byte == b'\n');
    let events = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    (events, whole as u64)
}
