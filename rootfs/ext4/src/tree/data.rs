//! The bytes of files, by reference.
//!
//! A file is a size and the pieces of it that hold data; what lies between is a hole and reads as zeros. A piece says where its
//! bytes are: in the tree for small ones, or in a source of the caller's that [`Contents`] reads.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::TreeError;

/// The unit of allocation in an image, and so of a hole: 4 KiB.
pub const BLOCK: u64 = 4096;

/// A source of bytes; what it stands for is the caller's affair (a layer's file, say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub u32);

/// Where the bytes of files are read from. The writer calls it from several threads at once.
pub trait Contents: Sync {
    /// Fills `into` from byte `offset` of the source `id`. A source that ends sooner is an error.
    fn read_at(&self, id: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl<T: Contents + ?Sized> Contents for &T {
    fn read_at(&self, id: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (**self).read_at(id, offset, into)
    }
}

/// Sources in memory: the n-th that was added is `ContentId(n)`.
#[derive(Debug, Clone, Default)]
pub struct MemoryContents(Vec<Vec<u8>>);

impl MemoryContents {
    /// None yet. It also serves trees that keep all bytes of their own.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a source.
    ///
    /// # Panics
    /// When there are 2^32 already.
    pub fn add(&mut self, bytes: Vec<u8>) -> ContentId {
        let id = u32::try_from(self.0.len()).expect("fewer than 2^32 sources");
        self.0.push(bytes);
        ContentId(id)
    }
}

impl Contents for MemoryContents {
    fn read_at(&self, id: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let source = self.0.get(id.0 as usize).ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(offset).ok().and_then(|offset| source.get(offset..));
        let bytes = from.and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Where the bytes of a piece are.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// In a source of the caller's, from this byte on.
    Stored(ContentId, u64),
    /// In the tree.
    Bytes(Arc<[u8]>),
}

impl fmt::Debug for Source {
    /// Without the bytes.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(id, offset) => write!(formatter, "Stored({}, {offset})", id.0),
            Self::Bytes(bytes) => write!(formatter, "Bytes({} bytes)", bytes.len()),
        }
    }
}

/// A run of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The byte of the file where it starts.
    pub at: u64,
    /// Its length in bytes: not 0.
    pub length: u64,
    /// Where its bytes are.
    pub source: Source,
}

/// Whether blocks of zeros inside the pieces are still to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// The writer reads the file before it places it, and leaves out each 4 KiB block of zeros.
    ToFind,
    /// The pieces come from a [`HoleFinder`]: what they touch is allocated, nothing else.
    Known,
}

/// The bytes of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    size: u64,
    pieces: Vec<Piece>,
    holes: Holes,
}

impl FileData {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { size: 0, pieces: Vec::new(), holes: Holes::Known }
    }

    /// Bytes kept in the tree.
    #[must_use]
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        let source = Source::Bytes(bytes);
        let pieces = Vec::from_iter((size > 0).then_some(Piece { at: 0, length: size, source }));
        Self { size, pieces, holes: Holes::ToFind }
    }

    /// `length` bytes of a source, from its byte `offset` on.
    #[must_use]
    pub fn stored(id: ContentId, offset: u64, length: u64) -> Self {
        let piece = Piece { at: 0, length, source: Source::Stored(id, offset) };
        Self {
            size: length,
            pieces: Vec::from_iter((length > 0).then_some(piece)),
            holes: Holes::ToFind,
        }
    }

    /// A file of `size` bytes with data in `pieces` only. Fails unless they are in order, apart, and within the size and their
    /// bytes.
    pub fn new(size: u64, pieces: Vec<Piece>, holes: Holes) -> Result<Self, TreeError> {
        let mut end = 0;
        for piece in &pieces {
            let wrong = TreeError::Piece(piece.at);
            let Some(next) = piece.at.checked_add(piece.length) else { return Err(wrong) };
            let enough = match &piece.source {
                Source::Stored(_, offset) => offset.checked_add(piece.length).is_some(),
                Source::Bytes(bytes) => bytes.len() as u64 == piece.length,
            };
            if piece.length == 0 || piece.at < end || next > size || !enough {
                return Err(wrong);
            }
            end = next;
        }
        Ok(Self { size, pieces, holes })
    }

    /// In bytes, holes included.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Where it has data: in order, apart.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether zeros are still to be found in the pieces.
    #[must_use]
    pub const fn holes(&self) -> Holes {
        self.holes
    }

    /// Fills `into` from byte `offset` of the file, with zeros in holes and past the end.
    pub fn read_at(&self, contents: &dyn Contents, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(into.len() as u64);
        let first = self.pieces.partition_point(|piece| piece.at + piece.length <= offset);
        let mut filled = 0;
        for piece in self.pieces.iter().skip(first).take_while(|piece| piece.at < end) {
            let from = piece.at.max(offset);
            let to = (piece.at + piece.length).min(end);
            let (start, stop) = (within(from - offset), within(to - offset));
            into[filled..start].fill(0);
            let target = &mut into[start..stop];
            match &piece.source {
                Source::Stored(id, base) => {
                    contents.read_at(*id, base + (from - piece.at), target)?;
                }
                Source::Bytes(bytes) => {
                    let start = within(from - piece.at);
                    target.copy_from_slice(&bytes[start..start + target.len()]);
                }
            }
            filled = stop;
        }
        into[filled..].fill(0);
        Ok(())
    }
}

/// A distance inside a buffer, which is why it fits.
fn within(distance: u64) -> usize {
    usize::try_from(distance).expect("a place in a buffer in memory")
}

/// Finds the holes of a file while its bytes stream by, so that the writer need not read it twice.
///
/// Fed with the file's data in order, it notes the 4 KiB blocks of the file that hold a byte other than zero. The pieces that it
/// makes refer to the source that the same bytes are put into, one after the other.
#[derive(Debug)]
pub struct HoleFinder {
    id: ContentId,
    /// Byte of the source that stands for the next byte fed.
    offset: u64,
    /// Byte of the file that comes next.
    at: u64,
    pieces: Vec<Piece>,
    /// The part of the current block that was fed: its first byte in the file and in the source, and whether it has data.
    pending: Option<(u64, u64, bool)>,
}

impl HoleFinder {
    /// For a file whose bytes go to the source `id` from its byte `offset` on.
    #[must_use]
    pub const fn new(id: ContentId, offset: u64) -> Self {
        Self { id, offset, at: 0, pieces: Vec::new(), pending: None }
    }

    /// Takes the next bytes of the file, which are also the next bytes of the source.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = within(BLOCK - self.at % BLOCK);
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            let data = !is_zero(head);
            let pending = self.pending.get_or_insert((self.at, self.offset, false));
            pending.2 |= data;
            self.at += head.len() as u64;
            self.offset += head.len() as u64;
            if self.at.is_multiple_of(BLOCK) {
                self.settle();
            }
            bytes = rest;
        }
    }

    /// Leaves out `length` bytes of the file that have none in the source.
    pub fn skip(&mut self, length: u64) {
        self.settle();
        self.at = self.at.saturating_add(length);
    }

    /// The file, of as many bytes as were fed and skipped.
    #[must_use]
    pub fn finish(mut self) -> FileData {
        self.settle();
        FileData { size: self.at, pieces: self.pieces, holes: Holes::Known }
    }

    /// Notes the pending part of a block.
    fn settle(&mut self) {
        let Some((at, offset, true)) = self.pending.take() else { return };
        let length = self.at - at;
        if let Some(last) = self.pieces.last_mut()
            && last.at + last.length == at
            && last.source == Source::Stored(self.id, offset - last.length)
        {
            last.length += length;
            return;
        }
        self.pieces.push(Piece { at, length, source: Source::Stored(self.id, offset) });
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Whole chunks without an early exit inside are what the compiler turns into vector code.
    let mut chunks = bytes.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}
