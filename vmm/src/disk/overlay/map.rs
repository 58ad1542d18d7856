//! Which blocks of a disk the delta holds: one bit each, in pages as they lie in the file.
//!
//! Invariant: bits are only ever set; a page is dirty from the first bit set in it until [`Map::clean`]. Pure.

use super::format::BLOCK_BYTES;

/// Unit of writing the map.
pub(super) const PAGE_BYTES: usize = 4096;

/// See the module header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    bits: Vec<u8>,
    dirty: Vec<bool>,
}

impl Map {
    /// From the file's map, whole pages; an untouched tail costs no memory.
    pub(super) fn new(bits: Vec<u8>) -> Self {
        let dirty = vec![false; bits.len().div_ceil(PAGE_BYTES)];
        Self { bits, dirty }
    }

    /// Whether the delta holds the block of the byte at `offset`.
    pub(super) fn is_set(&self, offset: u64) -> bool {
        let (byte, bit) = place(offset / BLOCK_BYTES);
        self.bits.get(byte).is_some_and(|bits| bits >> bit & 1 != 0)
    }

    /// Whether the delta holds the bytes from `offset` on, and how many, up to `len_bytes`, are alike.
    pub(super) fn run(&self, offset: u64, len_bytes: u64) -> (bool, u64) {
        let held = self.is_set(offset);
        let end = offset + len_bytes;
        let mut at = offset - offset % BLOCK_BYTES + BLOCK_BYTES;
        while at < end && self.is_set(at) == held {
            at += BLOCK_BYTES;
        }
        (held, at.min(end) - offset)
    }

    /// The delta now holds every block that the range touches.
    pub(super) fn set(&mut self, offset: u64, len_bytes: u64) {
        let end = offset + len_bytes;
        for block in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            let (byte, bit) = place(block);
            let Some(bits) = self.bits.get_mut(byte) else { return };
            if *bits >> bit & 1 == 0 {
                *bits |= 1 << bit;
                if let Some(dirty) = self.dirty.get_mut(byte / PAGE_BYTES) {
                    *dirty = true;
                }
            }
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.contains(&true)
    }

    /// Numbers of the pages to write.
    pub(super) fn dirty_pages(&self) -> Vec<usize> {
        self.dirty.iter().enumerate().filter(|(_, dirty)| **dirty).map(|(index, _)| index).collect()
    }

    /// A copy of page `index`.
    pub(super) fn page(&self, index: usize) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        for (to, from) in page.iter_mut().zip(self.bits.iter().skip(index * PAGE_BYTES)) {
            *to = *from;
        }
        page
    }

    /// Every page is on stable storage.
    pub(super) fn clean(&mut self) {
        self.dirty.fill(false);
    }
}

/// Byte and bit of a block.
fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 8).unwrap_or(usize::MAX), block % 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_holder_changes() {
        let mut map = Map::new(vec![0; PAGE_BYTES]);
        map.set(BLOCK_BYTES + 1, 2 * BLOCK_BYTES - 2);
        for (offset, len, want) in [
            (0, 100 * BLOCK_BYTES, (false, BLOCK_BYTES)),
            (4000, 10, (false, 10)),
            (4000, 1000, (false, 96)),
            (BLOCK_BYTES, 100 * BLOCK_BYTES, (true, 2 * BLOCK_BYTES)),
            (BLOCK_BYTES + 512, 512, (true, 512)),
            (3 * BLOCK_BYTES, 9 * BLOCK_BYTES, (false, 9 * BLOCK_BYTES)),
        ] {
            assert_eq!(map.run(offset, len), want, "{offset}+{len}");
        }
    }

    #[test]
    fn only_pages_with_new_bits_are_dirty() {
        let mut map = Map::new(vec![0; 3 * PAGE_BYTES]);
        let page_span = PAGE_BYTES as u64 * 8 * BLOCK_BYTES;
        map.set(page_span, 1);
        assert_eq!(map.dirty_pages(), [1]);
        assert_eq!(map.page(1)[0], 1);
        map.clean();
        map.set(page_span + 5, 1);
        assert!(!map.is_dirty());
        map.set(page_span - 1, 2);
        assert_eq!(map.dirty_pages(), [0]);
    }
}
