//! A layer: from compressed bytes of anywhere to an index of entries and a pack of file data, verified in flight.
//!
//! Invariant: a [`Layer`] exists only if its compressed bytes have the size and the digest of its descriptor and its
//! uncompressed bytes the digest that the image names. One thread reads, hashes and inflates; a second one hashes what
//! comes out and reads the archive; a third one stores the data, and a fourth waits for the disk.

mod compression;
mod error;
mod flow;
pub mod inflate;
mod pack;
mod read;
mod sink;
#[cfg(test)]
mod tests;
mod zeros;

pub use compression::Compression;
pub use error::LayerError;
pub use pack::{PACK_START, Pack, PackWriter};
pub use read::{Budget, LayerSource, read};
pub use sink::WriteBack;

use openshell_ext4::tree::{Device, Metadata};

use crate::digest::Digest;
use crate::limits::{ENTRY_BYTES, XATTRS_BYTES};

/// What a layer holds: its entries in the order of the archive, and the data of its files.
#[derive(Debug)]
pub struct Layer {
    /// The entries, whiteouts among them.
    pub entries: Vec<Entry>,
    /// The data of the files.
    pub pack: Pack,
    /// Bytes of the uncompressed archive.
    pub raw_bytes: u64,
    /// The digest of the bytes as they were transferred.
    pub digest: Digest,
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is in the image, in normal form; empty for the root.
    pub path: Vec<u8>,
    /// Mode, owner, time and extended attributes.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// What it counts for in [`Limits::metadata_bytes`](crate::limits::Limits::metadata_bytes).
    pub fn metadata_bytes(&self) -> u64 {
        let kind = match &self.kind {
            Kind::File { runs, .. } => size_of_val(&runs[..]),
            Kind::HardLink(target) | Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs = &self.metadata.xattrs;
        let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let xattrs = if xattrs.is_empty() { 0 } else { XATTRS_BYTES };
        ENTRY_BYTES + xattrs + (self.path.len() + kind + bytes) as u64
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes, with holes.
        size: u64,
        /// Where its data is in the pack, in order and apart, in whole blocks but for the end of the file.
        runs: Vec<Run>,
    },
    /// Another name for the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A run of a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the file, a multiple of the block size.
    pub at: u64,
    /// How many bytes it has.
    pub length: u64,
    /// Where it begins in the pack, a multiple of the block size.
    pub pack: u64,
}
