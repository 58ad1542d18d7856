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
        let addr = GuestAddress(segment.addr.0.wrapping_add(skip));
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
