//! VIRTIO 1.2 devices: what a device offers, and what it is given when its driver is ready.
//!
//! Invariant: a device sees guest memory and queues only between `activate` and `reset`; what it was given at activation never
//! changes until then. The transport calls the methods of [`VirtioDevice`] on vCPU threads, one at a time; a device's worker
//! threads own the queues in between and never wait for a vCPU thread.

pub mod block;
pub mod chain;
pub mod interrupt;
pub mod lifecycle;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(any(test, fuzzing))]
pub mod test_driver;
pub mod transport;
pub mod vsock;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;

pub use chain::{Chain, ChainError, Segment, Tail};
pub use interrupt::Interrupt;
pub use queue::{Completion, Queue, QueueError};
pub use transport::Transport;

/// Device IDs of VIRTIO 1.2 section 5 that this VMM serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Section 5.1.
    Net = 1,
    /// Section 5.2.
    Block = 2,
    /// Section 5.4.
    Entropy = 4,
    /// Section 5.10.
    Vsock = 19,
}

/// Everything a device needs to serve its driver, given at DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// Feature bits that both sides accepted.
    pub features: u64,
    /// One entry per queue the device has; `None` where the driver did not enable it.
    pub queues: Vec<Option<Queue>>,
    /// How the device calls the driver.
    pub interrupt: Interrupt,
    /// The memory that descriptors name.
    pub ram: Arc<GuestRam>,
}

/// Why a device could not start; the transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver enabled a set of queues that the device cannot work with.
    #[error("queue {0} is needed and was not enabled")]
    MissingQueue(u16),
    /// The device's worker is gone.
    #[error("the device's worker has ended")]
    WorkerGone,
}

/// A device as its transport sees it.
pub trait VirtioDevice: Send {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// Feature bits offered, without VERSION_1, which the transport adds.
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two, at most 32768.
    fn queue_max_sizes(&self) -> &[u16];

    /// One doorbell per queue, to be attached to its notify register. An empty list: notifications come as calls of
    /// [`Self::notify`].
    fn doorbells(&self) -> &[EventFd] {
        &[]
    }

    /// A notification for a device without doorbells.
    fn notify(&mut self, _queue: u16) {}

    /// Reads device configuration; bytes past its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; bytes that are not writable are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready.
    ///
    /// # Errors
    /// [`ActivateError`] when the device cannot serve what the driver set up.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver let go of the device. On return no thread touches the queues or guest memory for it any more: I/O under
    /// way has been reaped. Does nothing on a device that is not active.
    fn reset(&mut self);

    /// The machine ends: as [`Self::reset`], then makes what was written durable and joins the device's threads.
    ///
    /// # Errors
    /// What the host said when data could not be made durable.
    fn shutdown(&mut self) -> std::io::Result<()>;
}
