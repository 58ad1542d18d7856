//! Writing what was placed.
//!
//! Inodes, structures and data are cut into jobs that do not depend on each other. The superblock is written last: an image that
//! was not finished is not taken for one.

use std::ops::Range;

use super::demand::{Demand, Item, Subject};
use super::directory::{self, Name};
use super::groups::{Bitmaps, Counts, Group};
use super::place::{Placed, Spot};
use super::{
    Options, Output, Profile, Summary, WriteError, extents, inode as inodes, path_of, superblock,
    threads,
};
use crate::bytes::{put32, size, small};
use crate::checksum::{self, Seed};
use crate::format::{BLOCK, INODE, INODES_PER_BLOCK, SUPERBLOCK, inode, number, xattr as on_disk};
use crate::tree::{Contents, FileData, Kind, Node, NodeId, Tree};
use crate::xattr;

/// Inodes that are made at a time: 256 KiB.
const INODES_AT_ONCE: u32 = 1024;
/// Items whose structures are made at a time.
const ITEMS_AT_ONCE: usize = 64;
/// Blocks of data that are read and written at a time: 1 MiB.
const BLOCKS_AT_ONCE: u32 = 256;

/// Writes the image.
pub(super) fn emit(
    placed: &Placed,
    demand: &Demand<'_>,
    contents: &dyn Contents,
    output: &dyn Output,
    options: &Options,
) -> Result<Summary, WriteError> {
    let seed = Seed::of_uuid(&options.identity.uuid);
    let emitter = Emitter { placed, demand, contents, output, options, seed };
    let size_bytes = match options.profile {
        Profile::Base | Profile::Around(_) => placed.geometry.blocks * BLOCK as u64,
        Profile::ReadWrite { size_bytes, .. } => size_bytes / BLOCK as u64 * BLOCK as u64,
    };
    let is_written = matches!(options.profile, Profile::Around(laid) if laid.is_written);
    let made = if is_written { output.extend(size_bytes) } else { output.reset(size_bytes) };
    made.map_err(|source| WriteError::Output { offset: 0, source })?;
    let pieces = emitter.pieces(is_written);
    let jobs = emitter.jobs(&pieces);
    threads::each(options.threads, jobs.len(), Vec::new, |buffer, at| match &jobs[at] {
        Job::Inodes { group, first, count } => emitter.inodes(buffer, *group, *first, *count),
        Job::Structures(items) => emitter.structures(buffer, items.clone()),
        Job::Data(range) => emitter.data(buffer, &pieces[range.clone()]),
    })?;
    let metadata_blocks = emitter.groups()?;
    Ok(Summary {
        size_bytes,
        inodes: small(demand.items.len() as u64),
        data_bytes: emitter.data_blocks() * BLOCK as u64,
        metadata_bytes: metadata_blocks * BLOCK as u64,
    })
}

enum Job {
    /// Inodes of a group, by their place in it.
    Inodes { group: u32, first: u32, count: u32 },
    /// Structures of items, by their place.
    Structures(Range<usize>),
    /// Pieces that follow each other in the image.
    Data(Range<usize>),
}

/// A run of a file's blocks that is written at once.
struct Piece {
    physical: u32,
    count: u32,
    logical: u32,
    node: NodeId,
}

struct Emitter<'a> {
    placed: &'a Placed,
    demand: &'a Demand<'a>,
    contents: &'a dyn Contents,
    output: &'a dyn Output,
    options: &'a Options,
    seed: Seed,
}

impl<'a> Emitter<'a> {
    /// Blocks of files' data.
    fn data_blocks(&self) -> u64 {
        let items = self.demand.items.iter().zip(&self.placed.spots);
        let files = items
            .filter(|(item, _)| !item.is_structure && matches!(item.subject, Subject::Node(_)));
        let extents = files.flat_map(|(_, spot)| self.placed.extents_of(spot));
        extents.map(|run| u64::from(run.length)).sum()
    }

    /// The data of all files in the order of the image, without what is written already.
    fn pieces(&self, is_written: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (item, spot) in self.demand.items.iter().zip(&self.placed.spots) {
            let (false, Subject::Node(node)) = (item.is_structure, item.subject) else { continue };
            if is_written && spot.is_kept {
                continue;
            }
            for run in self.placed.extents_of(spot) {
                for done in (0..run.length).step_by(BLOCKS_AT_ONCE as usize) {
                    let count = (run.length - done).min(BLOCKS_AT_ONCE);
                    let (physical, logical) = (run.physical + done, run.logical + done);
                    pieces.push(Piece { physical, count, logical, node });
                }
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.physical);
        pieces
    }

    fn jobs(&self, pieces: &[Piece]) -> Vec<Job> {
        let mut jobs = Vec::new();
        let geometry = &self.placed.geometry;
        for group in 0..geometry.groups() {
            let used = geometry.used_inodes(group, self.demand.last_number());
            for first in (0..used).step_by(INODES_AT_ONCE as usize) {
                let count = (used - first).min(INODES_AT_ONCE);
                jobs.push(Job::Inodes { group, first, count });
            }
        }
        let items = self.demand.items.len();
        for first in (0..items).step_by(ITEMS_AT_ONCE) {
            jobs.push(Job::Structures(first..(first + ITEMS_AT_ONCE).min(items)));
        }
        let (mut first, mut count) = (0, 0);
        for (at, piece) in pieces.iter().enumerate() {
            let follows = at > 0 && {
                let last = &pieces[at - 1];
                last.physical + last.count == piece.physical
            };
            if at > first && (!follows || count + piece.count > BLOCKS_AT_ONCE) {
                jobs.push(Job::Data(first..at));
                (first, count) = (at, 0);
            }
            count += piece.count;
        }
        if first < pieces.len() {
            jobs.push(Job::Data(first..pieces.len()));
        }
        jobs
    }

    fn data(&self, buffer: &mut Vec<u8>, pieces: &[Piece]) -> Result<(), WriteError> {
        let blocks: usize = pieces.iter().map(|piece| piece.count as usize).sum();
        buffer.clear();
        buffer.resize(blocks * BLOCK, 0);
        let mut filled = 0;
        for piece in pieces {
            let place = &mut buffer[filled..][..piece.count as usize * BLOCK];
            let offset = u64::from(piece.logical) * BLOCK as u64;
            self.file(piece.node).read_at(self.contents, offset, place).map_err(|source| {
                WriteError::Contents { path: path_of(self.demand.tree, piece.node), source }
            })?;
            filled += place.len();
        }
        let first = pieces.first().map_or(0, |piece| piece.physical);
        self.put(buffer, first)
    }

    fn file(&self, node: NodeId) -> &FileData {
        match self.node(node).kind() {
            Kind::File(data) => data,
            _ => unreachable!("only files have data"),
        }
    }

    fn node(&self, node: NodeId) -> &'a Node {
        self.demand.tree.find(node).expect("an item's node is in the tree")
    }

    fn put(&self, bytes: &[u8], block: u32) -> Result<(), WriteError> {
        let offset = u64::from(block) * BLOCK as u64;
        let written = self.output.write_at(bytes, offset);
        written.map_err(|source| WriteError::Output { offset, source })
    }

    fn inodes(
        &self,
        buffer: &mut Vec<u8>,
        group: u32,
        first: u32,
        count: u32,
    ) -> Result<(), WriteError> {
        let geometry = &self.placed.geometry;
        buffer.clear();
        buffer.resize((count as usize * INODE).next_multiple_of(BLOCK), 0);
        let lowest = group * geometry.inodes_per_group + first + 1;
        let items = &self.demand.items;
        let from = items.partition_point(|item| item.number < lowest);
        for (item, spot) in items.iter().zip(&self.placed.spots).skip(from) {
            let Some(place) = item.number.checked_sub(lowest).filter(|place| *place < count) else {
                break;
            };
            let bytes = self.inode(item, spot);
            buffer[place as usize * INODE..][..INODE].copy_from_slice(&bytes);
        }
        let table = geometry.tables[group as usize].inode_table;
        self.put(buffer, table + first / INODES_PER_BLOCK)
    }

    fn inode(&self, item: &Item, spot: &Spot) -> [u8; INODE] {
        let metadata = item.metadata(self.demand.tree);
        let extents = self.placed.extents_of(spot);
        let seed = self.seed.of_inode(item.number, 0);
        let mapped: u64 = extents.iter().map(|run| u64::from(run.length)).sum();
        let blocks = mapped + spot.tree.len() as u64 + u64::from(spot.xattr_block != 0);
        let (mut map, _) = extents::tree(extents, spot.tree.start, seed);
        let mut flags = inode::FLAG_EXTENTS;
        let kind = match item.subject {
            Subject::Node(id) => self.node(id).kind(),
            Subject::LostFound => &Kind::Directory,
            Subject::Journal(_) => &Kind::File(FileData::empty()),
        };
        let mut links = 1;
        let mut bytes = mapped * BLOCK as u64;
        match (item.subject, kind) {
            (Subject::Node(id), Kind::File(data)) => {
                links = crate::bytes::low16(self.node(id).names());
                bytes = data.size();
            }
            (_, Kind::File(_)) => {}
            (subject, Kind::Directory) => {
                links = inodes::directory_links(self.directories(subject));
                if directory::is_indexed(small(mapped)) {
                    flags |= inode::FLAG_INDEX;
                }
            }
            (subject, other) => {
                if let Subject::Node(id) = subject {
                    links = crate::bytes::low16(self.node(id).names());
                }
                match other {
                    Kind::Symlink(target) => {
                        bytes = target.len() as u64;
                        if let Some(short) = inodes::target_map(target) {
                            (map, flags) = (short, 0);
                        }
                    }
                    Kind::CharDevice(device) | Kind::BlockDevice(device) => {
                        (map, flags) = (inodes::device_map(*device), 0);
                    }
                    _ => (map, flags) = ([0; inode::MAP_LENGTH], 0),
                }
            }
        }
        let fields = inodes::Fields {
            mode: inodes::types(kind).0 | (metadata.mode & 0o7777),
            links,
            size: bytes,
            blocks,
            flags,
            xattr_block: spot.xattr_block,
            map: &map,
        };
        let mut bytes = inodes::bytes(&fields, &metadata);
        self.xattrs(&metadata.xattrs).put_inode(&mut bytes);
        checksum::seal_inode(seed, &mut bytes);
        bytes
    }

    /// Directories in a directory.
    fn directories(&self, directory: Subject) -> u32 {
        match directory {
            Subject::Node(id) => {
                let added = id == Tree::ROOT && self.demand.adds_lost_found;
                self.node(id).directories() + u32::from(added)
            }
            _ => 0,
        }
    }

    fn xattrs(&self, xattrs: &crate::tree::Xattrs) -> xattr::Layout {
        xattr::Layout::new(xattrs).expect("checked when the tree was counted")
    }

    fn structures(&self, buffer: &mut Vec<u8>, items: Range<usize>) -> Result<(), WriteError> {
        buffer.clear();
        let mut gather = Gather { emitter: self, buffer, first: 0 };
        for at in items {
            let (item, spot) = (&self.demand.items[at], &self.placed.spots[at]);
            let seed = self.seed.of_inode(item.number, 0);
            let extents = self.placed.extents_of(spot);
            if item.is_structure && !extents.is_empty() {
                let bytes = self.structure(item, seed);
                for run in extents {
                    let from = run.logical as usize * BLOCK;
                    gather.add(run.physical, &bytes[from..][..run.length as usize * BLOCK])?;
                }
            }
            if !spot.tree.is_empty() {
                let (_, blocks) = extents::tree(extents, spot.tree.start, seed);
                for (block, bytes) in spot.tree.clone().zip(&blocks) {
                    gather.add(block, bytes)?;
                }
            }
            if spot.xattr_block != 0 {
                let layout = self.xattrs(&item.metadata(self.demand.tree).xattrs);
                let mut block = layout.block();
                let sum = checksum::of_xattr_block(self.seed, spot.xattr_block.into(), &block);
                put32(&mut block, on_disk::BLOCK_CHECKSUM, sum);
                gather.add(spot.xattr_block, &block)?;
            }
        }
        gather.flush()
    }

    /// The blocks of a directory, or of a long target.
    fn structure(&self, item: &Item, seed: Seed) -> Vec<u8> {
        let node = match item.subject {
            Subject::Node(id) => Some((id, self.node(id))),
            _ => None,
        };
        if let Some((_, node)) = node
            && let Kind::Symlink(target) = node.kind()
        {
            let mut block = target.clone();
            block.resize(BLOCK, 0);
            return block;
        }
        let tree = self.demand.tree;
        let parent = node.and_then(|(id, _)| tree.parent(id)).unwrap_or(Tree::ROOT);
        let name = |(name, child): (&'a [u8], Option<NodeId>)| match child {
            Some(child) => {
                let kind = inodes::types(self.node(child).kind()).1;
                Name { name, number: self.demand.number(child), kind }
            }
            None => Name { name, number: number::FIRST, kind: directory::DIRECTORY },
        };
        let names: Vec<Name<'_>> =
            node.map_or_else(Vec::new, |(id, _)| self.demand.children(id).map(name).collect());
        let numbers = (item.number, self.demand.number(parent));
        directory::build(&names, numbers, &self.options.identity.hash_seed, seed)
    }

    /// Writes bitmaps, descriptors, the journal's superblock and the superblocks. Answers how many blocks hold structures.
    fn groups(&self) -> Result<u64, WriteError> {
        let geometry = &self.placed.geometry;
        let lazy = matches!(self.options.profile, Profile::ReadWrite { .. });
        let tables = geometry.group_structures();
        let used = Bitmaps::new(std::iter::once(0..1).chain(tables).chain(self.placed.used()));
        let directories = self.directories_by_group();
        let mut descriptors = Vec::new();
        let (mut free_blocks, mut written) = (0, 0);
        for group in 0..geometry.groups() {
            let inodes = geometry.used_inodes(group, self.demand.last_number());
            let counts = Counts { inodes, directories: directories[group as usize] };
            let made = Group::new(geometry, group, &used, counts, (self.seed, lazy));
            descriptors.extend_from_slice(&made.descriptor);
            free_blocks += u64::from(made.free_blocks);
            let tables = geometry.tables[group as usize];
            for (bitmap, block) in [
                (&made.block_bitmap, tables.block_bitmap),
                (&made.inode_bitmap, tables.inode_bitmap),
            ] {
                if let Some(bitmap) = bitmap {
                    self.put(&bitmap[..], block)?;
                    written += 1;
                }
            }
            written += u64::from(inodes.div_ceil(INODES_PER_BLOCK));
        }
        descriptors.resize(geometry.descriptor_blocks as usize * BLOCK, 0);
        let fields = superblock::Fields {
            profile: self.options.profile,
            identity: &self.options.identity,
            free_blocks,
            free_inodes: geometry.inodes() - self.demand.last_number(),
            large_directory: self.demand.index_levels > 1,
            journal: self.journal()?,
        };
        written += u64::from(fields.journal.is_some());
        let heads: Vec<_> = geometry.heads().zip(geometry.head_groups()).collect();
        for (run, group) in heads.into_iter().rev() {
            let mut head = vec![0; BLOCK];
            let start = if group == 0 { SUPERBLOCK } else { 0 };
            head[start..start + SUPERBLOCK]
                .copy_from_slice(&superblock::superblock(&fields, geometry, group));
            head.extend_from_slice(&descriptors);
            self.put(&head, small(run.start))?;
            written += run.end - run.start;
        }
        let items = self.demand.items.iter().zip(&self.placed.spots);
        let structures = items.map(|(item, spot)| {
            let own = if item.is_structure { self.demand.blocks(item) } else { 0 };
            own + spot.tree.len() as u64 + u64::from(spot.xattr_block != 0)
        });
        Ok(written + structures.sum::<u64>())
    }

    fn directories_by_group(&self) -> Vec<u32> {
        let geometry = &self.placed.geometry;
        let mut counts = vec![0; size(u64::from(geometry.groups()))];
        for item in &self.demand.items {
            let is_directory = match item.subject {
                Subject::Node(id) => self.node(id).is_directory(),
                Subject::LostFound => true,
                Subject::Journal(_) => false,
            };
            let group = (item.number - 1) / geometry.inodes_per_group;
            counts[group as usize] += u32::from(is_directory);
        }
        counts
    }

    /// Writes the journal's superblock, if there is a journal: its map and size.
    fn journal(&self) -> Result<Option<([u8; inode::MAP_LENGTH], u64)>, WriteError> {
        let items = self.demand.items.iter().zip(&self.placed.spots);
        for (item, spot) in items {
            if let Subject::Journal(blocks) = item.subject {
                let extents = self.placed.extents_of(spot);
                let first = extents.first().map_or(0, |run| run.physical);
                self.put(&superblock::journal(blocks), first)?;
                let seed = self.seed.of_inode(item.number, 0);
                let (map, _) = extents::tree(extents, spot.tree.start, seed);
                return Ok(Some((map, u64::from(blocks) * BLOCK as u64)));
            }
        }
        Ok(None)
    }
}

/// Puts blocks that follow each other into one write.
struct Gather<'a> {
    emitter: &'a Emitter<'a>,
    buffer: &'a mut Vec<u8>,
    first: u32,
}

impl Gather<'_> {
    fn add(&mut self, block: u32, bytes: &[u8]) -> Result<(), WriteError> {
        let next = u64::from(self.first) + (self.buffer.len() / BLOCK) as u64;
        if next != u64::from(block) || self.buffer.len() >= BLOCKS_AT_ONCE as usize * BLOCK {
            self.flush()?;
            self.first = block;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        if !self.buffer.is_empty() {
            self.emitter.put(self.buffer, self.first)?;
            self.buffer.clear();
        }
        Ok(())
    }
}
