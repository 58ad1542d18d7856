//! A guest-side driver model over guest RAM, for tests of queues and devices.
//!
//! Invariant: what [`TestDriver::add`] and [`TestDriver::add_indirect`] do, a driver that keeps the rules does (VIRTIO 1.2 section
//! 2.7.13), with its memory ordering, so that a device's worker may run beside it. The `raw_*` methods break any rule.
//!
//! ```ignore
//! let mut driver = TestDriver::new(&ram, 0x10000, 256, features);
//! let queue = Queue::new(&ram, driver.queue_config(), features)?;
//! let head = driver.add(&[(0x80000, 16, false), (0x81000, 512, true), (0x82000, 1, true)]);
//! // ... let the device serve the queue ...
//! assert_eq!(driver.used(), [(u32::from(head), 513)]);
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::memory::{GuestAddress, GuestRam, Window};

use super::queue::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, F_EVENT_IDX, QueueConfig, need_event,
};

/// Entries that one indirect table of this driver holds at most.
pub const INDIRECT_ENTRIES: usize = 64;

/// One buffer of a chain: guest address, length in bytes, whether the device may write it.
pub type Buffer = (u64, u32, bool);

/// One split queue's driver.
#[derive(Debug)]
pub struct TestDriver {
    ram: Arc<GuestRam>,
    config: QueueConfig,
    desc: Window,
    avail: Window,
    used: Window,
    tables: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// Descriptors to free when the chain that starts here comes back.
    in_flight: Vec<Vec<u16>>,
    next_avail: u16,
    kicked: u16,
    last_used: u16,
}

impl TestDriver {
    /// Lays out a queue of `size` descriptors from `base` on, which is rounded up to 4096, and clears its rings. It uses memory
    /// up to [`Self::end`]. `features` are the accepted bits.
    ///
    /// # Panics
    /// When the queue does not fit in one range of RAM.
    #[must_use]
    pub fn new(ram: &Arc<GuestRam>, base: u64, size: u16, features: u64) -> Self {
        let entries = u64::from(size);
        let desc = base.next_multiple_of(4096);
        let avail = desc + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        let tables = (used + 6 + 8 * entries).next_multiple_of(4096);
        let zeroes = vec![0; usize::try_from(tables - desc).expect("a queue is small")];
        ram.write(GuestAddress(desc), &zeroes).expect("the queue lies in RAM");
        let window = |addr, len_bytes, align| {
            ram.window(GuestAddress(addr), len_bytes, align).expect("the queue lies in RAM")
        };
        Self {
            ram: Arc::clone(ram),
            config: QueueConfig { size, desc, avail, used },
            desc: window(desc, 16 * entries, 16),
            avail: window(avail, 6 + 2 * entries, 2),
            used: window(used, 6 + 8 * entries, 4),
            tables,
            event_idx: features & F_EVENT_IDX != 0,
            free: (0..size).rev().collect(),
            in_flight: vec![Vec::new(); usize::from(size)],
            next_avail: 0,
            kicked: 0,
            last_used: 0,
        }
    }

    /// What the driver would write to the transport's queue registers.
    #[must_use]
    pub fn queue_config(&self) -> QueueConfig {
        self.config
    }

    /// First guest address after everything the driver uses: rings, then one indirect table per descriptor.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.tables + u64::from(self.config.size) * (16 * INDIRECT_ENTRIES as u64)
    }

    /// Number of free descriptors.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of `buffers` available, one descriptor each, and returns its head.
    ///
    /// # Panics
    /// When `buffers` is empty or there are not enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> =
            buffers.iter().map(|_| self.free.pop().expect("a free descriptor")).collect();
        for (at, &(addr, len, writable)) in buffers.iter().enumerate() {
            let next = indices.get(at + 1).copied();
            let flags = flags_of(writable, next.is_some());
            self.raw_descriptor(indices[at], (addr, len, flags, next.unwrap_or(0)));
        }
        let head = indices[0];
        self.in_flight[usize::from(head)] = indices;
        self.raw_available(head);
        head
    }

    /// Makes a chain of `buffers` available through an indirect table and returns its head.
    ///
    /// # Panics
    /// When there is no free descriptor or there are more than [`INDIRECT_ENTRIES`] buffers.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(buffers.len() <= INDIRECT_ENTRIES, "the table has room");
        let head = self.free.pop().expect("a free descriptor");
        let table = self.indirect_table(head);
        let mut bytes = Vec::with_capacity(16 * buffers.len());
        for (at, &(addr, len, writable)) in (1_u16..).zip(buffers) {
            let more = usize::from(at) < buffers.len();
            let next = if more { at } else { 0 };
            bytes.extend(descriptor_bytes((addr, len, flags_of(writable, more), next)));
        }
        self.raw_memory(table, &bytes);
        let len = u32::try_from(bytes.len()).expect("tables are small");
        self.raw_descriptor(head, (table, len, DESC_F_INDIRECT, 0));
        self.in_flight[usize::from(head)] = vec![head];
        self.raw_available(head);
        head
    }

    /// Where the indirect table of descriptor `head` lies.
    #[must_use]
    pub fn indirect_table(&self, head: u16) -> u64 {
        self.tables + u64::from(head) * (16 * INDIRECT_ENTRIES as u64)
    }

    /// Takes what the device put on the used ring since the last call: (head, bytes written). Frees the chains' descriptors and
    /// asks for an interrupt at the next completion.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        loop {
            let idx = self.used.load_u16(2);
            while self.last_used != idx {
                let slot = usize::from(self.last_used % self.config.size);
                let element = self.used.read::<8>(4 + 8 * slot);
                let (id, len) = element.split_at(4);
                let word = |half: &[u8]| u32::from_le_bytes(half.try_into().expect("four bytes"));
                taken.push((word(id), word(len)));
                let chain = usize::try_from(word(id)).ok().and_then(|i| self.in_flight.get_mut(i));
                self.free.append(chain.unwrap_or(&mut Vec::new()));
                self.last_used = self.last_used.wrapping_add(1);
            }
            if self.event_idx {
                self.set_used_event(self.last_used);
            }
            // What was used before the wish for an interrupt was seen brings none: look again.
            if self.used.load_u16(2) == self.last_used {
                break;
            }
        }
        taken
    }

    /// Whether the device asked for a doorbell for what was made available since the last call.
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked, self.next_avail);
        if self.event_idx {
            let event = self.used.load_u16(4 + 8 * usize::from(self.config.size));
            need_event(event, self.next_avail, self.next_avail.wrapping_sub(old))
        } else {
            old != self.next_avail && self.used.load_u16(0) & 1 == 0
        }
    }

    /// EVENT_IDX: asks for an interrupt when used entry `index` has been written.
    pub fn set_used_event(&self, index: u16) {
        self.avail.store_u16(4 + 2 * usize::from(self.config.size), index);
        fence(Ordering::SeqCst);
    }

    /// Without EVENT_IDX: whether the driver wants interrupts at all.
    pub fn set_interrupts(&self, wanted: bool) {
        self.avail.store_u16(0, u16::from(!wanted));
        fence(Ordering::SeqCst);
    }

    /// Writes `bytes` anywhere in RAM.
    ///
    /// # Panics
    /// When it is not in RAM.
    pub fn raw_memory(&self, addr: u64, bytes: &[u8]) {
        self.ram.write(GuestAddress(addr), bytes).expect("the address lies in RAM");
    }

    /// Writes a descriptor as it is: address, length, flags, next.
    pub fn raw_descriptor(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.desc.write(16 * usize::from(index), descriptor_bytes(descriptor));
    }

    /// Puts `head` on the available ring as it is and moves the ring's index.
    pub fn raw_available(&mut self, head: u16) {
        let slot = usize::from(self.next_avail % self.config.size);
        self.avail.store_u16(4 + 2 * slot, head);
        self.raw_avail_index(self.next_avail.wrapping_add(1));
    }

    /// Sets the available ring's index as it is.
    pub fn raw_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.avail.store_u16(2, index);
    }
}

/// The 16 bytes of a descriptor: address, length, flags, next.
#[must_use]
pub fn descriptor_bytes((addr, len, flags, next): (u64, u32, u16, u16)) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

fn flags_of(writable: bool, more: bool) -> u16 {
    let write = if writable { DESC_F_WRITE } else { 0 };
    write | if more { DESC_F_NEXT } else { 0 }
}
