//! Block groups: how many, where their bitmaps and inode tables stand, and what their descriptors say.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{WriteError, blocks_of};
use crate::bytes::{low16, put16, put32, small};
use crate::checksum::{self, Seed};
use crate::format::{
    BLOCK, DESCRIPTOR, DESCRIPTORS_PER_BLOCK, GROUP_BLOCKS, INODES_PER_BLOCK, group,
};

/// Groups whose structures stand together on a disk, as a power of two: what kernels make.
const LOG_FLEX: u8 = 7;
/// Blocks for files that the last group of a disk must have, or it is left out.
const LAST_GROUP: u32 = 50;
/// Bytes for which a disk has an inode.
const BYTES_PER_INODE: u64 = 16_384;

/// Where the structures of a group stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) block_bitmap: u32,
    pub(super) inode_bitmap: u32,
    pub(super) inode_table: u32,
}

/// The shape of an image.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub(super) blocks: u64,
    pub(super) inodes_per_group: u32,
    /// Blocks of the group descriptors.
    pub(super) descriptor_blocks: u32,
    /// Groups that begin with a copy of the superblock and the descriptors; 0 for none.
    pub(super) backups: [u32; 2],
    /// The power of two of groups whose structures stand together.
    pub(super) log_flex: u8,
    /// By group.
    pub(super) tables: Vec<Tables>,
}

impl Geometry {
    /// An image of so many groups with all structures from block `start` on, and no copies: it is never written to. Its size is the
    /// caller's.
    pub(super) fn base(groups: u32, last_inode: u32, start: u64) -> Result<Self, WriteError> {
        let inodes_per_group = inodes_per_group(groups, u64::from(last_inode))?;
        let log_flex = groups.next_power_of_two().trailing_zeros().clamp(1, 31);
        let mut geometry = Self {
            blocks: u64::from(groups) * u64::from(GROUP_BLOCKS),
            inodes_per_group,
            descriptor_blocks: groups.div_ceil(DESCRIPTORS_PER_BLOCK),
            backups: [0; 2],
            log_flex: u8::try_from(log_flex).expect("at most 31"),
            tables: Vec::new(),
        };
        geometry.place_tables(groups, groups, start);
        Ok(geometry)
    }

    /// A disk of this size with at least so many inodes.
    pub(super) fn read_write(
        size_bytes: u64,
        inodes: u32,
        last_inode: u32,
    ) -> Result<Self, WriteError> {
        let too_small = WriteError::TooSmall { size_bytes };
        let mut blocks = blocks_of(size_bytes)?;
        loop {
            let groups = small(blocks.div_ceil(u64::from(GROUP_BLOCKS)));
            if groups == 0 {
                return Err(too_small);
            }
            let wanted = (blocks * BLOCK as u64 / BYTES_PER_INODE).max(inodes.into());
            let inodes_per_group = inodes_per_group(groups, wanted.max(last_inode.into()))?;
            let mut geometry = Self {
                blocks,
                inodes_per_group,
                descriptor_blocks: groups.div_ceil(DESCRIPTORS_PER_BLOCK),
                backups: match groups {
                    1 => [0, 0],
                    2 => [1, 0],
                    _ => [1, groups - 1],
                },
                log_flex: LOG_FLEX,
                tables: Vec::new(),
            };
            let own = 3 + geometry.descriptor_blocks + geometry.table_blocks();
            let last = geometry.group_blocks(groups - 1);
            if last < own + LAST_GROUP {
                blocks -= u64::from(last);
                continue;
            }
            geometry.place_tables(groups, 1 << LOG_FLEX, 0);
            let structures = geometry.structures();
            if structures.iter().any(|run| run.end > blocks) {
                return Err(too_small);
            }
            return Ok(geometry);
        }
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> u32 {
        small(self.tables.len() as u64)
    }

    /// How many inodes there are.
    pub(super) fn inodes(&self) -> u32 {
        self.groups() * self.inodes_per_group
    }

    /// Blocks of a group's inode table.
    pub(super) const fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// Blocks of a group: fewer in the last one.
    pub(super) fn group_blocks(&self, group: u32) -> u32 {
        let start = u64::from(group) * u64::from(GROUP_BLOCKS);
        small((self.blocks - start).min(GROUP_BLOCKS.into()))
    }

    /// The first block behind the structures of the groups, when they all stand together.
    pub(super) fn front(&self) -> u64 {
        self.structures().iter().map(|run| run.end).max().unwrap_or(0)
    }

    /// Inodes in use in a group when all up to `last` are.
    pub(super) fn used_inodes(&self, group: u32, last: u32) -> u32 {
        last.saturating_sub(group * self.inodes_per_group).min(self.inodes_per_group)
    }

    /// The superblock and the descriptors, all copies, and the structures of all groups.
    pub(super) fn structures(&self) -> Vec<Range<u64>> {
        self.heads().chain(self.group_structures()).collect()
    }

    /// The bitmaps and inode tables of all groups, in runs: what stands together is one.
    pub(super) fn group_structures(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut add = |start: u32, count: u32| {
            let (start, end) = (u64::from(start), u64::from(start) + u64::from(count));
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        };
        self.tables.iter().for_each(|tables| add(tables.block_bitmap, 1));
        self.tables.iter().for_each(|tables| add(tables.inode_bitmap, 1));
        self.tables.iter().for_each(|tables| add(tables.inode_table, self.table_blocks()));
        runs
    }

    /// Where the superblock and the descriptors stand, and their copies.
    pub(super) fn heads(&self) -> impl Iterator<Item = Range<u64>> {
        let length = u64::from(1 + self.descriptor_blocks);
        self.head_groups().map(move |group| {
            let start = u64::from(group) * u64::from(GROUP_BLOCKS);
            start..start + length
        })
    }

    /// The groups that begin with a superblock.
    pub(super) fn head_groups(&self) -> impl Iterator<Item = u32> {
        std::iter::once(0).chain(self.backups.into_iter().filter(|group| *group != 0))
    }

    /// Places the structures of each `together` groups at the start of the first of them: all block bitmaps, all inode bitmaps, all
    /// tables. The first of all begin at block `start`.
    fn place_tables(&mut self, groups: u32, together: u32, start: u64) {
        let heads: Vec<Range<u64>> = self.heads().collect();
        let zero = Tables { block_bitmap: 0, inode_bitmap: 0, inode_table: 0 };
        self.tables = vec![zero; groups as usize];
        let table_blocks = u64::from(self.table_blocks());
        for (number, chunk) in self.tables.chunks_mut(together as usize).enumerate() {
            let mut at = number as u64 * u64::from(together) * u64::from(GROUP_BLOCKS);
            at = at.max(start);
            let mut next = |count: u64| {
                // Heads are in order, so one pass is enough.
                for head in &heads {
                    if at < head.end && head.start < at + count {
                        at = head.end;
                    }
                }
                at += count;
                // Past the end of a disk that is too small: found by the caller.
                u32::try_from(at - count).unwrap_or(u32::MAX)
            };
            chunk.iter_mut().for_each(|tables| tables.block_bitmap = next(1));
            chunk.iter_mut().for_each(|tables| tables.inode_bitmap = next(1));
            chunk.iter_mut().for_each(|tables| tables.inode_table = next(table_blocks));
        }
    }
}

/// Inodes of each group so that there are `inodes`, in whole blocks of the table.
fn inodes_per_group(groups: u32, inodes: u64) -> Result<u32, WriteError> {
    let each = inodes.div_ceil(groups.into()).next_multiple_of(INODES_PER_BLOCK.into());
    let all = each.checked_mul(groups.into());
    if each > GROUP_BLOCKS.into() || all.is_none_or(|all| all > u32::MAX.into()) {
        return Err(WriteError::TooManyNodes);
    }
    Ok(small(each))
}

/// Block bitmaps of the groups in which a block is in use.
pub(super) struct Bitmaps(BTreeMap<u32, Box<[u8; BLOCK]>>);

impl Bitmaps {
    /// Marks blocks in use.
    pub(super) fn new(used: impl Iterator<Item = Range<u64>>) -> Self {
        let mut bitmaps = Self(BTreeMap::new());
        used.for_each(|run| bitmaps.mark(run));
        bitmaps
    }

    /// Marks a run, which may lie in several groups.
    pub(super) fn mark(&mut self, mut run: Range<u64>) {
        while !run.is_empty() {
            let group = small(run.start / u64::from(GROUP_BLOCKS));
            let first = small(run.start % u64::from(GROUP_BLOCKS));
            let count = small((run.end - run.start).min(u64::from(GROUP_BLOCKS - first)));
            set_bits(self.0.entry(group).or_insert_with(|| Box::new([0; BLOCK])), first, count);
            run.start += u64::from(count);
        }
    }

    /// The bitmap of a group, if a block is in use there.
    pub(super) fn group(&self, group: u32) -> Option<&[u8; BLOCK]> {
        self.0.get(&group).map(|bitmap| &**bitmap)
    }
}

/// Sets `count` bits from `first` on.
fn set_bits(bitmap: &mut [u8; BLOCK], first: u32, count: u32) {
    let (mut at, end) = (first, first + count);
    while at < end {
        if at % 8 == 0 && end - at >= 8 {
            let bytes = ((end - at) / 8) as usize;
            bitmap[at as usize / 8..][..bytes].fill(0xff);
            at += small(bytes as u64) * 8;
        } else {
            bitmap[at as usize / 8] |= 1 << (at % 8);
            at += 1;
        }
    }
}

fn count_bits(bitmap: &[u8; BLOCK]) -> u32 {
    let (words, _) = bitmap.as_chunks();
    words.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum()
}

/// What is to be written for a group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) descriptor: [u8; DESCRIPTOR],
    /// Where it differs from what a reader makes up for it.
    pub(super) block_bitmap: Option<Box<[u8; BLOCK]>>,
    pub(super) inode_bitmap: Option<Box<[u8; BLOCK]>>,
    pub(super) free_blocks: u32,
}

/// What is counted in a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Inodes in use: the first ones.
    pub(super) inodes: u32,
    pub(super) directories: u32,
}

impl Group {
    /// `lazy` leaves bitmaps out where nothing is in use.
    pub(super) fn new(
        geometry: &Geometry,
        number: u32,
        used: &Bitmaps,
        counts: Counts,
        (seed, lazy): (Seed, bool),
    ) -> Self {
        let tables = geometry.tables[number as usize];
        let blocks = geometry.group_blocks(number);
        let mut descriptor = [0; DESCRIPTOR];
        put32(&mut descriptor, group::BLOCK_BITMAP, tables.block_bitmap);
        put32(&mut descriptor, group::INODE_BITMAP, tables.inode_bitmap);
        put32(&mut descriptor, group::INODE_TABLE, tables.inode_table);
        let mut flags = group::INODE_ZEROED;
        let head = geometry.head_groups().any(|head| head == number);
        let head_blocks = if head { 1 + geometry.descriptor_blocks } else { 0 };
        // The last group has an end that is not in every reader's mind.
        let is_last = number + 1 == geometry.groups();
        let (block_bitmap, used_blocks) = match used.group(number) {
            None if lazy && !is_last => {
                flags |= group::BLOCK_UNINIT;
                (None, head_blocks)
            }
            used => {
                let mut bitmap = Box::new(used.copied().unwrap_or([0; BLOCK]));
                set_bits(&mut bitmap, 0, head_blocks);
                let used_blocks = count_bits(&bitmap);
                set_bits(&mut bitmap, blocks, GROUP_BLOCKS - blocks);
                let sum = checksum::of_bitmap(seed, &bitmap[..], GROUP_BLOCKS);
                put16(&mut descriptor, group::BLOCK_BITMAP_CHECKSUM, sum);
                (Some(bitmap), used_blocks)
            }
        };
        let free_blocks = blocks - used_blocks;
        let inode_bitmap = if lazy && counts.inodes == 0 {
            flags |= group::INODE_UNINIT;
            None
        } else {
            let mut bitmap = Box::new([0; BLOCK]);
            set_bits(&mut bitmap, 0, counts.inodes);
            let inodes = geometry.inodes_per_group;
            set_bits(&mut bitmap, inodes, GROUP_BLOCKS - inodes);
            let sum = checksum::of_bitmap(seed, &bitmap[..], inodes);
            put16(&mut descriptor, group::INODE_BITMAP_CHECKSUM, sum);
            Some(bitmap)
        };
        let free_inodes = low16(geometry.inodes_per_group - counts.inodes);
        put16(&mut descriptor, group::FREE_BLOCKS, low16(free_blocks));
        put16(&mut descriptor, group::FREE_INODES, free_inodes);
        put16(&mut descriptor, group::DIRECTORIES, low16(counts.directories));
        put16(&mut descriptor, group::FLAGS, flags);
        put16(&mut descriptor, group::UNUSED_INODES, free_inodes);
        let sum = checksum::of_group(seed, number, &descriptor);
        put16(&mut descriptor, group::CHECKSUM, sum);
        Self { descriptor, block_bitmap, inode_bitmap, free_blocks }
    }
}
