//! A split virtqueue (VIRTIO 1.2 section 2.7) with its rings resolved once, at activation.
//!
//! Invariant: the driver's memory is read once per field and judged on the copy, and every chain handed out is bounded: at most
//! [`MAX_CHAIN`] descriptors (or the queue's size), all inside guest RAM, and no more chains at a time than the queue has
//! descriptors. One thread owns a queue; its driver runs beside it on vCPUs.

#[cfg(any(test, fuzzing))]
pub mod model;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestAddress;

use crate::memory::{GuestRam, MemoryError, Window};

use super::chain::Chain;

/// VIRTIO_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// VIRTQ_DESC_F_NEXT.
pub const DESC_F_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const DESC_F_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const DESC_F_INDIRECT: u16 = 4;

/// The largest queue of section 2.7.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Descriptors in one chain, unless the queue is larger. The specification's bound is the queue's size; drivers in the field fill
/// indirect tables up to a device's segment limit even where the queue is smaller, and other devices accept up to this many.
pub const MAX_CHAIN: usize = 1024;

const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const INDEX_OFFSET: usize = 2;
const RING_OFFSET: usize = 4;
const STATE_VERSION: u16 = 1;

/// What the driver wrote about a queue before DRIVER_OK.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of descriptors: a power of two, at most the device's maximum.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// How a driver broke the rules of a queue. The device stops serving it and asks for a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring does not lie in guest memory or is not aligned.
    #[error("a ring lies outside guest memory")]
    Ring(#[source] MemoryError),
    /// The number of descriptors is not a power of two from 1 to 32768.
    #[error("queue size {0} is not a power of two up to 32768")]
    Size(u16),
    /// A saved queue is of a version that this program does not know.
    #[error("saved queue has version {0}")]
    StateVersion(u16),
    /// The available index ran ahead by more than the queue holds.
    #[error("available index {index} with {done} chains returned is more than {size} ahead")]
    AvailIndex {
        /// The index read.
        index: u16,
        /// The used index, which every available chain must catch up with.
        done: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index is not below its table's length.
    #[error("descriptor {index} is outside its table of {len}")]
    DescriptorIndex {
        /// The index read.
        index: u16,
        /// Descriptors in the table.
        len: u16,
    },
    /// The chain has more descriptors than its table, or than a chain may have.
    #[error("descriptor chain from {head} loops or is too long")]
    ChainTooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The chain's buffers are more than 4 GiB together.
    #[error("descriptor chain from {head} is longer than 4 GiB")]
    TooManyBytes {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect descriptor where it was not negotiated, is nested or goes on.
    #[error("descriptor {index} may not be indirect with flags {flags:#x}")]
    Indirect {
        /// The descriptor.
        index: u16,
        /// Its flags.
        flags: u16,
    },
    /// An indirect table's length is 0, not a multiple of 16, or too long.
    #[error("indirect table of {len_bytes} bytes")]
    IndirectLength {
        /// The length read.
        len_bytes: u32,
    },
    /// An indirect table does not lie in guest memory.
    #[error("an indirect table lies outside guest memory")]
    IndirectTable(#[source] MemoryError),
    /// A buffer for the device to read follows one for it to write.
    #[error("descriptor {index} is readable after a writable one")]
    ReadableAfterWritable {
        /// The descriptor.
        index: u16,
    },
    /// A buffer is empty.
    #[error("descriptor {index} has length 0")]
    ZeroLength {
        /// The descriptor.
        index: u16,
    },
    /// A buffer does not lie in one range of guest memory.
    #[error("buffer {addr:#x} plus {len_bytes} bytes is not inside guest memory")]
    BufferOutsideRam {
        /// Guest-physical start.
        addr: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
}

/// Work on a chain that has ended; [`Queue::complete`] spends it.
#[must_use = "a chain that is not completed hangs the guest"]
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    head: u16,
    written_bytes: u32,
}

impl Completion {
    pub(super) fn new(head: u16, written_bytes: u32) -> Self {
        Self { head, written_bytes }
    }
}

/// All of a queue that a snapshot keeps; what lies in the rings is in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// 1.
    pub version: u16,
    /// Where the rings are.
    pub config: QueueConfig,
    /// EVENT_IDX and INDIRECT_DESC where accepted; no other bit matters.
    pub features: u64,
    /// Chains taken, modulo 65536.
    pub next_avail: u16,
    /// Chains returned, modulo 65536.
    pub next_used: u16,
    /// Chains returned since the driver was last considered for an interrupt, at most 65535.
    pub unsignalled: u16,
}

/// A queue that its device serves; exactly one thread owns it.
///
/// The order of service: [`Self::disable_doorbell`], [`Self::pop`] until `None`, [`Self::enable_doorbell`], and again from the start
/// while that says true; [`Self::wants_interrupt`] after each batch of completions.
#[derive(Debug)]
pub struct Queue {
    config: QueueConfig,
    features: u64,
    ram: Arc<GuestRam>,
    desc: Window,
    avail: Window,
    used: Window,
    next_avail: u16,
    /// The driver's index as last read: entries before it may be taken without reading it again.
    seen_avail: u16,
    next_used: u16,
    unsignalled: u16,
}

impl Queue {
    /// Resolves the rings of `config` in `ram`. `features` are the accepted bits (EVENT_IDX and INDIRECT_DESC matter here).
    ///
    /// # Errors
    /// [`QueueError::Size`], [`QueueError::Ring`].
    pub fn new(
        ram: &Arc<GuestRam>,
        config: QueueConfig,
        features: u64,
    ) -> Result<Self, QueueError> {
        if !config.size.is_power_of_two() || config.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(config.size));
        }
        let entries = u64::from(config.size);
        let ring = |addr, len_bytes, align| {
            ram.window(GuestAddress(addr), len_bytes, align).map_err(QueueError::Ring)
        };
        Ok(Self {
            config,
            features: features & (F_EVENT_IDX | F_INDIRECT_DESC),
            ram: Arc::clone(ram),
            desc: ring(config.desc, 16 * entries, 16)?,
            avail: ring(config.avail, 6 + 2 * entries, 2)?,
            used: ring(config.used, 6 + 8 * entries, 4)?,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            unsignalled: 0,
        })
    }

    /// A queue that goes on where [`Self::save`] left off.
    ///
    /// # Errors
    /// [`QueueError::StateVersion`], and those of [`Self::new`].
    pub fn restore(ram: &Arc<GuestRam>, state: &QueueState) -> Result<Self, QueueError> {
        if state.version != STATE_VERSION {
            return Err(QueueError::StateVersion(state.version));
        }
        Ok(Self {
            next_avail: state.next_avail,
            seen_avail: state.next_avail,
            next_used: state.next_used,
            unsignalled: state.unsignalled,
            ..Self::new(ram, state.config, state.features)?
        })
    }

    /// The queue's state, complete when no popped chain is outstanding.
    #[must_use]
    pub fn save(&self) -> QueueState {
        QueueState {
            version: STATE_VERSION,
            config: self.config,
            features: self.features,
            next_avail: self.next_avail,
            next_used: self.next_used,
            unsignalled: self.unsignalled,
        }
    }

    /// Number of descriptors, which bounds the chains that are popped and not completed.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Takes the next available chain, or `None` when the ring is empty.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the rules: the queue must not be used again before a reset.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if !self.has_chain()? {
            return Ok(None);
        }
        let head = self.avail.load_u16(RING_OFFSET + 2 * self.slot(self.next_avail));
        let chain = self.walk(head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts a finished chain on the used ring. It is visible to the driver at once.
    pub fn complete(&mut self, completion: Completion) {
        self.complete_all([completion]);
    }

    /// Puts finished chains on the used ring in their order. They become visible to the driver together.
    pub fn complete_all(&mut self, completions: impl IntoIterator<Item = Completion>) {
        for Completion { head, written_bytes } in completions {
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&written_bytes.to_le_bytes());
            self.used.write(RING_OFFSET + 8 * self.slot(self.next_used), element);
            self.next_used = self.next_used.wrapping_add(1);
            self.unsignalled = self.unsignalled.saturating_add(1);
        }
        // Release: the elements, and what the device wrote into the buffers, come before the index.
        self.used.store_u16(INDEX_OFFSET, self.next_used);
    }

    /// Whether the driver wants an interrupt for what was completed since the last call (EVENT_IDX or NO_INTERRUPT).
    #[must_use]
    pub fn wants_interrupt(&mut self) -> bool {
        let unsignalled = std::mem::take(&mut self.unsignalled);
        if unsignalled == 0 {
            return false;
        }
        // The driver publishes its wish and then looks at the used index; here the used index was published and now the wish is
        // read. Without a full fence on both sides each could miss the other's write.
        fence(Ordering::SeqCst);
        if self.has(F_EVENT_IDX) {
            let event = self.avail.load_u16(RING_OFFSET + 2 * usize::from(self.config.size));
            unsignalled == u16::MAX || need_event(event, self.next_used, unsignalled)
        } else {
            self.avail.load_u16(0) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to ring the doorbell while the device is busy with the queue anyway.
    pub fn disable_doorbell(&mut self) {
        // With EVENT_IDX the event index stays behind, which silences the driver until it is moved.
        if !self.has(F_EVENT_IDX) {
            self.used.store_u16(0, USED_F_NO_NOTIFY);
        }
    }

    /// Asks for the doorbell again. True when chains became available meanwhile: serve them first.
    ///
    /// # Errors
    /// As [`Self::pop`].
    #[must_use = "chains that came in between would wait for ever"]
    pub fn enable_doorbell(&mut self) -> Result<bool, QueueError> {
        if self.has(F_EVENT_IDX) {
            let event_offset = RING_OFFSET + 8 * usize::from(self.config.size);
            self.used.store_u16(event_offset, self.next_avail);
        } else {
            self.used.store_u16(0, 0);
        }
        // Pairs with the driver's fence between moving the available index and reading this wish.
        fence(Ordering::SeqCst);
        self.has_chain()
    }

    /// Whether there is a chain to take.
    ///
    /// # Errors
    /// As [`Self::pop`].
    pub fn has_chain(&mut self) -> Result<bool, QueueError> {
        Ok(self.next_avail != self.seen_avail || self.look_for_chains()?)
    }

    /// Reads the driver's index; true when there is a chain to take.
    fn look_for_chains(&mut self) -> Result<bool, QueueError> {
        let index = self.avail.load_u16(INDEX_OFFSET);
        let (ahead, size) = (index.wrapping_sub(self.next_avail), self.config.size);
        // A chain that was not returned keeps its descriptors, so that even the ones taken count against the size.
        if ahead > size || index.wrapping_sub(self.next_used) > size {
            return Err(QueueError::AvailIndex { index, done: self.next_used, size });
        }
        self.seen_avail = index;
        Ok(ahead != 0)
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.config.size - 1))
    }
}

/// Whether one of the last `count` steps of an index that is now `new` passed `event` (section 2.7.10).
#[must_use]
pub(super) fn need_event(event: u16, new: u16, count: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < count
}
