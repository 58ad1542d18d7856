//! A virtio-mmio driver as script operations: honest set-up, and rings whose every byte is the test's.
//!
//! Invariant: nothing here checks or corrects what a test writes into a ring: a hostile driver is an honest one with one call changed.

use openshell_vmm::layout;

use super::Script;

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// Feature bit VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// Feature bit INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;

/// Status bit DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 0x40;

/// Offsets of registers.
#[expect(missing_docs, reason = "the specification's own names")]
pub mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const CONFIG: u64 = 0x100;
}

use register as at;

/// One transport of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Guest-physical start of its registers.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

impl Device {
    /// Transport `index`: disks come first, then the entropy device, then vsock.
    ///
    /// # Panics
    /// When no machine has so many.
    #[must_use]
    pub fn number(index: usize) -> Self {
        let slot = layout::mmio_slot(index).expect("a machine has room for the device");
        Self { base: slot.base, gsi: slot.gsi }
    }
}

/// One descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical start of the buffer.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one's index.
    pub next: u16,
}

impl Descriptor {
    /// A buffer that the device reads.
    #[must_use]
    pub fn read(addr: u64, len: u32) -> Self {
        Self { addr, len, ..Self::default() }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub fn write(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// The same, going on at `next`.
    #[must_use]
    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// As it lies in memory.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let low = u128::from(self.addr) | u128::from(self.len) << 64;
        (low | u128::from(self.flags) << 96 | u128::from(self.next) << 112).to_le_bytes()
    }
}

/// Descriptors that follow each other, the first at index `first`.
#[must_use]
pub fn chained(first: u16, parts: &[Descriptor]) -> Vec<Descriptor> {
    let last = parts.len().saturating_sub(1);
    let link = |(at, part): (usize, &Descriptor)| match u16::try_from(at) {
        Ok(index) if at < last => part.then(first + index + 1),
        _ => *part,
    };
    parts.iter().enumerate().map(link).collect()
}

/// Where a queue's rings lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Descriptors.
    pub size: u16,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

impl Ring {
    /// A queue of at most 256 descriptors in the 16 KiB at `addr`.
    #[must_use]
    pub fn at(addr: u64, size: u16) -> Self {
        Self { size, desc: addr, avail: addr + 0x1000, used: addr + 0x2000 }
    }

    /// Where the driver's index lies.
    #[must_use]
    pub fn avail_index(&self) -> u64 {
        self.avail + 2
    }

    /// Where the device's index lies.
    #[must_use]
    pub fn used_index(&self) -> u64 {
        self.used + 2
    }

    /// Where the length in element `slot` of the used ring lies.
    #[must_use]
    pub fn used_len(&self, slot: u16) -> u64 {
        self.used + 4 + 8 * u64::from(slot % self.size) + 4
    }
}

impl Script {
    /// Writes a register.
    #[track_caller]
    pub fn write(&mut self, device: Device, register: u64, value: u32) -> &mut Self {
        self.store32(device.base + register, value)
    }

    /// Reads a register, for the expectation that follows.
    #[track_caller]
    pub fn read(&mut self, device: Device, register: u64) -> &mut Self {
        self.load32(device.base + register)
    }

    /// The status register holds `value`.
    #[track_caller]
    pub fn status(&mut self, device: Device, value: u32) -> &mut Self {
        self.read(device, at::STATUS).expect(u64::from(value))
    }

    /// Lets go of the device.
    #[track_caller]
    pub fn reset(&mut self, device: Device) -> &mut Self {
        self.write(device, at::STATUS, 0).status(device, 0)
    }

    /// From a reset to FEATURES_OK with `features` and VERSION_1.
    #[track_caller]
    pub fn negotiate(&mut self, device: Device, features: u64) -> &mut Self {
        let [low, high] = halves(features | VERSION_1);
        self.reset(device).write(device, at::STATUS, 1).write(device, at::STATUS, 3);
        self.write(device, at::DRIVER_FEATURES_SEL, 0).write(device, at::DRIVER_FEATURES, low);
        self.write(device, at::DRIVER_FEATURES_SEL, 1).write(device, at::DRIVER_FEATURES, high);
        self.write(device, at::STATUS, 11).status(device, 11)
    }

    /// Writes a queue's size and addresses, and enables it.
    #[track_caller]
    pub fn queue(&mut self, device: Device, index: u32, ring: &Ring) -> &mut Self {
        self.write(device, at::QUEUE_SEL, index);
        self.write(device, at::QUEUE_NUM, u32::from(ring.size));
        for (register, addr) in [
            (at::QUEUE_DESC_LOW, ring.desc),
            (at::QUEUE_DRIVER_LOW, ring.avail),
            (at::QUEUE_DEVICE_LOW, ring.used),
        ] {
            let [low, high] = halves(addr);
            self.write(device, register, low).write(device, register + 4, high);
        }
        self.write(device, at::QUEUE_READY, 1)
    }

    /// Clears the rings.
    #[track_caller]
    pub fn clear_ring(&mut self, ring: &Ring) -> &mut Self {
        let entries = u64::from(ring.size);
        self.fill(ring.desc, 16 * entries, 0).fill(ring.avail, 6 + 2 * entries, 0);
        self.fill(ring.used, 6 + 8 * entries, 0)
    }

    /// From a reset to DRIVER_OK with cleared rings, one per queue from the first on.
    #[track_caller]
    pub fn start(&mut self, device: Device, features: u64, rings: &[Ring]) -> &mut Self {
        self.negotiate(device, features);
        for (index, ring) in (0..).zip(rings) {
            self.clear_ring(ring).queue(device, index, ring);
        }
        self.write(device, at::STATUS, 15).status(device, 15)
    }

    /// Writes descriptors from index `first` on.
    #[track_caller]
    pub fn describe(&mut self, ring: &Ring, first: u16, descriptors: &[Descriptor]) -> &mut Self {
        let bytes: Vec<u8> = descriptors.iter().flat_map(Descriptor::bytes).collect();
        self.copy(ring.desc + 16 * u64::from(first), &bytes)
    }

    /// Makes the chain from `head` the `count`th one available, counted from 1, modulo 65536.
    #[track_caller]
    pub fn offer(&mut self, ring: &Ring, head: u16, count: u16) -> &mut Self {
        let slot = u64::from(count.wrapping_sub(1) % ring.size);
        self.store16(ring.avail + 4 + 2 * slot, head).store16(ring.avail_index(), count)
    }

    /// Rings the doorbell.
    #[track_caller]
    pub fn notify(&mut self, device: Device, queue: u32) -> &mut Self {
        self.write(device, at::QUEUE_NOTIFY, queue)
    }

    /// Waits until the device has returned `count` chains, modulo 65536.
    #[track_caller]
    pub fn wait_used(&mut self, ring: &Ring, count: u16) -> &mut Self {
        self.wait16(ring.used_index(), count)
    }

    /// Waits until the device has returned `count` chains or more.
    #[track_caller]
    pub fn wait_used_past(&mut self, ring: &Ring, count: u16) -> &mut Self {
        self.wait_past16(ring.used_index(), count)
    }

    /// Waits until the device asks for a reset.
    #[track_caller]
    pub fn wait_needs_reset(&mut self, device: Device) -> &mut Self {
        self.wait32(device.base + at::STATUS, NEEDS_RESET, NEEDS_RESET)
    }
}

/// Low and high 32 bits.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
