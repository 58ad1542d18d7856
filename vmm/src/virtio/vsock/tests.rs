//! The device over real Unix sockets, driven by a guest-side model of its driver.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::packet::{
    HEADER_BYTES, HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::*;
use crate::memory::{GuestAddress, GuestRam};
use crate::virtio::test_driver::TestDriver;
use crate::virtio::{Interrupt, Queue};
use std::sync::Arc;

const GUEST_CID: u64 = 7;
const FEATURES: u64 = F_STREAM | F_EVENT_IDX | F_INDIRECT_DESC;
const RX_BUFFERS: u64 = 64;
const RX_BYTES: u32 = 4096 + 44;
const TX_BYTES: u32 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest with one vsock device and its host socket in a directory of its own.
struct Bench {
    device: Vsock,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    rx: TestDriver,
    tx: TestDriver,
    rx_base: u64,
    tx_base: u64,
    rx_slots: HashMap<u32, u64>,
    dir: tempfile::TempDir,
    /// Credit: what the device freed and what the model sent, by (guest port, host port).
    sent: HashMap<(u32, u32), u32>,
    freed: HashMap<(u32, u32), u32>,
    taken: HashMap<(u32, u32), u32>,
    refill: bool,
    inbox: VecDeque<Packet>,
}

type Packet = (Header, Vec<u8>);

impl Bench {
    fn new() -> Self {
        Self::with_buffers(true)
    }

    fn with_buffers(refill: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let socket = HostSocket::bind(&path).unwrap();
        let plan = VsockPlan { path, guest_cid: GUEST_CID };
        let device = Vsock::new(socket, &plan, Jail { seccomp: false }).unwrap();
        let ram = Arc::new(GuestRam::anonymous(&[(GuestAddress(0), 8 << 20)]).unwrap());
        let (rx, tx, end) = queues(&ram);
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let tx_base = end + RX_BUFFERS * 0x2000;
        let maps = (HashMap::new(), HashMap::new(), HashMap::new());
        let (sent, freed, taken) = maps;
        let rx_slots = HashMap::new();
        let rx_base = end;
        let mut bench = Self {
            device,
            ram,
            interrupt,
            rx,
            tx,
            rx_base,
            tx_base,
            rx_slots,
            dir,
            sent,
            freed,
            taken,
            refill,
            inbox: VecDeque::new(),
        };
        bench.activate();
        bench
    }

    fn activate(&mut self) {
        (self.rx, self.tx, _) = queues(&self.ram);
        self.rx_slots.clear();
        let queue = |driver: &TestDriver| {
            Some(Queue::new(&self.ram, driver.queue_config(), FEATURES).unwrap())
        };
        let queues = vec![queue(&self.rx), queue(&self.tx), None];
        let (interrupt, ram) = (self.interrupt.clone(), Arc::clone(&self.ram));
        let activation = Activation { features: FEATURES, queues, interrupt, ram };
        self.device.activate(activation).unwrap();
        for slot in 0..RX_BUFFERS {
            self.offer(self.rx_base + slot * 0x2000);
        }
        self.ring(0);
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    fn listen(&self, port: u32) -> UnixListener {
        let listener = UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A host client at the device's socket.
    fn client(&self) -> UnixStream {
        patient(UnixStream::connect(self.path()).unwrap())
    }

    /// Half of the buffers as one descriptor, half with the header on its own, as drivers of different ages do.
    fn offer(&mut self, addr: u64) {
        let head = if addr & 0x2000 == 0 {
            self.rx.add(&[(addr, RX_BYTES, true)])
        } else {
            self.rx.add_indirect(&[(addr, 44, true), (addr + 44, RX_BYTES - 44, true)])
        };
        self.rx_slots.insert(u32::from(head), addr);
    }

    fn ring(&mut self, queue: usize) {
        let driver = if queue == 0 { &mut self.rx } else { &mut self.tx };
        if driver.needs_kick() {
            self.device.doorbells()[queue].write(1).unwrap();
        }
    }

    /// Sends raw bytes as one packet and waits until the device has taken it.
    fn send_raw(&mut self, bytes: &[u8]) {
        self.ram.write(GuestAddress(self.tx_base), bytes).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.tx.add(&[(self.tx_base, len, false)]);
        self.ring(1);
        let start = Instant::now();
        while self.tx.used().is_empty() {
            assert!(start.elapsed() < PATIENCE, "the device never took a packet");
            std::thread::yield_now();
        }
    }

    fn header(&self, key: (u32, u32), op: Op, len: u32, flags: u32) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: key.0,
            dst_port: key.1,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: 64 << 10,
            fwd_cnt: self.taken.get(&key).copied().unwrap_or(0),
        }
    }

    fn send(&mut self, key: (u32, u32), op: Op, flags: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = self.header(key, op, len, flags).emit().to_vec();
        bytes.extend(payload);
        self.send_raw(&bytes);
        *self.sent.entry(key).or_default() += len;
    }

    /// Sends what the device's credit allows of `bytes` now.
    fn send_some(&mut self, key: (u32, u32), bytes: &[u8]) -> usize {
        let in_flight =
            self.sent.get(&key).copied().unwrap_or(0) - self.freed.get(&key).copied().unwrap_or(0);
        let credit = (stream::BUF_ALLOC - in_flight).min(TX_BYTES) as usize;
        let take = credit.min(bytes.len());
        if take > 0 {
            self.send(key, Op::ReadWrite, 0, &bytes[..take]);
        }
        take
    }

    /// Takes the packets that have arrived and gives their buffers back.
    fn poll(&mut self) -> Vec<Packet> {
        let (mut packets, mut returned) = (Vec::new(), Vec::new());
        for (head, written) in self.rx.used() {
            let addr = self.rx_slots.remove(&head).unwrap();
            let mut bytes = vec![0; written as usize];
            self.ram.read(GuestAddress(addr), &mut bytes).unwrap();
            let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
            let key = (header.dst_port, header.src_port);
            self.freed.insert(key, header.fwd_cnt);
            *self.taken.entry(key).or_default() += header.len;
            packets.push((header, bytes.split_off(HEADER_BYTES)));
            returned.push(addr);
        }
        // Only now: the heads of all that came back are free, and would be used again under our feet.
        if self.refill {
            returned.into_iter().for_each(|addr| self.offer(addr));
        }
        self.ring(0);
        packets
    }

    /// Waits for the next packet that is not about credit.
    fn receive(&mut self) -> Packet {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.inbox.pop_front() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet came");
            let credit = [Op::CreditUpdate as u16, Op::CreditRequest as u16];
            let news = self.poll().into_iter().filter(|(header, _)| !credit.contains(&header.op));
            self.inbox.extend(news);
            std::thread::yield_now();
        }
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_raw(header.op), Some(op), "{header:?}");
        header
    }

    /// Opens a stream from the guest to `listener` at `key.1`.
    fn open(&mut self, key: (u32, u32), listener: &UnixListener) -> UnixStream {
        self.send(key, Op::Request, 0, &[]);
        let host = accept(listener);
        self.expect(Op::Response);
        host
    }

    /// Opens a stream from the host to guest port `port`; returns the host's port.
    fn open_from_host(&mut self, port: u32) -> (UnixStream, u32) {
        let mut host = self.client();
        host.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let request = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        self.send((port, request.src_port), Op::Response, 0, &[]);
        let answer = format!("OK {}\n", request.src_port);
        assert_eq!(take(&mut host, answer.len()), answer.as_bytes());
        (host, request.src_port)
    }
}

/// Gives every wait of `host` an end.
fn patient(host: UnixStream) -> UnixStream {
    host.set_nonblocking(false).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    host.set_write_timeout(Some(PATIENCE)).unwrap();
    host
}

fn accept(listener: &UnixListener) -> UnixStream {
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((host, _)) => return patient(host),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(start.elapsed() < PATIENCE, "the device never connected to the host's listener");
        std::thread::yield_now();
    }
}

/// The next `len` bytes that reach the host.
fn take(host: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    host.read_exact(&mut bytes).unwrap_or_else(|e| panic!("waiting for {len} bytes: {e}"));
    bytes
}

/// All that still reaches the host.
fn rest(host: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("waiting for the stream's end: {e}"));
    bytes
}

fn assert_closed(host: &mut UnixStream, why: &str) {
    assert_eq!(rest(host), b"", "{why}");
}

fn queues(ram: &Arc<GuestRam>) -> (TestDriver, TestDriver, u64) {
    let rx = TestDriver::new(ram, 0x1000, QUEUE_SIZES[0], FEATURES);
    let tx = TestDriver::new(ram, rx.end(), QUEUE_SIZES[1], FEATURES);
    let end = tx.end().next_multiple_of(0x4000);
    (rx, tx, end)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + (i >> 8) * 7 + seed as usize) & 0xff).unwrap())
        .collect()
}

#[test]
fn guest_and_host_talk_over_a_stream_of_either_s_making() {
    let mut bench = Bench::new();
    let listener = bench.listen(52);
    let guest_made = (1000, 52);
    let host_a = bench.open(guest_made, &listener);
    let (host_b, port) = bench.open_from_host(80);
    for (key, host) in &mut [(guest_made, host_a), ((80, port), host_b)] {
        let key = *key;
        bench.send(key, Op::ReadWrite, 0, b"from the guest");
        assert_eq!(take(host, 14), b"from the guest");
        host.write_all(b"from the host").unwrap();
        let (header, payload) = bench.receive();
        assert_eq!((header.dst_port, header.src_port), key);
        assert_eq!(payload, b"from the host");
    }
    assert_ne!(bench.interrupt.status(), 0);
}

#[test]
fn bytes_right_behind_the_first_line_reach_the_guest() {
    let mut bench = Bench::new();
    let mut host = bench.client();
    host.write_all(b"con").unwrap();
    host.write_all(b"nect 9\nearly").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let request = bench.expect(Op::Request);
    bench.send((9, request.src_port), Op::Response, 0, &[]);
    assert_eq!(bench.receive().1, b"early");
    assert_eq!(bench.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
}

#[test]
fn a_first_line_that_names_no_port_closes_the_connection() {
    let bench = Bench::new();
    for line in ["HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 1 2\n", "CONNECT 4294967295\n"] {
        let mut host = bench.client();
        host.write_all(line.as_bytes()).unwrap();
        assert_closed(&mut host, line);
    }
    let mut host = bench.client();
    host.write_all(&[b'C'; 32]).unwrap();
    assert_closed(&mut host, "a line without end");
}

#[test]
fn a_refused_port_is_reset_in_both_directions() {
    let mut bench = Bench::new();
    bench.send((1000, 53), Op::Request, 0, &[]);
    let reset = bench.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (53, 1000));
    drop(bench.listen(54));
    bench.send((1001, 54), Op::Request, 0, &[]);
    bench.expect(Op::Reset);
    let mut host = bench.client();
    host.write_all(b"CONNECT 5\n").unwrap();
    let request = bench.expect(Op::Request);
    bench.send((5, request.src_port), Op::Reset, 0, &[]);
    assert_closed(&mut host, "the guest refused");
}

#[test]
fn eight_mebibytes_each_way_arrive_whole_through_credit() {
    let mut bench = Bench::new();
    let listener = bench.listen(1);
    let key = (2000, 1);
    let host = bench.open(key, &listener);
    let data = pattern(8 << 20, 1);
    let mut sink = host.try_clone().unwrap();
    let (want, back) = (data.clone(), data.clone());
    let reader = std::thread::Builder::new()
        .spawn(move || {
            assert!(take(&mut sink, want.len()) == want, "bytes changed on the way to the host");
        })
        .unwrap();
    let mut source = host.try_clone().unwrap();
    let writer =
        std::thread::Builder::new().spawn(move || source.write_all(&back).unwrap()).unwrap();
    let (mut sent, mut got, mut told) = (0, Vec::new(), 0);
    let start = Instant::now();
    while sent < data.len() || got.len() < data.len() {
        assert!(start.elapsed() < 3 * PATIENCE, "{sent} sent, {} received", got.len());
        let now = bench.send_some(key, &data[sent..]);
        sent += now;
        if now > 0 {
            // Every packet of the guest tells what it has read.
            told = got.len();
        }
        for (header, payload) in bench.poll() {
            assert_ne!(Op::from_raw(header.op), Some(Op::Reset));
            got.extend(payload);
        }
        assert!(got.len() - told <= 64 << 10, "more than the guest's credit");
        if got.len() - told > 32 << 10 {
            told = got.len();
            bench.send(key, Op::CreditUpdate, 0, &[]);
        }
    }
    assert!(got == data, "bytes changed on the way to the guest");
    reader.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_by_credit_and_loses_nothing() {
    let mut bench = Bench::new();
    let listener = bench.listen(1);
    let key = (2000, 1);
    let mut host = bench.open(key, &listener);
    let data = pattern(4 << 20, 5);
    let mut sent = 0;
    loop {
        let now = bench.send_some(key, &data[sent..]);
        bench.poll();
        sent += now;
        if now == 0 {
            break;
        }
    }
    assert!(sent < 1 << 20, "{sent} bytes were taken for a host that does not read");
    bench.send(key, Op::Shutdown, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    bench.expect(Op::Reset);
    let got = rest(&mut host);
    assert!(got == data[..sent], "{} of {sent} bytes arrived", got.len());
}

#[test]
fn more_than_the_credit_is_reset() {
    let mut bench = Bench::new();
    let listener = bench.listen(1);
    let host = bench.open((2000, 1), &listener);
    for _ in 0..16 {
        bench.send((2000, 1), Op::ReadWrite, 0, &pattern(TX_BYTES as usize, 0));
    }
    bench.expect(Op::Reset);
    drop(host);
}

#[test]
fn sixty_four_streams_carry_their_own_bytes() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let mut hosts: Vec<UnixStream> =
        (0..64).map(|i| bench.open((3000 + i, 7), &listener)).collect();
    for (i, host) in (0..).zip(&mut hosts) {
        bench.send((3000 + i, 7), Op::ReadWrite, 0, &pattern(5000, i));
        host.write_all(&pattern(5000, 100 + i)).unwrap();
    }
    let mut got: HashMap<u32, Vec<u8>> = HashMap::new();
    while got.values().map(Vec::len).sum::<usize>() < 64 * 5000 {
        let (header, payload) = bench.receive();
        got.entry(header.dst_port).or_default().extend(payload);
    }
    for (i, mut host) in (0..).zip(hosts) {
        assert!(got[&(3000 + i)] == pattern(5000, 100 + i), "stream {i} to the guest");
        assert!(take(&mut host, 5000) == pattern(5000, i), "stream {i} to the host");
    }
}

#[test]
fn the_stream_past_the_limit_is_refused() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let limit = u32::try_from(mux::MAX_STREAMS).unwrap();
    let mut hosts: Vec<UnixStream> =
        (0..limit).map(|i| bench.open((3000 + i, 7), &listener)).collect();
    bench.send((9000, 7), Op::Request, 0, &[]);
    assert_eq!(bench.expect(Op::Reset).dst_port, 9000);
    assert_closed(&mut bench.client(), "there is no place");
    bench.send((3000, 7), Op::Reset, 0, &[]);
    assert_closed(&mut hosts[0], "the guest reset it");
    hosts.push(bench.open((9000, 7), &listener));
}

#[test]
fn either_side_may_end_its_direction_first() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);

    let mut host = bench.open((1, 7), &listener);
    bench.send((1, 7), Op::ReadWrite, 0, b"question");
    bench.send((1, 7), Op::Shutdown, SHUTDOWN_SEND, &[]);
    assert_eq!(rest(&mut host), b"question");
    host.write_all(b"answer").unwrap();
    assert_eq!(bench.receive().1, b"answer");
    drop(host);
    bench.expect(Op::Shutdown);
    bench.send((1, 7), Op::Shutdown, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    // The two directions of the host's end may have been told apart.
    while bench.receive().0.op != Op::Reset as u16 {}

    let mut host = bench.open((2, 7), &listener);
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.receive().1, b"question");
    assert_eq!(bench.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    bench.send((2, 7), Op::ReadWrite, 0, b"answer");
    bench.send((2, 7), Op::Shutdown, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    bench.expect(Op::Reset);
    assert_eq!(rest(&mut host), b"answer");

    let mut host = bench.open((3, 7), &listener);
    bench.send((3, 7), Op::Shutdown, SHUTDOWN_RECEIVE, &[]);
    bench.send((3, 7), Op::ReadWrite, 0, b"still");
    assert_eq!(take(&mut host, 5), b"still");
    assert_eq!(host.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_host_that_closes_is_told_and_a_guest_that_stays_silent_is_reset() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let mut host = bench.open((1, 7), &listener);
    host.write_all(b"bye").unwrap();
    drop(host);
    let mut flags = 0;
    let mut said = Vec::new();
    while flags != SHUTDOWN_SEND | SHUTDOWN_RECEIVE {
        let (header, payload) = bench.receive();
        said.extend(payload);
        assert_ne!(Op::from_raw(header.op), Some(Op::Reset));
        flags |= header.flags;
    }
    assert_eq!(said, b"bye");
    let start = Instant::now();
    bench.expect(Op::Reset);
    assert!(start.elapsed() > Duration::from_secs(1), "the guest had no time to answer");
}

#[test]
fn a_reset_of_the_device_closes_everything_and_the_next_driver_starts_afresh() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let mut host = bench.open((1, 7), &listener);
    bench.device.reset();
    assert_closed(&mut host, "the device was reset");
    bench.device.reset();
    // A client of the time in between is served by the next driver.
    let mut early = bench.client();
    early.write_all(b"CONNECT 3\n").unwrap();
    bench.activate();
    assert_eq!(bench.expect(Op::Request).dst_port, 3);
    let _host = bench.open((1, 7), &listener);
    bench.device.shutdown().unwrap();
    assert!(!bench.path().exists());
    assert_closed(&mut early, "the device was shut down");
}

#[test]
fn what_the_guest_sent_before_shutdown_reaches_the_host() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let mut host = bench.open((1, 7), &listener);
    bench.send((1, 7), Op::ReadWrite, 0, b"last words");
    bench.device.shutdown().unwrap();
    assert_eq!(rest(&mut host), b"last words");
}

#[test]
fn hostile_packets_are_reset_or_dropped() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let good = bench.header((1, 7), Op::ReadWrite, 0, 0);
    for (header, answered) in [
        (Header { op: Op::Reset as u16, ..good }, false),
        (Header { src_cid: 8, ..good }, false),
        (Header { dst_cid: 1, ..good }, false),
        (good, true),
        (Header { op: 99, ..good }, true),
        (Header { kind: 2, ..good }, true),
        (Header { kind: 2, op: Op::Request as u16, ..good }, true),
        (Header { len: u32::MAX, ..good }, true),
        (Header { op: Op::Shutdown as u16, ..good }, true),
    ] {
        bench.send_raw(&header.emit());
        bench.send((4, 4), Op::CreditRequest, 0, &[]);
        let first = bench.receive().0;
        assert_eq!(Op::from_raw(first.op), Some(Op::Reset));
        assert_eq!(first.dst_port == 1, answered, "{header:?}");
        if answered {
            bench.expect(Op::Reset);
        }
    }
    bench.send_raw(&[0; 43]);
    for bad in [
        Header { op: 99, ..good },
        Header { op: Op::Request as u16, ..good },
        Header { op: Op::Response as u16, ..good },
        Header { len: 1, ..good },
    ] {
        let mut host = bench.open((1, 7), &listener);
        bench.send_raw(&bad.emit());
        bench.expect(Op::Reset);
        assert_closed(&mut host, &format!("{bad:?}"));
    }
    assert!(!bench.interrupt.device_failed());
}

#[test]
fn a_guest_without_buffers_makes_no_queue_grow() {
    let mut bench = Bench::with_buffers(false);
    for port in 0..2000 {
        bench.send((port, 7), Op::Request, 0, &[]);
    }
    for _ in 0..RX_BUFFERS {
        bench.expect(Op::Reset);
    }
    bench.refill = true;
    for slot in 0..RX_BUFFERS {
        bench.offer(bench.rx_base + slot * 0x2000);
    }
    bench.ring(0);
    let (mut later, mut quiet_since) = (0, Instant::now());
    while quiet_since.elapsed() < Duration::from_millis(300) {
        let came = bench.poll().len();
        later += came;
        if came > 0 {
            quiet_since = Instant::now();
        }
        std::thread::yield_now();
    }
    assert!(later <= mux::MAX_STREAMS + mux::MAX_STRAY_RESETS, "{later} answers were kept");
    let listener = bench.listen(7);
    // On a busy host some of the answers may still be under way, and keep their places.
    let start = Instant::now();
    for port in 5000.. {
        assert!(start.elapsed() < PATIENCE, "no place became free");
        bench.send((port, 7), Op::Request, 0, &[]);
        while let (header, _) = bench.receive()
            && header.dst_port != port
        {}
        if listener.accept().is_ok() {
            break;
        }
    }
}

#[test]
fn a_driver_that_breaks_its_ring_is_told_to_reset() {
    let mut bench = Bench::new();
    let listener = bench.listen(7);
    let mut host = bench.open((1, 7), &listener);
    bench.tx.raw_avail_index(0x7777);
    bench.device.doorbells()[1].write(1).unwrap();
    assert_closed(&mut host, "the ring is broken");
    assert!(bench.interrupt.device_failed());
    bench.device.reset();
    bench.interrupt.clear();
    bench.activate();
    bench.open((1, 7), &listener);
}

#[test]
fn configuration_is_the_context_id() {
    let bench = Bench::new();
    let mut bytes = [0xff; 12];
    bench.device.read_config(0, &mut bytes);
    assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.device.read_config(u64::MAX, &mut bytes[..1]);
    assert_eq!(bytes[0], 0);
    for cid in [0, 1, 2, u64::from(u32::MAX) - 1, u64::from(u32::MAX), 1 << 32] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let socket = HostSocket::bind(&path).unwrap();
        let plan = VsockPlan { path, guest_cid: cid };
        let refused = Vsock::new(socket, &plan, Jail { seccomp: false });
        assert!(matches!(refused, Err(VsockError::GuestCid(named)) if named == cid));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_packets_leave_the_device_serving(
        packets in prop::collection::vec((0_u16..9, 0_u32..4, any::<u32>(), 0_u32..70, any::<u32>()), 1..40)
    ) {
        let mut bench = Bench::new();
        let listener = bench.listen(7);
        for (op, port, flags, len, credit) in packets {
            let header = Header { op, flags, len, buf_alloc: credit, ..bench.header((port, 7), Op::Reset, 0, 0) };
            let mut bytes = header.emit().to_vec();
            bytes.resize(HEADER_BYTES + 64, 0xaa);
            bench.send_raw(&bytes);
            bench.poll();
        }
        bench.send((99, 7), Op::Request, 0, &[]);
        loop {
            let (header, _) = bench.receive();
            if header.dst_port == 99 {
                assert_eq!(Op::from_raw(header.op), Some(Op::Response));
                break;
            }
        }
        drop(listener);
    }
}
