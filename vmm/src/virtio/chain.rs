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
    readable_bytes: u64,
    writable_bytes: u64,
}

/// What is left of a chain whose buffers have been looked at: its last writable byte, and its place on the used ring.
#[must_use = "a chain that is not completed hangs the guest"]
#[derive(Debug)]
pub struct Tail {
    last: Option<GuestAddress>,
    room: u32,
    head: u16,
}

impl Tail {
    /// Ends the work on the chain: `value` goes into its last writable byte, after `written_bytes` that were written before. A chain
    /// without such a byte ends with nothing written.
    pub fn complete(self, ram: &GuestRam, value: u8, written_bytes: u32) -> Completion {
        let stored = self.last.is_some_and(|last| ram.write_byte(last, value).is_ok());
        let written = if stored { written_bytes.saturating_add(1).min(self.room) } else { 0 };
        Completion::new(self.head, written)
    }
}

impl Chain {
    /// A chain that starts at descriptor `head`.
    pub fn new(head: u16, readable: Vec<Segment>, writable: Vec<Segment>) -> Self {
        let readable_count = readable.len();
        Self::from_segments(head, readable.into_iter().chain(writable).collect(), readable_count)
    }

    pub(super) fn from_segments(head: u16, segments: Segments, readable: usize) -> Self {
        let (before, after) = segments.split_at(readable.min(segments.len()));
        let (readable_bytes, writable_bytes) = (total(before), total(after));
        Self { head, segments, readable, readable_bytes, writable_bytes }
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
        self.readable_bytes
    }

    /// Bytes in the writable part.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable_bytes
    }

    /// Copies the first `N` bytes of the readable part, each read once.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_start<const N: usize>(&self, ram: &GuestRam) -> Result<[u8; N], ChainError> {
        match self.readable().first() {
            Some(first) if first.len_bytes as usize >= N => {
                ram.read_array(first.addr).map_err(ChainError::Memory)
            }
            _ => {
                let mut out = [0; N];
                self.read(ram, 0, &mut out)?;
                Ok(out)
            }
        }
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

    /// Lets go of all buffers but the last byte.
    pub fn into_tail(self) -> Tail {
        let last = self.writable().last();
        let last = last.and_then(|last| last.addr.0.checked_add(u64::from(last.len_bytes) - 1));
        let room = u32::try_from(self.writable_bytes).unwrap_or(u32::MAX);
        Tail { last: last.map(GuestAddress), room, head: self.head }
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

    #[test]
    fn the_start_is_read_whole_or_in_pieces() {
        let ram = ram();
        ram.write(GuestAddress(BASE), &[1, 2, 3, 4]).unwrap();
        ram.write(GuestAddress(BASE + 0x1000), &[5, 6, 7, 8]).unwrap();
        let chain = Chain::new(0, segments(&[4, 4]), Vec::new());
        assert_eq!(chain.read_start::<3>(&ram).unwrap(), [1, 2, 3]);
        assert_eq!(chain.read_start::<6>(&ram).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert!(matches!(chain.read_start::<9>(&ram), Err(ChainError::TooShort { end: 9 })));
    }

    #[test]
    fn a_tail_keeps_the_last_byte_and_bounds_what_is_reported() {
        let ram = ram();
        for (lens, written, want) in
            [(&[4, 1][..], 4, 5), (&[4, 1], 0, 1), (&[4, 1], u32::MAX, 5), (&[], 3, 0)]
        {
            let completion = Chain::new(7, segments(&[16]), segments(lens)).into_tail();
            let completion = completion.complete(&ram, 0xa5, written);
            assert_eq!(completion, Completion::new(7, want), "{lens:?} {written}");
            if let Some(at) = lens.len().checked_sub(1) {
                let addr = BASE + 0x1000 * at as u64 + u64::from(lens[at]) - 1;
                assert_eq!(ram.read_array::<1>(GuestAddress(addr)).unwrap(), [0xa5]);
            }
        }
        let outside = vec![Segment { addr: GuestAddress(u64::MAX), len_bytes: 2 }];
        let tail = Chain::new(7, Vec::new(), outside).into_tail();
        assert_eq!(tail.complete(&ram, 0, 0), Completion::new(7, 0));
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
