//! A guest's console: copied into a log of bounded size, with the last lines kept in memory.
//!
//! Invariant: the log and the log before it take at most twice [`MAX_LOG_BYTES`] on the disk, whatever the guest prints.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The largest log. A full one becomes `NAME.1`.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// Lines kept in memory, and bytes of each.
const MAX_LINES: usize = 40;
const MAX_LINE_BYTES: usize = 512;
/// What the guest's own programs begin their lines with.
const OURS: &[u8] = b"openshell-";

/// The last lines of a console.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    inner: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Vec<u8>>,
    line: Vec<u8>,
    ours: Option<Vec<u8>>,
}

impl Tail {
    /// The lines, oldest first, without control characters.
    pub(super) fn lines(&self) -> Vec<String> {
        let lines = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let all = lines.lines.iter().chain(Some(&lines.line).filter(|line| !line.is_empty()));
        all.map(|line| plain(line)).collect()
    }

    /// The last line of one of the guest's own programs.
    pub(super) fn ours(&self) -> Option<String> {
        let lines = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        lines.ours.as_deref().map(plain)
    }

    fn push(&self, bytes: &[u8]) {
        let mut lines = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            lines.push(byte);
        }
    }
}

impl Lines {
    fn push(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let line = std::mem::take(&mut self.line);
                if line.starts_with(OURS) {
                    self.ours = Some(line.clone());
                }
                if self.lines.len() == MAX_LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(line);
            }
            b'\r' => {}
            _ if self.line.len() < MAX_LINE_BYTES => self.line.push(byte),
            _ => {}
        }
    }
}

fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Copies what a guest prints to the log at `path` until its end. A log that cannot be written stops nothing.
pub(super) async fn copy(mut from: impl AsyncRead + Unpin, path: PathBuf, tail: Tail) {
    let mut log = Log::open(path).map_err(|error| tracing::warn!(%error, "no console log")).ok();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        tail.push(&buffer[..count]);
        // A page-cache write of a few bytes: too short for a thread of its own.
        if let Some(Err(error)) = log.as_mut().map(|log| log.write(&buffer[..count])) {
            tracing::warn!(%error, "the console log ends here");
            log = None;
        }
    }
}

struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: create(&path)?, path, bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= MAX_LOG_BYTES {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.path, older)?;
            self.file = create(&self.path)?;
            self.bytes = 0;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// An empty file that only its owner reads.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_bounded_and_the_last_lines_are_kept() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        let tail = Tail::default();
        let mut text = b"openshell-init: first\r\n".to_vec();
        text.extend(vec![b'x'; 13 << 20]);
        text.extend(b"\n\x1b[1mlast\x07\nunfinished");
        copy(&text[..], path.clone(), tail.clone()).await;
        let size = |path: &Path| fs::metadata(path).expect("there").len();
        let older = place.path().join("log.1");
        let most = MAX_LOG_BYTES + (16 << 10);
        assert!(size(&path) <= most && size(&older) <= most);
        assert_eq!(fs::read_dir(place.path()).expect("read").count(), 2);
        let lines = tail.lines();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].len(), MAX_LINE_BYTES);
        assert_eq!(lines[2..], ["[1mlast", "unfinished"]);
        assert_eq!(tail.ours().as_deref(), Some("openshell-init: first"));
    }

    #[tokio::test]
    async fn many_lines_leave_the_last_ones() {
        let place = tempfile::tempdir().expect("a directory");
        let tail = Tail::default();
        let text: String = (0..1000).map(|n| format!("{n}\n")).collect();
        copy(text.as_bytes(), place.path().join("log"), tail.clone()).await;
        assert_eq!(tail.lines().len(), MAX_LINES);
        assert_eq!(tail.lines().last().map(String::as_str), Some("999"));
        assert_eq!(tail.ours(), None);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_stops_nothing() {
        let tail = Tail::default();
        copy(&b"line\n"[..], "/nowhere/log".into(), tail.clone()).await;
        assert_eq!(tail.lines(), ["line"]);
    }
}
