//! The checksums of `metadata_csum`: CRC32C without the usual inversions, each with a seed that names what it covers.

use crate::bytes::{high16, low16, put16, put32};
use crate::format::{BLOCK, DIR_TAIL, SUPERBLOCK, dx, extent, group, inode, superblock, xattr};

/// What is done with checksums of an image that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// They must hold.
    Compared,
    /// They are not looked at, so that damage is met where it does harm: for tests of what comes behind them.
    Ignored,
}

impl Checksums {
    /// Whether a checksum does not hold.
    pub(crate) fn differ<T: PartialEq + Copy>(self, derived: T, stored: T) -> bool {
        self == Self::Compared && derived != stored
    }
}

/// The running sum: the file system's, an inode's, or one in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u32);

impl Seed {
    /// What everything in a file system with this UUID starts from.
    pub(crate) fn of_uuid(uuid: &[u8; 16]) -> Self {
        Self(!0).with(uuid)
    }

    /// What the blocks of an inode start from.
    pub(crate) fn of_inode(self, number: u32, generation: u32) -> Self {
        self.with(&number.to_le_bytes()).with(&generation.to_le_bytes())
    }

    /// Continues the sum.
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        Self(!crc32c::crc32c_append(!self.0, bytes))
    }
}

/// Of a superblock, which does not use the seed.
pub(crate) fn of_superblock(bytes: &[u8]) -> u32 {
    Seed(!0).with(&bytes[..superblock::CHECKSUM]).0
}

/// Of a group descriptor of 32 bytes.
pub(crate) fn of_group(seed: Seed, number: u32, bytes: &[u8]) -> u16 {
    let sum = seed.with(&number.to_le_bytes()).with(&bytes[..group::CHECKSUM]).with(&[0; 2]);
    low16(sum.0)
}

/// Of the part of a bitmap that stands for blocks or inodes of the group.
pub(crate) fn of_bitmap(seed: Seed, bitmap: &[u8], bits: u32) -> u16 {
    low16(seed.with(&bitmap[..bits as usize / 8]).0)
}

/// Of an inode of 256 bytes, by its own seed.
pub(crate) fn of_inode(seed: Seed, bytes: &[u8]) -> u32 {
    let (low, high) = (inode::CHECKSUM_LOW, inode::CHECKSUM_HIGH);
    seed.with(&bytes[..low])
        .with(&[0; 2])
        .with(&bytes[low + 2..high])
        .with(&[0; 2])
        .with(&bytes[high + 2..])
        .0
}

/// Of a block of an extent tree, by the inode's seed.
pub(crate) fn of_extent_block(seed: Seed, block: &[u8]) -> u32 {
    seed.with(&block[..extent::TAIL]).0
}

/// Of a directory block of names, by the inode's seed.
pub(crate) fn of_names(seed: Seed, block: &[u8]) -> u32 {
    seed.with(&block[..BLOCK - DIR_TAIL]).0
}

/// Of a directory block of the index, by the inode's seed. `at` is where the limit and count stand, `count` the entries in use.
pub(crate) fn of_index(seed: Seed, block: &[u8], at: usize, count: usize) -> u32 {
    seed.with(&block[..at + count * dx::ENTRY]).with(&block[BLOCK - 8..BLOCK - 4]).with(&[0; 4]).0
}

/// Of a block of extended attributes, by the file system's seed.
pub(crate) fn of_xattr_block(seed: Seed, number: u64, block: &[u8]) -> u32 {
    let at = xattr::BLOCK_CHECKSUM;
    seed.with(&number.to_le_bytes()).with(&block[..at]).with(&[0; 4]).with(&block[at + 4..]).0
}

/// Puts its checksum into a superblock.
pub(crate) fn seal_superblock(bytes: &mut [u8; SUPERBLOCK]) {
    let sum = of_superblock(bytes);
    put32(bytes, superblock::CHECKSUM, sum);
}

/// Puts its checksum into an inode.
pub(crate) fn seal_inode(seed: Seed, bytes: &mut [u8]) {
    let sum = of_inode(seed, bytes);
    put16(bytes, inode::CHECKSUM_LOW, low16(sum));
    put16(bytes, inode::CHECKSUM_HIGH, high16(sum));
}
