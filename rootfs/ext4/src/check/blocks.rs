//! Which blocks have an owner.

use std::collections::BTreeMap;

use crate::bytes::small;
use crate::format::{BLOCK, GROUP_BLOCKS};

/// Blocks with an owner, by group, where there are any.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    groups: BTreeMap<u32, Box<[u8; BLOCK]>>,
    /// Blocks that inodes may share: what they say of it, and how many do.
    shared: BTreeMap<u64, (u32, u32)>,
}

impl Blocks {
    /// Takes a run, which lies in the image. False, with a part taken, when a block of it has an owner.
    pub(super) fn claim(&mut self, first: u64, count: u64) -> bool {
        let (mut at, end) = (first, first + count);
        while at < end {
            let group = small(at / u64::from(GROUP_BLOCKS));
            let within = small(at % u64::from(GROUP_BLOCKS));
            let count = small((end - at).min(u64::from(GROUP_BLOCKS - within)));
            let bitmap = self.groups.entry(group).or_insert_with(|| Box::new([0; BLOCK]));
            if !set(bitmap, within, count) {
                return false;
            }
            at += u64::from(count);
        }
        true
    }

    /// Takes a block which says that `shared` inodes have it. False when it has an owner that does not share it.
    pub(super) fn claim_shared(&mut self, block: u64, shared: u32) -> bool {
        if let Some((_, owners)) = self.shared.get_mut(&block) {
            *owners = owners.saturating_add(1);
            return true;
        }
        self.shared.insert(block, (shared, 1));
        self.claim(block, 1)
    }

    /// Blocks that have another number of owners than they say.
    pub(super) fn wrongly_shared(&self) -> Vec<u64> {
        let wrong = self.shared.iter().filter(|(_, (said, owners))| said != owners);
        wrong.map(|(block, _)| *block).collect()
    }

    /// The blocks of a group with an owner, as a bitmap.
    pub(super) fn group(&self, group: u32) -> Box<[u8; BLOCK]> {
        self.groups.get(&group).cloned().unwrap_or_else(|| Box::new([0; BLOCK]))
    }
}

/// Sets `count` bits from `first` on, until one is set already: then false.
pub(super) fn set(bitmap: &mut [u8; BLOCK], first: u32, count: u32) -> bool {
    let (mut at, end) = (first, first + count);
    while at < end {
        let byte = &mut bitmap[at as usize / 8];
        let whole = at.is_multiple_of(8) && end - at >= 8;
        let (mask, bits) = if whole { (0xff, 8) } else { (1 << (at % 8), 1) };
        if *byte & mask != 0 {
            return false;
        }
        *byte |= mask;
        at += bits;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    #[test]
    fn a_block_has_one_owner() {
        let mut blocks = Blocks::default();
        assert!(blocks.claim(32_760, 20));
        for (first, count) in [(32_760, 1), (32_779, 1), (32_750, 11), (32_770, 3)] {
            assert!(!blocks.claim(first, count));
        }
        assert!(blocks.claim(32_780, 1));
        assert_eq!(blocks.group(1)[..2], [0xff, 0x1f]);
    }

    #[test]
    fn a_shared_block_counts_its_owners() {
        let mut blocks = Blocks::default();
        assert!(blocks.claim_shared(7, 2) && blocks.claim_shared(9, 1));
        assert_eq!(blocks.wrongly_shared(), [7]);
        assert!(blocks.claim_shared(7, 2));
        assert_eq!(blocks.wrongly_shared(), [0; 0]);
        assert!(!blocks.claim(7, 1) && blocks.claim(8, 1) && !blocks.claim_shared(8, 1));
    }
}
