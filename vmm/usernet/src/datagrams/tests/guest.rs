//! smoltcp as the guest of a whole stack: it gets its lease, finds the gateway, pings it and talks UDP to somebody.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{
    EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr,
};

use crate::config::Config;
use crate::link::{Frame, HEAD_LEN, Offload};
use crate::mock::{Bytes, EVERYTHING, MockLink, MockSockets};
use crate::smoltcp_card::Card;
use crate::{Instant, Io, Stack};

struct Machine {
    card: Card,
    interface: Interface,
    guest: SocketSet<'static>,
    stack: Stack<Bytes>,
    link: MockLink,
    host: MockSockets,
    now: Instant,
}

impl Machine {
    fn new() -> Self {
        let config = Config::default();
        let mut card = Card::default();
        let address = EthernetAddress(config.macs.guest.0).into();
        let start = smoltcp::time::Instant::ZERO;
        let interface = Interface::new(smoltcp::iface::Config::new(address), &mut card, start);
        Self {
            card,
            interface,
            guest: SocketSet::new(vec![]),
            stack: Stack::new(config, [7; 16]),
            link: MockLink { room: usize::MAX, ..MockLink::default() },
            host: MockSockets::default(),
            now: Instant::from_nanos(0),
        }
    }

    /// Lets both run until `done`.
    fn run<R>(&mut self, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        for _ in 0..1_000 {
            let millis = i64::try_from(self.now.as_nanos() / 1_000_000).unwrap();
            let now = smoltcp::time::Instant::from_millis(millis);
            self.interface.poll(now, &mut self.card, &mut self.guest);
            let io = &mut Io { link: &mut self.link, sockets: &mut self.host };
            for frame in self.card.sent.drain(..) {
                let head = frame[..frame.len().min(HEAD_LEN)].to_vec();
                let payload = Bytes::new(frame, &Rc::new(Cell::new(0)));
                let frame = Frame { head: &head, payload, offload: Offload::default() };
                self.stack.guest_frame(self.now, frame, io);
            }
            self.stack.run_timers(self.now, io);
            self.stack.flush(self.now, io);
            self.card.arrived.extend(self.link.frames.drain(..).map(|(_, frame)| frame));
            if let Some(result) = done(self) {
                return result;
            }
            self.now = self.now + Duration::from_millis(10);
        }
        panic!("not done after 10 s");
    }

    /// Takes the lease that DHCP brings.
    fn configure(&mut self) {
        let dhcp = self.guest.add(dhcpv4::Socket::new());
        let (address, router, servers) =
            self.run(|machine| match machine.guest.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    Some((config.address, config.router, config.dns_servers.to_vec()))
                }
                _ => None,
            });
        let gateway = Ipv4Addr::new(192, 168, 127, 1);
        assert_eq!(address, Ipv4Cidr::new(Ipv4Addr::new(192, 168, 127, 2), 24));
        assert_eq!((router, &servers[..]), (Some(gateway), &[gateway][..]));
        self.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(address)).unwrap();
        });
        self.interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
    }

    fn udp(&mut self) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 16_384]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(40_000).unwrap();
        self.guest.add(socket)
    }
}

#[test]
fn a_guest_gets_its_lease_in_one_exchange() {
    let mut machine = Machine::new();
    machine.configure();
    assert_eq!(machine.stack.counters().dhcp_answered, 2);
    assert!(machine.now < Instant::from_nanos(100_000_000), "it did not have to ask twice");
}

#[test]
fn a_guest_pings_the_gateway() {
    let mut machine = Machine::new();
    machine.configure();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4_096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"are you there?" };
    let mut bytes = vec![0; request.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
    socket.send_slice(&bytes, IpAddress::v4(192, 168, 127, 1)).unwrap();
    let handle = machine.guest.add(socket);
    let (reply, from) = machine.run(|machine| {
        let socket = machine.guest.get_mut::<icmp::Socket<'_>>(handle);
        socket.recv().ok().map(|(bytes, from)| (bytes.to_vec(), from))
    });
    assert_eq!(from, IpAddress::v4(192, 168, 127, 1));
    let packet = Icmpv4Packet::new_checked(&reply[..]).unwrap();
    let expected = Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: b"are you there?" };
    assert_eq!(Icmpv4Repr::parse(&packet, &checksums), Ok(expected));
    assert_eq!(machine.host.open(), 0, "nobody else was asked");
}

#[test]
fn a_guest_talks_to_somebody_by_udp() {
    let mut machine = Machine::new();
    machine.configure();
    let handle = machine.udp();
    let peer = IpEndpoint::new(IpAddress::v4(9, 9, 9, 9), 123);
    for round in 0..3_u8 {
        let socket = machine.guest.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(&[round; 100], peer).unwrap();
        machine.run(|machine| (machine.host.open() == 1).then_some(()));
        machine.run(|machine| {
            (machine.host.last().1.datagrams.len() == usize::from(round) + 1).then_some(())
        });
        let (id, socket) = machine.host.last();
        assert_eq!(socket.peer, Some("9.9.9.9:123".parse().unwrap()));
        assert_eq!(socket.datagrams.last().unwrap(), &[round; 100]);
        socket.waiting_datagrams.push_back(vec![round; 1_400]);
        let io = &mut Io { link: &mut machine.link, sockets: &mut machine.host };
        machine.stack.socket_ready(machine.now, id, EVERYTHING, io);
        let (answer, from) = machine.run(|machine| {
            let socket = machine.guest.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(bytes, from)| (bytes.to_vec(), from.endpoint))
        });
        assert_eq!((answer, from), (vec![round; 1_400], peer));
    }
    assert_eq!(machine.stack.counters().udp_opened, 1);
    machine.now = machine.now + Duration::from_secs(200);
    machine.run(|machine| (machine.host.open() == 0).then_some(()));
}
