//! The reader: an image from anywhere becomes a tree, or an error that names what is wrong with it.
//!
//! Invariant: no image makes it panic, and its work is bounded by the size of the image. Whatever leads from one place to another
//! is checked against the image's end, every structure against its checksum, and no block is followed from two places.
//!
//! It reads what the writer writes, also after a kernel wrote to it and unmounted it; not every ext4.

mod directory;
mod extents;
mod inode;
mod superblock;
mod tree;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

pub(crate) use extents::{Map, Mapped};
pub(crate) use inode::Inode;
pub(crate) use superblock::Shape;

use crate::bytes::{get32, size};
use crate::checksum::{Checksums, Seed};
use crate::format::{BLOCK, DESCRIPTOR, INODE, SUPERBLOCK, group, inode as at, number};
use crate::tree::{ContentId, Contents};

/// Bytes that an image is read from.
pub trait Input {
    /// How many there are.
    fn size(&self) -> io::Result<u64>;
    /// Fills `into` from byte `offset` on. An end that comes sooner is an error.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// The first byte from `offset` on that may not be zero: what lies before it is a hole. `offset` itself unless the input knows.
    fn data_from(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

impl Input for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn data_from(&self, offset: u64) -> io::Result<u64> {
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => Ok(u64::MAX),
            // Not every file system knows its holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
            other => Ok(other?),
        }
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

impl Input for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = from.and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<T: Input + ?Sized> Input for &T {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn data_from(&self, offset: u64) -> io::Result<u64> {
        (**self).data_from(offset)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(into, offset)
    }
}

/// What a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The superblock, or what it counts.
    Superblock,
    /// A block group.
    Group(u32),
    /// An inode.
    Inode(u32),
    /// A block.
    Block(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => write!(formatter, "superblock"),
            Self::Group(number) => write!(formatter, "group {number}"),
            Self::Inode(number) => write!(formatter, "inode {number}"),
            Self::Block(number) => write!(formatter, "block {number}"),
        }
    }
}

/// Something wrong in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub what: &'static str,
}

impl Fault {
    pub(crate) const fn superblock(what: &'static str) -> Self {
        Self { place: Place::Superblock, what }
    }

    pub(crate) const fn group(number: u32, what: &'static str) -> Self {
        Self { place: Place::Group(number), what }
    }

    pub(crate) const fn inode(number: u32, what: &'static str) -> Self {
        Self { place: Place::Inode(number), what }
    }

    pub(crate) const fn block(number: u64, what: &'static str) -> Self {
        Self { place: Place::Block(number), what }
    }
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be had.
    #[error("cannot read the image at byte {offset}")]
    Input {
        /// Where in the image.
        offset: u64,
        /// What the input said.
        #[source]
        source: io::Error,
    },
    /// The image is not one of ours, or damaged.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// An image that is read.
#[derive(Debug)]
pub struct Image<I> {
    input: I,
    shape: Shape,
}

impl<I: Input> Image<I> {
    /// Reads the superblock and the group descriptors.
    pub fn open(input: I) -> Result<Self, ReadError> {
        Self::open_with(input, Checksums::Compared)
    }

    /// As [`open`](Self::open), and says what is done with checksums from here on.
    pub fn open_with(input: I, checksums: Checksums) -> Result<Self, ReadError> {
        let failed = |offset| move |source| ReadError::Input { offset, source };
        let bytes = input.size().map_err(failed(0))?;
        let mut head = [0; SUPERBLOCK];
        input.read_at(&mut head, SUPERBLOCK as u64).map_err(failed(SUPERBLOCK as u64))?;
        let mut shape = Shape::read(&head, bytes, checksums)?;
        let mut descriptors = vec![0; shape.groups as usize * DESCRIPTOR];
        input.read_at(&mut descriptors, BLOCK as u64).map_err(failed(BLOCK as u64))?;
        shape.read_groups(&descriptors)?;
        Ok(Self { input, shape })
    }

    /// The volume's UUID.
    #[must_use]
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.shape.uuid
    }

    /// The volume's label, without the NUL that fill it up.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        let end = self.shape.label.iter().position(|byte| *byte == 0);
        &self.shape.label[..end.unwrap_or(self.shape.label.len())]
    }

    /// Whether kernels refuse to write to it.
    #[must_use]
    pub const fn is_base(&self) -> bool {
        self.shape.is_base
    }

    /// Bytes of the file system.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.shape.blocks * BLOCK as u64
    }

    /// Whether a checksum does not hold.
    pub(crate) fn differ<T: PartialEq + Copy>(&self, derived: T, stored: T) -> bool {
        self.shape.checksums.differ(derived, stored)
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Fills `into` from byte `offset` on.
    pub(crate) fn bytes(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let read = self.input.read_at(into, offset);
        read.map_err(|source| ReadError::Input { offset, source })
    }

    /// The first byte from `offset` on that is not in a hole.
    pub(crate) fn data_from(&self, offset: u64) -> Result<u64, ReadError> {
        let found = self.input.data_from(offset);
        found.map_err(|source| ReadError::Input { offset, source })
    }

    /// A block, whose number the caller has checked.
    pub(crate) fn block(&self, number: u64) -> Result<[u8; BLOCK], ReadError> {
        let mut block = [0; BLOCK];
        self.bytes(number * BLOCK as u64, &mut block)?;
        Ok(block)
    }

    /// An inode in use. Fails when it is not, or is damaged.
    pub(crate) fn inode(&self, number: u32) -> Result<Inode, ReadError> {
        self.inode_among(number, 1, &mut InodeCache::default())
    }

    /// As [`inode`](Self::inode), with up to `ahead` inodes that follow it in its group read at once.
    pub(crate) fn inode_among(
        &self,
        number: u32,
        ahead: u32,
        cache: &mut InodeCache,
    ) -> Result<Inode, ReadError> {
        let shape = &self.shape;
        let index = number.wrapping_sub(1);
        let fault = Fault::inode(number, "there is no such inode");
        let group = index / shape.inodes_per_group;
        let descriptor = shape.descriptors.get(group as usize).ok_or(fault)?;
        let within = index % shape.inodes_per_group;
        let used = shape.inodes_per_group - descriptor.unused_inodes;
        if descriptor.flags & group::INODE_UNINIT != 0 || within >= used {
            return Err(Fault::inode(number, "is not in use").into());
        }
        if cache.at(number).is_none() {
            let count = ahead.clamp(1, used - within);
            cache.first = number;
            cache.bytes.resize(count as usize * INODE, 0);
            let table = descriptor.inode_table * BLOCK as u64;
            let read = self.bytes(table + u64::from(within) * INODE as u64, &mut cache.bytes);
            if read.is_err() {
                cache.bytes.clear();
            }
            read?;
        }
        let bytes = cache.at(number).ok_or(fault)?;
        Ok(Inode::read(number, bytes, shape.seed, shape.checksums)?)
    }

    /// What the blocks of an inode start their checksums from.
    pub(crate) fn seed_of(&self, inode: &Inode) -> Seed {
        self.shape.seed.of_inode(inode.number, inode.generation)
    }

    /// The inode that a path names: parts are names, no link is followed. None when there is none.
    pub fn find(&self, path: &[u8]) -> Result<Option<Found>, ReadError> {
        let mut number = number::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let inode = self.inode(number)?;
            if !inode.is(at::DIRECTORY) {
                return Ok(None);
            }
            let listing = self.listing(&inode)?;
            let found = listing.leaves.iter().find(|leaf| leaf.name == name);
            let Some(leaf) = found else { return Ok(None) };
            number = leaf.number;
        }
        let inode = self.inode(number)?;
        let map = if inode.is(at::FILE) { self.map(&inode)?.runs } else { Vec::new() };
        Ok(Some(Found { number, size_bytes: inode.size, is_file: inode.is(at::FILE), map }))
    }

    /// Fills `into` from byte `offset` of a regular file, as far as it goes. Answers how many bytes were read: 0 at the end, and for
    /// what is no file.
    pub fn read(&self, file: &Found, offset: u64, into: &mut [u8]) -> Result<usize, ReadError> {
        if !file.is_file {
            return Ok(0);
        }
        let left = file.size_bytes.saturating_sub(offset);
        let count = size(left.min(into.len() as u64));
        let into = &mut into[..count];
        into.fill(0);
        let end = offset + count as u64;
        let first = file.map.partition_point(|run| run.end_bytes() <= offset);
        for run in file.map.iter().skip(first).take_while(|run| run.start_bytes() < end) {
            let (from, to) = (run.start_bytes().max(offset), run.end_bytes().min(end));
            if run.written {
                let place = &mut into[size(from - offset)..size(to - offset)];
                let physical = run.physical * BLOCK as u64 + (from - run.start_bytes());
                self.bytes(physical, place)?;
            }
        }
        Ok(count)
    }
}

/// Bytes of inodes that follow each other, from the number `first` on.
#[derive(Debug, Default)]
pub(crate) struct InodeCache {
    first: u32,
    bytes: Vec<u8>,
}

impl InodeCache {
    fn at(&self, number: u32) -> Option<&[u8; INODE]> {
        let index = number.checked_sub(self.first)? as usize;
        self.bytes.get(index.checked_mul(INODE)?..)?.first_chunk()
    }
}

/// What a path names.
#[derive(Debug, Clone)]
pub struct Found {
    number: u32,
    size_bytes: u64,
    is_file: bool,
    map: Vec<Mapped>,
}

impl Found {
    /// Its inode number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Bytes of a regular file; for others what their inode says.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether it is a regular file.
    #[must_use]
    pub const fn is_file(&self) -> bool {
        self.is_file
    }
}

/// The source that the files of a tree refer to which was read from an image: the image itself.
pub(crate) const SELF: ContentId = ContentId(0);

impl<I: Input + Sync> Contents for Image<I> {
    /// The source 0 is the image; there is no other.
    fn read_at(&self, id: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if id != SELF {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.input.read_at(into, offset)
    }
}

/// The UUID that a feature asks to take the seed from, or the seed itself.
fn seed(head: &[u8], stored: bool, uuid: &[u8; 16]) -> Seed {
    if stored {
        Seed(get32(head, crate::format::superblock::CHECKSUM_SEED))
    } else {
        Seed::of_uuid(uuid)
    }
}
