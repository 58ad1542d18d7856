//! From a head to a chain: the walk over descriptors and at most one indirect table.
//!
//! Invariant: each descriptor is copied out of guest memory once; the walk ends after as many steps as its table has entries.

use vm_memory::GuestAddress;

use crate::memory::MemoryError;
use crate::virtio::chain::{Chain, Segment, Segments};

use super::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, F_INDIRECT_DESC, MAX_CHAIN, Queue, QueueError,
};

const DESC_BYTES: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    addr: u64,
    len_bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(bytes: [u8; DESC_BYTES]) -> Self {
        let value = u128::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "each field takes its own bits")]
        Self {
            addr: value as u64,
            len_bytes: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        }
    }

    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A chain under construction.
struct Draft {
    head: u16,
    limit: usize,
    segments: Segments,
    readable: usize,
    total_bytes: u64,
}

impl Draft {
    fn push(
        &mut self,
        queue: &Queue,
        index: u16,
        descriptor: Descriptor,
    ) -> Result<(), QueueError> {
        let Descriptor { addr, len_bytes, .. } = descriptor;
        if len_bytes == 0 {
            return Err(QueueError::ZeroLength { index });
        }
        if self.segments.len() == self.limit {
            return Err(QueueError::ChainTooLong { head: self.head });
        }
        if !descriptor.has(DESC_F_WRITE) {
            if self.readable != self.segments.len() {
                return Err(QueueError::ReadableAfterWritable { index });
            }
            self.readable += 1;
        }
        self.total_bytes += u64::from(len_bytes);
        if self.total_bytes > 1 << 32 {
            return Err(QueueError::TooManyBytes { head: self.head });
        }
        if !queue.is_in_ram(addr, len_bytes) {
            return Err(QueueError::BufferOutsideRam { addr, len_bytes });
        }
        self.segments.push(Segment { addr: GuestAddress(addr), len_bytes });
        Ok(())
    }
}

impl Queue {
    /// Reads the chain that starts at descriptor `head`.
    pub(super) fn walk(&self, head: u16) -> Result<Chain, QueueError> {
        let size = self.config.size;
        let mut draft = Draft {
            head,
            limit: usize::from(size).max(MAX_CHAIN),
            segments: Segments::new(),
            readable: 0,
            total_bytes: 0,
        };
        let mut index = head;
        for _ in 0..size {
            if index >= size {
                return Err(QueueError::DescriptorIndex { index, len: size });
            }
            let bytes = self.desc.read(DESC_BYTES * usize::from(index));
            let descriptor = Descriptor::parse(bytes);
            if descriptor.has(DESC_F_INDIRECT) {
                if !self.has(F_INDIRECT_DESC) || descriptor.has(DESC_F_NEXT) {
                    return Err(QueueError::Indirect { index, flags: descriptor.flags });
                }
                self.walk_table(&mut draft, descriptor)?;
                return Ok(Chain::from_segments(head, draft.segments, draft.readable));
            }
            draft.push(self, index, descriptor)?;
            if !descriptor.has(DESC_F_NEXT) {
                return Ok(Chain::from_segments(head, draft.segments, draft.readable));
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainTooLong { head })
    }

    /// Goes on with the indirect table that `descriptor` names; its WRITE flag means nothing there.
    fn walk_table(&self, draft: &mut Draft, descriptor: Descriptor) -> Result<(), QueueError> {
        let Descriptor { addr, len_bytes, .. } = descriptor;
        let table_bytes = len_bytes as usize;
        let entries = table_bytes / DESC_BYTES;
        if entries == 0 || !table_bytes.is_multiple_of(DESC_BYTES) || entries > draft.limit {
            return Err(QueueError::IndirectLength { len_bytes });
        }
        let len = u16::try_from(entries).map_err(|_| QueueError::IndirectLength { len_bytes })?;
        if !self.is_in_ram(addr, len_bytes) {
            let source = MemoryError::OutOfRange { addr, len_bytes: u64::from(len_bytes) };
            return Err(QueueError::IndirectTable(source));
        }
        let mut index = 0;
        for _ in 0..len {
            if index >= len {
                return Err(QueueError::DescriptorIndex { index, len });
            }
            // The table was checked to lie in RAM, so that this sum is an address inside it.
            let at = GuestAddress(addr.wrapping_add(DESC_BYTES as u64 * u64::from(index)));
            let bytes = self.ram.read_array(at).map_err(QueueError::IndirectTable)?;
            let descriptor = Descriptor::parse(bytes);
            if descriptor.has(DESC_F_INDIRECT) {
                return Err(QueueError::Indirect { index, flags: descriptor.flags });
            }
            draft.push(self, index, descriptor)?;
            if !descriptor.has(DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::ChainTooLong { head: draft.head })
    }

    /// Whether the bytes lie in one range of RAM.
    fn is_in_ram(&self, addr: u64, len_bytes: u32) -> bool {
        self.ram.contains(GuestAddress(addr), u64::from(len_bytes))
    }
}
