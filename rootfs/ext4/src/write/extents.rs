//! Extent trees: which blocks of the image hold which blocks of a file.

use std::ops::Range;

use crate::bytes::{put16, put32, small};
use crate::checksum::{self, Seed};
use crate::format::{BLOCK, EXTENT_MAX, extent, inode};

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block in the file.
    pub(crate) logical: u32,
    /// The first block in the image.
    pub(crate) physical: u32,
    /// How many: 1 to 32,768.
    pub(crate) length: u32,
}

impl Extent {
    /// Whether `count` blocks of the file from `logical` on, which stand in the image from `physical` on, make it longer.
    pub(super) fn is_before(&self, logical: u32, physical: u64, count: u64) -> bool {
        self.logical + self.length == logical
            && u64::from(self.physical + self.length) == physical
            && u64::from(self.length) + count <= u64::from(EXTENT_MAX)
    }
}

/// Adds the extents of a run of a file's blocks, which starts at `logical` and lies in `physical`.
pub(super) fn push(extents: &mut Vec<Extent>, mut logical: u32, physical: Range<u64>) {
    let mut at = physical.start;
    while at < physical.end {
        let length = small((physical.end - at).min(u64::from(EXTENT_MAX)));
        extents.push(Extent { logical, physical: small(at), length });
        logical += length;
        at += u64::from(length);
    }
}

/// How many blocks a tree of so many extents has besides the inode.
pub(super) fn tree_blocks(extents: usize) -> usize {
    let mut blocks = 0;
    let mut level = extents;
    while level > extent::IN_INODE {
        level = level.div_ceil(extent::IN_BLOCK);
        blocks += level;
    }
    blocks
}

/// A tree: the 60 bytes in the inode, and its blocks from the leaves up, which stand in the image from `first` on.
pub(super) fn tree(
    extents: &[Extent],
    first: u32,
    seed: Seed,
) -> ([u8; inode::MAP_LENGTH], Vec<[u8; BLOCK]>) {
    let mut entries: Vec<[u8; extent::ENTRY]> = extents.iter().map(leaf_entry).collect();
    let mut blocks = Vec::new();
    let mut depth = 0;
    while entries.len() > extent::IN_INODE {
        let mut above = Vec::new();
        for chunk in entries.chunks(extent::IN_BLOCK) {
            above.push(index_entry(&chunk[0], first + small(blocks.len() as u64)));
            let mut block = [0; BLOCK];
            put_node(&mut block[..extent::TAIL], chunk, depth);
            let sum = checksum::of_extent_block(seed, &block);
            put32(&mut block, extent::TAIL, sum);
            blocks.push(block);
        }
        entries = above;
        depth += 1;
    }
    let mut map = [0; inode::MAP_LENGTH];
    put_node(&mut map, &entries, depth);
    (map, blocks)
}

fn leaf_entry(run: &Extent) -> [u8; extent::ENTRY] {
    let mut entry = [0; extent::ENTRY];
    put32(&mut entry, 0, run.logical);
    put16(&mut entry, 4, u16::try_from(run.length).expect("at most 32,768"));
    put32(&mut entry, 8, run.physical);
    entry
}

/// What points to a block whose first entry is `below`.
fn index_entry(below: &[u8; extent::ENTRY], block: u32) -> [u8; extent::ENTRY] {
    let mut entry = [0; extent::ENTRY];
    entry[..4].copy_from_slice(&below[..4]);
    put32(&mut entry, 4, block);
    entry
}

fn put_node(area: &mut [u8], entries: &[[u8; extent::ENTRY]], depth: u16) {
    let room = area.len() / extent::ENTRY - 1;
    put16(area, 0, extent::MAGIC);
    put16(area, 2, u16::try_from(entries.len()).expect("at most 340"));
    put16(area, 4, u16::try_from(room).expect("at most 340"));
    put16(area, 6, depth);
    for (place, entry) in area.chunks_exact_mut(extent::ENTRY).skip(1).zip(entries) {
        place.copy_from_slice(entry);
    }
}
