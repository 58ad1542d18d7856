//! The queues of a network card under a driver that is half honest: vnet headers, chains in any cut, payload that is held back, receive
//! buffers of any size, commands. What an honest driver gave comes back, and nothing that passes is out of range.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::{Script, ram};
use openshell_usernet::link::{HEAD_LEN, PartialChecksum, Segmentation};
use openshell_usernet::{Link, Offload, Payload};
use openshell_vmm::memory::{Gather, GuestAddress, GuestRam};
use openshell_vmm::net::Iovecs;
use openshell_vmm::virtio::net::{GuestBytes, QueueLink, features};
use openshell_vmm::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use openshell_vmm::virtio::test_driver::{Buffer, TestDriver};
use openshell_vmm::virtio::{Activation, Interrupt, Queue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: u64 = 4 << 20;
const RINGS: u64 = 0x1000;
const RING_ROOM: u64 = 0x4_0000;
const RING: u16 = 64;
const DATA: u64 = 0x10_0000;
const MTU: u16 = 1500;
const HEADER: usize = 12;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

struct Bench {
    ram: Arc<GuestRam>,
    link: QueueLink,
    drivers: [TestDriver; 3],
    held: Vec<GuestBytes>,
    features: u64,
    /// Chains given to the transmit queue, and those that came back.
    sent: usize,
    back: usize,
    honest: bool,
}

fuzz_target!(|script: &[u8]| {
    let mut script = Script(script);
    let Some(mut bench) = bench(&mut script) else { return };
    while script.goes_on() {
        bench.step(&mut script);
    }
    bench.finish();
});

fn bench(script: &mut Script<'_>) -> Option<Bench> {
    let left_out = script.u16();
    let bits = (0..64).filter(|bit| features::ALL & 1 << bit != 0).zip((0..16).cycle());
    let features = bits.fold(features::ALL, |features, (bit, at)| {
        if left_out & 1 << at == 0 { features } else { features & !(1 << bit) }
    });
    let ram = ram(RAM_BYTES);
    let rings = features & (F_EVENT_IDX | F_INDIRECT_DESC);
    let drivers = [0, 1, 2].map(|at| TestDriver::new(&ram, RINGS + at * RING_ROOM, RING, rings));
    let queues = drivers.iter().map(|driver| Queue::new(&ram, driver.queue_config(), rings).ok());
    let activation = Activation {
        features,
        queues: queues.collect(),
        interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK).ok()?),
        ram: Arc::clone(&ram),
    };
    let link = QueueLink::new(activation, MTU).ok()?;
    Some(Bench { ram, link, drivers, held: Vec::new(), features, sent: 0, back: 0, honest: true })
}

impl Bench {
    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 10 {
            0 | 1 => self.transmit(script),
            2 | 3 => self.take(script),
            4 => drop(self.held.pop()),
            5 => self.offer(script),
            6 => self.send(script),
            7 => self.command(script),
            8 => self.end_turn(),
            _ => self.break_a_rule(script),
        }
    }

    /// Buffers from `DATA` on of lengths that the script says, `len` bytes together.
    fn cut(script: &mut Script<'_>, len: u32, writable: bool) -> Vec<Buffer> {
        let (mut from, mut left) = (DATA, len);
        let mut buffers = Vec::new();
        while left > 0 {
            let more = buffers.len() < 15;
            let take = if more { (u32::from(script.byte()) + 1).min(left) } else { left };
            buffers.push((from, take, writable));
            from += u64::from(take);
            left -= take;
        }
        buffers
    }

    fn add(&mut self, queue: usize, buffers: &[Buffer], script: &mut Script<'_>) -> bool {
        let indirect = script.byte() & 1 == 1 && self.features & F_INDIRECT_DESC != 0;
        let driver = &mut self.drivers[queue];
        let needed = if indirect { 1 } else { buffers.len() };
        if buffers.is_empty() || driver.free_descriptors() < needed {
            return false;
        }
        if indirect {
            driver.add_indirect(buffers);
        } else {
            driver.add(buffers);
        }
        true
    }

    fn transmit(&mut self, script: &mut Script<'_>) {
        let header = script.bytes(HEADER).to_vec();
        let len = u32::from(script.u16() % 4096) + 1;
        let large = script.byte() == 0;
        self.drivers[TRANSMIT].raw_memory(DATA, &header);
        let mut buffers = Self::cut(script, len, false);
        if large {
            buffers.push((DATA, 66_000, false));
        }
        self.sent += usize::from(self.add(TRANSMIT, &buffers, script));
    }

    fn take(&mut self, script: &mut Script<'_>) {
        let _room = self.link.on_bells([true; 3]);
        let mut head = [0; HEAD_LEN];
        let Some(frame) = self.link.next_frame(&mut head) else { return };
        let len = frame.payload.len();
        assert!(frame.head.len() == len.min(HEAD_LEN) && len >= 14, "{len}");
        let mut copy = [0; HEAD_LEN];
        assert_eq!(frame.payload.copy_to(&mut copy), frame.head.len());
        assert_eq!(&copy[..frame.head.len()], frame.head);
        if let Some(PartialChecksum { start, offset }) = frame.offload.checksum {
            assert!(usize::from(start) + usize::from(offset) + 2 <= frame.head.len());
        }
        assert!(frame.offload.segmentation.is_none() || frame.offload.checksum.is_some());
        let mut payload = frame.payload;
        payload.skip(usize::from(script.byte()));
        payload.truncate(usize::from(script.u16()));
        let mut gather = Gather::new();
        payload.gather(&mut gather);
        assert_eq!(gather.len_bytes(), payload.len());
        if script.byte() & 1 == 1 {
            self.held.push(payload);
        }
    }

    fn offer(&mut self, script: &mut Script<'_>) {
        let len = u32::from(script.u16() % 4096) + 1;
        let buffers = Self::cut(script, len, true);
        self.add(RECEIVE, &buffers, script);
    }

    fn send(&mut self, script: &mut Script<'_>) {
        let size = script.u16();
        let segmentation = match script.byte() % 4 {
            0 => None,
            1 => Some(Segmentation::Tcp4(size)),
            2 => Some(Segmentation::Tcp6(size)),
            _ => Some(Segmentation::Udp(size)),
        };
        let checksum =
            (script.byte() & 1 == 1).then_some(PartialChecksum { start: 34, offset: 16 });
        let offload = Offload { checksum, segmentation, checksum_valid: script.byte() & 1 == 1 };
        let body = vec![0x5a; usize::from(script.u16())];
        let before = *self.link.counters();
        let sent = self.link.send(offload, &[0xa5; 54], &[&body, &[], &body[..body.len() / 2]]);
        let after = *self.link.counters();
        let told = after.received_frames - before.received_frames + after.offload_not_taken
            - before.offload_not_taken
            + after.no_buffer_so_large
            - before.no_buffer_so_large;
        assert_eq!(sent.is_ok(), told == 1, "a frame is sent, dropped and counted, or waits");
    }

    fn command(&mut self, script: &mut Script<'_>) {
        let bytes = script.bytes(12).to_vec();
        self.drivers[CONTROL].raw_memory(DATA, &bytes);
        let len = 2 + u32::from(script.byte() % 10);
        let mut buffers = Self::cut(script, len, false);
        if script.byte() & 3 != 0 {
            buffers.push((DATA + 0x1000, 1, true));
        }
        self.add(CONTROL, &buffers, script);
        let _room = self.link.on_bells([false, false, true]);
    }

    fn end_turn(&mut self) {
        self.link.end_turn();
        self.back += self.drivers[TRANSMIT].used().len();
        for queue in [RECEIVE, CONTROL] {
            self.drivers[queue].used();
        }
        let limit = usize::from(RING);
        assert!(self.held.len() <= limit, "no more is held than the ring has");
    }

    fn break_a_rule(&mut self, script: &mut Script<'_>) {
        self.honest = false;
        let queue = usize::from(script.byte() % 3);
        let descriptor = (script.u64() % (2 * RAM_BYTES), script.u32(), script.u16(), script.u16());
        let index = script.u16() % RING;
        let driver = &mut self.drivers[queue];
        driver.raw_descriptor(index, descriptor);
        if script.byte() & 1 == 1 {
            driver.raw_avail_index(script.u16());
        } else {
            driver.raw_available(index);
        }
    }

    /// Everything that an honest driver sent comes back.
    fn finish(mut self) {
        let mut head = [0; HEAD_LEN];
        let _room = self.link.on_bells([true; 3]);
        for _ in 0..2 * RING {
            drop(self.link.next_frame(&mut head));
        }
        self.held.clear();
        self.end_turn();
        assert!(!self.honest || self.link.broken().is_none());
        assert!(!self.honest || self.back == self.sent, "{} of {}", self.back, self.sent);
        let mut last = [0];
        self.ram.read(GuestAddress(RAM_BYTES - 1), &mut last).expect("RAM has an end");
    }
}
