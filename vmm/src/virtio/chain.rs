//! One descriptor chain (VIRTIO 1.2 section 2.7): ranges the device may read, then ranges it may write.
//!
//! Invariant: every segment lies inside guest RAM; it was checked when the chain was popped.

use smallvec::SmallVec;
use vm_memory::GuestAddress;

use crate::memory::{GuestRam, MemoryError};

use super::queue::Completion;

/// One descriptor's range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical start.
    pub addr: GuestAddress,
    /// Length in bytes, not 0.
    pub len_bytes: u32,
}

/// Why bytes could not be copied in or out of a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The range runs past the end of the chain's readable or writable part.
    #[error("chain ends before byte {end}")]
    TooShort {
        /// First byte that was not there, counted from the start of the part.
        end: u64,
    },
    /// Guest memory refused the copy.
    #[error("chain names memory that is not there")]
    Memory(#[source] MemoryError),
}

/// Segments of one chain; short chains, the usual ones, need no allocation.
pub(super) type Segments = SmallVec<[Segment; 4]>;

/// A popped chain; it must go back to its queue through [`Self::complete`].
#[must_use = "a chain that is not completed hangs the guest"]
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Segments,
    /// How many of `segments`, from the start, the device may read.
    readable: usize,
}

impl Chain {
    /// A chain that starts at descriptor `head`.
    pub fn new(head: u16, readable: Vec<Segment>, writable: Vec<Segment>) -> Self {
        let readable_count = readable.len();
        Self::from_segments(head, readable.into_iter().chain(writable).collect(), readable_count)
    }

    pub(super) fn from_segments(head: u16, segments: Segments, readable: usize) -> Self {
        Self { head, segments, readable }
    }

    /// The first descriptor's index, which no other chain under way has when the driver keeps the rules.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device, in order.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// Where the device may write, in order.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes in the readable part.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes in the writable part.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Copies from the readable part, `offset` bytes after its start, filling `out`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when the part ends first.
    pub fn read(&self, ram: &GuestRam, offset: u64, out: &mut [u8]) -> Result<(), ChainError> {
        let len = out.len();
        each_piece(self.readable(), offset, len, |addr, range| {
            out.get_mut(range).map_or(Ok(()), |piece| ram.read(addr, piece))
        })
    }

    /// Copies all of `data` into the writable part, `offset` bytes after its start.
    ///
    /// # Errors
    /// [`ChainError::TooShort`] when the part ends first.
    pub fn write(&self, ram: &GuestRam, offset: u64, data: &[u8]) -> Result<(), ChainError> {
        each_piece(self.writable(), offset, data.len(), |addr, range| {
            data.get(range).map_or(Ok(()), |piece| ram.write(addr, piece))
        })
    }

    /// Ends the work on the chain; `written_bytes` counts from the start of the writable part, and what lies past its end is not
    /// reported.
    pub fn complete(self, written_bytes: u32) -> Completion {
        let room = u32::try_from(self.writable_len()).unwrap_or(u32::MAX);
        Completion::new(self.head, written_bytes.min(room))
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len_bytes)).sum()
}

fn each_piece(
    segments: &[Segment],
    offset: u64,
    len: usize,
    mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), MemoryError>,
) -> Result<(), ChainError> {
    let mut skip = offset;
    let mut done = 0;
    for segment in segments {
        if done == len {
            break;
        }
        let segment_len = u64::from(segment.len_bytes);
        if skip >= segment_len {
            skip -= segment_len;
            continue;
        }
        let room = usize::try_from(segment_len - skip).unwrap_or(usize::MAX);
        let take = room.min(len - done);
        let addr = GuestAddress(segment.addr.0.saturating_add(skip));
        copy(addr, done..done + take).map_err(ChainError::Memory)?;
        done += take;
        skip = 0;
    }
    if done == len {
        Ok(())
    } else {
        Err(ChainError::TooShort { end: offset.saturating_add(len as u64) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x1000;

    fn ram() -> GuestRam {
        GuestRam::anonymous(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// Segments of the lengths given, a page apart.
    fn segments(lens: &[u32]) -> Vec<Segment> {
        (0..)
            .zip(lens)
            .map(|(at, &len_bytes)| Segment { addr: GuestAddress(BASE + 0x1000 * at), len_bytes })
            .collect()
    }

    #[test]
    fn reads_and_writes_stop_at_the_end_of_their_part() {
        let ram = ram();
        let chain = Chain::new(0, segments(&[4, 8]), segments(&[3, 5]));
        assert_eq!((chain.readable_len(), chain.writable_len()), (12, 8));
        for (offset, len, fits) in [
            (0, 0, true),
            (0, 8, true),
            (8, 0, true),
            (7, 1, true),
            (8, 1, false),
            (0, 9, false),
            (u64::MAX, 1, false),
        ] {
            let result = chain.write(&ram, offset, &vec![1; len]);
            assert_eq!(result.is_ok(), fits, "{offset} {len}");
        }
        assert!(matches!(chain.read(&ram, 10, &mut [0; 3]), Err(ChainError::TooShort { end: 13 })));
    }

    #[test]
    fn a_segment_outside_ram_is_an_error() {
        let outside = vec![Segment { addr: GuestAddress(u64::MAX), len_bytes: 2 }];
        let chain = Chain::new(0, outside.clone(), outside);
        assert!(matches!(chain.read(&ram(), 0, &mut [0; 2]), Err(ChainError::Memory(_))));
        assert!(matches!(chain.write(&ram(), 1, &[0]), Err(ChainError::Memory(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_over_any_cut(
            lens in proptest::collection::vec(1..40_u32, 1..8),
            data in proptest::collection::vec(any::<u8>(), 0..100),
            offset in 0..300_u64,
        ) {
            let ram = ram();
            let chain = Chain::new(3, segments(&lens), segments(&lens));
            let mut want = vec![0; usize::try_from(chain.writable_len()).unwrap()];
            let start = usize::try_from(offset).unwrap();
            let fits = start + data.len() <= want.len();
            prop_assert_eq!(chain.write(&ram, offset, &data).is_ok(), fits || data.is_empty());
            if fits {
                want[start..start + data.len()].copy_from_slice(&data);
                let mut all = vec![0xee; want.len()];
                chain.read(&ram, 0, &mut all).unwrap();
                prop_assert_eq!(all, want);
                let mut piece = vec![0xee; data.len()];
                chain.read(&ram, offset, &mut piece).unwrap();
                prop_assert_eq!(piece, data);
            }
        }
    }
}
