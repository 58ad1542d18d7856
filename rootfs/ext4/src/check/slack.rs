//! Bytes of a base image that nothing uses and no checksum covers. They are zero in every image of ours, so that damage to them is
//! noticed too; a disk that a kernel wrote to may have anything there.

use super::{Check, Stop};
use crate::bytes::size;
use crate::format::{BLOCK, DESCRIPTOR, GROUP_BLOCKS, INODE, SUPERBLOCK, number};
use crate::read::{Fault, Input};
use crate::tree::is_zero;

impl<I: Input> Check<'_, I> {
    /// Looks at all of them, but for the ends of files and indexes, which are looked at with the rest of them.
    pub(super) fn slack(&mut self, in_use: &[u32]) -> Result<(), Stop> {
        if !self.image.is_base() {
            return Ok(());
        }
        let shape = self.image.shape();
        let head = SUPERBLOCK as u64;
        let descriptors = BLOCK as u64 + u64::from(shape.groups) * DESCRIPTOR as u64;
        let first = (1 + u64::from(shape.descriptor_blocks)) * BLOCK as u64;
        let beside = Fault::superblock("bytes beside it are not zero");
        self.zero(0, head, beside)?;
        self.zero(2 * head, BLOCK as u64, beside)?;
        self.zero(descriptors, first, beside)?;
        self.inode_slack(in_use)?;
        self.free_blocks()
    }

    /// Inodes that are reserved for nothing, and those behind the last one of each group.
    fn inode_slack(&mut self, in_use: &[u32]) -> Result<(), Stop> {
        let shape = self.image.shape();
        for (group, descriptor) in (0..).zip(&shape.descriptors) {
            let table = descriptor.inode_table * BLOCK as u64;
            let lowest = group * shape.inodes_per_group + 1;
            let after = lowest + shape.inodes_per_group;
            let last = in_use.partition_point(|number| *number < after).checked_sub(1);
            let last = last.map_or(0, |at| in_use[at]);
            let used = (last + 1).saturating_sub(lowest);
            let place = |index: u32| table + u64::from(index) * INODE as u64;
            let fault = Fault::group(group, "inodes that are not in use are not zero");
            self.zero(place(used), place(shape.inodes_per_group), fault)?;
            if group == 0 {
                self.zero(place(0), place(number::ROOT - 1), fault)?;
                self.zero(place(number::ROOT), place(number::FIRST - 1), fault)?;
            }
        }
        Ok(())
    }

    fn free_blocks(&mut self) -> Result<(), Stop> {
        let shape = self.image.shape();
        for group in 0..shape.groups {
            let in_use = self.blocks.group(group);
            let start = u64::from(group) * u64::from(GROUP_BLOCKS);
            let mut at = 0;
            while at < shape.group_blocks(group) {
                let is_free = |at: u32| in_use[at as usize / 8] >> (at % 8) & 1 == 0;
                let first = at;
                while at < shape.group_blocks(group) && is_free(at) == is_free(first) {
                    at += 1;
                }
                if is_free(first) {
                    let place = |at: u32| (start + u64::from(at)) * BLOCK as u64;
                    let fault = Fault::group(group, "blocks that are not in use are not zero");
                    self.zero(place(first), place(at), fault)?;
                }
            }
        }
        Ok(())
    }

    /// Notes the fault unless the bytes are zero.
    fn zero(&mut self, mut from: u64, to: u64, fault: Fault) -> Result<(), Stop> {
        let mut buffer = vec![0; size((to.saturating_sub(from)).min(64 * 1024))];
        loop {
            from = from.max(Self::read(self.image.data_from(from))?);
            if from >= to {
                return Ok(());
            }
            let count = size((to - from).min(buffer.len() as u64));
            Self::read(self.image.bytes(from, &mut buffer[..count]))?;
            if !is_zero(&buffer[..count]) {
                return self.fault(fault);
            }
            from += count as u64;
        }
    }
}
