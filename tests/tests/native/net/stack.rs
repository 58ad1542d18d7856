//! Frames that the stack answers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use openshell_tests::bare::Script;
use openshell_tests::bare::virtio::{Descriptor, Device, Ring};
use openshell_tests::machine::Input;

use super::frames::{
    self, ACK, FIN, FRAME, GATEWAY, GATEWAY_MAC, GUEST, HOST, IP, PSH, SYN, TCP_PAYLOAD, TRANSPORT,
    UDP_PAYLOAD,
};
use crate::guest::Guest;
use crate::places::{ARENA, BUFFERS, ring};

const RING: u16 = 64;
const SENT: u64 = BUFFERS;
const RECEIVED: u64 = BUFFERS + 0x10_0000;
const BUFFER_BYTES: u64 = 2048;
/// Code that a script calls.
const CODE: u64 = ARENA + 0x80_0000;

const CSUM: u64 = 1 << 0;
const MRG_RXBUF: u64 = 1 << 15;

/// A driver with buffers for what comes in, which are used once each.
struct Driver {
    script: Script,
    card: Device,
    receive: Ring,
    transmit: Ring,
    sent: u16,
    received: u16,
}

impl Driver {
    fn start() -> Self {
        let card = Device::number(1);
        let rings = [ring(0, RING), ring(1, RING)];
        let mut script = Script::new();
        script.start(card, CSUM | MRG_RXBUF, &rings);
        let [receive, transmit] = rings;
        for slot in 0..RING {
            let at = RECEIVED + BUFFER_BYTES * u64::from(slot);
            script.describe(&receive, slot, &[Descriptor::write(at, 2048)]);
            script.store16(receive.avail + 4 + 2 * u64::from(slot), slot);
        }
        script.store16(receive.avail_index(), RING).notify(card, 0);
        Self { script, card, receive, transmit, sent: 0, received: 0 }
    }

    #[track_caller]
    fn send(&mut self, packet: &[u8]) {
        self.script.copy(SENT, packet);
        self.send_placed(packet.len());
    }

    /// Sends what lies at [`SENT`] already.
    #[track_caller]
    fn send_placed(&mut self, len: usize) {
        self.sent += 1;
        let (ring, sent) = (self.transmit, self.sent);
        let whole = Descriptor::read(SENT, u32::try_from(len).unwrap());
        self.script.describe(&ring, 0, &[whole]).offer(&ring, 0, sent);
        self.script.notify(self.card, 1).wait_used(&ring, sent);
    }

    /// Where the next packet that comes lies.
    #[track_caller]
    fn receive(&mut self) -> u64 {
        let at = RECEIVED + BUFFER_BYTES * u64::from(self.received);
        self.received += 1;
        self.script.wait_used_past(&self.receive, self.received);
        at
    }

    fn guest(&mut self) -> Guest {
        self.script.status(self.card, 15);
        Guest::new(self.script.exit(0))
    }
}

fn allow(port: u16) -> [String; 2] {
    ["--allow".to_owned(), format!("host:{port}")]
}

#[test]
fn the_gateway_answers_arp_and_echo_and_gives_a_lease() {
    let mut driver = Driver::start();
    driver.send(&frames::arp());
    let at = driver.receive() + FRAME;
    driver.script.same(at, &frames::GUEST_MAC).same(at + 6, &GATEWAY_MAC);
    driver.script.same(at + 14 + 7, &[2]).same(at + 14 + 8, &GATEWAY_MAC).same(at + 28, &GATEWAY);
    // DISCOVER and REQUEST of the address offered.
    for (options, answer) in [(vec![53, 1, 1], 2), (vec![53, 1, 3, 50, 4, 192, 168, 127, 2], 5)] {
        driver.send(&frames::dhcp(&options));
        let at = driver.receive() + UDP_PAYLOAD;
        driver.script.same(at, &[2]).same(at + 4, &[1, 2, 3, 4]).same(at + 16, &GUEST);
        driver.script.same(at + 240, &[53, 1, answer]);
    }
    driver.send(&frames::echo(GATEWAY, b"anybody there?"));
    let at = driver.receive();
    driver.script.same(at + IP + 12, &GATEWAY).same(at + TRANSPORT, &[0, 0]);
    driver.script.same(at + UDP_PAYLOAD, b"anybody there?");
    let guest = driver.guest();
    guest.finish(guest.run()).expect_code(0);
}

#[test]
fn a_datagram_goes_to_the_host_and_back() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut driver = Driver::start();
    driver.send(&frames::udp(HOST, (4000, port), b"question"));
    let at = driver.receive();
    driver.script.same(at + IP + 12, &HOST).same(at + TRANSPORT, &port.to_be_bytes());
    driver.script.same(at + UDP_PAYLOAD, b"answer");
    let guest = driver.guest();
    let running = guest.run().args(allow(port)).spawn();
    let mut bytes = [0; 16];
    let (len, from) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"question");
    assert_eq!(from.ip(), Ipv4Addr::LOCALHOST);
    socket.send_to(b"answer", from).unwrap();
    guest.wait(running).expect_code(0);
}

/// Loads the sequence number at `from`, adds `count` and stores it at `to`, both in network order.
fn add_sequence(script: &mut Script, from: u64, count: u32, to: u64) {
    let mut code = vec![0x8b, 0x04, 0x25];
    code.extend(u32::try_from(from).unwrap().to_le_bytes());
    // bswap eax; add eax, count; bswap eax; mov [to], eax; ret
    code.extend([0x0f, 0xc8, 0x05]);
    code.extend(count.to_le_bytes());
    code.extend([0x0f, 0xc8, 0x89, 0x04, 0x25]);
    code.extend(u32::try_from(to).unwrap().to_le_bytes());
    code.push(0xc3);
    script.copy(CODE, &code).call(CODE);
}

#[test]
fn a_connection_carries_bytes_both_ways() {
    const SEQUENCE: u32 = 1000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let ports = (5000, port);
    let mut driver = Driver::start();
    driver.send(&frames::tcp(HOST, ports, SEQUENCE, SYN, b""));
    let accepted = driver.receive();
    driver.script.same(accepted + IP + 12, &HOST).same(accepted + TRANSPORT + 13, &[SYN | ACK]);
    driver.script.same(accepted + TRANSPORT + 8, &(SEQUENCE + 1).to_be_bytes());
    let acknowledge = |driver: &mut Driver, from, count, packet: &[u8]| {
        driver.script.copy(SENT, packet);
        add_sequence(&mut driver.script, from, count, SENT + TRANSPORT + 8);
        driver.send_placed(packet.len());
    };
    let empty = frames::tcp(HOST, ports, SEQUENCE + 1, ACK, b"");
    acknowledge(&mut driver, accepted + TRANSPORT + 4, 1, &empty);
    let greeting = driver.receive();
    driver.script.same(greeting + TCP_PAYLOAD, b"who are you?");
    let answer = frames::tcp(HOST, ports, SEQUENCE + 1, ACK | PSH | FIN, b"a guest");
    acknowledge(&mut driver, greeting + TRANSPORT + 4, 12, &answer);
    driver.script.say("sent\n").echo_until(b'.');
    let guest = driver.guest();
    let mut running = guest.run().args(allow(port)).stdin(Input::Typed).spawn();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"who are you?").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "a guest");
    running.type_bytes(b".");
    guest.wait(running).expect_code(0);
}

#[test]
fn what_is_not_allowed_is_refused() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut driver = Driver::start();
    for to in [HOST, GATEWAY, [169, 254, 169, 254], [127, 0, 0, 1]] {
        driver.send(&frames::tcp(to, (5000, port), 1, SYN, b""));
    }
    driver.send(&frames::echo(GATEWAY, b"still there?"));
    driver.script.say("sent\n").echo_until(b'.');
    let guest = driver.guest();
    let mut running = guest.run().stdin(Input::Typed).spawn();
    running.wait_for("sent\n");
    assert!(listener.accept().is_err(), "nobody came");
    running.type_bytes(b".");
    guest.wait(running).expect_code(0);
}

/// A reset of the card in the middle of a connection: the driver after it has its network, and nothing of before.
#[test]
fn a_card_that_is_reset_keeps_its_network() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let mut script = Script::new();
    for turn in 0..20_u16 {
        let mut driver = Driver::start();
        driver.send(&frames::tcp(HOST, (5000 + turn, address.port()), 7, SYN, b""));
        let at = driver.receive();
        driver.script.same(at + TRANSPORT + 13, &[SYN | ACK]).reset(driver.card);
        script.append(&driver.script);
    }
    let mut driver = Driver::start();
    driver.send(&frames::echo(GATEWAY, b"still there?"));
    let at = driver.receive();
    driver.script.same(at + UDP_PAYLOAD, b"still there?");
    script.append(&driver.script);
    let guest = Guest::new(script.exit(0));
    guest.finish(guest.run().args(allow(address.port()))).expect_code(0);
    for _ in 0..20 {
        listener.accept().unwrap();
    }
}
