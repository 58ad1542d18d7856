//! smoltcp as the guest, behind a link that loses, doubles and exchanges frames by a seed; how long that takes is a table.
//!
//! The link takes 64 frames each millisecond either way, and each spends a millisecond on it. The peer reads and writes at any speed.

use std::collections::VecDeque;
use std::fmt::Write as _;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use super::*;
use crate::smoltcp_card::Card;

const LEN: usize = 1 << 20;
const FRAMES_PER_MILLI: usize = 64;
const GOLDEN: &str = include_str!("throughput.txt");

/// What a link does to frames, in thousandths.
#[derive(Debug, Clone, Copy)]
struct Faults {
    lost: u64,
    doubled: u64,
    exchanged: u64,
}

/// One direction of the link, by a xorshift generator.
struct Wire {
    faults: Faults,
    seed: u64,
    frames: VecDeque<Vec<u8>>,
}

impl Wire {
    fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, seed, frames: VecDeque::new() }
    }

    fn happens(&mut self, thousandths: u64) -> bool {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % 1000 < thousandths
    }

    fn push(&mut self, frame: Vec<u8>) {
        if self.happens(self.faults.lost) {
            return;
        }
        if self.happens(self.faults.doubled) {
            self.frames.push_back(frame.clone());
        }
        self.frames.push_back(frame);
        let len = self.frames.len();
        if len > 3 && self.happens(self.faults.exchanged) {
            self.frames.swap(len - 1, len - 4);
        }
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let count = self.frames.len().min(FRAMES_PER_MILLI);
        self.frames.drain(..count).collect()
    }
}

struct Machine {
    world: World,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    to_stack: Wire,
    to_guest: Wire,
    millis: i64,
}

impl Machine {
    fn new(faults: Faults) -> Self {
        let world = World::new(Bounds::default());
        let mut card = Card::default();
        let address = EthernetAddress(world.macs.guest.0).into();
        let mut config = smoltcp::iface::Config::new(address);
        config.random_seed = 5;
        let start = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut card, start);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(GUEST), 24)).unwrap();
        });
        let gateway = Ipv4Addr::new(192, 168, 127, 1);
        interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(interface.context(), (IpAddress::Ipv4(PEER), 443), 50_000).unwrap();
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(socket);
        let (to_stack, to_guest) = (Wire::new(faults, 11), Wire::new(faults, 13));
        Self { world, card, interface, sockets, socket, to_stack, to_guest, millis: 0 }
    }

    /// A millisecond passes.
    fn step(&mut self) {
        self.millis += 1;
        let now = smoltcp::time::Instant::from_millis(self.millis);
        self.card.arrived.extend(self.to_guest.take());
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        for frame in self.to_stack.take() {
            self.world.frame(&frame);
        }
        for frame in self.card.sent.drain(..) {
            self.to_stack.push(frame);
        }
        for id in self.world.sockets.opened.clone() {
            let socket = &self.world.sockets.sockets[&id];
            if socket.closed.is_none() {
                self.world.ready_of(id, EVERYTHING);
            }
        }
        self.world.pass(Duration::from_millis(1));
        for (_, frame) in self.world.link.frames.drain(..) {
            self.to_guest.push(frame);
        }
    }

    fn guest(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }
}

fn pattern() -> Vec<u8> {
    (0..251_u8).cycle().take(LEN).collect()
}

/// How many milliseconds it takes to bring the whole stream to the peer, and to hear that it is there.
fn upload(faults: Faults) -> (i64, u64) {
    let mut machine = Machine::new(faults);
    let (data, mut sent) = (pattern(), 0);
    for _ in 0..100_000 {
        machine.step();
        let guest = machine.guest();
        if guest.can_send() {
            sent += guest.send_slice(&data[sent..]).unwrap();
        }
        if sent == LEN && guest.may_send() {
            guest.close();
        }
        if let Some((_, socket)) = machine.world.sockets.sockets.iter_mut().next() {
            socket.space = 1 << 20;
            assert!(data.starts_with(&socket.received));
            if socket.shut_down {
                assert_eq!(socket.received.len(), LEN);
                return (machine.millis, machine.world.stack.counters().tcp_retransmitted);
            }
        }
    }
    panic!("{faults:?}: {sent} bytes went up");
}

/// The other way.
fn download(faults: Faults) -> (i64, u64) {
    let mut machine = Machine::new(faults);
    let data = pattern();
    let (mut arrived, mut filled) = (Vec::new(), false);
    for _ in 0..100_000 {
        machine.step();
        if let Some((_, socket)) = machine.world.sockets.sockets.iter_mut().next()
            && !std::mem::replace(&mut filled, true)
        {
            socket.waiting.extend(&data);
            socket.ended = true;
        }
        let guest = machine.guest();
        while guest.can_recv() {
            guest.recv(|bytes| (bytes.len(), arrived.extend_from_slice(bytes))).unwrap();
        }
        if arrived.len() == LEN && !guest.may_recv() {
            assert!(arrived == data);
            return (machine.millis, machine.world.stack.counters().tcp_retransmitted);
        }
    }
    panic!("{faults:?}: {} bytes came down", arrived.len());
}

#[test]
fn a_bad_link_costs_time_and_no_byte() {
    let mut table = String::from(
        "1 MiB through a link of 1 ms, by thousandths of frames lost, doubled, exchanged.\n\
         lost doubled exchanged | up ms | down ms, sent again\n",
    );
    for (lost, doubled, exchanged) in
        [(0, 0, 0), (0, 20, 0), (0, 0, 20), (1, 0, 0), (10, 0, 0), (10, 10, 10), (30, 0, 0)]
    {
        let faults = Faults { lost, doubled, exchanged };
        let ((up, _), (down, again)) = (upload(faults), download(faults));
        writeln!(table, "{lost:4} {doubled:7} {exchanged:9} | {up:5} | {down:7} {again:5}")
            .unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tcp/tests/throughput.txt");
        std::fs::write(path, &table).unwrap();
        return;
    }
    assert!(table == GOLDEN, "run again with UPDATE_GOLDEN=1 and review the change:\n{table}");
}
