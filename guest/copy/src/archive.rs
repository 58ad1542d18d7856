//! Entries of a tar archive, written and read: ustar with pax records; GNU's long names and base-256 numbers are read too.
//!
//! Invariant: what is kept of an archive is one entry's headers, bounded; the size that data is read with is the size that it is skipped
//! with.

use std::io::{self, Read, Write};

use crate::error::CopyError;
use crate::records::{self, BLOCK};

/// Bytes of one entry's extended headers.
const RECORDS_MAX: u64 = 1 << 20;
/// Pieces of a sparse file.
pub(crate) const EXTENTS_MAX: usize = 1 << 16;
const PATH_MAX: usize = 4096;
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Names and values of extended attributes.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Metadata and name of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the archive, as it is written there.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the three special bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, in seconds and nanoseconds.
    pub modified: (i64, u32),
    /// Extended attributes: names and values.
    pub xattrs: Attributes,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file; its data follows.
    File {
        /// Bytes, with holes.
        size: u64,
        /// Where data lies, offset and length in order, when there are holes.
        extents: Option<Vec<(u64, u64)>>,
    },
    /// Another name of a file that came before.
    HardLink(Vec<u8>),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Writes the headers of `entry`, and of a sparse file its map; its data and [`pad`] are to follow.
pub(crate) fn write_entry(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let mut pax = Vec::new();
    let mut stored = 0;
    let mut map = Vec::new();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    let (flag, link, device) = match &entry.kind {
        Kind::Directory => (b'5', &b""[..], None),
        Kind::File { size, extents } => {
            stored = *size;
            if let Some(extents) = extents {
                map = sparse_map(extents);
                stored = map.len() as u64 + extents.iter().map(|(_, len)| len).sum::<u64>();
                records::append(&mut pax, b"GNU.sparse.major", b"1");
                records::append(&mut pax, b"GNU.sparse.minor", b"0");
                records::append(&mut pax, b"GNU.sparse.name", &path);
                records::append(&mut pax, b"GNU.sparse.realsize", size.to_string().as_bytes());
                path = b"GNUSparseFile.0".to_vec();
            }
            (b'0', &b""[..], None)
        }
        Kind::HardLink(to) => (b'1', to.as_slice(), None),
        Kind::Symlink(to) => (b'2', to.as_slice(), None),
        Kind::Character(major, minor) => (b'3', &b""[..], Some((*major, *minor))),
        Kind::Block(major, minor) => (b'4', &b""[..], Some((*major, *minor))),
        Kind::Fifo => (b'6', &b""[..], None),
    };
    let mut long = |key: &str, value: &[u8], fits: bool| {
        if !fits {
            records::append(&mut pax, key.as_bytes(), value);
        }
    };
    long("path", &path, path.len() <= 100);
    long("linkpath", link, link.len() <= 100);
    long("size", stored.to_string().as_bytes(), stored < 1 << 33);
    long("uid", entry.uid.to_string().as_bytes(), entry.uid < 1 << 21);
    long("gid", entry.gid.to_string().as_bytes(), entry.gid < 1 << 21);
    let (seconds, nanos) = entry.modified;
    let plain = nanos == 0 && (0..1 << 33).contains(&seconds);
    long("mtime", records::time_text(entry.modified).as_bytes(), plain);
    for (name, value) in &entry.xattrs {
        records::append(&mut pax, &[XATTR, name].concat(), value);
    }
    if !pax.is_empty() {
        out.write_all(&block(b'x', b"PaxHeader", b"", pax.len() as u64, entry, None))?;
        out.write_all(&pax)?;
        pad(out, pax.len() as u64)?;
    }
    out.write_all(&block(flag, &path, link, stored, entry, device))?;
    out.write_all(&map)
}

/// Fills up to a whole block behind `len` bytes.
pub(crate) fn pad(out: &mut impl Write, len: u64) -> io::Result<()> {
    let fill = usize::try_from(len.wrapping_neg() % BLOCK as u64).unwrap_or(0);
    out.write_all(&[0; BLOCK][..fill])
}

/// Writes the end of the archive.
pub(crate) fn write_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// The length of a sparse file's map as it is stored.
pub(crate) fn map_len(extents: &[(u64, u64)]) -> u64 {
    sparse_map(extents).len() as u64
}

fn sparse_map(extents: &[(u64, u64)]) -> Vec<u8> {
    let lines = extents.iter().map(|(offset, len)| format!("{offset}\n{len}\n"));
    let mut map = std::iter::once(format!("{}\n", extents.len()))
        .chain(lines)
        .collect::<String>()
        .into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn block(
    flag: u8,
    path: &[u8],
    link: &[u8],
    stored: u64,
    entry: &Entry,
    device: Option<(u32, u32)>,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(100, format!("{:07o}", entry.mode & 0o7777).as_bytes());
    let id = |id: u32| format!("{:07o}", if id < 1 << 21 { id } else { 0 });
    put(108, id(entry.uid).as_bytes());
    put(116, id(entry.gid).as_bytes());
    put(124, format!("{:011o}", if stored < 1 << 33 { stored } else { 0 }).as_bytes());
    let seconds = u64::try_from(entry.modified.0).ok().filter(|seconds| *seconds < 1 << 33);
    put(136, format!("{:011o}", seconds.unwrap_or(0)).as_bytes());
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    if let Some((major, minor)) = device {
        put(329, format!("{:07o}", major & 0o7_777_777).as_bytes());
        put(337, format!("{:07o}", minor & 0o7_777_777).as_bytes());
    }
    put(148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[154] = 0;
    block
}

/// What the headers in front of an entry said about it.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<(i64, u32)>,
    xattrs: Attributes,
    sparse_name: Option<Vec<u8>>,
    sparse_version: (u64, u64),
    real_size: Option<u64>,
    bytes: u64,
}

/// Reads an archive once, from its beginning.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Stored bytes of the current entry that nobody has read yet, and the padding behind them.
    left: u64,
    padding: u64,
    current: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads from `source`, which is not compressed.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, current: Vec::new() }
    }

    /// The next entry, or none at the end of the archive. What was not read of the entry before is skipped.
    ///
    /// # Errors
    /// When the archive is malformed or cannot be read. Nothing can be read after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, CopyError> {
        self.skip()?;
        let mut said = Said::default();
        loop {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block == [0; BLOCK] {
                return Ok(None);
            }
            if !is_whole(&block) {
                return Err(self.wrong("its header is damaged"));
            }
            let flag = block[156];
            let field = |range| records::number(&block[range]);
            let size = field(124..136).ok_or_else(|| self.wrong("its size is no number"))?;
            match flag {
                b'x' | b'g' | b'L' | b'K' => {
                    let body = self.body(size, &mut said.bytes)?;
                    // What holds for all entries that follow is nothing that a copy needs.
                    let taken = match flag {
                        b'x' => said.take(&body),
                        b'L' => said.set_path(records::text(&body)),
                        b'K' => said.set_link(records::text(&body)),
                        _ => Some(()),
                    };
                    taken.ok_or_else(|| self.wrong("its extended header is malformed"))?;
                }
                _ => return self.entry(&block, size, said).map(Some),
            }
        }
    }

    /// Reads data of the entry that was returned last into `buffer`; how much, 0 at its end.
    ///
    /// # Errors
    /// When the archive ends too early or cannot be read.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, CopyError> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.source.read(&mut buffer[..len]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(CopyError::Stream)?,
            }
        };
        if read == 0 {
            return Err(self.wrong("the archive ends inside of it"));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Reads to the end of the source, so that whoever writes it is not held up.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn drain(&mut self) -> Result<(), CopyError> {
        io::copy(&mut self.source, &mut io::sink()).map(drop).map_err(CopyError::Stream)
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, said: Said) -> Result<Entry, CopyError> {
        let path = said.sparse_name.clone().or(said.path.clone()).unwrap_or_else(|| name(block));
        self.current.clone_from(&path);
        let flag = block[156];
        let field = |range| records::number(&block[range]);
        let small = |range, what| {
            let value = field(range).and_then(|value| u32::try_from(value).ok());
            value.ok_or_else(|| self.wrong(what))
        };
        let link = || said.link.clone().unwrap_or_else(|| records::text(&block[157..257]).to_vec());
        let stored = said.size.unwrap_or(size);
        let device =
            || Ok::<_, CopyError>((small(329..337, "device")?, small(337..345, "device")?));
        let mut kind = match flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File { size: stored, extents: None },
            b'1' => Kind::HardLink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' => device().map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.wrong("it is sparse in a way that is not read")),
            _ => return Err(self.wrong("its type is not known")),
        };
        let uid = said.uid.map_or_else(|| small(108..116, "its owner is no number"), Ok)?;
        let gid = said.gid.map_or_else(|| small(116..124, "its group is no number"), Ok)?;
        let mode = small(100..108, "its mode is no number")? & 0o7777;
        let header_time = || {
            let seconds = field(136..148).and_then(|seconds| i64::try_from(seconds).ok());
            seconds.map(|seconds| (seconds, 0)).ok_or_else(|| self.wrong("its time is no number"))
        };
        let modified = said.modified.map_or_else(header_time, Ok)?;
        self.left = if matches!(kind, Kind::File { .. }) { stored } else { 0 };
        self.padding = self.left.wrapping_neg() % BLOCK as u64;
        match (said.sparse_version, said.real_size, &kind) {
            ((0, 0), None, _) => {}
            ((1, 0), Some(real_size), Kind::File { .. }) => {
                let extents = self.read_map(real_size)?;
                kind = Kind::File { size: real_size, extents: Some(extents) };
            }
            _ => return Err(self.wrong("it is sparse in a way that is not read")),
        }
        Ok(Entry { path, kind, mode, uid, gid, modified, xattrs: said.xattrs })
    }

    /// Reads the map at the beginning of a sparse file's data.
    fn read_map(&mut self, real_size: u64) -> Result<Vec<(u64, u64)>, CopyError> {
        let malformed = |this: &Self| this.wrong("its map of holes is malformed");
        let mut numbers = MapNumbers { block: [0; BLOCK], at: BLOCK };
        let count = numbers.next(self)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= EXTENTS_MAX);
        let mut extents = Vec::new();
        let (mut end, mut sum) = (0_u64, 0_u64);
        for _ in 0..count.ok_or_else(|| malformed(self))? {
            let (offset, len) = (numbers.next(self)?, numbers.next(self)?);
            let stops =
                offset.checked_add(len).filter(|stops| *stops <= real_size && offset >= end);
            end = stops.ok_or_else(|| malformed(self))?;
            sum += len;
            // GNU tar ends a file that ends in a hole with an extent of nothing.
            if len > 0 {
                extents.push((offset, len));
            }
        }
        if sum == self.left { Ok(extents) } else { Err(malformed(self)) }
    }

    fn body(&mut self, size: u64, sum: &mut u64) -> Result<Vec<u8>, CopyError> {
        *sum = sum.saturating_add(size);
        if *sum > RECORDS_MAX {
            return Err(self.wrong("its extended header is too long"));
        }
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut body)?;
        self.left = 0;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.skip()?;
        Ok(body)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CopyError> {
        self.source.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.wrong("the archive ends behind it"),
            _ => CopyError::Stream(error),
        })
    }

    fn skip(&mut self) -> Result<(), CopyError> {
        let mut buffer = [0; 16 << 10];
        while self.left > 0 {
            self.read_data(&mut buffer)?;
        }
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.fill(&mut buffer[..padding.min(BLOCK)])
    }

    fn wrong(&self, what: &'static str) -> CopyError {
        CopyError::archive(&self.current, what)
    }
}

/// The numbers of a sparse map, one on each line.
struct MapNumbers {
    block: [u8; BLOCK],
    at: usize,
}

impl MapNumbers {
    fn next<R: Read>(&mut self, reader: &mut Reader<R>) -> Result<u64, CopyError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                let mut filled = 0;
                while filled < BLOCK {
                    match reader.read_data(&mut self.block[filled..])? {
                        0 => return Err(reader.wrong("its map of holes is malformed")),
                        len => filled += len,
                    }
                }
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => break,
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(reader.wrong("its map of holes is malformed")),
            }
        }
        records::decimal(&digits).ok_or_else(|| reader.wrong("its map of holes is malformed"))
    }
}

impl Said {
    fn take(&mut self, mut body: &[u8]) -> Option<()> {
        // Some archivers fill up with NUL bytes.
        while body.iter().any(|byte| *byte != 0) {
            let (key, value, rest) = records::first(body)?;
            body = rest;
            let id = || records::decimal(value).and_then(|id| u32::try_from(id).ok());
            match key {
                b"path" => self.set_path(value)?,
                b"linkpath" => self.set_link(value)?,
                b"size" => self.size = Some(records::decimal(value)?),
                b"uid" => self.uid = Some(id()?),
                b"gid" => self.gid = Some(id()?),
                b"mtime" => self.modified = Some(records::time(value)?),
                b"GNU.sparse.major" => self.sparse_version.0 = records::decimal(value)?,
                b"GNU.sparse.minor" => self.sparse_version.1 = records::decimal(value)?,
                b"GNU.sparse.name" => self.sparse_name = Some(checked(value)?),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                    self.real_size = Some(records::decimal(value)?);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Some(())
    }

    fn set_path(&mut self, path: &[u8]) -> Option<()> {
        self.path = Some(checked(path)?);
        Some(())
    }

    fn set_link(&mut self, link: &[u8]) -> Option<()> {
        self.link = Some(checked(link)?);
        Some(())
    }
}

fn checked(path: &[u8]) -> Option<Vec<u8>> {
    (path.len() < PATH_MAX && !path.contains(&0)).then(|| path.to_vec())
}

/// The name with the prefix in front of it.
fn name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = records::text(&block[..100]);
    // GNU has other fields where POSIX has the prefix.
    let prefix = if &block[257..263] == b"ustar\0" { records::text(&block[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
}

fn is_whole(block: &[u8; BLOCK]) -> bool {
    // The field itself counts as spaces.
    let others = block[..148].iter().chain(&block[156..]);
    let sum = 8 * 32 + others.map(|byte| u64::from(*byte)).sum::<u64>();
    records::number(&block[148..156]) == Some(sum)
}
