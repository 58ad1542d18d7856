//! The writer: a tree becomes an image.
//!
//! First everything is numbered and placed ([`demand`], [`place`]), in the order of the paths; then threads write what is known to
//! stand where. No thread decides anything, so that their number does not show in the image. Numbers and places are assigned on
//! the caller's thread; it also writes, with the threads it starts, and is back when they are.

mod demand;
mod directory;
mod emit;
mod extents;
mod groups;
mod inode;
mod place;
mod space;
mod superblock;
mod threads;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::format::{BLOCK, BLOCKS_MAX};
use crate::tree::{ContentId, Contents, NodeId, Tree};
use crate::xattr::XattrError;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes of a file could not be read.
    #[error("cannot read the contents of `{}`", .path.escape_ascii())]
    Contents {
        /// Path in the tree.
        path: Vec<u8>,
        /// What the contents said.
        #[source]
        source: io::Error,
    },
    /// The image could not be written.
    #[error("cannot write the image at byte {offset}")]
    Output {
        /// Where in the image.
        offset: u64,
        /// What the output said.
        #[source]
        source: io::Error,
    },
    /// Extended attributes that ext4 does not hold.
    #[error("cannot store the extended attributes of `{}`", .path.escape_ascii())]
    Xattrs {
        /// Path in the tree.
        path: Vec<u8>,
        /// Which and why.
        #[source]
        source: XattrError,
    },
    /// A file of more than 16 TiB.
    #[error("`{}` has {size_bytes} bytes, more than a file of ext4 holds", .path.escape_ascii())]
    FileTooLarge {
        /// Path in the tree.
        path: Vec<u8>,
        /// Its size.
        size_bytes: u64,
    },
    /// A node with more than 65,000 names.
    #[error("`{}` has {names} names, more than the 65,000 of ext4", .path.escape_ascii())]
    TooManyNames {
        /// One of its paths.
        path: Vec<u8>,
        /// How many.
        names: u32,
    },
    /// More nodes than inode numbers.
    #[error("the tree has more nodes than an image has inodes")]
    TooManyNodes,
    /// More than 16 TiB.
    #[error("the image would have more than 16 TiB")]
    TooLarge,
    /// The disk cannot hold its own structures and the tree.
    #[error("a disk of {size_bytes} bytes is too small for what is to be on it")]
    TooSmall {
        /// The size asked for.
        size_bytes: u64,
    },
}

/// What the image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Never written again: no journal, no free blocks, as many inodes as there are nodes; kernels refuse to write to it.
    Base,
    /// As [`Base`](Self::Base), around data that has its place already.
    Around(Laid),
    /// A disk to write on: everything that is not used yet is left unwritten.
    ReadWrite {
        /// Its size, of which the last part of a block is not used. At most 16 TiB.
        size_bytes: u64,
        /// Inodes that it has at least, if one for 16 KiB is not more.
        inodes: u32,
        /// Whether it has a journal: what is gone with the machine that wrote it needs none.
        journal: bool,
    },
}

/// A source whose bytes are those of the image: what stands at one of these places in the source stands there in the image too.
///
/// A file all of whose pieces lie in it, block by block, keeps them there; others are placed behind it. It may be written around
/// while the source is the very file that becomes the image, and is copied otherwise: the images are equal, provided that every
/// block of the source that is not zero belongs to a file that keeps its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Laid {
    /// The source.
    pub id: ContentId,
    /// Its first byte that is laid: a multiple of 4,096 that leaves room for the superblock and the group descriptors.
    pub start: u64,
    /// The byte behind its last one: a multiple of 4,096.
    pub end: u64,
    /// Whether the output holds the bytes already.
    pub is_written: bool,
}

/// What makes an image this one: derived from a digest, so that equal images come out equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The UUID.
    pub uuid: [u8; 16],
    /// The volume's label, filled up with NUL.
    pub label: [u8; 16],
    /// The seed of the directory hash.
    pub hash_seed: [u32; 4],
}

impl Identity {
    /// From a digest of what goes into the image: the UUID is of version 8, the label `os-` and the digest's first 12 digits.
    #[must_use]
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        let (uuid, seed) = digest.split_at(16);
        let mut uuid: [u8; 16] = uuid.try_into().expect("half of 32 bytes");
        uuid[6] = 0x80 | (uuid[6] & 0x0f);
        uuid[8] = 0x80 | (uuid[8] & 0x3f);
        let mut label = [0; 16];
        label[..3].copy_from_slice(b"os-");
        for (place, byte) in label[3..15].chunks_exact_mut(2).zip(digest) {
            place[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            place[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        let mut hash_seed = [0; 4];
        for (word, bytes) in hash_seed.iter_mut().zip(seed.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { uuid, label, hash_seed }
    }
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What the image is for.
    pub profile: Profile,
    /// What makes it this one.
    pub identity: Identity,
    /// Threads that read contents and write, the caller's among them. They do not change the image. 0 counts as 1.
    pub threads: usize,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image, holes included: a multiple of 4,096.
    pub size_bytes: u64,
    /// Inodes in use. Of the reserved ones that of the root counts, and that of a journal.
    pub inodes: u32,
    /// Bytes of files' blocks.
    pub data_bytes: u64,
    /// Bytes of blocks that hold structures: what a new disk takes on the host besides its files.
    pub metadata_bytes: u64,
}

/// Where an image goes. Nothing is written twice, and what is not written must read as zeros.
pub trait Output: Sync {
    /// Makes it empty and then this long.
    fn reset(&self, size_bytes: u64) -> io::Result<()>;
    /// Makes it this long, and leaves what it holds: only asked for around data that is written.
    fn extend(&self, size_bytes: u64) -> io::Result<()> {
        let _ = size_bytes;
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Writes all bytes at `offset`. Called from several threads at once.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Output for File {
    fn reset(&self, size_bytes: u64) -> io::Result<()> {
        self.set_len(0)?;
        self.set_len(size_bytes)
    }

    fn extend(&self, size_bytes: u64) -> io::Result<()> {
        self.set_len(size_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// Writes the image of `tree`. It is complete when this returns, but not synced; after an error it is worth nothing.
///
/// A directory `lost+found` is added to the root unless the name is taken. The time of every node is also that of its last access,
/// change and creation; times before 1901 or after 2310 become the nearest that fits.
pub fn write(
    tree: &Tree,
    contents: &dyn Contents,
    output: &dyn Output,
    options: &Options,
) -> Result<Summary, WriteError> {
    let demand = demand::Demand::new(tree, contents, options)?;
    let placed = place::Placed::new(&demand, options)?;
    emit::emit(&placed, &demand, contents, output, options)
}

/// A path of the node, for messages. Only errors look for it, so it may take a walk.
fn path_of(tree: &Tree, node: NodeId) -> Vec<u8> {
    if let Some(path) = tree.path(node) {
        return path;
    }
    let entry = tree.walk(Tree::ROOT).find(|entry| entry.node == node);
    let path = entry.and_then(|entry| {
        let above = tree.path(entry.directory)?;
        Some(if above.is_empty() { entry.name.into() } else { [&above, entry.name].join(&b'/') })
    });
    path.unwrap_or_default()
}

/// Blocks of a disk of this size. Fails when block numbers do not reach its end.
fn blocks_of(size_bytes: u64) -> Result<u64, WriteError> {
    let blocks = size_bytes / BLOCK as u64;
    if blocks > BLOCKS_MAX { Err(WriteError::TooLarge) } else { Ok(blocks) }
}
