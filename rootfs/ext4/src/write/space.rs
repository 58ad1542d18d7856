//! Free blocks and how they are given out.
//!
//! Whole runs are preferred: a file is cut only when no free range holds it. The order of the calls alone decides the result.

use std::ops::Range;

use crate::format::BLOCKS_MAX;

/// How many ranges after the current one are tried before the last one is.
const NEAR: usize = 8;
/// A range with fewer blocks than this is left behind.
const WORTHLESS: u64 = 4;

/// There are not enough free blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Free ranges in order.
#[derive(Debug, Clone)]
pub(super) struct Space {
    free: Vec<Range<u64>>,
    /// Whether the last range is what lies behind the image as it grows: then large runs go there.
    open: bool,
    /// Ranges before this one are not looked at any more.
    current: usize,
}

impl Space {
    /// `free` is in order, apart and without empty ranges.
    pub(super) const fn new(free: Vec<Range<u64>>) -> Self {
        Self { free, open: false, current: 0 }
    }

    /// All blocks from `start` on that a block number reaches.
    pub(super) fn open(start: u64) -> Self {
        let free = std::iter::once(start..BLOCKS_MAX).collect();
        Self { free, open: true, current: 0 }
    }

    /// What `blocks` has besides `used`, which is sorted here.
    pub(super) fn without(blocks: Range<u64>, mut used: Vec<Range<u64>>) -> Self {
        used.sort_by_key(|run| run.start);
        let mut free = Vec::new();
        let mut at = blocks.start;
        for run in used {
            if run.start > at {
                free.push(at..run.start.min(blocks.end));
            }
            at = at.max(run.end);
        }
        if at < blocks.end {
            free.push(at..blocks.end);
        }
        Self::new(free)
    }

    /// `count` blocks in one run, from a block on that is a multiple of `align`. None when no range has them.
    pub(super) fn take_aligned(&mut self, count: u64, align: u64) -> Option<Range<u64>> {
        let fits = |range: &Range<u64>| {
            let start = range.start.next_multiple_of(align);
            start.checked_add(count).is_some_and(|end| end <= range.end)
        };
        let last = self.free.len().checked_sub(1)?;
        // What lies before the last range of an open space was cut off by earlier calls.
        let first = if self.open { last } else { 0 };
        let at = (first..=last).find(|at| fits(&self.free[*at]))?;
        let range = self.free[at].clone();
        let start = range.start.next_multiple_of(align);
        let end = start.checked_add(count)?;
        let rest = [range.start..start, end..range.end];
        self.free.splice(at..=at, rest.into_iter().filter(|range| !range.is_empty()));
        Some(start..end)
    }

    /// `count` blocks in one run. Fails when no range has them.
    pub(super) fn take_whole(&mut self, count: u64) -> Result<Range<u64>, Full> {
        while self.free.get(self.current).is_some_and(|range| length(range) < WORTHLESS)
            && self.current + 1 < self.free.len()
        {
            self.current += 1;
        }
        let fits = |at: &usize| self.free.get(*at).is_some_and(|range| length(range) >= count);
        let all = self.free.len();
        let near = self.current..(self.current + NEAR).min(all);
        let far = if self.open { all.saturating_sub(1)..all } else { 0..all };
        let at = near.chain(far).find(fits).ok_or(Full)?;
        let range = &mut self.free[at];
        let taken = range.start..range.start + count;
        range.start = taken.end;
        Ok(taken)
    }

    /// `count` blocks in as few runs as there have to be.
    pub(super) fn take(&mut self, count: u64) -> Result<Vec<Range<u64>>, Full> {
        if let Ok(run) = self.take_whole(count) {
            return Ok(vec![run]);
        }
        let mut runs = Vec::new();
        let mut left = count;
        for range in &mut self.free {
            let taken = range.start..range.start + length(range).min(left);
            if !taken.is_empty() {
                left -= length(&taken);
                range.start = taken.end;
                runs.push(taken);
            }
        }
        if left > 0 { Err(Full) } else { Ok(runs) }
    }
}

const fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::{Full, Space};

    #[test]
    fn what_is_used_is_not_free() {
        let space = Space::without(0..100, vec![50..60, 0..10, 55..58, 90..120]);
        assert_eq!(space.free, [10..50, 60..90]);
    }

    #[test]
    fn aligned_runs_leave_gaps_that_small_runs_fill() {
        let mut space = Space::open(5);
        assert_eq!(space.take_aligned(600, 512), Some(512..1112));
        assert_eq!(space.take_aligned(512, 512), Some(1536..2048));
        assert_eq!(space.take_whole(500), Ok(5..505));
        assert_eq!(space.take_whole(10), Ok(1112..1122));
        assert_eq!(space.take_whole(5), Ok(505..510));
        assert_eq!(space.take_whole(1000), Ok(2048..3048));
        assert_eq!(space.take(1).map(|runs| runs[0].clone()), Ok(1122..1123));
    }

    #[test]
    fn a_run_is_cut_only_when_no_range_holds_it() {
        let mut space = Space::new(vec![0..10, 20..40, 50..60]);
        assert_eq!(space.take_whole(15), Ok(20..35));
        assert_eq!(space.take(12), Ok(vec![0..10, 35..37]));
        assert_eq!(space.take_whole(11), Err(Full));
        assert_eq!(space.take(13), Ok(vec![37..40, 50..60]));
        assert_eq!(space.take(1), Err(Full));
    }
}
