//! The link under honest and hostile drivers, without a thread.

use std::sync::Arc;

use openshell_usernet::link::{HEAD_LEN, PartialChecksum, Segmentation};
use openshell_usernet::{Link, LinkFull, Offload, Offloads, Payload};
use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::features::{self, ALL, CSUM, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF};
use super::{GuestBytes, QueueLink};
use crate::memory::{Gather, GuestAddress, GuestRam};
use crate::net::Iovecs;
use crate::virtio::queue::{DESC_F_NEXT, DESC_F_WRITE, F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::test_driver::{Buffer, TestDriver};
use crate::virtio::{ActivateError, Activation, Interrupt, Queue};

const RAM_BYTES: u64 = 8 << 20;
const RINGS: u64 = 0x10_0000;
const TX: u64 = 0x20_0000;
const RX: u64 = 0x40_0000;
const HEADER: u32 = 12;

/// Which doorbell rings.
const OFFERED: [bool; 3] = [true, false, false];
const SENT: [bool; 3] = [false, true, false];
const COMMANDED: [bool; 3] = [false, false, true];

struct Bench {
    ram: Arc<GuestRam>,
    link: QueueLink,
    interrupt: Interrupt,
    drivers: [TestDriver; 3],
}

fn bench(features: u64, size: u16) -> Bench {
    let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).unwrap());
    let drivers = [0, 1, 2].map(|at| TestDriver::new(&ram, RINGS + at * 0x4_0000, size, features));
    let queues = drivers
        .iter()
        .map(|driver| Some(Queue::new(&ram, driver.queue_config(), features).unwrap()))
        .collect();
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let activation =
        Activation { features, queues, interrupt: interrupt.clone(), ram: Arc::clone(&ram) };
    let link = QueueLink::new(activation, 1500).unwrap();
    Bench { ram, link, interrupt, drivers }
}

impl Bench {
    /// Puts header and frame at `at` and offers them as one chain, cut as `cuts` says.
    fn transmit(&mut self, at: u64, header: [u8; 12], frame: &[u8], cuts: &[u32]) -> u16 {
        let packet = [&header[..], frame].concat();
        self.drivers[1].raw_memory(at, &packet);
        let mut from = 0;
        let mut buffers: Vec<Buffer> = Vec::new();
        let len = u32::try_from(packet.len()).unwrap();
        for cut in cuts.iter().copied().chain([len]) {
            let to = (from + cut).min(len);
            if to > from {
                buffers.push((at + u64::from(from), to - from, false));
            }
            from = to;
        }
        self.drivers[1].add(&buffers)
    }

    fn next(&mut self) -> Option<(Vec<u8>, GuestBytes, Offload)> {
        let mut head = [0; HEAD_LEN];
        let frame = self.link.next_frame(&mut head)?;
        Some((frame.head.to_vec(), frame.payload, frame.offload))
    }

    fn offer(&mut self, index: u64, lens: &[u32]) -> u16 {
        let at = RX + index * 0x1_0000;
        let mut from = at;
        let buffers: Vec<Buffer> = lens
            .iter()
            .map(|&len| {
                from += u64::from(len);
                (from - u64::from(len), len, true)
            })
            .collect();
        self.drivers[0].add(&buffers)
    }

    fn received(&self, index: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.ram.read(GuestAddress(RX + index * 0x1_0000), &mut bytes).unwrap();
        bytes
    }

    fn interrupts(&self) -> bool {
        self.interrupt.acknowledge(1);
        self.interrupt.line().read().is_ok()
    }
}

fn all(payload: &GuestBytes) -> Vec<u8> {
    let mut bytes = vec![0; payload.len()];
    assert_eq!(payload.copy_to(&mut bytes), bytes.len());
    let mut in_place = Gather::new();
    payload.gather(&mut in_place);
    assert_eq!(in_place.len_bytes(), bytes.len(), "what is copied is what would be sent");
    bytes
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256).to_le_bytes()[0]).collect()
}

const TSO: [u8; 12] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn a_frame_is_taken_in_place_and_given_back_when_it_is_dropped() {
    let mut bench = bench(ALL, 16);
    let sent = frame(1000);
    let head = bench.transmit(TX, [0; 12], &sent, &[12, 100, 1]);
    let (copied, mut payload, offload) = bench.next().unwrap();
    assert_eq!((copied.as_slice(), offload), (&sent[..HEAD_LEN], Offload::default()));
    assert!(bench.next().is_none());
    assert_eq!(all(&payload), sent);
    payload.skip(54);
    payload.truncate(900);
    assert_eq!(all(&payload), sent[54..954]);
    payload.skip(99);
    assert_eq!(all(&payload), sent[153..954]);
    payload.skip(usize::MAX);
    assert!(payload.is_empty() && all(&payload).is_empty());
    assert!(!bench.link.end_turn(), "nothing is left to take");
    assert!(bench.drivers[1].used().is_empty() && !bench.interrupts(), "it is still held");
    drop(payload);
    assert!(bench.drivers[1].used().is_empty(), "it is given back at the end of a turn");
    bench.link.end_turn();
    assert_eq!(bench.drivers[1].used(), [(u32::from(head), 0)]);
    assert!(bench.interrupts());
    assert_eq!(bench.link.counters().transmitted_bytes, 1000);
}

#[test]
fn what_is_parked_holds_back_nobody_else() {
    let mut bench = bench(ALL, 16);
    let heads: Vec<_> =
        (0..8).map(|at| bench.transmit(TX + at * 0x1000, [0; 12], &frame(60), &[])).collect();
    let mut payloads: Vec<_> = (0..8).map(|_| Some(bench.next().unwrap().1)).collect();
    for at in [1, 3, 5, 7] {
        payloads[at] = None;
    }
    bench.link.end_turn();
    let odd: Vec<_> = [1, 3, 5, 7].iter().map(|&at| (u32::from(heads[at]), 0)).collect();
    assert_eq!(bench.drivers[1].used(), odd);
    // The guest uses the rest of its ring meanwhile.
    for at in 8..20 {
        bench.transmit(TX + (at % 16) * 0x1000, [0; 12], &frame(60), &[]);
        assert!(!bench.link.on_bells(SENT));
        drop(bench.next().unwrap());
        bench.link.end_turn();
        assert_eq!(bench.drivers[1].used().len(), 1);
    }
    drop(payloads);
    bench.link.end_turn();
    assert_eq!(bench.drivers[1].used().len(), 4);
    assert_eq!(bench.drivers[1].free_descriptors(), 16);
}

#[test]
fn payload_outlives_its_link() {
    let mut bench = bench(ALL, 16);
    bench.transmit(TX, [0; 12], &frame(60), &[]);
    let (_, payload, _) = bench.next().unwrap();
    drop(bench.link);
    assert_eq!(all(&payload), frame(60));
    drop(payload);
    assert!(bench.drivers[1].used().is_empty(), "the queue is the driver's alone");
}

#[test]
fn a_header_may_lie_in_any_number_of_buffers() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut bench = bench(features, 256);
        let sent = frame(120);
        bench.transmit(TX, TSO, &sent, &[1; 131]);
        let (head, payload, offload) = bench.next().unwrap();
        assert_eq!((&head, all(&payload)), (&sent, sent.clone()));
        let want = Offload {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segmentation: Some(Segmentation::Tcp4(1460)),
            checksum_valid: false,
        };
        assert_eq!(offload, want);
    }
}

#[test]
fn a_frame_of_64_kib_passes_and_a_longer_one_does_not() {
    let mut bench = bench(ALL, 64);
    let sent = frame(65535 + 14);
    bench.transmit(TX, TSO, &sent, &[12, 54, 4096, 4096, 30_000]);
    assert_eq!(all(&bench.next().unwrap().1), sent);
    bench.transmit(TX, TSO, &frame(65535 + 19), &[]);
    assert!(bench.next().is_none());
    assert_eq!(bench.link.counters().too_long, 1);
    // A chain of gigabytes, of one page again and again.
    let whole: Vec<_> = (0..50).map(|_| (0, 8 << 20, false)).collect();
    bench.drivers[1].add_indirect(&whole);
    assert!(!bench.link.on_bells(SENT));
    assert!(bench.next().is_none());
    assert_eq!(bench.link.counters().too_long, 2);
}

#[test]
fn malformed_packets_are_dropped_and_counted() {
    let mut bench = bench(ALL & !CSUM, 64);
    let mut bad = |header: [u8; 12], len: usize| {
        bench.transmit(TX, header, &frame(len), &[]);
        assert!(!bench.link.on_bells(SENT));
        assert!(bench.next().is_none());
        assert!(!bench.link.end_turn());
        assert_eq!(bench.drivers[1].used().len(), 1, "it goes back");
    };
    bad([0; 12], 13);
    bad([0; 12], 0);
    bad([0; 12], 1600);
    bad([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 60);
    bad([0, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], 60);
    bad([0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0], 60);
    // Shorter than a header; writable only.
    bench.drivers[1].add(&[(TX, 11, false)]);
    bench.drivers[1].add(&[(TX, 2000, true)]);
    assert!(!bench.link.on_bells(SENT));
    assert!(bench.next().is_none());
    let counters = *bench.link.counters();
    assert_eq!(
        [
            counters.too_short,
            counters.too_long,
            counters.bad_checksum_fields,
            counters.bad_segmentation_fields,
            counters.bad_header_length,
            counters.transmitted_frames,
        ],
        [4, 1, 1, 1, 1, 0]
    );
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut bench = bench(ALL, 64);
    let heads = [
        bench.offer(0, &[100]),
        bench.offer(1, &[10, 30]),
        bench.offer(2, &[1]),
        bench.offer(3, &[500]),
    ];
    let sent = frame(300);
    let pieces = [&sent[54..200], &sent[200..], &[][..]];
    bench.link.send(Offload::default(), &sent[..54], &pieces).unwrap();
    assert!(bench.drivers[0].used().is_empty(), "it is handed over at the end of the turn");
    bench.link.end_turn();
    let lens = [100, 40, 1, HEADER + 300 - 141];
    let want: Vec<_> = heads.iter().map(|&head| u32::from(head)).zip(lens).collect();
    assert_eq!(bench.drivers[0].used(), want);
    assert!(bench.interrupts());
    let got: Vec<u8> = (0..4).zip(lens).flat_map(|(at, len)| bench.received(at, len)).collect();
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    assert_eq!(got[12..], sent);
}

#[test]
fn without_mergeable_buffers_a_frame_has_one_or_none() {
    let mut bench = bench(ALL & !MRG_RXBUF, 16);
    bench.offer(0, &[12, 100]);
    bench.offer(1, &[112]);
    bench.link.send(Offload::default(), &frame(101), &[]).unwrap();
    assert_eq!(bench.link.counters().no_buffer_so_large, 1);
    bench.link.send(Offload::default(), &frame(100), &[]).unwrap();
    bench.link.send(Offload::default(), &frame(10), &[]).unwrap();
    assert_eq!(bench.link.send(Offload::default(), &frame(10), &[]), Err(LinkFull));
    let used = bench.drivers[0].used();
    assert_eq!(used.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [112, 22]);
    assert_eq!(bench.received(0, 112)[12..], frame(100));
    assert_eq!(bench.received(1, 12)[10..], [1, 0], "one buffer");
}

#[test]
fn a_full_link_says_when_there_is_room() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut bench = bench(features, 16);
        let send = |bench: &mut Bench| bench.link.send(Offload::default(), &frame(100), &[]);
        assert!(!bench.link.on_bells(OFFERED), "nothing waits");
        assert_eq!(send(&mut bench), Err(LinkFull));
        bench.offer(0, &[100]);
        assert!(bench.drivers[0].needs_kick(), "the doorbell is on");
        assert!(bench.link.on_bells(OFFERED));
        assert_eq!(send(&mut bench), Err(LinkFull), "all or nothing");
        bench.offer(1, &[100]);
        assert!(bench.drivers[0].needs_kick() && bench.link.on_bells(OFFERED));
        assert_eq!(send(&mut bench), Ok(()));
        assert!(!bench.link.on_bells(OFFERED), "nothing waits any more");
        bench.link.end_turn();
        assert_eq!(bench.drivers[0].used().len(), 2);
        assert_eq!(bench.link.counters().receive_waits, 2);
    }
}

#[test]
fn a_long_turn_gives_buffers_back_before_it_ends() {
    let mut bench = bench(ALL, 16);
    for at in 0..16 {
        bench.offer(at, &[2000]);
    }
    for sent in 0..64 {
        bench.link.send(Offload::default(), &frame(1500), &[]).unwrap();
        for _ in bench.drivers[0].used() {
            bench.offer(sent % 16, &[2000]);
        }
    }
    assert!(bench.drivers[0].free_descriptors() < 16, "some are not handed over yet");
    bench.link.end_turn();
    assert!(bench.interrupts());
}

#[test]
fn buffers_that_hold_nothing_or_too_little_do_no_harm() {
    let mut bench = bench(ALL, 16);
    // For the device to read, on the queue that it writes.
    let heads: Vec<_> = (0..4).map(|at| bench.drivers[0].add(&[(TX + at, 1, false)])).collect();
    assert_eq!(bench.link.send(Offload::default(), &frame(60), &[]), Err(LinkFull));
    let back: Vec<_> = heads.iter().map(|&head| (u32::from(head), 0)).collect();
    assert_eq!(bench.drivers[0].used(), back);
    for at in 0..16 {
        bench.offer(at, &[1]);
    }
    assert!(bench.link.on_bells(OFFERED));
    bench.link.send(Offload::default(), &frame(60), &[]).unwrap();
    assert_eq!(bench.link.counters().no_buffer_so_large, 1, "the whole ring is too small");
    assert_eq!(bench.link.counters().received_frames, 0);
}

#[test]
fn a_driver_that_breaks_the_rules_is_asked_for_a_reset() {
    let breaks: [fn(&mut Bench); 4] = [
        |bench| {
            bench.drivers[1].raw_descriptor(0, (TX, 60, DESC_F_NEXT, 0));
            bench.drivers[1].raw_available(0);
        },
        |bench| {
            bench.drivers[1].raw_descriptor(0, (TX, 0, 0, 0));
            bench.drivers[1].raw_available(0);
        },
        |bench| bench.drivers[1].raw_available(16),
        |bench| bench.drivers[1].raw_avail_index(17),
    ];
    for break_it in breaks {
        let mut bench = bench(ALL, 16);
        break_it(&mut bench);
        assert!(!bench.link.on_bells(SENT));
        assert!(bench.next().is_none());
        assert!(bench.interrupt.device_failed() && bench.link.broken().is_some());
        bench.offer(0, &[2000]);
        assert!(!bench.link.on_bells(OFFERED));
        assert_eq!(bench.link.send(Offload::default(), &frame(60), &[]), Err(LinkFull));
        assert!(!bench.link.end_turn());
        assert!(bench.drivers[0].used().is_empty(), "no queue is touched");
    }
    let mut bench = bench(ALL, 16);
    bench.drivers[0].raw_descriptor(0, (RAM_BYTES, 60, DESC_F_WRITE, 0));
    bench.drivers[0].raw_available(0);
    assert_eq!(bench.link.send(Offload::default(), &frame(60), &[]), Err(LinkFull));
    assert!(bench.link.broken().is_some());
}

fn command(bench: &mut Bench, bytes: &[u8]) -> u8 {
    let at = 0x8_0000;
    bench.drivers[2].raw_memory(at, bytes);
    bench.drivers[2].raw_memory(at + 0x100, &[0xee]);
    let len = u32::try_from(bytes.len()).unwrap();
    bench.drivers[2].add(&[(at, 2, false), (at + 2, len - 2, false), (at + 0x100, 1, true)]);
    assert!(!bench.link.on_bells(COMMANDED));
    bench.link.end_turn();
    assert_eq!(bench.drivers[2].used().len(), 1);
    let mut answer = [0];
    bench.ram.read(GuestAddress(at + 0x100), &mut answer).unwrap();
    answer[0]
}

#[test]
fn the_driver_changes_what_it_takes() {
    let mut bench = bench(ALL & !GUEST_TSO6, 16);
    let set = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    let everything = Offloads { checksum: true, tcp4: true, tcp6: false, udp: true };
    assert_eq!(bench.link.offloads(), everything);
    assert_eq!(command(&mut bench, &set(GUEST_CSUM)), 0);
    assert_eq!(bench.link.offloads(), Offloads { checksum: true, ..Offloads::default() });
    // What was negotiated can be taken again, what was not cannot; other commands are not known.
    assert_eq!(command(&mut bench, &set(GUEST_CSUM | GUEST_TSO4)), 0);
    assert!(bench.link.offloads().tcp4);
    for refused in [
        set(GUEST_TSO6),
        set(CSUM),
        set(u64::MAX),
        vec![5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0, 0, 1],
        vec![4, 0, 1, 0],
        vec![5, 0, 0],
    ] {
        assert_eq!(command(&mut bench, &refused), 1, "{refused:?}");
    }
    assert!(bench.link.offloads().tcp4, "what was refused changed nothing");
    let large = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segmentation: Some(Segmentation::Tcp4(1460)),
        checksum_valid: false,
    };
    assert_eq!(command(&mut bench, &set(0)), 0);
    bench.offer(0, &[4096]);
    bench.link.send(large, &frame(54), &[&frame(1000)]).unwrap();
    assert_eq!(bench.link.counters().offload_not_taken, 1, "it was under way when that changed");
}

#[test]
fn a_device_needs_its_queues() {
    for (missing, features, want) in
        [(0, ALL, Some(0)), (1, ALL, Some(1)), (2, ALL, Some(2)), (2, ALL & !CTRL_VQ, None)]
    {
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), RAM_BYTES)]).unwrap());
        let driver = TestDriver::new(&ram, RINGS, 16, features);
        let queue = || Some(Queue::new(&ram, driver.queue_config(), features).unwrap());
        let queues = (0..3).map(|at| if at == missing { None } else { queue() }).collect();
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let made = QueueLink::new(Activation { features, queues, interrupt, ram }, 1500);
        let found = made.err().map(|error| match error {
            ActivateError::MissingQueue(index) => index,
            ActivateError::WorkerGone => u16::MAX,
        });
        assert_eq!(found, want);
    }
    assert_eq!(features::consistent(ALL) & F_INDIRECT_DESC, F_INDIRECT_DESC);
}

proptest! {
    /// Whatever the buffers are, a frame arrives whole in them, in order, or not at all.
    #[test]
    fn frames_arrive_whole(
        buffers in proptest::collection::vec(proptest::collection::vec(1..600_u32, 1..4), 0..16),
        frames in proptest::collection::vec((14..1500_usize, 0..1500_usize), 0..8),
    ) {
        let mut bench = bench(ALL, 64);
        let mut offered = Vec::new();
        for (at, lens) in (0..).zip(&buffers) {
            offered.push((bench.offer(at, lens), at));
        }
        let mut expected = Vec::new();
        for (len, split) in frames {
            let sent = frame(len);
            let (head, body) = sent.split_at(split.min(len));
            if bench.link.send(Offload::default(), head, &[body]).is_ok() {
                expected.push(sent);
            }
        }
        bench.link.end_turn();
        let place = |head| offered.iter().find(|(own, _)| u32::from(*own) == head).unwrap().1;
        let used = bench.drivers[0].used().into_iter();
        let mut parts = used.map(|(head, len)| bench.received(place(head), len));
        let mut arrived = Vec::new();
        while let Some(mut packet) = parts.next() {
            let mut chains = 1;
            while packet.len() < 12 || chains < u16::from_le_bytes([packet[10], packet[11]]) {
                packet.extend(parts.next().unwrap());
                chains += 1;
            }
            arrived.push(packet.split_off(12));
        }
        prop_assert_eq!(arrived, expected);
    }
}
