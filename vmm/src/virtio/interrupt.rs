//! How a device calls its driver: the interrupt status register and the line behind it (VIRTIO 1.2 section 4.2.2).
//!
//! Invariant: the status bit is set before the line is raised, so that the driver's handler always finds the reason. Any thread may
//! call it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;

#[derive(Debug)]
struct Shared {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: EventFd,
}

/// One device's interrupt; clones raise the same line.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<Shared>);

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd that is or will be attached to the guest's interrupt controller.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self(Arc::new(Shared {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line,
        }))
    }

    /// The eventfd behind the line.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.0.line
    }

    /// Tells the driver that used buffers wait.
    pub fn raise_queue(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the configuration changed.
    pub fn raise_config(&self) {
        self.raise(CONFIG_CHANGE);
    }

    /// The driver broke the protocol, or the device can't go on: DEVICE_NEEDS_RESET shows in the status register.
    pub fn fail_device(&self) {
        self.0.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// Whether [`Self::fail_device`] was called since the last [`Self::clear`].
    #[must_use]
    pub fn device_failed(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    /// The InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.0.status.load(Ordering::SeqCst)
    }

    /// A write of `bits` to the InterruptACK register.
    pub fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Device reset: no reason is pending, the device has not failed.
    pub fn clear(&self) {
        self.0.needs_reset.store(false, Ordering::SeqCst);
        self.0.status.store(0, Ordering::SeqCst);
    }

    fn raise(&self, reason: u32) {
        self.0.status.fetch_or(reason, Ordering::SeqCst);
        // An eventfd write fails only when the counter is about to overflow, and then the line is up already.
        drop(self.0.line.write(1));
    }
}
