//! Our network card with its driver: this thread plays the guest, the device's thread runs the stack as in a machine.
//!
//! Invariant: the driver does what a Linux guest's does for each frame (a header and a page of payload, one doorbell per batch and only
//! when the event index asks for it; it sleeps on the interrupt), except that it never touches payload and that no processor exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering, fence};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openshell_vmm::config::net::{MacAddress, Mtu, NetSpec};
use openshell_vmm::config::net_plan;
use openshell_vmm::jail::Jail;
use openshell_vmm::memory::{GuestAddress, GuestRam, Window};
use openshell_vmm::net::engine::{Host, Setup};
use openshell_vmm::virtio::net::{Card, Net, Port, Serve, features};
use openshell_vmm::virtio::queue::{DESC_F_NEXT, DESC_F_WRITE, QueueConfig};
use openshell_vmm::virtio::{Activation, Interrupt, Queue, VirtioDevice as _};
use vmm_sys_util::eventfd::EventFd;

use crate::process;

/// Bytes before each frame that say what is left to do with it.
pub(crate) const VNET_BYTES: usize = 12;
/// Bytes of a frame that the driver writes or reads: everything but payload.
pub(crate) const HEAD_BYTES: usize = VNET_BYTES + 14 + 20 + 28;

const RAM_BYTES: u64 = 32 << 20;
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: usize = 0x1_0000;
const ENTRIES: u16 = 256;
/// Where a slot's header is.
const HEADS: u64 = 0x8_0000;
const HEAD_STRIDE: usize = 256;
/// What every frame that is sent carries.
const PAYLOAD: u64 = 0x10_0000;
/// Receive buffers, each large enough for any frame.
const BUFFERS: u64 = 0x20_0000;
const BUFFER_BYTES: u32 = 66 << 10;

/// A stack that has nothing to say for so long has stopped.
const SILENCE: Duration = Duration::from_secs(2);

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The device, and its driver's side.
pub(crate) struct Driver {
    device: Net,
    interrupt: Interrupt,
    heads: Window,
    ram: Arc<GuestRam>,
    rings: [Ring; 2],
    /// Transmit slots that are free: each is two descriptors.
    free: Vec<u16>,
    thread: Arc<AtomicI32>,
}

/// One queue as its driver sees it.
struct Ring {
    avail: Window,
    used: Window,
    next_avail: u16,
    /// What the device was told of.
    told: u16,
    last_used: u16,
}

impl Driver {
    /// A card whose stack lets the guest reach the loopback of the namespace that this thread is in.
    pub(crate) fn new(mtu: &str) -> Result<Self> {
        let spec = NetSpec {
            allow: vec!["host".to_owned()],
            resolv_conf: Some("/dev/null".into()),
            ..NetSpec::default()
        };
        let (plan, mtu) = (net_plan::open(&spec)?, Mtu::parse(mtu)?);
        let offered = features::ALL & !(features::CTRL_VQ | features::CTRL_GUEST_OFFLOADS);
        let card = Card {
            mac: MacAddress::GUEST.0,
            mtu: mtu.bytes(),
            features: offered,
            ring_size: ENTRIES,
        };
        let thread = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&thread);
        let prepare = move || {
            told.store(process::this_thread(), Ordering::Release);
            let host = Host::new(Setup::new(plan, MacAddress::GUEST, mtu));
            let mut host = host.expect("the host has descriptors left");
            Box::new(move |port: &mut Port| {
                let (host, _commands) = &mut host;
                host.serve(port).ok();
            }) as Serve
        };
        let mut device = Net::new(card, Box::new(prepare), Jail { seccomp: true })?;
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)])?);
        // As in a guest that has used its memory before: no page is new to the host.
        ram.write(GuestAddress(0), &vec![0x5a; usize::try_from(RAM_BYTES)?])?;
        let interrupt = Interrupt::new(EventFd::new(0)?);
        let (mut queues, mut rings) = (Vec::new(), Vec::new());
        for number in 0..2 {
            let at = RINGS + number * RING_STRIDE as u64;
            let (avail, used) = (at + 0x4000, at + 0x8000);
            ram.write(GuestAddress(at), &[0; RING_STRIDE])?;
            let config = QueueConfig { size: ENTRIES, desc: at, avail, used };
            queues.push(Some(Queue::new(&ram, config, offered)?));
            let entries = u64::from(ENTRIES);
            rings.push(Ring {
                avail: ram.window(GuestAddress(avail), 6 + 2 * entries, 2)?,
                used: ram.window(GuestAddress(used), 6 + 8 * entries, 4)?,
                next_avail: 0,
                told: 0,
                last_used: 0,
            });
        }
        write_descriptors(&ram)?;
        device.activate(Activation {
            features: offered,
            queues,
            interrupt: interrupt.clone(),
            ram: Arc::clone(&ram),
        })?;
        let heads_len = HEAD_STRIDE as u64 * u64::from(ENTRIES);
        let heads = ram.window(GuestAddress(HEADS), heads_len, 2)?;
        let rings = rings.try_into().ok().context("two rings")?;
        let free = (0..ENTRIES / 2).collect();
        let mut driver = Self { device, interrupt, heads, ram, rings, free, thread };
        for buffer in 0..ENTRIES {
            driver.rings[RECEIVE].put(buffer);
        }
        driver.publish()?;
        Ok(driver)
    }

    /// The device's thread, once it has answered anything.
    pub(crate) fn thread(&self) -> i32 {
        self.thread.load(Ordering::Acquire)
    }

    /// Whether another frame can be put.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Puts a frame of `head` and `payload` bytes on the transmit ring. True when there was room.
    pub(crate) fn put(&mut self, head: &[u8], payload: u32) -> Result<bool> {
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let mut bytes = [0; HEAD_BYTES];
        bytes.get_mut(..head.len()).context("a head is short")?.copy_from_slice(head);
        self.heads.write(usize::from(slot) * HEAD_STRIDE, bytes);
        let flags = if payload > 0 { DESC_F_NEXT } else { 0 };
        let first = descriptor(head_address(slot), u32::try_from(head.len())?, flags, 2 * slot + 1);
        let table = RINGS + RING_STRIDE as u64 + 32 * u64::from(slot);
        self.ram.write(GuestAddress(table), &first)?;
        self.ram.write(GuestAddress(table + 16), &descriptor(PAYLOAD, payload, 0, 0))?;
        self.rings[TRANSMIT].put(2 * slot);
        Ok(true)
    }

    /// Frames that arrived since: the head of each and its whole length, vnet header included. Their buffers are given back.
    pub(crate) fn take(&mut self, mut each: impl FnMut(&[u8], usize)) -> Result<()> {
        while let Some((head, _)) = self.rings[TRANSMIT].reap() {
            self.free.push(head / 2);
        }
        while let Some((buffer, len)) = self.rings[RECEIVE].reap() {
            let mut head = [0; HEAD_BYTES];
            let at = BUFFERS + u64::from(buffer) * u64::from(BUFFER_BYTES);
            self.ram.read(GuestAddress(at), &mut head)?;
            let len = usize::try_from(len)?;
            each(&head[..len.min(HEAD_BYTES)], len);
            self.rings[RECEIVE].put(buffer);
        }
        Ok(())
    }

    /// Makes what was put available, and rings where the device asked for it.
    pub(crate) fn publish(&mut self) -> Result<()> {
        for (ring, bell) in self.rings.iter_mut().zip(self.device.doorbells()) {
            if ring.publish() {
                bell.write(1)?;
            }
        }
        Ok(())
    }

    /// Sleeps until the device has used something.
    pub(crate) fn wait(&self) -> Result<()> {
        for ring in &self.rings {
            ring.avail.store_u16(4 + 2 * usize::from(ENTRIES), ring.last_used);
        }
        fence(Ordering::SeqCst);
        if self.rings.iter().any(|ring| ring.used.load_u16(2) != ring.last_used) {
            return Ok(());
        }
        ensure!(!self.interrupt.device_failed(), "the device asks for a reset");
        let raised = process::is_readable(self.interrupt.line(), SILENCE)?;
        ensure!(raised, "nothing for {SILENCE:?}; {} transmit slots are free", self.free.len());
        self.interrupt.line().read()?;
        self.interrupt.acknowledge(self.interrupt.status());
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What it says is of no use any more.
        self.device.shutdown().ok();
    }
}

impl Ring {
    fn put(&mut self, head: u16) {
        let entry = usize::from(self.next_avail % ENTRIES);
        self.avail.store_u16(4 + 2 * entry, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// True when the device is to be told.
    fn publish(&mut self) -> bool {
        let count = self.next_avail.wrapping_sub(self.told);
        if count == 0 {
            return false;
        }
        self.avail.store_u16(2, self.next_avail);
        self.told = self.next_avail;
        fence(Ordering::SeqCst);
        let event = self.used.load_u16(4 + 8 * usize::from(ENTRIES));
        self.next_avail.wrapping_sub(event).wrapping_sub(1) < count
    }

    /// The head of a chain that the device has used, and how much it wrote.
    fn reap(&mut self) -> Option<(u16, u32)> {
        if self.used.load_u16(2) == self.last_used {
            return None;
        }
        let entry = usize::from(self.last_used % ENTRIES);
        let [h0, h1, _, _, l0, l1, l2, l3] = self.used.read::<8>(4 + 8 * entry);
        self.last_used = self.last_used.wrapping_add(1);
        Some((u16::from_le_bytes([h0, h1]), u32::from_le_bytes([l0, l1, l2, l3])))
    }
}

fn write_descriptors(ram: &GuestRam) -> Result<()> {
    for buffer in 0..ENTRIES {
        let at = BUFFERS + u64::from(buffer) * u64::from(BUFFER_BYTES);
        let table = RINGS + 16 * u64::from(buffer);
        ram.write(GuestAddress(table), &descriptor(at, BUFFER_BYTES, DESC_F_WRITE, 0))?;
    }
    Ok(())
}

fn head_address(slot: u16) -> u64 {
    HEADS + u64::from(slot) * HEAD_STRIDE as u64
}

fn descriptor(addr: u64, len_bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let value = u128::from(addr)
        | u128::from(len_bytes) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    value.to_le_bytes()
}
