//! The checker: everything that an image says twice is compared, and every checksum is derived anew.
//!
//! What it found clean, the reader reads without surprises: every block belongs to one owner, every name leads to an inode in use,
//! every directory hangs below the root. It does not repair, and stops after [`FAULTS_MAX`] faults.

mod blocks;
mod slack;

use std::collections::BTreeMap;

use self::blocks::Blocks;
use crate::bytes::get32;
use crate::checksum;
use crate::format::{BLOCK, FILE_MAX, GROUP_BLOCKS, LINKS_MAX, SUPERBLOCK, group, inode, number};
use crate::read::{Fault, Image, Inode, InodeCache, Input, Map, ReadError};
use crate::tree::is_zero;

/// How many faults are enough.
pub const FAULTS_MAX: usize = 100;

/// Inodes that are read at once: 64 KiB.
const INODES_AHEAD: u32 = 256;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    faults: Vec<Fault>,
    /// Directories in use.
    pub directories: u32,
    /// Regular files in use.
    pub files: u32,
    /// Everything else in use.
    pub others: u32,
    /// Blocks in use.
    pub blocks: u64,
}

impl Report {
    /// What is wrong, in the order of the image's parts: nothing when it is clean. At most [`FAULTS_MAX`].
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }
}

impl<I: Input> Image<I> {
    /// Checks all structures. Bytes of files are not read, but for what lies behind their ends in base images. Fails when the image
    /// cannot be read; that something is wrong with it is in the report.
    pub fn check(&self) -> Result<Report, ReadError> {
        let mut check = Check {
            image: self,
            report: Report::default(),
            blocks: Blocks::default(),
            seen: BTreeMap::new(),
            inodes: InodeCache::default(),
        };
        match check.run() {
            Ok(()) | Err(Stop::Enough) => Ok(check.report),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

/// Why a check ends early.
enum Stop {
    Enough,
    Failed(ReadError),
}

/// What is known of an inode.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Type as directories say it; 0 when the inode is not in use or damaged.
    kind: u8,
    links: u16,
    /// What `..` of a directory says.
    parent: u32,
    indexed: bool,
    /// Directories that a directory names.
    directories: u32,
    /// How many names lead to it.
    names: u32,
    /// The last directory that names it, and as what.
    named_by: u32,
    named_as: u8,
}

struct Check<'a, I> {
    image: &'a Image<I>,
    report: Report,
    blocks: Blocks,
    seen: BTreeMap<u32, Seen>,
    inodes: InodeCache,
}

impl<I: Input> Check<'_, I> {
    fn run(&mut self) -> Result<(), Stop> {
        self.heads()?;
        let in_use = self.inodes_in_use()?;
        for number in &in_use {
            self.one(*number)?;
        }
        self.journal()?;
        self.names()?;
        self.connected()?;
        self.shared()?;
        self.groups()?;
        self.slack(&in_use)
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Stop> {
        self.report.faults.push(fault);
        if self.report.faults.len() >= FAULTS_MAX { Err(Stop::Enough) } else { Ok(()) }
    }

    /// None when what was read has a fault, which is noted.
    fn noted<T>(&mut self, result: Result<T, ReadError>) -> Result<Option<T>, Stop> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ReadError::Fault(fault)) => self.fault(fault).map(|()| None),
            Err(error) => Err(Stop::Failed(error)),
        }
    }

    fn read<T>(result: Result<T, ReadError>) -> Result<T, Stop> {
        result.map_err(Stop::Failed)
    }

    /// Takes the blocks of the groups' structures, and looks at the copies of the superblock.
    fn heads(&mut self) -> Result<(), Stop> {
        let shape = self.image.shape();
        for group in 0..shape.groups {
            let start = u64::from(group) * u64::from(GROUP_BLOCKS);
            let head = u64::from(shape.head_blocks(group));
            let descriptor = shape.descriptors[group as usize];
            let table = u64::from(shape.table_blocks());
            if start + head > shape.blocks {
                self.fault(Fault::group(group, "it has no room for its copy"))?;
                continue;
            }
            for (first, count) in [
                (start, head),
                (descriptor.block_bitmap, 1),
                (descriptor.inode_bitmap, 1),
                (descriptor.inode_table, table),
            ] {
                if !self.blocks.claim(first, count) {
                    self.fault(Fault::group(group, "its structures lie on others"))?;
                }
            }
            if group > 0 && head > 0 {
                let block = Self::read(self.image.block(start))?;
                let copy = block.first_chunk::<SUPERBLOCK>().expect("a block is longer");
                let sum = get32(copy, crate::format::superblock::CHECKSUM);
                if self.image.differ(checksum::of_superblock(copy), sum) {
                    self.fault(Fault::group(group, "checksum of its superblock does not match"))?;
                }
            }
        }
        Ok(())
    }

    /// The inodes that the bitmaps say are in use, with the bitmaps checked.
    fn inodes_in_use(&mut self) -> Result<Vec<u32>, Stop> {
        let shape = self.image.shape();
        let mut in_use = Vec::new();
        for group in 0..shape.groups {
            let descriptor = shape.descriptors[group as usize];
            let first = group * shape.inodes_per_group + 1;
            let before = in_use.len();
            if descriptor.flags & group::INODE_UNINIT == 0 {
                let bitmap = Self::read(self.image.block(descriptor.inode_bitmap))?;
                let sum = checksum::of_bitmap(shape.seed, &bitmap, shape.inodes_per_group);
                if self.image.differ(sum, descriptor.inode_bitmap_checksum) {
                    let what = "checksum of the inode bitmap does not match";
                    self.fault(Fault::group(group, what))?;
                    continue;
                }
                let (bits, rest) = bitmap.split_at(shape.inodes_per_group as usize / 8);
                if rest.iter().any(|byte| *byte != 0xff) {
                    self.fault(Fault::group(group, "inodes past the end are free"))?;
                }
                let is_set = |index: &u32| bits[*index as usize / 8] >> (index % 8) & 1 == 1;
                in_use.extend((0..shape.inodes_per_group).filter(is_set).map(|at| first + at));
            } else if group == 0 {
                self.fault(Fault::group(group, "its inodes are said to be unused"))?;
            }
            let used = &in_use[before..];
            let free = shape.inodes_per_group - u32::try_from(used.len()).unwrap_or(u32::MAX);
            let end = first + (shape.inodes_per_group - descriptor.unused_inodes);
            if used.last().is_some_and(|last| *last >= end) {
                self.fault(Fault::group(group, "an inode is in use that never was"))?;
            }
            if free != descriptor.free_inodes {
                self.fault(Fault::group(group, "free inodes are counted wrong"))?;
            }
        }
        let used = u32::try_from(in_use.len()).unwrap_or(u32::MAX);
        if shape.inodes().checked_sub(used) != Some(shape.free_inodes) {
            self.fault(Fault::superblock("free inodes are counted wrong"))?;
        }
        if !in_use.starts_with(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) {
            self.fault(Fault::superblock("a reserved inode is free"))?;
        }
        Ok(in_use)
    }

    /// Checks an inode in use by itself, and takes its blocks.
    fn one(&mut self, number: u32) -> Result<(), Stop> {
        let has_journal = self.image.shape().has_journal;
        if number < number::FIRST
            && number != number::ROOT
            && !(number == number::JOURNAL && has_journal)
        {
            return Ok(());
        }
        let read = self.image.inode_among(number, INODES_AHEAD, &mut self.inodes);
        let Some(inode) = self.noted(read)? else { return Ok(()) };
        let mut seen = Seen { kind: kind_of(&inode), links: inode.links, ..Seen::default() };
        // What is not an inode's own is not read as its names: no block is read for two of them.
        let Some(blocks) = self.blocks_of(&inode)? else { return Ok(()) };
        if blocks != inode.blocks {
            self.fault(Fault::inode(number, "its blocks are counted wrong"))?;
        }
        match inode.mode & inode::TYPE {
            inode::DIRECTORY => {
                self.report.directories += 1;
                let listing = self.image.listing(&inode);
                let Some(listing) = self.noted(listing)? else { return Ok(()) };
                seen.parent = listing.parent;
                seen.indexed = inode.flags & inode::FLAG_INDEX != 0;
                for leaf in listing.leaves {
                    let child = self.seen.entry(leaf.number).or_default();
                    child.names = child.names.saturating_add(1);
                    child.named_by = number;
                    child.named_as = leaf.kind;
                    seen.directories += u32::from(leaf.kind == 2);
                }
            }
            inode::FILE => self.report.files += u32::from(number >= number::FIRST),
            _ => self.report.others += 1,
        }
        if inode.is(inode::SYMLINK) {
            let target = self.image.target(&inode);
            self.noted(target)?;
        }
        let known = self.seen.entry(number).or_default();
        let Seen { names, named_by, named_as, .. } = *known;
        *known = Seen { names, named_by, named_as, ..seen };
        Ok(())
    }

    /// Takes the blocks of an inode, and answers how many they are. None when they have a fault.
    fn blocks_of(&mut self, inode: &Inode) -> Result<Option<u64>, Stop> {
        let mut count = 0;
        let attributes = self.image.xattrs(inode);
        if let Some((_, shared)) = self.noted(attributes)?
            && inode.xattr_block != 0
        {
            count += 1;
            if !self.blocks.claim_shared(inode.xattr_block, shared) {
                self.fault(Fault::block(inode.xattr_block, "belongs to several owners"))?;
            }
        }
        if !inode.has_extents() {
            let mapped = inode.is(inode::FILE) || inode.is(inode::DIRECTORY);
            if mapped {
                let what = "its blocks are not mapped by extents";
                self.fault(Fault::inode(inode.number, what))?;
            }
            return Ok((!mapped).then_some(count));
        }
        let map = self.image.map(inode);
        let Some(map) = self.noted(map)? else { return Ok(None) };
        let runs = map.runs.iter().map(|run| (run.physical, run.length));
        for (first, length) in runs.chain(map.tree.iter().map(|block| (*block, 1))) {
            if !self.blocks.claim(first, length) {
                self.fault(Fault::inode(inode.number, "its blocks belong to several owners"))?;
                return Ok(None);
            }
            count += length;
        }
        if inode.is(inode::FILE) {
            self.end_of(inode, &map)?;
        }
        Ok(Some(count))
    }

    /// Checks what lies behind the end of a file.
    fn end_of(&mut self, inode: &Inode, map: &Map) -> Result<(), Stop> {
        if inode.size > FILE_MAX {
            return self.fault(Fault::inode(inode.number, "it is longer than a file can be"));
        }
        let Some(last) = map.runs.iter().rfind(|run| run.written) else { return Ok(()) };
        let end = inode.size.next_multiple_of(BLOCK as u64);
        if last.end_bytes() > end {
            return self.fault(Fault::inode(inode.number, "it has data past its end"));
        }
        let used = usize::try_from(inode.size % BLOCK as u64).expect("less than a block");
        if used == 0 || last.end_bytes() < end || !self.image.is_base() {
            return Ok(());
        }
        let block = Self::read(self.image.block(last.physical + last.length - 1))?;
        if !is_zero(&block[used..]) {
            return self.fault(Fault::inode(inode.number, "it has bytes past its end"));
        }
        Ok(())
    }

    /// Checks that there is nothing in the journal.
    fn journal(&mut self) -> Result<(), Stop> {
        if !self.image.shape().has_journal {
            return Ok(());
        }
        let inode = self.image.inode(number::JOURNAL);
        let map = inode.and_then(|inode| self.image.map(&inode));
        let Ok(map) = map else { return Ok(()) };
        let first = map.runs.first().filter(|run| run.logical == 0 && run.written);
        let Some(first) = first else {
            return self.fault(Fault::inode(number::JOURNAL, "the journal has no blocks"));
        };
        let block = Self::read(self.image.block(first.physical))?;
        let word = |at| get32(&block, at).swap_bytes();
        let blocks: u64 = map.runs.iter().map(|run| run.length).sum();
        if word(0) != 0xc03b_3998 || word(4) != 4 || u64::from(word(0x10)) != blocks {
            let what = "the journal has a wrong superblock";
            return self.fault(Fault::inode(number::JOURNAL, what));
        }
        if word(0x1c) != 0 {
            return self.fault(Fault::inode(number::JOURNAL, "the journal is not empty"));
        }
        Ok(())
    }

    /// Compares names with what they lead to.
    fn names(&mut self) -> Result<(), Stop> {
        let all = std::mem::take(&mut self.seen);
        for (number, seen) in &all {
            let (number, seen) = (*number, *seen);
            let wrong = |what| Fault::inode(number, what);
            let is_root = number == number::ROOT;
            let is_directory = seen.kind == 2;
            if number == number::JOURNAL && self.image.shape().has_journal && seen.names == 0 {
                continue;
            }
            if seen.kind == 0 {
                self.fault(wrong("a name leads to it, but it is not in use"))?;
            } else if seen.names == 0 && !is_root {
                self.fault(wrong("it is in use, but has no name"))?;
            } else if !is_root && seen.named_as != seen.kind {
                self.fault(wrong("its name says another type"))?;
            } else if is_directory && seen.names != u32::from(!is_root) {
                self.fault(wrong("a directory has several names"))?;
            } else if is_directory && seen.parent != if is_root { number } else { seen.named_by } {
                self.fault(wrong("its parent is another directory"))?;
            }
            let links = if is_directory { seen.directories.saturating_add(2) } else { seen.names };
            let uncounted = is_directory && seen.indexed && seen.links == 1;
            if u32::from(seen.links) != links && !(uncounted || links > LINKS_MAX) {
                self.fault(wrong("its links are counted wrong"))?;
            }
        }
        self.seen = all;
        if self.seen.get(&number::ROOT).is_none_or(|root| root.kind != 2) {
            self.fault(Fault::inode(number::ROOT, "there is no root directory"))?;
        }
        Ok(())
    }

    /// Checks that every directory hangs below the root.
    fn connected(&mut self) -> Result<(), Stop> {
        let parents: BTreeMap<u32, u32> = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.kind == 2)
            .map(|(number, seen)| (*number, seen.named_by))
            .collect();
        // What is known to hang below the root, or not to.
        let mut known = BTreeMap::from([(number::ROOT, true)]);
        for start in parents.keys() {
            let mut path = Vec::new();
            let mut at = *start;
            let result = loop {
                if let Some(result) = known.get(&at) {
                    break *result;
                }
                // Until the end of the path is known, whoever comes here again goes in a circle.
                known.insert(at, false);
                path.push(at);
                match parents.get(&at) {
                    Some(parent) => at = *parent,
                    None => break false,
                }
            };
            known.extend(path.into_iter().map(|number| (number, result)));
            if !result {
                self.fault(Fault::inode(*start, "the directory does not hang below the root"))?;
            }
        }
        Ok(())
    }

    /// Compares how many inodes share a block of extended attributes with what it says.
    fn shared(&mut self) -> Result<(), Stop> {
        for block in self.blocks.wrongly_shared() {
            self.fault(Fault::block(block, "is shared by another number of inodes than it says"))?;
        }
        Ok(())
    }

    /// Compares what is in use with the bitmaps and the counts of the groups.
    fn groups(&mut self) -> Result<(), Stop> {
        let shape = self.image.shape();
        let mut directories: BTreeMap<u32, u32> = BTreeMap::new();
        for (number, seen) in &self.seen {
            let group = (number - 1) / shape.inodes_per_group;
            *directories.entry(group).or_default() += u32::from(seen.kind == 2);
        }
        let mut free_blocks = 0;
        for group in 0..shape.groups {
            let descriptor = shape.descriptors[group as usize];
            if directories.get(&group).copied().unwrap_or(0) != descriptor.directories {
                self.fault(Fault::group(group, "directories are counted wrong"))?;
            }
            let blocks = shape.group_blocks(group);
            let mut in_use = self.blocks.group(group);
            let used: u32 = in_use.iter().map(|byte| byte.count_ones()).sum();
            self.report.blocks += u64::from(used);
            free_blocks += blocks.saturating_sub(used);
            if blocks.checked_sub(used) != Some(descriptor.free_blocks) {
                self.fault(Fault::group(group, "free blocks are counted wrong"))?;
            }
            if descriptor.flags & group::BLOCK_UNINIT != 0 {
                let start = u64::from(group) * u64::from(GROUP_BLOCKS);
                let own = |first: u64, count: u32| {
                    let inside = first >= start && first - start < u64::from(blocks);
                    if inside { count } else { 0 }
                };
                let derived = shape.head_blocks(group)
                    + own(descriptor.block_bitmap, 1)
                    + own(descriptor.inode_bitmap, 1)
                    + own(descriptor.inode_table, shape.table_blocks());
                if derived != used {
                    let what = "blocks are in use in a group that is said to be unused";
                    self.fault(Fault::group(group, what))?;
                }
                continue;
            }
            let bitmap = Self::read(self.image.block(descriptor.block_bitmap))?;
            let sum = checksum::of_bitmap(shape.seed, &bitmap, GROUP_BLOCKS);
            if self.image.differ(sum, descriptor.block_bitmap_checksum) {
                let what = "checksum of the block bitmap does not match";
                self.fault(Fault::group(group, what))?;
                continue;
            }
            blocks::set(&mut in_use, blocks, GROUP_BLOCKS - blocks);
            if bitmap != *in_use {
                self.fault(Fault::group(group, "the block bitmap is not what is in use"))?;
            }
        }
        if free_blocks != shape.free_blocks {
            self.fault(Fault::superblock("free blocks are counted wrong"))?;
        }
        Ok(())
    }
}

/// The type of an inode as directories say it.
fn kind_of(inode: &Inode) -> u8 {
    match inode.mode & inode::TYPE {
        inode::FILE => 1,
        inode::DIRECTORY => 2,
        inode::CHAR_DEVICE => 3,
        inode::BLOCK_DEVICE => 4,
        inode::FIFO => 5,
        inode::SOCKET => 6,
        inode::SYMLINK => 7,
        _ => 0,
    }
}
