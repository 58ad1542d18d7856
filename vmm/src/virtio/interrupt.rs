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
    config_generation: AtomicU32,
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
            config_generation: AtomicU32::new(0),
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
        self.0.config_generation.fetch_add(1, Ordering::SeqCst);
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

    /// The ConfigGeneration register: another value after each [`Self::raise_config`].
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.0.config_generation.load(Ordering::SeqCst)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_sets_its_bit_and_raises_the_line() {
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let same = interrupt.clone();
        for (raise, status, failed) in [
            (Interrupt::raise_queue as fn(&Interrupt), 1, false),
            (Interrupt::raise_config, 2, false),
            (Interrupt::fail_device, 2, true),
        ] {
            raise(&same);
            assert_eq!((interrupt.status(), interrupt.device_failed()), (status, failed));
            assert_eq!(interrupt.line().read().unwrap(), 1);
            interrupt.acknowledge(!status);
            assert_eq!(interrupt.status(), status, "only what is acknowledged goes");
            interrupt.acknowledge(status);
            assert_eq!(interrupt.status(), 0);
        }
        assert_eq!(interrupt.config_generation(), 1);
        assert!(interrupt.device_failed(), "an acknowledgement does not mend the device");
        interrupt.raise_queue();
        interrupt.clear();
        assert_eq!((interrupt.status(), interrupt.device_failed()), (0, false));
    }
}
