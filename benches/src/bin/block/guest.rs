//! Our block device with its driver: this thread plays the guest, the device's worker serves the queue as in a machine.
//!
//! Invariant: the driver does what a Linux guest's does for each request (an indirect table of three, written anew; one doorbell per
//! batch, only when the device's event index asks for it; it waits for the interrupt as a halted vCPU does), except that no processor exits.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use openshell_vmm::config::plan::{DiskLimits, DiskPlan};
use openshell_vmm::jail::Jail;
use openshell_vmm::memory::{GuestAddress, GuestRam, Window};
use openshell_vmm::virtio::block::{Block, EngineKind};
use openshell_vmm::virtio::queue::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, F_EVENT_IDX, F_INDIRECT_DESC, QueueConfig,
};
use openshell_vmm::virtio::{Activation, Interrupt, Queue, VirtioDevice as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::load::{Io, Kind, Load, Pace, Shape, Turn};
use crate::sys;

/// Guest RAM of a rig.
pub(crate) const RAM_BYTES: u64 = 32 << 20;
/// Guest address of the first slot's data.
pub(crate) const DATA: u64 = 16 << 20;
/// Distance between two slots' data.
pub(crate) const DATA_STRIDE: u64 = 128 << 10;

const ENTRIES: u16 = 256;
const DESC: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_2000;
const USED: u64 = 0x1_3000;
const SLOTS: u64 = 0x2_0000;
/// A slot's header, status and table, on cache lines of their own.
const SLOT_BYTES: usize = 192;
const STATUS: usize = 16;
const TABLE: usize = 64;

/// How long KVM looks for an interrupt before a halted vCPU's thread sleeps: what `halt_poll_ns` is unless it was changed.
const HALT_POLL: Duration = Duration::from_micros(200);

const F_FLUSH: u64 = 1 << 9;
const FEATURES: u64 = F_FLUSH | F_EVENT_IDX | F_INDIRECT_DESC;

/// A device with a driver.
pub(crate) struct Rig {
    device: Block,
    interrupt: Interrupt,
    worker: i32,
    len_bytes: u64,
    avail: Window,
    used: Window,
    slots: Window,
    next_avail: u16,
    last_used: u16,
    doorbells: u64,
    interrupts: u64,
}

impl Rig {
    /// A rig on `file` of `len_bytes`, its worker confined or not.
    pub(crate) fn new(file: File, len_bytes: u64, seccomp: bool) -> Result<Self> {
        let plan = DiskPlan {
            path: PathBuf::from("disk"),
            file,
            read_only: false,
            len_bytes,
            overlay: None,
            limits: DiskLimits::default(),
            volatile: false,
        };
        let mut device = Block::new(0, plan, 1, EngineKind::IoUring, Jail { seccomp })?;
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)])?);
        let zeroes = vec![0; usize::try_from(RAM_BYTES)?];
        ram.write(GuestAddress(0), &zeroes)?;
        let window = |addr, len, align| ram.window(GuestAddress(addr), len, align);
        let entries = u64::from(ENTRIES);
        let desc = window(DESC, 16 * entries, 16)?;
        for slot in 0..ENTRIES {
            let at = usize::from(slot);
            let table = SLOTS + (at * SLOT_BYTES + TABLE) as u64;
            desc.write(16 * at, descriptor(table, 48, DESC_F_INDIRECT, 0));
        }
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK)?);
        let config = QueueConfig { size: ENTRIES, desc: DESC, avail: AVAIL, used: USED };
        device.activate(Activation {
            features: FEATURES,
            queues: vec![Some(Queue::new(&ram, config, FEATURES)?)],
            interrupt: interrupt.clone(),
            ram: Arc::clone(&ram),
        })?;
        Ok(Self {
            device,
            interrupt,
            worker: sys::thread_named("blk0.0")?,
            len_bytes,
            avail: window(AVAIL, 6 + 2 * entries, 2)?,
            used: window(USED, 6 + 8 * entries, 4)?,
            slots: window(SLOTS, SLOT_BYTES as u64 * entries, 64)?,
            next_avail: 0,
            last_used: 0,
            doorbells: 0,
            interrupts: 0,
        })
    }

    /// Serves `shape` for `span`.
    pub(crate) fn turn(&mut self, shape: Shape, seed: u64, span: Duration) -> Result<Turn> {
        let mut load = Load::new(shape, self.len_bytes, seed);
        (self.doorbells, self.interrupts) = (0, 0);
        let before = sys::cpu_time(self.worker)?;
        let mut pace = Pace::new(shape.depth, span);
        let mut in_flight = shape.depth;
        for slot in 0..shape.depth {
            self.put(slot, load.next(), shape.len_bytes);
        }
        self.publish(shape.depth)?;
        while in_flight > 0 {
            let used = self.wait()?;
            let more = pace.tick();
            let mut started = 0;
            while self.last_used != used {
                let slot = self.reap()?;
                pace.end(slot);
                if more {
                    self.put(slot, load.next(), shape.len_bytes);
                    pace.start(slot);
                    started += 1;
                } else {
                    in_flight -= 1;
                }
            }
            self.publish(started)?;
        }
        // The worker is asleep, or about to be.
        let cpu = sys::cpu_time(self.worker)?.saturating_sub(before);
        Ok(pace.turn(cpu, Some([self.doorbells, self.interrupts])))
    }

    /// Puts a request on the available ring without moving its index.
    fn put(&mut self, slot: usize, io: Io, len_bytes: u32) {
        let at = slot * SLOT_BYTES;
        let base = SLOTS + at as u64;
        let (kind, data_flag) = match io.kind {
            Kind::Read => (0_u64, DESC_F_WRITE),
            Kind::Write => (1, 0),
            Kind::Flush => (4, 0),
        };
        let mut header = [0; 16];
        header[..8].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(io.offset / 512).to_le_bytes());
        self.slots.write(at, header);
        self.slots.write(at + STATUS, [0xff]);
        let data = DATA + slot as u64 * DATA_STRIDE;
        let status = descriptor(base + STATUS as u64, 1, DESC_F_WRITE, 0);
        if io.kind == Kind::Flush {
            self.slots.write(at + TABLE, descriptor(base, 16, DESC_F_NEXT, 1));
            self.slots.write(at + TABLE + 16, status);
        } else {
            self.slots.write(at + TABLE, descriptor(base, 16, DESC_F_NEXT, 1));
            let flags = data_flag | DESC_F_NEXT;
            self.slots.write(at + TABLE + 16, descriptor(data, len_bytes, flags, 2));
            self.slots.write(at + TABLE + 32, status);
        }
        let entry = usize::from(self.next_avail % ENTRIES);
        self.avail.store_u16(4 + 2 * entry, u16::try_from(slot).unwrap_or(0));
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes the last `count` requests available, and rings if the device asked for it.
    fn publish(&mut self, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.avail.store_u16(2, self.next_avail);
        fence(Ordering::SeqCst);
        let event = self.used.load_u16(4 + 8 * usize::from(ENTRIES));
        if usize::from(self.next_avail.wrapping_sub(event).wrapping_sub(1)) < count {
            self.doorbells += 1;
            let bell = self.device.doorbells().first().context("the device has a doorbell")?;
            bell.write(1)?;
        }
        Ok(())
    }

    /// The used index, once it has moved.
    fn wait(&mut self) -> Result<u16> {
        loop {
            for _ in 0..2 {
                let used = self.used.load_u16(2);
                if used != self.last_used {
                    return Ok(used);
                }
                self.avail.store_u16(4 + 2 * usize::from(ENTRIES), self.last_used);
                fence(Ordering::SeqCst);
            }
            ensure!(!self.interrupt.device_failed(), "the device asks for a reset");
            self.halt()?;
            self.interrupt.acknowledge(self.interrupt.status());
            self.interrupts += 1;
        }
    }

    /// Waits for the interrupt.
    fn halt(&self) -> Result<()> {
        let line = self.interrupt.line();
        let start = Instant::now();
        loop {
            match line.read() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) if start.elapsed() < HALT_POLL => {}
                Err(_) => sys::sleep_until_readable(line)?,
            }
        }
    }

    /// Takes one entry from the used ring and returns its slot.
    fn reap(&mut self) -> Result<usize> {
        let entry = usize::from(self.last_used % ENTRIES);
        let [i0, i1, i2, i3, ..] = self.used.read::<8>(4 + 8 * entry);
        let slot = usize::try_from(u32::from_le_bytes([i0, i1, i2, i3]))?;
        let [status] = self.slots.read::<1>(slot * SLOT_BYTES + STATUS);
        ensure!(status == 0, "a request was answered with status {status}");
        self.last_used = self.last_used.wrapping_add(1);
        Ok(slot)
    }
}

fn descriptor(addr: u64, len_bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let value = u128::from(addr)
        | u128::from(len_bytes) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    value.to_le_bytes()
}
