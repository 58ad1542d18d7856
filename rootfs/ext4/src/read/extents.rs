//! The extent tree of an inode of an image that is read.

use std::ops::Range;

use super::{Fault, Image, Inode, Input, ReadError};
use crate::bytes::{get16, get32};
use crate::checksum;
use crate::format::{BLOCK, EXTENT_MAX, extent};

/// A run of a file's blocks, which lies in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) length: u64,
    /// Otherwise it reads as zeros.
    pub(crate) written: bool,
}

impl Mapped {
    pub(crate) const fn start_bytes(&self) -> u64 {
        self.logical * BLOCK as u64
    }

    pub(crate) const fn end_bytes(&self) -> u64 {
        (self.logical + self.length) * BLOCK as u64
    }
}

/// The blocks of an inode.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map {
    /// In order, apart, and no more blocks than the image has.
    pub(crate) runs: Vec<Mapped>,
    /// Blocks of the tree itself.
    pub(crate) tree: Vec<u64>,
}

/// A node of the tree that is still to be read.
struct Pending {
    block: u64,
    depth: u16,
    /// What its keys must lie in.
    keys: Range<u64>,
}

impl<I: Input> Image<I> {
    /// The blocks of an inode that has extents.
    pub(crate) fn map(&self, inode: &Inode) -> Result<Map, ReadError> {
        let wrong = |what| Fault::inode(inode.number, what);
        if !inode.has_extents() {
            return Err(wrong("its blocks are not mapped by extents").into());
        }
        let mut map = Map::default();
        let mut left = self.shape().blocks;
        let mut pending = Vec::new();
        let depth = get16(&inode.map, 6);
        if depth > extent::DEPTH_MAX {
            return Err(wrong("its extent tree is too deep").into());
        }
        let whole = 0..u64::from(u32::MAX) + 1;
        self.node(inode, &inode.map, depth, whole, &mut pending, &mut map)?;
        while let Some(next) = pending.pop() {
            // As many blocks as the image has, or it goes in circles.
            left = left.checked_sub(1).ok_or(wrong("its extent tree has too many blocks"))?;
            map.tree.push(next.block);
            let block = self.block(next.block)?;
            let sum = checksum::of_extent_block(self.seed_of(inode), &block);
            if self.differ(sum, get32(&block, extent::TAIL)) {
                let what = "checksum of a block of extents does not match";
                return Err(Fault::block(next.block, what).into());
            }
            self.node(
                inode,
                &block[..extent::TAIL],
                next.depth,
                next.keys,
                &mut pending,
                &mut map,
            )?;
        }
        let mapped = map.runs.iter().map(|run| run.length).sum::<u64>();
        if mapped > self.shape().blocks {
            return Err(wrong("it has more blocks than the image").into());
        }
        Ok(map)
    }

    /// Reads a node. What is below it is put on `pending` so that the lowest keys come first.
    fn node(
        &self,
        inode: &Inode,
        area: &[u8],
        depth: u16,
        keys: Range<u64>,
        pending: &mut Vec<Pending>,
        map: &mut Map,
    ) -> Result<(), ReadError> {
        let wrong = |what| Fault::inode(inode.number, what);
        let room = area.len() / extent::ENTRY - 1;
        let entries = usize::from(get16(area, 2));
        if get16(area, 0) != extent::MAGIC
            || entries > room
            || usize::from(get16(area, 4)) != room
            || get16(area, 6) != depth
        {
            return Err(wrong("a node of its extent tree has a wrong header").into());
        }
        // As many as there is room for, which was checked.
        let entry = |at: usize| &area[(at + 1) * extent::ENTRY..][..extent::ENTRY];
        let mut low = keys.start;
        let first = pending.len();
        for at in 0..entries {
            let (here, next) = (entry(at), (at + 1 < entries).then(|| entry(at + 1)));
            let key = u64::from(get32(here, 0));
            let high = next.map_or(keys.end, |entry| get32(entry, 0).into());
            if key < low || high <= key || high > keys.end {
                return Err(wrong("its extents are out of order").into());
            }
            if depth > 0 {
                let block = u64::from(get32(here, 4)) | (u64::from(get16(here, 8)) << 32);
                if block >= self.shape().blocks {
                    return Err(wrong("its extent tree leads past the end").into());
                }
                pending.push(Pending { block, depth: depth - 1, keys: key..high });
                low = high;
            } else {
                let run = leaf(here, key);
                let end = run.physical.checked_add(run.length);
                if run.length == 0
                    || end.is_none_or(|end| end > self.shape().blocks)
                    || key + run.length > high
                {
                    return Err(wrong("an extent overlaps, is empty or lies past the end").into());
                }
                map.runs.push(run);
                low = key + run.length;
            }
        }
        pending[first..].reverse();
        Ok(())
    }
}

fn leaf(entry: &[u8], logical: u64) -> Mapped {
    let length = u32::from(get16(entry, 4));
    let written = length <= EXTENT_MAX;
    Mapped {
        logical,
        physical: u64::from(get32(entry, 8)) | (u64::from(get16(entry, 6)) << 32),
        length: u64::from(if written { length } else { length - EXTENT_MAX }),
        written,
    }
}
