//! Entries in the order of the archive, and their data.

use std::io::{self, BufRead};

use openshell_ext4::tree::{Device, Metadata, Time};

use super::error::{Fault, TarError};
use super::extended::{Global, Local, Records};
use super::header::{BLOCK, Header, text};
pub use super::sparse::Extent;
use super::sparse::{self, MapParser, Place};
use crate::limits::{Limit, Limits};
use crate::path::{self, PathError};

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is in the image, in normal form; empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, time and extended attributes.
    pub metadata: Metadata,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file; its data follows.
    File {
        /// Bytes, with holes.
        size: u64,
        /// Where the data belongs, for a sparse file.
        sparse: Option<Vec<Extent>>,
    },
    /// Another name for a file of the image: its path in normal form.
    HardLink(Vec<u8>),
    /// A symbolic link with any target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// Reads an archive once, from its beginning.
#[derive(Debug)]
pub struct Reader<'l, R> {
    source: R,
    limits: &'l Limits,
    globals: GlobalRecords,
    offset: u64,
    entries: u64,
    /// Stored bytes of the current entry that nobody has read yet, and the padding behind them.
    left: u64,
    padding: u64,
    /// A block that was looked at and is a header.
    ahead: Option<Box<[u8; BLOCK]>>,
    skipped: u64,
    current: String,
    start: u64,
}

#[derive(Default)]
struct GlobalRecords(Global);

impl std::fmt::Debug for GlobalRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GlobalRecords")
    }
}

/// What the headers in front of an entry said about it.
#[derive(Default)]
struct Pending {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    local: Local,
    /// Of all headers so far.
    bytes: u64,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && !self.local.present
    }
}

impl<'l, R: BufRead> Reader<'l, R> {
    /// Reads an archive from `source`, which is not compressed.
    pub fn new(source: R, limits: &'l Limits) -> Self {
        Self {
            source,
            limits,
            globals: GlobalRecords::default(),
            offset: 0,
            entries: 0,
            left: 0,
            padding: 0,
            ahead: None,
            skipped: 0,
            current: String::new(),
            start: 0,
        }
    }

    /// How many entries of vendors' types were passed over because they hold no file.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Where in the archive the data of the last entry begins, and how much of it is stored there.
    pub fn stored(&self) -> (u64, u64) {
        (self.offset, self.left)
    }

    /// Passes over the data of the last entry without reading it. Whether it is there at all is not seen.
    ///
    /// # Errors
    ///
    /// When the source cannot be positioned.
    pub fn pass_over(&mut self) -> Result<(), TarError>
    where
        R: io::Seek,
    {
        let distance = self.left.saturating_add(self.padding);
        let offset = self.offset;
        let read = |source| TarError::Read { offset, source };
        let by = i64::try_from(distance).map_err(|_| self.fault(Fault::Truncated))?;
        self.source.seek_relative(by).map_err(read)?;
        self.offset += distance;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The source, wherever the reader stands in it.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The next entry, or none at the end of the archive. Data of the entry before that nobody read is skipped.
    ///
    /// # Errors
    ///
    /// When the archive is malformed, passes a limit or cannot be read. Nothing can be read after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_rest()?;
        let mut pending = Pending::default();
        loop {
            if pending.is_empty() {
                self.start = self.offset;
                self.current.clear();
            }
            let Some(header) = self.header()? else {
                return if pending.is_empty() {
                    Ok(None)
                } else {
                    Err(self.fault(Fault::Dangling))
                };
            };
            if self.current.is_empty() {
                self.current = path::display(&header.name());
            }
            match header.kind() {
                b'x' | b'X' => {
                    let body = self.body(&header, &mut pending.bytes)?;
                    pending.local.add(&body).map_err(|fault| self.fault(fault))?;
                }
                b'g' => {
                    let body = self.body(&header, &mut 0)?;
                    let added = self.globals.0.add(&body, self.limits);
                    added.map_err(|fault| self.fault(fault))?;
                }
                b'L' => {
                    pending.name = Some(text(&self.body(&header, &mut pending.bytes)?).to_vec());
                }
                b'K' => {
                    pending.link = Some(text(&self.body(&header, &mut pending.bytes)?).to_vec());
                }
                _ => {
                    self.count()?;
                    if let Some(entry) = self.entry(&header, &pending)? {
                        return Ok(Some(entry));
                    }
                    pending = Pending::default();
                    self.skip_rest()?;
                }
            }
        }
    }

    /// Gives the data of `entry`, the last one returned, to `take`: where in the file each run belongs, and its bytes.
    ///
    /// # Errors
    ///
    /// When the archive ends too early or cannot be read, and what `take` fails with.
    pub fn data(
        &mut self,
        entry: &Entry,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), TarError> {
        let Kind::File { size, sparse } = &entry.kind else { return Ok(()) };
        let whole = [Extent { offset: 0, length: *size }];
        for extent in sparse.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < extent.length {
                let wanted = (extent.length - done).min(self.left);
                let offset = extent.offset + done;
                let used = self.chunk(wanted, |bytes| take(offset, bytes))?;
                self.left -= used;
                done += used;
            }
        }
        Ok(())
    }

    /// Reads on to the end of the source, so that everything below has seen every byte.
    ///
    /// # Errors
    ///
    /// When the source cannot be read.
    pub fn drain(&mut self) -> Result<(), TarError> {
        loop {
            match self.chunk(u64::MAX, |_| Ok(())) {
                Err(TarError::Entry { fault: Fault::Truncated, .. }) => return Ok(()),
                other => other?,
            };
        }
    }

    fn entry(&mut self, header: &Header, pending: &Pending) -> Result<Option<Entry>, TarError> {
        let found = self.interpret(header, pending);
        // Messages name what the entry is called, not the header it came with.
        let entry = match found {
            Ok(Interpreted::Entry(entry)) => entry,
            Ok(Interpreted::SparseInData(mut entry, real_size)) => {
                let map = self.map_in_data()?;
                let map = sparse::checked(map, real_size, self.left);
                let sparse = Some(map.map_err(|fault| self.fault(fault))?);
                entry.kind = Kind::File { size: real_size, sparse };
                entry
            }
            Ok(Interpreted::OldSparse(mut entry, real_size)) => {
                let map = self.map_in_blocks(header)?;
                let map = sparse::checked(map, real_size, self.left);
                let sparse = Some(map.map_err(|fault| self.fault(fault))?);
                entry.kind = Kind::File { size: real_size, sparse };
                entry
            }
            Ok(Interpreted::Skipped) => {
                self.skipped += 1;
                return Ok(None);
            }
            Err(fault) => return Err(self.fault(fault)),
        };
        if matches!(entry.kind, Kind::HardLink(_)) && self.left > 0 && !pending.local.present {
            self.look_behind_link()?;
        }
        Ok(Some(entry))
    }

    fn interpret(&mut self, header: &Header, pending: &Pending) -> Result<Interpreted, Fault> {
        let records = Records { local: &pending.local, global: &self.globals.0 };
        let name = records
            .local
            .sparse
            .name
            .clone()
            .or_else(|| records.value(b"path").map(<[u8]>::to_vec))
            .or_else(|| pending.name.clone())
            .unwrap_or_else(|| header.name());
        self.current = path::display(&name);
        let stored = records.size()?.map_or_else(|| header.size(), Ok)?;
        let size_matters = !matches!(header.kind(), b'2'..=b'6');
        self.left = if size_matters { stored } else { 0 };
        self.padding = self.left.wrapping_neg() % BLOCK as u64;
        let file = matches!(header.kind(), b'0' | 0 | b'7');
        let kind = match header.kind() {
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File { size: stored, sparse: None },
            b'1' => Kind::HardLink(self.link_path(&records, pending, header)?),
            b'2' => Kind::Symlink(self.symlink_target(&records, pending, header)?),
            b'3' => Kind::CharDevice(device(header)?),
            b'4' => Kind::BlockDevice(device(header)?),
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            // A continued file would come out cut: it is the only one of GNU's that holds content.
            b'M' => return Err(Fault::Type(b'M')),
            b'A'..=b'Z' => return Ok(Interpreted::Skipped),
            other => return Err(Fault::Type(other)),
        };
        let path = path::normal(&name, self.limits).map_err(Fault::from)?;
        let metadata = self.metadata(header, &records)?;
        let mut entry = Entry { path, kind, metadata };
        if !matches!(entry.kind, Kind::File { .. }) {
            return Ok(Interpreted::Entry(entry));
        }
        if header.kind() == b'S' {
            let real_size = self.file_size(header.old_real_size()?)?;
            return Ok(Interpreted::OldSparse(entry, real_size));
        }
        let place = if file { pending.local.sparse.place()? } else { None };
        let Some(place) = place else {
            self.file_size(stored)?;
            return Ok(Interpreted::Entry(entry));
        };
        let real_size = self.file_size(pending.local.sparse.real_size.ok_or(Fault::Sparse)?)?;
        match place {
            Place::InData => Ok(Interpreted::SparseInData(entry, real_size)),
            Place::Here(map) => {
                let map = sparse::checked(map, real_size, stored)?;
                entry.kind = Kind::File { size: real_size, sparse: Some(map) };
                Ok(Interpreted::Entry(entry))
            }
        }
    }

    fn metadata(&self, header: &Header, records: &Records<'_>) -> Result<Metadata, Fault> {
        let header_time = || header.mtime().map(Time::from_seconds);
        Ok(Metadata {
            mode: u16::try_from(header.mode()?).map_err(|_| Fault::Number("mode"))?,
            uid: records.id("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: records.id("gid")?.map_or_else(|| header.gid(), Ok)?,
            modified: records.mtime()?.map_or_else(header_time, Ok)?,
            xattrs: records.xattrs(self.limits)?,
        })
    }

    fn link_path(
        &self,
        records: &Records<'_>,
        pending: &Pending,
        header: &Header,
    ) -> Result<Vec<u8>, Fault> {
        path::normal(&link(records, pending, header), self.limits).map_err(Fault::from)
    }

    fn symlink_target(
        &self,
        records: &Records<'_>,
        pending: &Pending,
        header: &Header,
    ) -> Result<Vec<u8>, Fault> {
        let target = link(records, pending, header);
        if target.is_empty() {
            return Err(Fault::Path(PathError::Empty));
        }
        if target.contains(&0) {
            return Err(Fault::Path(PathError::Nul));
        }
        // The kernel counts the NUL behind a target among its bytes.
        if target.len() >= self.limits.path_bytes {
            return Err(Fault::Limit(Limit::PathBytes(self.limits.path_bytes)));
        }
        Ok(target)
    }

    fn file_size(&self, size: u64) -> Result<u64, Fault> {
        if size > self.limits.file_bytes {
            return Err(Fault::Limit(Limit::FileBytes(self.limits.file_bytes)));
        }
        Ok(size)
    }

    fn map_in_data(&mut self) -> Result<Vec<Extent>, TarError> {
        let stored = self.left;
        let mut parser = MapParser::default();
        loop {
            let Some(left) = self.left.checked_sub(BLOCK as u64) else {
                return Err(self.fault(Fault::Sparse));
            };
            let block = self.block()?.ok_or_else(|| self.fault(Fault::Truncated))?;
            self.left = left;
            let fed = parser.feed(&block[..], stored, self.limits.extents);
            if fed.map_err(|fault| self.fault(fault))? {
                return parser.finish().map_err(|fault| self.fault(fault));
            }
        }
    }

    fn map_in_blocks(&mut self, header: &Header) -> Result<Vec<Extent>, TarError> {
        let mut map = Vec::new();
        let (fields, mut more) = header.old_sparse();
        sparse::old_gnu(fields, &mut map).map_err(|fault| self.fault(fault))?;
        while more {
            let block = self.block()?.ok_or_else(|| self.fault(Fault::Truncated))?;
            sparse::old_gnu(&block[..504], &mut map).map_err(|fault| self.fault(fault))?;
            more = block[504] != 0;
            if map.len() as u64 > self.limits.extents {
                return Err(self.fault(Fault::Limit(Limit::Extents(self.limits.extents))));
            }
        }
        Ok(map)
    }

    /// Old archivers store the size of the file in a hard link's header and no data behind it, others store the data.
    fn look_behind_link(&mut self) -> Result<(), TarError> {
        let Some(block) = self.block()? else {
            (self.left, self.padding) = (0, 0);
            return Ok(());
        };
        if Header::new(*block).is_ok() || is_zero(&block[..]) {
            self.ahead = Some(block);
            self.offset -= BLOCK as u64;
            (self.left, self.padding) = (0, 0);
        } else {
            let rest = (self.left + self.padding).saturating_sub(BLOCK as u64);
            (self.left, self.padding) = (rest, 0);
        }
        Ok(())
    }

    /// The next header that is not the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if !is_zero(&block[..]) {
            return Header::new(*block).map(Some).map_err(|fault| self.fault(fault));
        }
        match self.block()? {
            Some(second) if !is_zero(&second[..]) => Err(self.fault(Fault::LoneZeroBlock)),
            _ => Ok(None),
        }
    }

    /// The body of a header that is about another one, added to the `bytes` of those before it.
    fn body(&mut self, header: &Header, bytes: &mut u64) -> Result<Vec<u8>, TarError> {
        let size = header.size().map_err(|fault| self.fault(fault))?;
        *bytes = bytes.saturating_add(size);
        if *bytes > self.limits.extended_header_bytes {
            let limit = Limit::ExtendedHeaderBytes(self.limits.extended_header_bytes);
            return Err(self.fault(Fault::Limit(limit)));
        }
        let mut body = Vec::new();
        let mut left = size;
        while left > 0 {
            left -= self.chunk(left, |bytes| {
                body.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.skip_rest()?;
        Ok(body)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        while self.left > 0 {
            self.left -= self.chunk(self.left, |_| Ok(()))?;
        }
        while self.padding > 0 {
            self.padding -= self.chunk(self.padding, |_| Ok(()))?;
        }
        Ok(())
    }

    /// A whole block, or none at the end of the source.
    fn block(&mut self) -> Result<Option<Box<[u8; BLOCK]>>, TarError> {
        if let Some(block) = self.ahead.take() {
            self.offset += BLOCK as u64;
            return Ok(Some(block));
        }
        let mut block = Box::new([0; BLOCK]);
        let mut filled = 0;
        while filled < BLOCK {
            let wanted = (BLOCK - filled) as u64;
            let target = &mut block[filled..];
            let read = self.chunk(wanted, |bytes| {
                target[..bytes.len()].copy_from_slice(bytes);
                Ok(())
            });
            match read {
                Ok(read) => filled += usize::try_from(read).expect("at most a block"),
                Err(TarError::Entry { fault: Fault::Truncated, .. }) if filled == 0 => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(block))
    }

    /// Gives at least one and at most `wanted` bytes to `take`, and says how many. The end of the source is an error.
    fn chunk(
        &mut self,
        wanted: u64,
        take: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> Result<u64, TarError> {
        let offset = self.offset;
        let available = loop {
            match self.source.fill_buf() {
                Ok(bytes) => break bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset, source }),
            }
        };
        if available.is_empty() || wanted == 0 {
            return Err(self.fault(Fault::Truncated));
        }
        let used = available.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
        take(&available[..used])
            .map_err(|source| TarError::Store { entry: self.current.clone(), source })?;
        self.source.consume(used);
        self.offset += used as u64;
        Ok(used as u64)
    }

    fn count(&mut self) -> Result<(), TarError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.fault(Fault::Limit(Limit::Entries(self.limits.entries))));
        }
        Ok(())
    }

    fn fault(&self, fault: Fault) -> TarError {
        TarError::Entry { entry: self.current.clone(), offset: self.start, fault }
    }
}

enum Interpreted {
    Entry(Entry),
    /// A sparse file whose map stands in front of its data, and its size.
    SparseInData(Entry, u64),
    /// A sparse file whose map goes on in blocks behind the header, and its size.
    OldSparse(Entry, u64),
    Skipped,
}

fn device(header: &Header) -> Result<Device, Fault> {
    let (major, minor) = header.device()?;
    Ok(Device { major, minor })
}

fn link(records: &Records<'_>, pending: &Pending, header: &Header) -> Vec<u8> {
    let stated = records.value(b"linkpath").map(<[u8]>::to_vec).or_else(|| pending.link.clone());
    stated.unwrap_or_else(|| header.link())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl From<PathError> for Fault {
    fn from(error: PathError) -> Self {
        match error {
            PathError::Limit(limit) => Self::Limit(limit),
            other => Self::Path(other),
        }
    }
}
