//! virtio-mmio version 2 (VIRTIO 1.2 section 4.2.2): one device behind one block of registers.
//!
//! Invariant: a device is activated only with what [`Lifecycle`] froze at DRIVER_OK, and whatever the driver writes, the answer is a
//! register value: a mistake reads as 0, writes nothing, or asks for a reset. vCPU threads call it; one lock per device, not taken for
//! the interrupt registers.

mod registers;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Effect};
use crate::memory::GuestRam;

use super::lifecycle::{DEVICE_NEEDS_RESET, DRIVER, Frozen, Lifecycle, QueueSetup, Transition};
use super::{Activation, Interrupt, Queue, VirtioDevice};

use registers::{Register, Target};

/// Offset of the notify register, where a doorbell is attached with the queue's index as the value to match, four bytes wide.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR_ID: u32 = u32::from_le_bytes(*b"OSHL");
const STATE_VERSION: u16 = 1;

/// All of a transport that a snapshot keeps, beside its device's and queues' own states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportState {
    /// 1.
    pub version: u16,
    /// Status bits without DEVICE_NEEDS_RESET.
    pub status: u8,
    /// Whether the device asked for a reset.
    pub device_failed: bool,
    /// Feature bits the driver wrote.
    pub driver_features: u64,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// QueueSel.
    pub queue_sel: u32,
    /// One per queue of the device.
    pub queues: Vec<QueueSetup>,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
}

struct Locked {
    device: Box<dyn VirtioDevice>,
    lifecycle: Lifecycle,
    /// Whether the device was activated and not reset since.
    active: bool,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// One virtio-mmio register block and the device behind it.
pub struct Transport {
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    locked: Mutex<Locked>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let locked = self.lock();
        f.debug_struct("Transport")
            .field("kind", &locked.device.kind())
            .field("lifecycle", &locked.lifecycle)
            .field("active", &locked.active)
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Puts `device` behind registers. `ram` is what its queues may name, `interrupt` how it calls its driver.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, ram: Arc<GuestRam>, interrupt: Interrupt) -> Self {
        let lifecycle = Lifecycle::new(device.features(), device.queue_max_sizes());
        Self {
            ram,
            interrupt,
            locked: Mutex::new(Locked {
                device,
                lifecycle,
                active: false,
                device_features_sel: 0,
                driver_features_sel: 0,
                queue_sel: 0,
            }),
        }
    }

    /// The doorbells to attach to the notify register before the machine runs: each queue's index, which is the value to match,
    /// and its eventfd. A doorbell that is not attached is rung by the register write itself.
    pub fn doorbells(&mut self) -> impl Iterator<Item = (u16, &EventFd)> {
        let locked = self.locked.get_mut().unwrap_or_else(PoisonError::into_inner);
        (0_u16..).zip(locked.device.doorbells())
    }

    /// How the device calls its driver.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Register writes that were ignored, since the machine started.
    #[must_use]
    pub fn refused_writes(&self) -> u64 {
        self.lock().lifecycle.refused_writes()
    }

    /// Ends the device: see [`VirtioDevice::shutdown`].
    ///
    /// # Errors
    /// What the host said when data could not be made durable.
    pub fn shutdown(&self) -> std::io::Result<()> {
        let mut locked = self.lock();
        locked.active = false;
        locked.device.shutdown()
    }

    /// The registers' state. Complete while no vCPU runs.
    #[must_use]
    pub fn save(&self) -> TransportState {
        let locked = self.lock();
        TransportState {
            version: STATE_VERSION,
            status: locked.lifecycle.status(),
            device_failed: self.interrupt.device_failed(),
            driver_features: locked.lifecycle.driver_features(),
            device_features_sel: locked.device_features_sel,
            driver_features_sel: locked.driver_features_sel,
            queue_sel: locked.queue_sel,
            queues: locked.lifecycle.queues().to_vec(),
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.config_generation(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::VendorId => VENDOR_ID,
            Register::InterruptStatus => self.interrupt.status(),
            Register::ConfigGeneration => self.interrupt.config_generation(),
            // No shared memory region exists, which a length of all ones says.
            Register::ShmRegion => u32::MAX,
            Register::DeviceId => self.lock().device.kind() as u32,
            Register::DeviceFeatures => {
                let locked = self.lock();
                locked.lifecycle.device_features(locked.device_features_sel)
            }
            Register::QueueNumMax => {
                let locked = self.lock();
                u32::from(locked.lifecycle.queue_max_size(locked.queue_sel))
            }
            Register::QueueReady => {
                let locked = self.lock();
                u32::from(locked.lifecycle.queue_ready(locked.queue_sel))
            }
            Register::Status => {
                let status = self.lock().lifecycle.status();
                let failed = if self.interrupt.device_failed() { DEVICE_NEEDS_RESET } else { 0 };
                u32::from(status | failed)
            }
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueNum
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueAddress(..)
            | Register::ShmSel
            | Register::QueueReset => 0,
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        if register == Register::InterruptAck {
            return self.interrupt.acknowledge(value);
        }
        let mut guard = self.lock();
        let locked = &mut *guard;
        let (lifecycle, queue) = (&mut locked.lifecycle, locked.queue_sel);
        match register {
            Register::DeviceFeaturesSel => locked.device_features_sel = value,
            Register::DriverFeaturesSel => locked.driver_features_sel = value,
            Register::DriverFeatures => {
                lifecycle.write_driver_features(locked.driver_features_sel, value);
            }
            Register::QueueSel => locked.queue_sel = value,
            Register::QueueNum => lifecycle.write_queue_size(queue, value),
            Register::QueueReady => lifecycle.write_queue_ready(queue, value),
            Register::QueueAddress(ring, half) => {
                lifecycle.write_queue_address(queue, ring, half, value);
            }
            Register::QueueNotify => locked.notify(value),
            Register::Status => self.write_status(locked, value),
            Register::ShmSel => {}
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueNumMax
            | Register::InterruptStatus
            | Register::InterruptAck
            | Register::ShmRegion
            | Register::QueueReset
            | Register::ConfigGeneration => lifecycle.refuse(),
        }
    }

    fn write_status(&self, locked: &mut Locked, value: u32) {
        let Ok(value) = u8::try_from(value) else {
            return locked.lifecycle.refuse();
        };
        match locked.lifecycle.write_status(value) {
            Transition::None => {}
            Transition::Activate(frozen) => match self.activation(&frozen) {
                Ok(activation) => match locked.device.activate(activation) {
                    Ok(()) => locked.active = true,
                    Err(_) => self.interrupt.fail_device(),
                },
                Err(_) => self.interrupt.fail_device(),
            },
            Transition::Reset => {
                // The device first: once it is reset nobody raises an interrupt that would outlive the clearing.
                locked.device.reset();
                locked.active = false;
                locked.device_features_sel = 0;
                locked.driver_features_sel = 0;
                locked.queue_sel = 0;
                self.interrupt.clear();
            }
        }
    }

    fn activation(&self, frozen: &Frozen) -> Result<Activation, super::QueueError> {
        let features = frozen.features();
        let resolve = |queue: &Option<_>| {
            queue.map(|config| Queue::new(&self.ram, config, features)).transpose()
        };
        Ok(Activation {
            features,
            queues: frozen.queues().iter().map(resolve).collect::<Result<_, _>>()?,
            interrupt: self.interrupt.clone(),
            ram: Arc::clone(&self.ram),
        })
    }
}

impl Locked {
    fn notify(&mut self, value: u32) {
        let queue = u16::try_from(value).ok().filter(|_| self.lifecycle.queue_ready(value));
        let Some(queue) = queue.filter(|_| self.active) else {
            return self.lifecycle.refuse();
        };
        match self.device.doorbells().get(usize::from(queue)) {
            // It fails only when the counter is about to overflow, and then the doorbell rings already.
            Some(doorbell) => drop(doorbell.write(1)),
            None => self.device.notify(queue),
        }
    }
}

impl BusDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Target::at(offset, data.len()) {
            Target::Register(register) => {
                data.copy_from_slice(&self.read_register(register).to_le_bytes());
            }
            Target::Config(offset) => self.lock().device.read_config(offset, data),
            Target::Nothing => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        match (Target::at(offset, data.len()), data) {
            (Target::Register(register), &[a, b, c, d]) => {
                self.write_register(register, u32::from_le_bytes([a, b, c, d]));
            }
            (Target::Config(offset), data) => {
                let mut locked = self.lock();
                if locked.lifecycle.has(DRIVER) {
                    locked.device.write_config(offset, data);
                } else {
                    locked.lifecycle.refuse();
                }
            }
            _ => self.lock().lifecycle.refuse(),
        }
        Effect::None
    }
}
