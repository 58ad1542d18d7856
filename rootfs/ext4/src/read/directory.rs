//! The names of a directory of an image that is read.

use std::collections::HashSet;

use super::{Fault, Image, Inode, Input, Map, ReadError};
use crate::bytes::{get16, get32};
use crate::checksum;
use crate::format::{BLOCK, DIR_TAIL, dx, inode, superblock};
use crate::hash::half_md4;
use crate::tree::is_zero;

/// Bytes for names in a block.
const ROOM: usize = BLOCK - DIR_TAIL;

/// A name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) name: Vec<u8>,
    /// Inode number, not checked.
    pub(crate) number: u32,
    /// Type as directories say it.
    pub(crate) kind: u8,
}

/// The names of a directory, without the two dots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) leaves: Vec<Leaf>,
    /// What `..` says.
    pub(crate) parent: u32,
}

/// A part of the index that is still to be read: a block, how many levels are below it, and which hashes it may have.
struct Pending {
    block: u64,
    levels: u8,
    first: u32,
    last: u32,
}

impl<I: Input> Image<I> {
    /// Reads a directory. Every block is read once and its checksum compared; names of an indexed one lie where their hashes say.
    pub(crate) fn listing(&self, inode: &Inode) -> Result<Listing, ReadError> {
        let wrong = |what| ReadError::from(Fault::inode(inode.number, what));
        let map = self.map(inode)?;
        let mut next = 0;
        for run in &map.runs {
            if run.logical != next || !run.written {
                return Err(wrong("it has blocks that are missing or were not written"));
            }
            next += run.length;
        }
        if inode.size != next * BLOCK as u64 || next == 0 {
            return Err(wrong("its size does not fit its blocks"));
        }
        let mut listing = Listing::default();
        if inode.flags & inode::FLAG_INDEX == 0 {
            for (at, place) in (0..next).zip(places(&map)) {
                self.names(inode, place, at == 0, None, &mut listing)?;
            }
        } else {
            self.index(inode, &map, &mut listing)?;
        }
        let mut names: Vec<&[u8]> = listing.leaves.iter().map(|leaf| &leaf.name[..]).collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return Err(wrong("it has a name twice"));
        }
        Ok(listing)
    }

    fn index(&self, inode: &Inode, map: &Map, listing: &mut Listing) -> Result<(), ReadError> {
        let wrong = |what| ReadError::from(Fault::inode(inode.number, what));
        let root = self.block(place(map, 0).ok_or(wrong("it has no blocks"))?)?;
        let levels = root[30];
        let deepest = if self.shape().large_directories { 2 } else { 1 };
        let dots = name_at(&root, 0).zip(name_at(&root, 12));
        let Some(((own, first), (parent, second))) = dots else {
            return Err(wrong("its index does not begin with its own names"));
        };
        if (own.name, own.number, first) != (b".", inode.number, 12)
            || (parent.name, second) != (b"..", BLOCK - 12)
            || (root[28], root[29]) != (superblock::HALF_MD4, 8)
            || levels > deepest
        {
            return Err(wrong("its index does not begin as it should"));
        }
        listing.parent = parent.number;
        let mut seen = HashSet::from([0]);
        let mut pending = Vec::new();
        let whole = Pending { block: 0, levels: levels + 1, first: 0, last: u32::MAX };
        self.entries(inode, &root, dx::ROOT_COUNT, &whole, &mut pending)?;
        while let Some(next) = pending.pop() {
            let place = place(map, next.block);
            let place = place.ok_or(wrong("its index leads past its end"))?;
            if !seen.insert(next.block) {
                return Err(wrong("its index leads twice to a block"));
            }
            if next.levels == 0 {
                self.names(inode, place, false, Some((next.first, next.last)), listing)?;
                continue;
            }
            let block = self.block(place)?;
            if get32(&block, 0) != 0 || usize::from(get16(&block, 4)) != BLOCK || block[6] != 0 {
                return Err(wrong("a node of its index does not begin as it should"));
            }
            self.entries(inode, &block, dx::NODE_COUNT, &next, &mut pending)?;
        }
        if seen.len() as u64 * BLOCK as u64 != inode.size {
            return Err(wrong("its index does not lead to all its blocks"));
        }
        Ok(())
    }

    /// Reads the entries of a root or a node, and puts what is below on `pending`.
    fn entries(
        &self,
        inode: &Inode,
        block: &[u8; BLOCK],
        at: usize,
        node: &Pending,
        pending: &mut Vec<Pending>,
    ) -> Result<(), ReadError> {
        let wrong = |what| ReadError::from(Fault::inode(inode.number, what));
        let room = (BLOCK - at) / dx::ENTRY - 1;
        let (limit, count) = (usize::from(get16(block, at)), usize::from(get16(block, at + 2)));
        if limit != room || count == 0 || count > limit {
            return Err(wrong("its index counts its entries wrong"));
        }
        let sum = checksum::of_index(self.seed_of(inode), block, at, count);
        if self.differ(sum, get32(block, BLOCK - 4)) {
            return Err(wrong("checksum of its index does not match"));
        }
        let unused = &block[at + count * dx::ENTRY..BLOCK - 8];
        if self.is_base() && !is_zero(unused) {
            return Err(wrong("its index has entries that do not count"));
        }
        let entry = |index: usize| &block[at + index * dx::ENTRY..][..dx::ENTRY];
        let mut first = node.first;
        for index in 0..count {
            // The last hash may continue in the next block, which then has the low bit.
            let last = if index + 1 < count { get32(entry(index + 1), 0) } else { node.last };
            if last < first {
                return Err(wrong("its index is out of order"));
            }
            let block = u64::from(get32(entry(index), 4));
            pending.push(Pending { block, levels: node.levels - 1, first, last });
            first = last;
        }
        Ok(())
    }

    /// Reads a block of names. `dots` says that it is the directory's first; `hashes` what names of an indexed one may have.
    fn names(
        &self,
        inode: &Inode,
        place: u64,
        dots: bool,
        hashes: Option<(u32, u32)>,
        listing: &mut Listing,
    ) -> Result<(), ReadError> {
        let wrong = |what| ReadError::from(Fault::block(place, what));
        let block = self.block(place)?;
        let tail = &block[ROOM..];
        if (get32(tail, 0), get16(tail, 4), tail[6], tail[7]) != (0, 12, 0, 0xde) {
            return Err(wrong("a block of names has no checksum"));
        }
        if self.differ(checksum::of_names(self.seed_of(inode), &block), get32(tail, 8)) {
            return Err(wrong("checksum of a block of names does not match"));
        }
        let mut at = 0;
        let mut count = 0;
        while at < ROOM {
            let found = name_at(&block[..ROOM], at);
            let (name, length) = found.ok_or(wrong("a name lies outside its block"))?;
            at += length;
            count += 1;
            if dots && count <= 2 {
                let expected: &[u8] = if count == 1 { b"." } else { b".." };
                let own = count == 2 || name.number == inode.number;
                if name.name != expected || !own {
                    return Err(wrong("a directory does not begin with its own names"));
                }
                listing.parent = name.number;
                continue;
            }
            if name.number == 0 {
                continue;
            }
            if matches!(name.name, b"" | b"." | b"..")
                || name.name.iter().any(|byte| matches!(byte, 0 | b'/'))
            {
                return Err(wrong("a name that cannot be"));
            }
            if let Some((first, last)) = hashes {
                let (hash, _) = half_md4(&self.shape().hash_seed, name.name);
                // With the low bit in `last`, names with that hash begin here.
                if hash < first & !1 || (hash >= last && hash != last & !1) {
                    return Err(wrong("a name is not where its hash says"));
                }
            }
            let (number, kind) = (name.number, name.kind);
            listing.leaves.push(Leaf { name: name.name.to_vec(), number, kind });
        }
        if dots && count < 2 {
            return Err(wrong("a directory does not begin with its own names"));
        }
        Ok(())
    }
}

/// Where the blocks of a directory stand, in order.
fn places(map: &Map) -> impl Iterator<Item = u64> {
    map.runs.iter().flat_map(|run| run.physical..run.physical + run.length)
}

/// Where a block of a directory stands.
fn place(map: &Map, block: u64) -> Option<u64> {
    let at = map.runs.partition_point(|run| run.logical + run.length <= block);
    let run = map.runs.get(at).filter(|run| run.logical <= block)?;
    Some(run.physical + (block - run.logical))
}

struct Name<'a> {
    name: &'a [u8],
    number: u32,
    kind: u8,
}

/// The name at `at` and the length of its record. None when it does not lie in the block.
fn name_at(block: &[u8], at: usize) -> Option<(Name<'_>, usize)> {
    let rest = block.get(at..).filter(|rest| rest.len() >= 12)?;
    let length = usize::from(get16(rest, 4));
    let name = rest.get(8..8 + usize::from(rest[6]))?;
    let fits = length >= 12 && length.is_multiple_of(4) && length <= rest.len().max(12);
    if !fits || 8 + name.len() > length {
        return None;
    }
    Some((Name { name, number: get32(rest, 0), kind: rest[7] }, length))
}
