//! The device with its thread: activation, reset, panics and the end.

use std::panic;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Link, Offload};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::features::ALL;
use super::*;
use crate::memory::{GuestAddress, GuestRam};
use crate::net::{LinkEvent, PacketLink, Source};
use crate::virtio::test_driver::TestDriver;
use crate::virtio::{Interrupt, Queue};

const RINGS: u64 = 0x10_0000;
const DATA: u64 = 0x40_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends every frame back, but keeps those that begin with 1 and panics at those that begin with 2.
fn echo(port: &mut Port, released: &SyncSender<usize>) {
    let epoll = Epoll::new().unwrap();
    for Source { number, fd } in port.sources() {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, u64::from(number));
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    }
    let mut kept = Vec::new();
    let mut head = [0; HEAD_LEN];
    let mut events = [EpollEvent::default(); 8];
    loop {
        while let Some(frame) = port.next_frame(&mut head) {
            match frame.head[0] {
                1 => kept.push(frame.payload),
                2 => panic::panic_any("as the driver asked"),
                _ => port.send(Offload::default(), frame.head, &[]).unwrap(),
            }
        }
        let timeout = if port.end_turn() { 0 } else { -1 };
        let count = epoll.wait(timeout, &mut events).unwrap();
        for event in &events[..count] {
            match port.on_ready(u8::try_from(event.data()).unwrap(), false).unwrap() {
                LinkEvent::Frames | LinkEvent::Room => {}
                LinkEvent::Reset => {
                    released.send(kept.len()).unwrap();
                    kept.clear();
                    port.finish_reset();
                }
                LinkEvent::Ended => return,
            }
        }
    }
}

struct Bench {
    net: Net,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    released: Receiver<usize>,
    made: Arc<AtomicUsize>,
}

const CARD: Card =
    Card { mac: [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee], mtu: 1500, features: ALL, ring_size: 256 };

fn bench() -> Bench {
    let (sender, released) = sync_channel(64);
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let prepare: Prepare = Box::new(move || {
        Box::new(move |port| {
            count.fetch_add(1, Ordering::SeqCst);
            echo(port, &sender);
        })
    });
    let net = Net::new(CARD, prepare, Jail { seccomp: false }).unwrap();
    let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap());
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    Bench { net, ram, interrupt, released, made }
}

impl Bench {
    fn start(&mut self) -> [TestDriver; 3] {
        let drivers =
            [0, 1, 2].map(|at| TestDriver::new(&self.ram, RINGS + at * 0x4_0000, 64, ALL));
        let queues = drivers
            .iter()
            .map(|driver| Some(Queue::new(&self.ram, driver.queue_config(), ALL).unwrap()))
            .collect();
        let interrupt = self.interrupt.clone();
        let ram = Arc::clone(&self.ram);
        self.net.activate(Activation { features: ALL, queues, interrupt, ram }).unwrap();
        drivers
    }

    fn send(&self, drivers: &mut [TestDriver; 3], first: u8) {
        let mut packet = [first; 72];
        packet[..12].fill(0);
        drivers[1].raw_memory(DATA, &packet);
        drivers[1].add(&[(DATA, 72, false)]);
        self.net.doorbells()[1].write(1).unwrap();
    }

    fn link_is_up(&self) -> bool {
        let mut status = [0; 2];
        self.net.read_config(6, &mut status);
        status == [1, 0]
    }
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !look() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_go_round_and_the_engine_lives_through_drivers() {
    let mut bench = bench();
    assert_eq!(bench.made.load(Ordering::SeqCst), 0, "nothing is made before a driver is ready");
    for _ in 0..3 {
        let mut drivers = bench.start();
        drivers[0].add(&[(DATA + 0x1000, 2048, true)]);
        bench.net.doorbells()[0].write(1).unwrap();
        bench.send(&mut drivers, 7);
        eventually("the frame comes back", || !drivers[0].used().is_empty());
        let mut frame = [0; 60];
        bench.ram.read(GuestAddress(DATA + 0x1000 + 12), &mut frame).unwrap();
        assert_eq!(frame, [7; 60]);
        bench.net.reset();
        assert_eq!(bench.released.try_recv(), Ok(0));
    }
    assert_eq!(bench.made.load(Ordering::SeqCst), 1);
    bench.net.shutdown().unwrap();
}

#[test]
fn a_reset_returns_when_nothing_of_the_guest_is_held() {
    let mut bench = bench();
    for _ in 0..50 {
        let mut drivers = bench.start();
        for _ in 0..8 {
            bench.send(&mut drivers, 1);
        }
        bench.net.reset();
        // Memory is the driver's alone.
        let ring = drivers[1].queue_config();
        bench.ram.write(GuestAddress(ring.used), &[0x3c; 64]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        let mut found = [0; 64];
        bench.ram.read(GuestAddress(ring.used), &mut found).unwrap();
        assert_eq!(found, [0x3c; 64]);
    }
    assert!(bench.released.try_iter().sum::<usize>() > 0, "some were held");
    bench.net.reset();
    assert!(bench.released.try_recv().is_err(), "there is nothing to reset");
}

#[test]
fn a_panic_takes_the_link_down_and_nothing_else() {
    let mut bench = bench();
    let mut drivers = bench.start();
    bench.send(&mut drivers, 1);
    assert!(bench.link_is_up());
    let before = bench.interrupt.config_generation();
    bench.send(&mut drivers, 2);
    eventually("the link goes down", || !bench.link_is_up());
    eventually("the driver is told", || bench.interrupt.config_generation() != before);
    assert!(!bench.net.save().link_up);
    // What was held is given back, and what is sent from now on is dropped.
    let mut back = 0;
    eventually("what was held comes back", || {
        back += drivers[1].used().len();
        back == 2
    });
    bench.send(&mut drivers, 2);
    eventually("the driver does not wait", || !drivers[1].used().is_empty());
    bench.net.reset();
    assert!(bench.link_is_up(), "the next driver gets another engine");
    let mut drivers = bench.start();
    bench.send(&mut drivers, 1);
    eventually("it is served", || bench.made.load(Ordering::SeqCst) == 2);
    bench.net.shutdown().unwrap();
}

#[test]
fn the_card_is_what_was_asked_for() {
    let serve = || -> Prepare { Box::new(|| Box::new(|_| ())) };
    let jail = Jail { seccomp: false };
    let net = Net::new(CARD, serve(), jail).unwrap();
    assert_eq!((net.kind(), net.features()), (DeviceKind::Net, ALL));
    assert_eq!(net.queue_max_sizes(), [256, 256, 64]);
    assert_eq!(net.doorbells().len(), 3);
    let features = ALL & !(features::CTRL_VQ | features::CSUM);
    let net = Net::new(Card { features, ring_size: 1024, ..CARD }, serve(), jail).unwrap();
    assert_eq!(net.queue_max_sizes(), [1024, 1024]);
    assert_eq!(net.doorbells().len(), 2);
    assert_eq!(net.features() & (features::HOST_TSO4 | features::CTRL_GUEST_OFFLOADS), 0);
    let state = net.save();
    assert_eq!((state.version, state.features, state.ring_size), (1, net.features(), 1024));
}
