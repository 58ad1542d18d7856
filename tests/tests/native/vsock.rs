//! vsock: honest streams both ways, and packets that no honest driver sends.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::register::CONFIG;
use openshell_tests::bare::virtio::{Descriptor, Device, Ring};
use openshell_tests::machine::{Input, Running};

use crate::guest::Guest;
use crate::places::{BUFFERS, ring};

const HOST: u64 = 2;
const GUEST: u64 = 3;
const HEADER_BYTES: u32 = 44;
const TRANSMIT: u64 = BUFFERS + 0x40_0000;
const RECEIVE: u64 = BUFFERS;
const BUFFER_BYTES: u64 = 4096;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// A packet's header; the fields that tests change.
#[derive(Clone, Copy)]
struct Header {
    from: (u64, u32),
    to: (u64, u32),
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buffer: u32,
    forwarded: u32,
}

impl Header {
    /// From guest port `from` to host port `to`.
    fn new(op: u16, from: u32, to: u32) -> Self {
        Self {
            from: (GUEST, from),
            to: (HOST, to),
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buffer: 1 << 16,
            forwarded: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.0.to_le_bytes());
        bytes.extend(self.to.0.to_le_bytes());
        for word in [self.from.1, self.to.1, self.len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        for word in [self.flags, self.buffer, self.forwarded] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }
}

/// The bytes of a connection request from guest port `from` to host port `to`.
pub(crate) fn request(from: u32, to: u32) -> Vec<u8> {
    Header::new(REQUEST, from, to).bytes()
}

/// A driver with 64 buffers for what comes in.
struct Driver {
    script: Script,
    device: Device,
    receive: Ring,
    transmit: Ring,
    sent: u16,
    received: u16,
}

impl Driver {
    fn start(buffer_bytes: u32) -> Self {
        let device = Device::number(1);
        let rings = [ring(0, 64), ring(1, 64), ring(2, 64)];
        let mut script = Script::new();
        script.start(device, 0, &rings);
        let [receive, transmit, _] = rings;
        for slot in 0..64_u16 {
            let at = RECEIVE + BUFFER_BYTES * u64::from(slot);
            script.describe(&receive, slot, &[Descriptor::write(at, buffer_bytes)]);
            script.store16(receive.avail + 4 + 2 * u64::from(slot), slot);
        }
        script.store16(receive.avail_index(), 64).notify(device, 0);
        Self { script, device, receive, transmit, sent: 0, received: 0 }
    }

    /// Sends header and payload in one buffer, `len` bytes of it.
    #[track_caller]
    fn send_bytes(&mut self, bytes: &[u8], len: u32) {
        self.sent = self.sent.wrapping_add(1);
        let (device, ring, sent) = (self.device, self.transmit, self.sent);
        self.script.copy(TRANSMIT, bytes).describe(&ring, 0, &[Descriptor::read(TRANSMIT, len)]);
        self.script.offer(&ring, 0, sent).notify(device, 1).wait_used(&ring, sent);
    }

    #[track_caller]
    fn send(&mut self, header: Header) {
        self.send_bytes(&header.bytes(), HEADER_BYTES);
    }

    /// The next packet that comes in is `op` from host port `from` to guest port `to`.
    #[track_caller]
    fn receive(&mut self, op: u16, from: u32, to: u32) -> u64 {
        let slot = self.received % 64;
        self.received += 1;
        let at = RECEIVE + BUFFER_BYTES * u64::from(slot);
        self.script.wait_used_past(&self.receive, self.received);
        self.script.load64(at).expect(HOST).load64(at + 8).expect(GUEST);
        self.script.load32(at + 16).expect(u64::from(from)).load32(at + 20).expect(u64::from(to));
        self.script.load16(at + 30).expect(u64::from(op));
        // The buffer goes back at once.
        self.script.store16(self.receive.avail_index(), 64 + self.received);
        self.script.notify(self.device, 0);
        at
    }

    fn guest(&mut self) -> Guest {
        self.script.status(self.device, 15);
        Guest::new(self.script.exit(0))
    }
}

fn spawn(guest: &Guest) -> Running {
    guest.run().arg("--vsock").arg(guest.path("vsock")).stdin(Input::Typed).spawn()
}

#[test]
fn a_guest_reaches_a_listener_of_the_host() {
    let mut driver = Driver::start(4096);
    driver.script.load64(driver.device.base + CONFIG).expect(GUEST);
    driver.send(Header::new(REQUEST, 1024, 5000));
    driver.receive(RESPONSE, 5000, 1024);
    let data = Header { len: 5, ..Header::new(DATA, 1024, 5000) };
    driver.send_bytes(&[&data.bytes()[..], b"hello"].concat(), HEADER_BYTES + 5);
    let at = driver.receive(DATA, 5000, 1024);
    driver.script.load32(at + 24).expect(5).same(at + 44, b"HELLO");
    driver.send(Header { flags: 3, ..Header::new(SHUTDOWN, 1024, 5000) });
    let guest = driver.guest();
    let listener = UnixListener::bind(guest.path("vsock_5000")).unwrap();
    let running = spawn(&guest);
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(&bytes.to_ascii_uppercase()).unwrap();
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    guest.wait(running).expect_code(0);
    assert_eq!(guest.files(), ["guest.elf", "vsock_5000"], "only what is ours was removed");
}

#[test]
fn a_host_program_reaches_a_port_of_the_guest() {
    // The first port that a host client gets.
    const CLIENT: u32 = 1 << 30;
    let mut driver = Driver::start(4096);
    driver.script.say("up\n");
    driver.receive(REQUEST, CLIENT, 7);
    driver.send(Header::new(RESPONSE, 7, CLIENT));
    let at = driver.receive(DATA, CLIENT, 7);
    driver.script.same(at + 44, b"ping");
    let data = Header { len: 4, ..Header::new(DATA, 7, CLIENT) };
    driver.send_bytes(&[&data.bytes()[..], b"pong"].concat(), HEADER_BYTES + 4);
    driver.receive(SHUTDOWN, CLIENT, 7);
    driver.send(Header::new(RESET, 7, CLIENT));
    driver.script.echo_until(b'.');
    let guest = driver.guest();
    let mut running = spawn(&guest);
    running.wait_for("up\n");
    let mut stream = UnixStream::connect(guest.path("vsock")).unwrap();
    stream.write_all(b"CONNECT 7\nping").unwrap();
    let mut answer = [0; 64];
    let mut said = Vec::new();
    while !said.ends_with(b"pong") {
        let len = stream.read(&mut answer).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&answer[..len]);
    }
    assert_eq!(said, format!("OK {CLIENT}\npong").into_bytes());
    stream.shutdown(Shutdown::Write).unwrap();
    while stream.read(&mut answer).is_ok_and(|len| len > 0) {}
    running.type_bytes(b".");
    guest.wait(running).expect_code(0);
    assert_eq!(guest.files(), ["guest.elf"]);
}

#[test]
fn packets_of_no_stream_are_refused_or_dropped() {
    let mut driver = Driver::start(4096);
    let stray = |op| Header::new(op, 1024, 9);
    // Nobody listens there, and there is no such stream: each gets a reset.
    for op in [REQUEST, RESPONSE, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST] {
        driver.send(stray(op));
        driver.receive(RESET, 9, 1024);
    }
    // A reset is not answered, nor is what claims to be from somebody else or goes to somebody else.
    driver.send(stray(RESET));
    for (from, to) in
        [(0, HOST), (HOST, HOST), (4, HOST), (u64::MAX, HOST), (GUEST, GUEST), (GUEST, 1)]
    {
        driver.send(Header { from: (from, 1024), to: (to, 9), ..stray(REQUEST) });
    }
    // Other socket types and operations, and lengths that lie.
    for header in [
        Header { kind: 2, ..stray(REQUEST) },
        Header { kind: 0xffff, ..stray(DATA) },
        stray(0),
        stray(8),
        stray(0xffff),
        Header { len: 1, ..stray(DATA) },
        Header { len: u32::MAX, ..stray(REQUEST) },
    ] {
        driver.send(header);
        driver.receive(RESET, 9, 1024);
    }
    for len in [1, 16, 43] {
        driver.send_bytes(&stray(REQUEST).bytes(), len);
    }
    // The next answer is to the next question: nothing of the above was answered late.
    driver.send(Header::new(REQUEST, 2000, 10));
    driver.receive(RESET, 10, 2000);
    let guest = driver.guest();
    let running = spawn(&guest);
    guest.wait(running).expect_code(0);
}

/// A guest that sends more than it was allowed, takes credit back and contradicts itself loses its stream, not the machine.
#[test]
fn a_stream_that_breaks_the_rules_ends() {
    let cases: [fn(Header) -> Header; 6] = [
        |header| Header { op: REQUEST, ..header },
        |header| Header { op: RESPONSE, ..header },
        |header| Header { op: 0, ..header },
        |header| Header { op: 99, ..header },
        |header| Header { len: 100, ..header },
        |header| Header { len: u32::MAX, ..header },
    ];
    let mut driver = Driver::start(4096);
    for (port, change) in (1024..).zip(cases) {
        driver.send(Header::new(REQUEST, port, 5000));
        driver.receive(RESPONSE, 5000, port);
        driver.send(change(Header::new(DATA, port, 5000)));
        driver.receive(RESET, 5000, port);
    }
    // Credit that shrinks, or that was never given: the stream gets nothing more and can still be ended.
    for (port, buffer, forwarded) in [(3000, 0, 0), (3001, 0, u32::MAX), (3002, u32::MAX, 1 << 31)]
    {
        driver.send(Header::new(REQUEST, port, 5000));
        driver.receive(RESPONSE, 5000, port);
        driver.send(Header { buffer, forwarded, ..Header::new(CREDIT_UPDATE, port, 5000) });
        driver.send(Header::new(RESET, port, 5000));
    }
    let guest = driver.guest();
    let listener = UnixListener::bind(guest.path("vsock_5000")).unwrap();
    let running = spawn(&guest);
    for _ in 0..9 {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_end(&mut Vec::new()).ok();
    }
    guest.wait(running).expect_code(0);
}

#[test]
fn more_connections_than_there_is_room_for_are_refused() {
    const ASKED: u32 = 300;
    let mut driver = Driver::start(4096);
    driver.script.say("up\n");
    for port in 0..ASKED {
        driver.send(Header::new(REQUEST, 10_000 + port, 5000));
        driver.receive(if port < 256 { RESPONSE } else { RESET }, 5000, 10_000 + port);
    }
    // One goes, one comes.
    driver.send(Header::new(RESET, 10_000, 5000));
    driver.send(Header::new(REQUEST, 20_000, 5000));
    driver.receive(RESPONSE, 5000, 20_000);
    let guest = driver.guest();
    let listener = UnixListener::bind(guest.path("vsock_5000")).unwrap();
    let running = spawn(&guest);
    let accepted: Vec<_> = (0..257).map(|_| listener.accept().unwrap()).collect();
    guest.wait(running).expect_code(0);
    drop(accepted);
}

/// Without a buffer for the answers they are bounded; with buffers that are too small they are dropped.
#[test]
fn answers_that_have_no_place_are_bounded() {
    for buffer_bytes in [1, 43] {
        let mut driver = Driver::start(buffer_bytes);
        for _ in 0..600 {
            driver.send(Header::new(REQUEST, 1024, 9));
        }
        let guest = driver.guest();
        let running = spawn(&guest);
        guest.wait(running).expect_code(0);
    }
}
