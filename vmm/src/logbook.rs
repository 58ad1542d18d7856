//! What a machine printed and what was said about it, in two files of bounded size that outlive it.
//!
//! A record is a line `TIME SOURCE LENGTH`, TIME in milliseconds since 1970, then LENGTH bytes and a line end. When the file that
//! is written is full, the other one is emptied and goes on. Invariant: the two files never hold more than twice the limit, and
//! whatever they hold is read without a failure. A [`Logbook`] makes only calls that a confined event loop may make.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The files, in a machine's directory.
pub const NAMES: [&str; 2] = ["log.0", "log.1"];
/// Bytes of one file unless the user says otherwise.
pub const DEFAULT_LIMIT_BYTES: u64 = 8 << 20;
/// The most that one record holds.
const RECORD_MAX: usize = 64 << 10;
/// The longest first line of a record.
const HEAD_MAX: usize = 48;

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The guest, once its first process runs: its console, and the main process's output.
    Guest,
    /// The main process's standard error, where that is apart.
    Stderr,
    /// The guest's kernel before that.
    Boot,
    /// The machine's own process.
    Vmm,
}

impl Source {
    /// Their names.
    pub const NAMES: [&'static str; 4] = ["guest", "stderr", "boot", "vmm"];

    /// For files and people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Stderr => "stderr",
            Self::Boot => "boot",
            Self::Vmm => "vmm",
        }
    }

    /// The source of that name, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Guest, Self::Stderr, Self::Boot, Self::Vmm];
        all.into_iter().find(|source| source.name() == name)
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Both files, open for writing.
#[derive(Debug, Clone)]
pub struct Logbook {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    files: [File; 2],
    current: usize,
    written: u64,
    /// Time of the last record.
    clock: u64,
    limit: u64,
}

impl Logbook {
    /// Opens the files in `directory`, made if they are missing, and goes on where the last run stopped.
    ///
    /// # Errors
    /// What the host said.
    pub fn open(directory: &Path, limit_bytes: u64) -> io::Result<Self> {
        let open = |name| {
            use std::os::unix::fs::OpenOptionsExt;
            let path = directory.join(name);
            File::options().append(true).create(true).mode(0o600).open(path)
        };
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        let paths = NAMES.map(|name| directory.join(name));
        let current = newest(&paths);
        let written = files[current].metadata()?.len();
        let mut clock = 0;
        if written > 0 {
            clock = parse(&std::fs::read(&paths[current])?).0.last().map_or(0, |one| one.unix_ms);
        }
        let inner = Inner { files, current, written, clock, limit: limit_bytes.max(4096) };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// Adds what `source` said. A host that takes nothing more loses it: the machine goes on.
    pub fn add(&self, source: Source, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_unix_ms();
        for part in bytes.chunks(RECORD_MAX) {
            inner.add(now, source, part);
        }
    }
}

impl Inner {
    fn add(&mut self, now: u64, source: Source, bytes: &[u8]) {
        let digits = bytes.len().checked_ilog10().unwrap_or(0);
        // Time, name and two spaces take less than this.
        let len = 32 + u64::from(digits) + bytes.len() as u64;
        // Times never go back, and the first one of a file is later than all of the other's: so readers know their order.
        self.clock = self.clock.max(now);
        if self.written > 0 && self.written.saturating_add(len) > self.limit {
            self.current ^= 1;
            self.written = 0;
            self.clock += 1;
            // The files are opened to append: what is written next is at the start.
            drop(self.files[self.current].set_len(0));
        }
        let mut record = format!("{} {} {}\n", self.clock, source.name(), bytes.len()).into_bytes();
        record.extend_from_slice(bytes);
        record.push(b'\n');
        if self.files[self.current].write_all(&record).is_ok() {
            self.written += record.len() as u64;
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who.
    pub source: Source,
    /// What.
    pub bytes: Vec<u8>,
}

/// Reads the files of a directory, also while a machine writes them.
#[derive(Debug)]
pub struct Reader {
    paths: [PathBuf; 2],
    at: Option<Place>,
}

/// Up to where a reader came.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    /// Time of the file's first record: another one says that it was emptied.
    first: Option<u64>,
    read: u64,
}

impl Reader {
    /// A reader of the logbook in `directory`, which may be missing.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { paths: NAMES.map(|name| directory.join(name)), at: None }
    }

    /// What was added since the last call, all of it the first time. What was overwritten in between is lost.
    pub fn more(&mut self) -> Vec<Record> {
        let mut found = Vec::new();
        if let Some(place) = self.at {
            let first = first_time(&self.paths[place.file]);
            if first == place.first || place.first.is_none() {
                let (records, read) = take(&self.paths[place.file], place.read);
                found.extend(records);
                self.at = Some(Place { first, read: place.read + read, ..place });
                let other = place.file ^ 1;
                let other_first = first_time(&self.paths[other]);
                if other_first > first {
                    let (records, read) = take(&self.paths[other], 0);
                    found.extend(records);
                    self.at = Some(Place { file: other, first: other_first, read });
                }
                return found;
            }
        }
        let file = newest(&self.paths);
        found.extend(take(&self.paths[file ^ 1], 0).0);
        let first = first_time(&self.paths[file]);
        let (records, read) = take(&self.paths[file], 0);
        found.extend(records);
        self.at = Some(Place { file, first, read });
        found
    }
}

fn newest(paths: &[PathBuf; 2]) -> usize {
    usize::from(first_time(&paths[1]) > first_time(&paths[0]))
}

fn first_time(path: &Path) -> Option<u64> {
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD_MAX as u64).read_to_end(&mut head)).ok()?;
    parse_head(&head).map(|(unix_ms, ..)| unix_ms)
}

/// The whole records of a file from `offset` on, and how many bytes they are.
fn take(path: &Path, offset: u64) -> (Vec<Record>, u64) {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.take(u64::from(u32::MAX)).read_to_end(&mut bytes)
    });
    if read.is_err() { (Vec::new(), 0) } else { parse(&bytes) }
}

/// The whole records at the start of `bytes`, and how many bytes they are. What is no record ends them.
#[must_use]
pub fn parse(bytes: &[u8]) -> (Vec<Record>, u64) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = parse_one(rest) {
        records.push(record);
        rest = after;
    }
    (records, (bytes.len() - rest.len()) as u64)
}

fn parse_one(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (unix_ms, source, len, after) = parse_head(bytes)?;
    let data = after.get(..len)?;
    let rest = after.get(len..)?.strip_prefix(b"\n")?;
    Some((Record { unix_ms, source, bytes: data.to_vec() }, rest))
}

fn parse_head(bytes: &[u8]) -> Option<(u64, Source, usize, &[u8])> {
    let end = bytes.iter().take(HEAD_MAX).position(|&byte| byte == b'\n')?;
    let head = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let mut words = head.split(' ');
    let unix_ms = words.next()?.parse().ok()?;
    let source = Source::named(words.next()?)?;
    let len = words.next()?.parse().ok().filter(|len| *len <= RECORD_MAX)?;
    Some((unix_ms, source, len, bytes.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(records: &[Record]) -> Vec<String> {
        records.iter().map(|one| String::from_utf8_lossy(&one.bytes).into_owned()).collect()
    }

    #[test]
    fn what_was_added_comes_back_in_order_and_by_source() {
        let home = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(home.path());
        assert!(reader.more().is_empty());
        let book = Logbook::open(home.path(), DEFAULT_LIMIT_BYTES).unwrap();
        book.add(Source::Boot, b"[0.1] kernel\n");
        book.add(Source::Guest, b"\xff\n\n1 guest 1\nx");
        let mut reader = Reader::new(home.path());
        let records = reader.more();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].bytes, b"\xff\n\n1 guest 1\nx");
        assert_eq!(
            records.iter().map(|one| one.source).collect::<Vec<_>>(),
            [Source::Boot, Source::Guest]
        );
        assert!(reader.more().is_empty());
        drop(book);
        Logbook::open(home.path(), DEFAULT_LIMIT_BYTES).unwrap().add(Source::Vmm, b"ended");
        assert_eq!(texts(&reader.more()), ["ended"]);
    }

    #[test]
    fn the_files_stay_within_their_limit_and_keep_the_end() {
        let home = tempfile::tempdir().unwrap();
        let book = Logbook::open(home.path(), 4096).unwrap();
        let mut follower = Reader::new(home.path());
        let mut seen = Vec::new();
        for number in 0..2000 {
            book.add(Source::Guest, format!("line {number}\n").as_bytes());
            if number % 40 == 0 {
                seen.extend(texts(&follower.more()));
            }
        }
        seen.extend(texts(&follower.more()));
        let bytes: u64 =
            NAMES.iter().map(|name| home.path().join(name).metadata().unwrap().len()).sum();
        assert!(bytes <= 2 * 4096, "{bytes}");
        let kept = texts(&Reader::new(home.path()).more());
        assert_eq!(kept.last().unwrap(), "line 1999\n");
        let first: usize = kept[0].trim_start_matches("line ").trim().parse().unwrap();
        let expected: Vec<_> = (first..2000).map(|number| format!("line {number}\n")).collect();
        assert_eq!(kept, expected);
        assert_eq!(seen.len(), 2000, "who follows misses nothing and hears nothing twice");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (_, used) = parse(&bytes);
            prop_assert!(used <= bytes.len() as u64);
        }

        #[test]
        fn a_torn_file_keeps_what_is_whole(cut in 0_usize..60) {
            let whole = b"5 guest 3\nabc\n6 vmm 2\nde\n7 boot 0\n\n";
            let (records, _) = parse(&whole[..cut.min(whole.len())]);
            prop_assert!(records.len() <= 3);
            prop_assert!(records.iter().all(|one| one.unix_ms >= 5));
        }
    }
}
