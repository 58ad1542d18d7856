//! Where everything stands.
//!
//! A base image has its structures first, without a gap, and then the files: those of 2 MiB and more start at multiples of 2 MiB,
//! and small ones fill the gaps in the order of their paths. Around data that is laid already, all this stands behind that data. A disk
//! has the structures of its groups where kernels put them, and the few files that it starts with around them.

use std::ops::Range;

use super::demand::{Demand, Item, Subject};
use super::extents::{self, Extent};
use super::groups::Geometry;
use super::space::{Full, Space};
use super::{Laid, Options, Profile, WriteError};
use crate::bytes::small;
use crate::format::{BLOCK, BLOCKS_MAX, GROUP_BLOCKS};
use crate::tree::{FileData, Kind, Source};

/// Files of as many blocks, 2 MiB, start at multiples of it: huge pages can map them.
const ALIGNED: u64 = 512;

/// Where the blocks of an item stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Spot {
    /// Which of [`Placed::extents`].
    pub(super) extents: Range<usize>,
    /// Blocks of its extent tree.
    pub(super) tree: Range<u32>,
    /// Its block of extended attributes, or 0.
    pub(super) xattr_block: u32,
    /// Whether its data stands where it was laid.
    pub(super) is_kept: bool,
}

/// Where everything stands.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) geometry: Geometry,
    pub(super) extents: Vec<Extent>,
    /// By the place of the item.
    pub(super) spots: Vec<Spot>,
}

impl Placed {
    /// Places what a tree needs.
    pub(super) fn new(demand: &Demand<'_>, options: &Options) -> Result<Self, WriteError> {
        match options.profile {
            Profile::Base => Self::base(demand, None),
            Profile::Around(laid) => Self::base(demand, Some(laid)),
            Profile::ReadWrite { size_bytes, inodes, .. } => {
                let geometry = Geometry::read_write(size_bytes, inodes, demand.last_number())?;
                let space = Space::without(0..geometry.blocks, geometry.structures());
                let full = |Full| WriteError::TooSmall { size_bytes };
                let mut placing = Placing::new(demand, &[]);
                let space = placing.data(space).map_err(full)?;
                placing.structures(space).map_err(full)?;
                Ok(placing.done(geometry))
            }
        }
    }

    /// The structures of the groups come first, so that everything else depends on how many groups there are, which depends on
    /// everything else: more groups are tried until they are enough.
    fn base(demand: &Demand<'_>, laid: Option<Laid>) -> Result<Self, WriteError> {
        let full = |Full| WriteError::TooLarge;
        let behind = laid.map_or(0, |laid| laid.end.div_ceil(BLOCK as u64));
        if let Some(laid) = laid {
            check(laid)?;
        }
        let kept: Vec<_> = demand.items.iter().map(|item| kept_of(demand, laid?, item)).collect();
        let needed = |(item, kept): (&Item, &Option<Vec<Extent>>)| {
            demand.structure_blocks(item, kept.as_ref().map(Vec::len))
        };
        let structures: u64 = demand.items.iter().zip(&kept).map(needed).sum();
        let mut groups = demand.last_number().div_ceil(GROUP_BLOCKS);
        loop {
            let mut geometry = Geometry::base(groups, demand.last_number(), behind)?;
            let head = u64::from(1 + geometry.descriptor_blocks) * BLOCK as u64;
            if laid.is_some_and(|laid| laid.start < head) {
                return Err(WriteError::TooLarge);
            }
            let first = geometry.front();
            let data = first + structures;
            let mut placing = Placing::new(demand, &kept);
            placing.data(Space::open(data)).map_err(full)?;
            placing.structures(Space::without(first..data, Vec::new())).map_err(full)?;
            let ends = placing.extents.iter().map(|run| u64::from(run.physical + run.length));
            let end = ends.max().unwrap_or(0).max(data);
            let needed = small(end.div_ceil(u64::from(GROUP_BLOCKS)));
            if needed <= groups {
                // The last group has a block at least.
                geometry.blocks = end.max(u64::from(groups - 1) * u64::from(GROUP_BLOCKS) + 1);
                return Ok(placing.done(geometry));
            }
            groups = needed;
        }
    }

    /// Blocks in use besides those of the groups' structures.
    pub(super) fn used(&self) -> impl Iterator<Item = Range<u64>> {
        let extents = self.extents.iter().map(|run| run.physical..run.physical + run.length);
        let trees = self.spots.iter().map(|spot| spot.tree.clone());
        let xattrs = self.spots.iter().map(|spot| match spot.xattr_block {
            0 => 0..0,
            block => block..block + 1,
        });
        let runs = extents.chain(trees).chain(xattrs);
        runs.map(|run| u64::from(run.start)..u64::from(run.end)).filter(|run| !run.is_empty())
    }

    /// The extents of an item.
    pub(super) fn extents_of(&self, spot: &Spot) -> &[Extent] {
        &self.extents[spot.extents.clone()]
    }
}

/// Fails unless the laid bytes are whole blocks that a block number reaches.
fn check(laid: Laid) -> Result<(), WriteError> {
    let whole = laid.start.is_multiple_of(BLOCK as u64) && laid.end.is_multiple_of(BLOCK as u64);
    let reached = laid.start <= laid.end && laid.end / (BLOCK as u64) < BLOCKS_MAX;
    if whole && reached { Ok(()) } else { Err(WriteError::TooLarge) }
}

/// As [`kept`], for any item.
fn kept_of(demand: &Demand<'_>, laid: Laid, item: &Item) -> Option<Vec<Extent>> {
    let Subject::Node(id) = item.subject else { return None };
    match demand.tree.find(id).expect("an item's node is in the tree").kind() {
        Kind::File(data) => kept(laid, data),
        _ => None,
    }
}

/// The extents of a file that keeps its place; none for one that does not.
fn kept(laid: Laid, data: &FileData) -> Option<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::with_capacity(data.pieces().len());
    for piece in data.pieces() {
        let Source::Stored(id, offset) = piece.source else { return None };
        let end = offset.checked_add(piece.length)?;
        let whole = piece.at.is_multiple_of(BLOCK as u64) && offset.is_multiple_of(BLOCK as u64);
        if id != laid.id || !whole || offset < laid.start || end > laid.end {
            return None;
        }
        let (first, end) = (offset / BLOCK as u64, end.div_ceil(BLOCK as u64));
        let logical = small(piece.at / BLOCK as u64);
        match extents.last_mut() {
            Some(last) if last.is_before(logical, first, end - first) => {
                last.length += small(end - first);
            }
            _ => extents::push(&mut extents, logical, first..end),
        }
    }
    (!extents.is_empty()).then_some(extents)
}

struct Placing<'a> {
    demand: &'a Demand<'a>,
    /// The extents of items that have a place, by the item; empty when none has.
    kept: &'a [Option<Vec<Extent>>],
    extents: Vec<Extent>,
    spots: Vec<Spot>,
}

impl<'a> Placing<'a> {
    fn new(demand: &'a Demand<'a>, kept: &'a [Option<Vec<Extent>>]) -> Self {
        let spots = vec![Spot::default(); demand.items.len()];
        Self { demand, kept, extents: Vec::with_capacity(demand.runs.len()), spots }
    }

    /// Places the data of files, and answers what is left.
    fn data(&mut self, mut space: Space) -> Result<Space, Full> {
        for (at, kept) in self.kept.iter().enumerate() {
            let Some(kept) = kept else { continue };
            let first = self.extents.len();
            self.extents.extend(kept);
            self.spots[at].extents = first..self.extents.len();
            self.spots[at].is_kept = true;
        }
        for large in [true, false] {
            for (at, item) in self.demand.items.iter().enumerate() {
                let blocks = self.demand.blocks(item);
                if self.spots[at].is_kept
                    || item.is_structure
                    || blocks == 0
                    || (blocks >= ALIGNED) != large
                {
                    continue;
                }
                let aligned = if large { space.take_aligned(blocks, ALIGNED) } else { None };
                let runs = match aligned {
                    Some(run) => vec![run],
                    None => space.take(blocks)?,
                };
                self.map(at, item, &runs);
            }
        }
        Ok(space)
    }

    /// Places what is not data.
    fn structures(&mut self, mut space: Space) -> Result<(), Full> {
        for (at, item) in self.demand.items.iter().enumerate() {
            let blocks = self.demand.blocks(item);
            if item.is_structure && blocks > 0 {
                let runs = space.take(blocks)?;
                self.map(at, item, &runs);
            }
            let tree = extents::tree_blocks(self.spots[at].extents.len()) as u64;
            if tree > 0 {
                let run = space.take_whole(tree)?;
                self.spots[at].tree = small(run.start)..small(run.end);
            }
            if item.xattr_block {
                self.spots[at].xattr_block = small(space.take_whole(1)?.start);
            }
        }
        Ok(())
    }

    /// Spreads the runs of an item over runs of the image that have as many blocks.
    fn map(&mut self, at: usize, item: &Item, places: &[Range<u64>]) {
        let first = self.extents.len();
        let mut places = places.iter().cloned();
        let mut place = 0..0;
        for run in &self.demand.runs[item.runs.clone()] {
            let (mut logical, mut left) = (run.first, u64::from(run.count));
            while left > 0 {
                if place.is_empty() {
                    place = places.next().expect("as many blocks were taken");
                }
                let count = left.min(place.end - place.start);
                extents::push(&mut self.extents, logical, place.start..place.start + count);
                logical += small(count);
                place.start += count;
                left -= count;
            }
        }
        self.spots[at].extents = first..self.extents.len();
    }

    fn done(self, geometry: Geometry) -> Placed {
        Placed { geometry, extents: self.extents, spots: self.spots }
    }
}
