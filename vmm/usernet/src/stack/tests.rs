//! That each part gets what concerns it, and nothing that does not come from the guest.

use std::net::Ipv4Addr;

use crate::config::Bounds;
use crate::policy::{Policy, RefuseBy};
use crate::sockets::HostError;
use crate::tcp::tests::{ACK, FIN, GUEST, RST, SYN, World};
use crate::wire::{EthernetHeader, Ipv4Header, Mac, Part, ethertype, icmpv4, protocol};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);

/// The first bytes behind the IP header of what begins something: a SYN, a datagram, an echo request.
fn opening(transport: u8) -> &'static [u8] {
    match transport {
        protocol::TCP => &[0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, SYN, 0, 0, 0, 0, 0, 0],
        protocol::UDP => &[0, 9, 0, 9, 0, 8, 0, 0],
        _ => &[8, 0, 0, 0, 0, 1, 0, 1],
    }
}

impl World {
    /// A packet of the guest's that begins something at `to`.
    fn packet(&mut self, to: Ipv4Addr, transport: u8) {
        self.packet_with_hops(64, to, transport);
    }

    fn packet_with_hops(&mut self, ttl: u8, to: Ipv4Addr, transport: u8) {
        let ethernet = EthernetHeader {
            destination: self.macs.gateway,
            source: self.macs.guest,
            ethertype: ethertype::IPV4,
        };
        let header = Ipv4Header { ttl, ..Ipv4Header::new(GUEST, to, transport) };
        let behind = opening(transport);
        self.frame(&[&ethernet.build()[..], &header.build(behind.len()), behind].concat());
    }
}

/// A query for the A record of `name`, with its length before it.
fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    let len = u16::try_from(message.len()).unwrap();
    [&len.to_be_bytes()[..], &message].concat()
}

#[test]
fn names_are_looked_up_through_a_connection() {
    let mut world = World::new(Bounds::default());
    (world.peer, world.ports.1) = (GATEWAY, 53);
    let (seq, ack) = world.connect();
    let question = query("host.openshell.internal");
    let (first, second) = question.split_at(7);
    world.segment(ACK, seq, ack, first);
    world.flush();
    assert_eq!(world.one().payload, b"");
    world.segment(ACK, seq + 7, ack, second);
    world.flush();
    let answer: Vec<u8> = world.got().into_iter().flat_map(|got| got.payload).collect();
    assert_eq!(answer[2..4], [0xab, 0xcd]);
    assert_eq!(answer[answer.len() - 4..], [192, 168, 127, 254]);
    assert!(world.sockets.opened.is_empty(), "no resolver is asked");
    let (end, len) = (seq + u32::try_from(question.len()).unwrap(), answer.len());
    let ack = ack.wrapping_add(u32::try_from(len).unwrap());
    world.segment(FIN | ACK, end, ack, &[]);
    world.flush();
    let flags: u8 = world.got().iter().fold(0, |flags, got| flags | got.flags);
    assert_eq!(flags, FIN | ACK, "the stack ends its side when the guest has");
    world.segment(ACK, end + 1, ack.wrapping_add(1), &[]);
    world.flush();
    assert_eq!(world.stack.tcp_flows(), 0);
}

#[test]
fn only_so_many_connections_to_the_resolver_stand() {
    let mut world = World::new(Bounds::default());
    (world.peer, world.ports.1) = (GATEWAY, 53);
    for port in 1..=80 {
        world.ports.0 = port;
        world.segment(SYN, 1000, 0, &[]);
        world.flush();
        let expected = if port <= 64 { SYN | ACK } else { RST | ACK };
        assert_eq!(world.one().flags, expected, "{port}");
    }
    assert_eq!(world.stack.tcp_flows(), 64);
    for port in 1..=64 {
        world.ports.0 = port;
        world.segment(RST, 1001, 0, &[]);
        world.flush();
    }
    assert_eq!(world.stack.tcp_flows(), 0);
    world.connect();
}

#[test]
fn an_unreachable_peer_is_told_of_by_icmp() {
    for (error, code) in [
        (HostError::HostUnreachable, icmpv4::HOST),
        (HostError::NetworkUnreachable, icmpv4::NET),
        (HostError::Prohibited, icmpv4::PROHIBITED),
    ] {
        let mut world = World::new(Bounds::default());
        world.sockets.connects.push_back(Err(error));
        world.segment(SYN, 1000, 0, &[]);
        world.flush();
        let (_, frame) = world.link.frames.pop_front().unwrap();
        assert!(world.link.frames.is_empty());
        let (_, packet) = EthernetHeader::parse(Part::whole(&frame)).unwrap();
        let (ip, message) = Ipv4Header::parse(packet).unwrap();
        assert_eq!((ip.source, ip.destination, ip.protocol), (GATEWAY, GUEST, protocol::ICMP));
        let message = message.all().unwrap();
        assert_eq!(message[..2], [icmpv4::UNREACHABLE, code], "{error:?}");
        // The SYN as the guest knows it: addresses, ports, sequence number.
        assert_eq!(message[8 + 12..8 + 20], [GUEST.octets(), world.peer.octets()].concat());
        let (guest, peer) = (world.ports.0.to_be_bytes(), world.ports.1.to_be_bytes());
        assert_eq!(message[28..32], [guest, peer].concat());
        assert_eq!(message[32..36], 1000_u32.to_be_bytes());
        assert_eq!(world.stack.tcp_flows(), 0);
    }
}

/// What is denied and what the gateway has not, by TCP, UDP and echo, under each way to refuse.
#[test]
fn refusals_are_told_as_the_policy_says() {
    let denied = Ipv4Addr::new(10, 0, 0, 1);
    let icmp = |code| Some((protocol::ICMP, code));
    let reset = Some((protocol::TCP, RST | ACK));
    for (by, by_tcp, otherwise) in [
        (RefuseBy::Reset, reset, icmp(icmpv4::PROHIBITED)),
        (RefuseBy::Icmp, icmp(icmpv4::PROHIBITED), icmp(icmpv4::PROHIBITED)),
        (RefuseBy::Silence, None, None),
    ] {
        for (to, transport, told) in [
            (denied, protocol::TCP, by_tcp),
            (denied, protocol::UDP, otherwise),
            (denied, protocol::ICMP, otherwise),
            (GATEWAY, protocol::TCP, reset),
            (GATEWAY, protocol::UDP, icmp(icmpv4::PORT)),
        ] {
            let mut world = World::under(Policy::default().refusing(by));
            world.packet(to, transport);
            world.flush();
            let heard = world.link.frames.pop_front().map(|(_, frame)| {
                let (_, packet) = EthernetHeader::parse(Part::whole(&frame)).unwrap();
                let (ip, message) = Ipv4Header::parse(packet).unwrap();
                let message = message.all().unwrap();
                if ip.protocol == protocol::ICMP {
                    assert_eq!(message[0], icmpv4::UNREACHABLE);
                    assert_eq!(message[24..28], to.octets(), "what it is about");
                }
                let place = if ip.protocol == protocol::TCP { 13 } else { 1 };
                (ip.protocol, message[place])
            });
            assert_eq!(heard, told, "{by:?} {to} {transport}");
            assert!(world.link.frames.is_empty() && world.sockets.opened.is_empty());
            assert_eq!(world.stack.refusals().iter().sum::<u64>(), 1);
        }
    }
}

#[test]
fn who_asks_for_the_gateway_is_answered() {
    let mut world = World::new(Bounds::default());
    let (guest, macs) = (GUEST.octets(), world.macs);
    let ethernet = EthernetHeader {
        destination: Mac::BROADCAST,
        source: macs.guest,
        ethertype: ethertype::ARP,
    };
    let request = [
        &ethernet.build()[..],
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &macs.guest.0,
        &guest,
        &[0; 6],
        &GATEWAY.octets(),
    ];
    world.frame(&request.concat());
    let (_, answer) = world.link.frames.pop_front().unwrap();
    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[22..28], macs.gateway.0);
}

#[test]
fn what_is_not_the_guests_own_goes_nowhere() {
    let mut world = World::new(Bounds::default());
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    world.got();
    let check = |world: &World, spoofed, misdirected, malformed| {
        let counters = world.stack.counters();
        assert_eq!(
            (counters.spoofed, counters.misdirected, counters.malformed),
            (spoofed, misdirected, malformed)
        );
        assert!(world.link.frames.is_empty());
    };
    let frame = |mac: u8, to: u8, source: [u8; 4]| {
        let mut world = World::new(Bounds::default());
        let (gateway, guest) = (world.macs.gateway, world.macs.guest);
        let destination = if to == 0 { gateway } else { Mac([to; 6]) };
        let source_mac = if mac == 0 { guest } else { Mac([mac; 6]) };
        let ethernet =
            EthernetHeader { destination, source: source_mac, ethertype: ethertype::IPV4 };
        let ip = Ipv4Header::new(source.into(), world.peer, protocol::TCP).build(20);
        let tcp = [0_u8, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, SYN, 0, 0, 0, 0, 0, 0];
        world.frame(&[&ethernet.build()[..], &ip, &tcp].concat());
        world.flush();
        world
    };
    check(&frame(2, 0, GUEST.octets()), 1, 0, 0);
    check(&frame(0, 4, GUEST.octets()), 0, 1, 0);
    check(&frame(0, 0, [192, 168, 127, 3]), 1, 0, 0);
    check(&frame(0, 0, [127, 0, 0, 1]), 1, 0, 0);
    let mut world = World::new(Bounds::default());
    for len in 0..14 {
        world.frame(&vec![0; len]);
    }
    check(&world, 0, 0, 14);
}

#[test]
fn a_packet_without_a_hop_left_goes_no_further_and_the_guest_is_told() {
    let far = Ipv4Addr::new(9, 9, 9, 9);
    let host = Ipv4Addr::new(192, 168, 127, 254);
    for (ttl, to, told) in
        [(1, far, true), (0, far, true), (2, far, false), (1, GATEWAY, false), (1, host, false)]
    {
        for transport in [protocol::TCP, protocol::UDP, protocol::ICMP] {
            let mut world = World::new(Bounds::default());
            world.packet_with_hops(ttl, to, transport);
            world.flush();
            let exceeded = world.stack.counters().hops_exceeded;
            assert_eq!(exceeded, u64::from(told), "{ttl} {to} {transport}");
            if !told {
                continue;
            }
            assert!(world.sockets.opened.is_empty());
            let (_, frame) = world.link.frames.pop_front().unwrap();
            let (_, packet) = EthernetHeader::parse(Part::whole(&frame)).unwrap();
            let (ip, message) = Ipv4Header::parse(packet).unwrap();
            assert_eq!((ip.source, ip.destination, ip.protocol), (GATEWAY, GUEST, protocol::ICMP));
            let message = message.all().unwrap();
            assert_eq!(message[..2], [icmpv4::TIME_EXCEEDED, 0]);
            assert_eq!(message[28..36], opening(transport)[..8], "what it is about");
        }
    }
}
