//! The data of a layer's files: in memory up to a budget, then in a file.
//!
//! Files begin at multiples of 4 KiB, and blocks of zeros are left out, so that a pack can be cloned into an image
//! block by block. Invariant: what was appended is never changed.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::Run;
use super::sink::{Output, WriteBack, Written};
use super::zeros::is_zero;
use crate::pieces::PieceSums;

/// The unit in which data is kept or left out.
pub(super) const BLOCK: usize = 4096;

const BUFFER: usize = 1 << 20;

/// Where the data in a named pack begins. What is in front stays a hole, for the head of the image that the pack can become:
/// enough for the descriptors of 1 TiB.
pub const PACK_START: u64 = 256 << 10;
/// Where data begins that is kept beside a named pack: files that an image gets a version of its own of. In the pack they would
/// leave blocks that no file of the image has.
const ASIDE: u64 = 1 << 62;
/// Bytes of such data at most.
const ASIDE_MAX: u64 = 256 << 10;
/// Files of as many bytes begin at a multiple of it in a named pack: huge pages can map them.
const ALIGNED: u64 = 2 << 20;

/// Stored file data.
#[derive(Debug)]
pub struct Pack {
    store: Store,
    length: u64,
    stored: u64,
    aside: Vec<u8>,
    sums: Option<PieceSums>,
    write_back: Option<WriteBack>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u8>),
    File(File),
}

impl Pack {
    /// A pack in a file, as it was written before.
    pub fn open(file: File, length: u64) -> Self {
        Self::with_aside(file, length, Vec::new())
    }

    /// A pack in a file and what is kept beside it.
    pub fn with_aside(file: File, length: u64, aside: Vec<u8>) -> Self {
        let store = Store::File(file);
        Self { store, length, stored: 0, aside, sums: None, write_back: None }
    }

    /// Who waits for the disk to take what was written, if anybody does: whoever publishes the pack has to ask for the answer.
    pub fn take_write_back(&mut self) -> Option<WriteBack> {
        self.write_back.take()
    }

    /// The digests of pieces of the file, taken while it was written.
    pub fn sums(&self) -> Option<&PieceSums> {
        self.sums.as_ref()
    }

    /// What is kept beside it.
    pub fn aside(&self) -> &[u8] {
        &self.aside
    }

    /// Bytes of the blocks that were stored by its writer; 0 for one that was opened.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Its bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file it is in, unless it is in memory.
    pub fn file(&self) -> Option<&File> {
        match &self.store {
            Store::Memory(_) => None,
            Store::File(file) => Some(file),
        }
    }

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// When the pack ends before, or its file cannot be read.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (bytes, start) = match &self.store {
            _ if offset >= ASIDE => (&self.aside, offset - ASIDE),
            Store::File(file) => return file.read_exact_at(into, offset),
            Store::Memory(bytes) => (bytes, offset),
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let found = bytes.get(start..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Its bytes, while they are in memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.store {
            Store::Memory(bytes) => Some(bytes),
            Store::File(_) => None,
        }
    }
}

/// Where a pack goes when it outgrows its budget of memory.
#[derive(Debug, Clone)]
enum Spill {
    /// An unnamed file in this directory.
    Unnamed(PathBuf),
    /// This file, from the beginning.
    Named(PathBuf),
}

/// Writes a pack, one file after the other.
#[derive(Debug)]
pub struct PackWriter {
    spill: Spill,
    memory: usize,
    output: Option<Output>,
    buffer: Vec<u8>,
    /// Where the buffer begins in the pack.
    flushed: u64,
    stored: u64,
    sums: Option<PieceSums>,
    aside: Vec<u8>,
    /// Where the current file begins there, if it is kept there.
    file_aside: Option<usize>,
    runs: Vec<Run>,
    /// Where the file's block at the end of the buffer begins, and where in the buffer, while it is not whole.
    open: Option<(u64, usize)>,
}

impl PackWriter {
    /// A pack that takes `memory` bytes, and then an unnamed file in `directory`.
    pub fn unnamed(directory: &Path, memory: usize) -> Self {
        Self::new(Spill::Unnamed(directory.to_owned()), memory)
    }

    /// A pack in a file that does not exist yet.
    pub fn named(path: &Path) -> Self {
        Self { flushed: PACK_START, ..Self::new(Spill::Named(path.to_owned()), 0) }
    }

    /// Also takes the digests of the pieces of the file: for a pack that may become an image.
    #[must_use]
    pub fn with_sums(self) -> Self {
        Self { sums: Some(PieceSums::behind(self.flushed)), ..self }
    }

    fn new(spill: Spill, memory: usize) -> Self {
        Self {
            spill,
            memory,
            output: None,
            buffer: Vec::new(),
            flushed: 0,
            stored: 0,
            sums: None,
            aside: Vec::new(),
            file_aside: None,
            runs: Vec::new(),
            open: None,
        }
    }

    /// Begins a file of `size` bytes, `stored` of which are to be appended. `is_edited` says that images get a version of their own of
    /// it.
    ///
    /// # Errors
    ///
    /// When the pack's file cannot be made or written.
    pub fn begin_file(&mut self, size: u64, stored: u64, is_edited: bool) -> io::Result<()> {
        if matches!(self.spill, Spill::Unnamed(_)) {
            return Ok(());
        }
        let aside = self.aside.len() as u64;
        if is_edited && size.saturating_add(aside) <= ASIDE_MAX {
            self.file_aside = Some(self.aside.len());
        } else if stored >= ALIGNED {
            self.flush()?;
            self.flushed = self.flushed.next_multiple_of(ALIGNED);
        }
        Ok(())
    }

    /// Appends bytes of the current file that belong at `offset`, which never goes back.
    ///
    /// # Errors
    ///
    /// When the pack's file cannot be made or written.
    pub fn append(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(start) = self.file_aside {
            // The size was looked at when the file began.
            let inside = usize::try_from(offset.min(ASIDE_MAX)).expect("a small number");
            self.aside.resize(start + inside, 0);
            self.aside.extend_from_slice(bytes);
            return Ok(());
        }
        while !bytes.is_empty() {
            let block = offset - offset % BLOCK as u64;
            if self.open.is_some_and(|(open, _)| open != block) {
                self.close_block(BLOCK)?;
            }
            let inside = usize::try_from(offset - block).expect("less than a block");
            if inside == 0 && bytes.len() >= BLOCK && self.open.is_none() {
                let whole = bytes.len() - bytes.len() % BLOCK;
                self.append_blocks(offset, &bytes[..whole])?;
                offset += whole as u64;
                bytes = &bytes[whole..];
                continue;
            }
            let (_, start) = *self.open.get_or_insert((block, self.buffer.len()));
            self.buffer.resize(start + inside, 0);
            let used = bytes.len().min(BLOCK - inside);
            self.buffer.extend_from_slice(&bytes[..used]);
            offset += used as u64;
            bytes = &bytes[used..];
            if self.buffer.len() == start + BLOCK {
                self.close_block(BLOCK)?;
            }
        }
        Ok(())
    }

    /// Ends the current file, which has `size` bytes, and says where its data is.
    ///
    /// # Errors
    ///
    /// When the pack's file cannot be made or written.
    pub fn finish_file(&mut self, size: u64) -> io::Result<Vec<Run>> {
        if let Some(start) = self.file_aside.take() {
            let end = start + usize::try_from(size).expect("a small file");
            self.aside.resize(end, 0);
            self.aside.resize(end.next_multiple_of(BLOCK), 0);
            let run = Run { at: 0, length: size, pack: ASIDE + start as u64 };
            return Ok(Vec::from_iter((size > 0).then_some(run)));
        }
        if let Some((block, _)) = self.open {
            let length = size.saturating_sub(block).min(BLOCK as u64);
            self.close_block(usize::try_from(length).expect("at most a block"))?;
        }
        Ok(mem::take(&mut self.runs))
    }

    /// The pack, complete.
    ///
    /// # Errors
    ///
    /// When the pack's file cannot be made or written.
    pub fn finish(mut self) -> io::Result<Pack> {
        let length = self.length();
        if self.output.is_none() && self.memory > 0 {
            self.buffer.shrink_to_fit();
            let (store, stored, aside) = (Store::Memory(self.buffer), self.stored, self.aside);
            return Ok(Pack { store, length, stored, aside, sums: None, write_back: None });
        }
        self.flush()?;
        let Written { file, sums, write_back } = self.output()?.close()?;
        // Nothing need have followed a file that was all zeros.
        file.set_len(length)?;
        let Self { stored, aside, .. } = self;
        Ok(Pack { store: Store::File(file), length, stored, aside, sums, write_back })
    }

    fn length(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Takes whole blocks, of which runs of zeros are left out.
    fn append_blocks(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let zeros = blocks_while(&bytes[at..], true);
            at += zeros;
            let data = blocks_while(&bytes[at..], false);
            if data > 0 {
                let pack = self.length();
                self.buffer.extend_from_slice(&bytes[at..at + data]);
                self.note(offset + at as u64, data, pack);
                at += data;
                self.make_room()?;
            }
        }
        Ok(())
    }

    /// Ends the block that is open, `length` bytes of which are the file's.
    fn close_block(&mut self, length: usize) -> io::Result<()> {
        let Some((block, start)) = self.open.take() else { return Ok(()) };
        if is_zero(&self.buffer[start..]) {
            self.buffer.truncate(start);
            return Ok(());
        }
        self.buffer.resize(start + BLOCK, 0);
        self.note(block, length, self.flushed + start as u64);
        self.make_room()
    }

    fn note(&mut self, at: u64, length: usize, pack: u64) {
        let length = length as u64;
        self.stored += length.next_multiple_of(BLOCK as u64);
        if let Some(last) = self.runs.last_mut()
            && last.at + last.length == at
            && last.pack + last.length == pack
        {
            last.length += length;
            return;
        }
        self.runs.push(Run { at, length, pack });
    }

    fn make_room(&mut self) -> io::Result<()> {
        let room = if self.output.is_some() { BUFFER } else { self.memory.max(BUFFER) };
        if self.buffer.len() >= room { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.buffer.len() as u64;
        self.output = Some(self.output()?.put(self.flushed, &mut self.buffer)?);
        self.flushed += length;
        self.buffer.shrink_to(2 * BUFFER);
        Ok(())
    }

    fn output(&mut self) -> io::Result<Output> {
        Ok(match self.output.take() {
            Some(output) => output,
            None => {
                let is_kept = matches!(self.spill, Spill::Named(_));
                Output::new(self.spill.create()?, self.sums.take(), is_kept)
            }
        })
    }
}

impl Spill {
    fn create(&self) -> io::Result<File> {
        match self {
            Self::Unnamed(directory) => tempfile::tempfile_in(directory),
            Self::Named(path) => File::options().read(true).write(true).create_new(true).open(path),
        }
    }
}

/// How many bytes at the front are blocks of zeros, or blocks that are not.
fn blocks_while(bytes: &[u8], zero: bool) -> usize {
    let blocks = bytes.as_chunks::<BLOCK>().0.iter();
    blocks.take_while(|block| is_zero(&block[..]) == zero).count() * BLOCK
}
