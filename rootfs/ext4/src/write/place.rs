//! Where everything stands.
//!
//! A base image has its structures first, without a gap, and then the files: those of 2 MiB and more start at multiples of 2 MiB,
//! and small ones fill the gaps in the order of their paths. A disk has the structures of its groups where kernels put them, and the
//! few files that it starts with around them.

use std::ops::Range;

use super::demand::{Demand, Item};
use super::extents::{self, Extent};
use super::groups::Geometry;
use super::space::{Full, Space};
use super::{Options, Profile, WriteError};
use crate::bytes::small;
use crate::format::GROUP_BLOCKS;

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
            Profile::Base => Self::base(demand),
            Profile::ReadWrite { size_bytes, inodes } => {
                let geometry = Geometry::read_write(size_bytes, inodes, demand.last_number())?;
                let space = Space::without(0..geometry.blocks, geometry.structures());
                let full = |Full| WriteError::TooSmall { size_bytes };
                let mut placing = Placing::new(demand);
                let space = placing.data(space).map_err(full)?;
                placing.structures(space).map_err(full)?;
                Ok(placing.done(geometry))
            }
        }
    }

    /// The structures of the groups come first, so that everything else depends on how many groups there are, which depends on
    /// everything else: more groups are tried until they are enough.
    fn base(demand: &Demand<'_>) -> Result<Self, WriteError> {
        let full = |Full| WriteError::TooLarge;
        let structures = demand.items.iter().map(|item| demand.structure_blocks(item)).sum::<u64>();
        let mut groups = demand.last_number().div_ceil(GROUP_BLOCKS);
        loop {
            let mut geometry = Geometry::base(groups, demand.last_number())?;
            let first = geometry.front();
            let data = first + structures;
            let mut placing = Placing::new(demand);
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

struct Placing<'a> {
    demand: &'a Demand<'a>,
    extents: Vec<Extent>,
    spots: Vec<Spot>,
}

impl<'a> Placing<'a> {
    fn new(demand: &'a Demand<'a>) -> Self {
        let spots = vec![Spot::default(); demand.items.len()];
        Self { demand, extents: Vec::with_capacity(demand.runs.len()), spots }
    }

    /// Places the data of files, and answers what is left.
    fn data(&mut self, mut space: Space) -> Result<Space, Full> {
        for large in [true, false] {
            for (at, item) in self.demand.items.iter().enumerate() {
                let blocks = self.demand.blocks(item);
                if item.is_structure || blocks == 0 || (blocks >= ALIGNED) != large {
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
