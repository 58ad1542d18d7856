//! Directory blocks: one block of names, or an index by hash and blocks of names below it.
//!
//! What is counted and what is built come from the same packing, so that a directory has the size that it was given.

use crate::bytes::{low16, put16, put32, small};
use crate::checksum::{self, Seed};
use crate::format::{BLOCK, DIR_TAIL, dx, superblock};
use crate::hash::half_md4;

/// Bytes for names in a block.
const ROOM: usize = BLOCK - DIR_TAIL;
/// Bytes of `.` or `..`.
const DOT: usize = 12;

/// A name of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    /// Inode number.
    pub(super) number: u32,
    /// Type as directories say it.
    pub(super) kind: u8,
}

/// What a directory takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Blocks.
    pub(super) blocks: u32,
    /// Levels of index below its root: 2 needs a feature of its own.
    pub(super) levels: u8,
}

/// How many blocks a directory with these names takes.
pub(super) fn shape<'a>(names: impl Iterator<Item = &'a [u8]> + Clone, seed: &[u32; 4]) -> Shape {
    if fits_one_block(names.clone()) {
        return Shape { blocks: 1, levels: 0 };
    }
    let leaves = leaves(&hashed(names, seed)).len();
    let nodes = index_nodes(leaves);
    let blocks = 1 + nodes.iter().sum::<usize>() + leaves;
    Shape { blocks: small(blocks as u64), levels: u8::try_from(nodes.len()).expect("a few") }
}

/// Whether a directory of so many blocks is indexed.
pub(super) const fn is_indexed(blocks: u32) -> bool {
    blocks > 1
}

/// The blocks of the directory `own` whose parent is `parent`, one after the other. `seed` is the inode's.
pub(super) fn build(
    names: &[Name<'_>],
    (own, parent): (u32, u32),
    hash_seed: &[u32; 4],
    seed: Seed,
) -> Vec<u8> {
    if fits_one_block(names.iter().map(|name| name.name)) {
        let mut block = vec![0; BLOCK];
        let dots = [
            Name { name: b".", number: own, kind: DIRECTORY },
            Name { name: b"..", number: parent, kind: DIRECTORY },
        ];
        put_names(&mut block, dots.iter().chain(names), seed);
        return block;
    }
    let hashed = hashed(names.iter().map(|name| name.name), hash_seed);
    let leaves = leaves(&hashed);
    let nodes = index_nodes(leaves.len());
    let first_leaf = 1 + nodes.iter().sum::<usize>();
    let mut blocks = vec![0; (first_leaf + leaves.len()) * BLOCK];
    let mut entries = Vec::with_capacity(leaves.len());
    let mut last = None;
    for (at, leaf) in leaves.iter().enumerate() {
        let block = &mut blocks[(first_leaf + at) * BLOCK..][..BLOCK];
        put_names(block, hashed[leaf.clone()].iter().map(|entry| &names[entry.at]), seed);
        let first = hashed[leaf.start].hash;
        // The low bit says that names with the same hash stand in the block before.
        let continued = u32::from(last == Some(first));
        entries.push((first | continued, small((first_leaf + at) as u64)));
        last = hashed[leaf.clone()].last().map(|entry| entry.hash);
    }
    // The highest level stands first, so the lowest ends where the leaves begin.
    let mut end = first_leaf;
    for count in nodes.iter().rev() {
        let first = end - count;
        entries = put_nodes(&mut blocks[first * BLOCK..end * BLOCK], first, &entries, seed);
        end = first;
    }
    let levels = u8::try_from(nodes.len()).expect("a few");
    put_root(&mut blocks[..BLOCK], (own, parent), levels, &entries, seed);
    blocks
}

/// The type of directories in directories.
pub(super) const DIRECTORY: u8 = 2;

fn record(name: &[u8]) -> usize {
    8 + name.len().next_multiple_of(4)
}

fn fits_one_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut left = ROOM - 2 * DOT;
    for name in names {
        let Some(rest) = left.checked_sub(record(name)) else { return false };
        left = rest;
    }
    true
}

/// A name in the order of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hashed {
    hash: u32,
    minor: u32,
    /// Which of the names, which are in the order of their bytes.
    at: usize,
    record: usize,
}

fn hashed<'a>(names: impl Iterator<Item = &'a [u8]>, seed: &[u32; 4]) -> Vec<Hashed> {
    let hash = |(at, name)| {
        let (hash, minor) = half_md4(seed, name);
        Hashed { hash, minor, at, record: record(name) }
    };
    let mut hashed: Vec<Hashed> = names.enumerate().map(hash).collect();
    hashed.sort_unstable();
    hashed
}

/// Which names go into which block: as many as it holds.
fn leaves(hashed: &[Hashed]) -> Vec<std::ops::Range<usize>> {
    let mut leaves = Vec::new();
    let (mut start, mut left) = (0, ROOM);
    for (at, entry) in hashed.iter().enumerate() {
        if entry.record > left {
            leaves.push(start..at);
            (start, left) = (at, ROOM);
        }
        left -= entry.record;
    }
    leaves.push(start..hashed.len());
    leaves
}

/// How many nodes the index has on each level below its root, from the root down.
fn index_nodes(leaves: usize) -> Vec<usize> {
    let mut nodes = Vec::new();
    let mut level = leaves;
    while level > dx::ROOT_LIMIT {
        level = level.div_ceil(dx::NODE_LIMIT);
        nodes.push(level);
    }
    nodes.reverse();
    nodes
}

fn put_names<'a>(block: &mut [u8], names: impl Iterator<Item = &'a Name<'a>>, seed: Seed) {
    let (mut at, mut last) = (0, 0);
    for name in names {
        put_name(&mut block[at..], name, record(name.name));
        last = at;
        at += record(name.name);
    }
    put16(block, last + 4, small16(ROOM - last));
    put16(block, ROOM + 4, small16(DIR_TAIL));
    block[ROOM + 7] = 0xde;
    let sum = checksum::of_names(seed, block);
    put32(block, ROOM + 8, sum);
}

fn put_name(place: &mut [u8], name: &Name<'_>, length: usize) {
    put32(place, 0, name.number);
    put16(place, 4, small16(length));
    place[6] = u8::try_from(name.name.len()).expect("names have at most 255 bytes");
    place[7] = name.kind;
    place[8..8 + name.name.len()].copy_from_slice(name.name);
}

/// Writes the nodes above `below`, of which the first is the directory's block `first`. Answers what points to them.
fn put_nodes(area: &mut [u8], first: usize, below: &[(u32, u32)], seed: Seed) -> Vec<(u32, u32)> {
    let mut above = Vec::new();
    for ((at, block), chunk) in
        area.chunks_exact_mut(BLOCK).enumerate().zip(below.chunks(dx::NODE_LIMIT))
    {
        put16(block, 4, small16(BLOCK));
        put_index(block, dx::NODE_COUNT, dx::NODE_LIMIT, chunk, seed);
        above.push((chunk[0].0, small((first + at) as u64)));
    }
    above
}

fn put_root(
    block: &mut [u8],
    (own, parent): (u32, u32),
    levels: u8,
    entries: &[(u32, u32)],
    seed: Seed,
) {
    put_name(block, &Name { name: b".", number: own, kind: DIRECTORY }, DOT);
    let above = Name { name: b"..", number: parent, kind: DIRECTORY };
    put_name(&mut block[DOT..], &above, BLOCK - DOT);
    block[28] = superblock::HALF_MD4;
    // Bytes of this information.
    block[29] = 8;
    block[30] = levels;
    put_index(block, dx::ROOT_COUNT, dx::ROOT_LIMIT, entries, seed);
}

/// Writes limit, count and entries at `at`. The first entry has no hash: limit and count stand there.
fn put_index(block: &mut [u8], at: usize, limit: usize, entries: &[(u32, u32)], seed: Seed) {
    for (place, (hash, number)) in block[at..].chunks_exact_mut(dx::ENTRY).zip(entries) {
        put32(place, 0, *hash);
        put32(place, 4, *number);
    }
    put16(block, at, small16(limit));
    put16(block, at + 2, small16(entries.len()));
    let sum = checksum::of_index(seed, block, at, entries.len());
    put32(block, BLOCK - 4, sum);
}

fn small16(value: usize) -> u16 {
    low16(small(value as u64))
}
