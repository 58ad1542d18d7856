//! Frames of the guest's that are not TCP, from end to end: every kind of destination against the default policy, fragments, spoofing,
//! services of the gateway.

mod guest;

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::Forward;
use crate::policy::{Places, Policy};
use crate::scripted::{Bytes, Rig, Told, guest_frame, guest_udp, understand, with_frame};
use crate::wire::{ArpOperation, EthernetHeader, Ipv4Header, Mac, Sum, icmpv4};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
const PEER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

struct Test {
    rig: Rig,
    datagrams: Datagrams<Bytes>,
    egress: Egress,
}

impl Test {
    fn new() -> Self {
        Self::with_v6(None)
    }

    fn with_v6(v6: Option<Places>) -> Self {
        let scene = Scene::new(Places::default(), v6, ["10.1.2.3".parse().unwrap()]);
        let forward = |protocol| Forward { protocol, guest_port: 5_000 };
        let config = Config {
            forwards: vec![forward(ForwardProtocol::Tcp), forward(ForwardProtocol::Udp)],
            ..Config::default()
        };
        let bounds = DatagramBounds::default();
        let secret = SipKey::new([3; 16]);
        Self {
            rig: Rig::new(),
            datagrams: Datagrams::new(&config, bounds, &scene, 100, secret),
            egress: Egress::new(Arc::new(Policy::default()), scene),
        }
    }

    fn frame(&mut self, bytes: &[u8], offload: Offload) -> Option<Query> {
        let (datagrams, egress) = (&mut self.datagrams, &mut self.egress);
        with_frame(bytes, offload, |ip, packet, transport, frame| {
            let turn = &mut self.rig.turn();
            let query = datagrams.guest_packet(ip, packet, transport, frame, turn, egress);
            datagrams.send_out(turn);
            query
        })
    }

    fn udp(&mut self, to: (Ipv4Addr, u16), data: &[u8]) -> Option<Query> {
        let guest = SocketAddr::new(GUEST.into(), 40_000);
        let frame = guest_udp(guest, SocketAddr::new(to.0.into(), to.1), data);
        self.frame(&frame, Offload::default())
    }

    fn ping(&mut self, to: Ipv4Addr, data: &[u8]) {
        let header = IcmpHeader::echo(icmpv4::ECHO_REQUEST, 7, 1);
        let message = [&header.build(Sum::new(), &[data])[..], data].concat();
        let frame = guest_frame(GUEST.into(), to.into(), protocol::ICMP, &message);
        assert_eq!(self.frame(&frame, Offload::default()), None);
    }

    /// Kind and code of the only ICMP message that the guest got.
    fn icmp(&mut self) -> Option<(u8, u8)> {
        let told = self.rig.received();
        match &told[..] {
            [] => None,
            [Told::Icmp { destination, bytes, .. }] => {
                assert_eq!(*destination, IpAddr::V4(GUEST));
                Some((bytes[0], bytes[1]))
            }
            _ => panic!("{told:?}"),
        }
    }
}

#[test]
fn every_kind_of_address_is_judged_for_udp_and_echo() {
    let prohibited = Some((icmpv4::UNREACHABLE, icmpv4::PROHIBITED));
    for (address, udp, echo) in [
        ("10.9.9.9", prohibited, prohibited),
        ("172.16.0.1", prohibited, prohibited),
        ("192.168.1.1", prohibited, prohibited),
        ("100.64.0.1", prohibited, prohibited),
        ("169.254.169.254", prohibited, prohibited),
        ("100.100.100.200", prohibited, prohibited),
        ("168.63.129.16", prohibited, prohibited),
        ("10.1.2.3", prohibited, prohibited),
        ("192.168.127.254", prohibited, prohibited),
        ("127.0.0.1", prohibited, prohibited),
        ("0.1.2.3", prohibited, prohibited),
        ("192.168.127.77", prohibited, prohibited),
        // About these there must be no error.
        ("0.0.0.0", None, None),
        ("255.255.255.255", None, None),
        ("224.0.0.251", None, None),
        ("239.1.2.3", None, None),
    ] {
        let mut test = Test::new();
        let to = address.parse().unwrap();
        assert_eq!(test.udp((to, 9), b"hello"), None);
        assert_eq!(test.icmp(), udp, "UDP to {address}");
        test.ping(to, b"hello");
        assert_eq!(test.icmp(), echo, "echo to {address}");
        assert!(test.rig.sockets.open.is_empty(), "{address}");
        assert_eq!(test.egress.counts().iter().sum::<u64>(), 2);
    }
    let mut test = Test::new();
    test.udp((PEER, 9), b"hello");
    test.ping(PEER, b"hello");
    assert_eq!(test.icmp(), None);
    assert_eq!(test.rig.sockets.open.len(), 2);
    for socket in test.rig.sockets.open.values() {
        assert_eq!(socket.peer.unwrap().ip(), IpAddr::V4(PEER));
        assert_eq!(socket.sent[0].1, b"hello");
    }
}

#[test]
fn the_host_is_reached_where_a_rule_opens_it_by_its_own_name() {
    let mut test = Test::new();
    let rule = "allow udp:host:9".parse();
    let policy = rule.map(|rule| Policy::new(vec![rule], crate::policy::Fallback::Public));
    test.egress.replace_policy(Arc::new(policy.unwrap().unwrap()));
    test.udp((HOST, 9), b"hello");
    let (id, socket) = test.rig.sockets.only();
    assert_eq!(socket.peer, Some("127.0.0.1:9".parse().unwrap()));
    socket.inbox.push_back(Ok((0, b"answer".to_vec())));
    test.datagrams.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
    assert!(!test.datagrams.flush(&mut test.rig.turn()));
    let told = test.rig.received();
    let [Told::Udp { source, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*source, SocketAddr::new(HOST.into(), 9), "the answer comes from where it asked");
    // What was allowed is so no more.
    test.egress.replace_policy(Arc::new(Policy::default()));
    test.datagrams.sweep(&mut test.rig.turn(), &mut test.egress);
    assert!(test.rig.sockets.open.is_empty());
}

#[test]
fn the_gateway_has_dns_dhcp_and_echo_and_nothing_else() {
    let mut test = Test::new();
    for port in [1, 67, 80, 443, 5_353] {
        assert_eq!(test.udp((GATEWAY, port), b"hello"), None);
        let expected = (port != 67).then_some((icmpv4::UNREACHABLE, icmpv4::PORT));
        assert_eq!(test.icmp(), expected, "{port}");
    }
    let query = test.udp((GATEWAY, 53), b"a query").unwrap();
    assert_eq!(query.bytes, b"a query");
    assert_eq!(query.guest, SocketAddr::new(GUEST.into(), 40_000));
    test.datagrams.answer(query.at, query.guest, b"an answer", &mut test.rig.turn());
    let told = test.rig.received();
    let [Told::Udp { source, destination, bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*source, *destination, &bytes[..]), (query.at, query.guest, &b"an answer"[..]));
    for len in [0, 56, 1_400] {
        test.ping(GATEWAY, &vec![9; len]);
        let told = test.rig.received();
        let [Told::Icmp { source, bytes, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*source, IpAddr::V4(GATEWAY));
        assert_eq!(bytes[..2], [icmpv4::ECHO_REPLY, 0]);
        assert_eq!(bytes[4..], [&[0, 7, 0, 1][..], &vec![9; len]].concat());
    }
    assert!(test.rig.sockets.open.is_empty());
}

#[test]
fn whoever_spoofs_is_ignored_and_counted() {
    let mut test = Test::new();
    for source in [GATEWAY, HOST, Ipv4Addr::new(192, 168, 127, 3), PEER, Ipv4Addr::UNSPECIFIED] {
        let source = SocketAddr::new(source.into(), 40_000);
        let frame = guest_udp(source, SocketAddr::new(PEER.into(), 9), b"hello");
        assert_eq!(test.frame(&frame, Offload::default()), None);
    }
    assert_eq!(test.rig.counters.spoofed, 5);
    assert!(test.rig.sockets.open.is_empty() && test.rig.link.frames.is_empty());
}

#[test]
fn a_batch_goes_out_as_one() {
    let mut test = Test::new();
    let guest = SocketAddr::new(GUEST.into(), 40_000);
    let frame = guest_udp(guest, SocketAddr::new(PEER.into(), 443), &[5; 9_000]);
    let batch = |segmentation| Offload { segmentation, ..Offload::default() };
    test.frame(&frame, batch(Some(Segmentation::Udp(1_200))));
    test.frame(&frame, batch(Some(Segmentation::Udp(9_000))));
    let (_, socket) = test.rig.sockets.only();
    assert_eq!(socket.sent, [(Some(1_200), vec![5; 9_000]), (None, vec![5; 9_000])]);
    test.frame(&frame, batch(Some(Segmentation::Udp(0))));
    test.frame(&frame, batch(Some(Segmentation::Tcp4(1_200))));
    assert_eq!(test.rig.counters.malformed, 2);
}

/// The frames of one datagram of the guest's, cut.
fn fragments(to: Ipv4Addr, protocol: u8, transport: &[u8], size: usize) -> Vec<Vec<u8>> {
    let pieces = transport.chunks(size).enumerate().map(|(at, piece)| {
        let header = Ipv4Header {
            identification: 9,
            dont_fragment: false,
            fragment_offset: u16::try_from(at * size).unwrap(),
            more_fragments: at * size + piece.len() < transport.len(),
            ..Ipv4Header::new(GUEST, to, protocol)
        };
        let config = Config::default();
        let macs = Macs { gateway: config.macs.guest, guest: config.macs.gateway };
        [Headers::ipv4(macs, &header, piece.len()).as_bytes(), piece].concat()
    });
    pieces.collect()
}

#[test]
fn fragments_are_judged_and_sent_as_the_datagram_they_make() {
    let data = vec![3; 4_000];
    let mut udp = UdpHeader { source: 40_000, destination: 9 }.build(data.len(), 0).to_vec();
    udp.extend(&data);
    let mut test = Test::new();
    for frame in fragments(PEER, protocol::UDP, &udp, 1_480).iter().rev() {
        test.frame(frame, Offload::default());
    }
    assert_eq!(test.rig.sockets.only().1.sent, [(None, data.clone())]);
    assert_eq!(test.rig.counters.fragments_joined, 1);
    let header = IcmpHeader::echo(icmpv4::ECHO_REQUEST, 7, 1).build(Sum::new(), &[&data]);
    let ping = [&header[..], &data].concat();
    for frame in fragments(GATEWAY, protocol::ICMP, &ping, 1_480) {
        test.frame(&frame, Offload::default());
    }
    let told = test.rig.received();
    let [Told::Icmp { bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(bytes[8..], data);
    for frame in fragments(Ipv4Addr::new(10, 0, 0, 1), protocol::UDP, &udp, 1_480) {
        test.frame(&frame, Offload::default());
    }
    assert_eq!(test.icmp(), Some((icmpv4::UNREACHABLE, icmpv4::PROHIBITED)));
    for frame in fragments(PEER, protocol::TCP, &udp, 1_480) {
        test.frame(&frame, Offload::default());
    }
    assert_eq!(test.rig.counters.fragments_dropped, 3);
    assert_eq!(test.rig.sockets.open.len(), 1);
}

#[test]
fn other_protocols_are_said_to_be_unknown() {
    let mut test = Test::new();
    let frame = guest_frame(GUEST.into(), PEER.into(), 132, &[0; 12]);
    test.frame(&frame, Offload::default());
    assert_eq!(test.icmp(), Some((icmpv4::UNREACHABLE, icmpv4::PROTOCOL)));
    let igmp = guest_frame(GUEST.into(), Ipv4Addr::new(224, 0, 0, 22).into(), 2, &[0; 12]);
    test.frame(&igmp, Offload::default());
    assert_eq!((test.icmp(), test.rig.counters.unserved), (None, 2));
}

#[test]
fn arp_is_answered_for_our_addresses() {
    let mut test = Test::new();
    let macs = Config::default().macs;
    let request = ArpPacket {
        operation: ArpOperation::Request,
        sender_mac: macs.guest,
        sender: GUEST,
        target_mac: Mac::ZERO,
        target: GATEWAY,
    };
    for (packet, answers, spoofed) in [
        (request, 1, 0),
        (ArpPacket { target: HOST, ..request }, 1, 0),
        (ArpPacket { target: Ipv4Addr::new(192, 168, 127, 3), ..request }, 0, 0),
        (ArpPacket { sender: HOST, ..request }, 0, 1),
        (ArpPacket { sender_mac: Mac([2; 6]), ..request }, 0, 1),
    ] {
        test.rig.counters.spoofed = 0;
        let bytes = packet.build();
        let scene = test.egress.scene();
        test.datagrams.guest_arp(Part::whole(&bytes), &mut test.rig.turn(), scene);
        let frames = std::mem::take(&mut test.rig.link.frames);
        assert_eq!((frames.len(), test.rig.counters.spoofed), (answers, spoofed), "{packet:?}");
        for (_, frame) in frames {
            let (ethernet, rest) = EthernetHeader::parse(Part::whole(&frame)).unwrap();
            assert_eq!((ethernet.source, ethernet.destination), (macs.gateway, macs.guest));
            let answer = ArpPacket::parse(rest).unwrap();
            assert_eq!((answer.sender, answer.sender_mac), (packet.target, macs.gateway));
        }
    }
}

#[test]
fn dhcp_is_answered_to_a_guest_without_an_address() {
    let mut test = Test::new();
    test.datagrams.replace_search(vec!["example".to_owned()]);
    let guest_mac = Config::default().macs.guest;
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[10] = 0x80;
    message[28..34].copy_from_slice(&guest_mac.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 1, 255]);
    let source = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    let all = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67);
    for broadcast in [true, false] {
        message[10] = if broadcast { 0x80 } else { 0 };
        test.frame(&guest_udp(source, all, &message), Offload::default());
        let told = test.rig.received();
        let [Told::Udp { mac, source, destination, bytes }] = &told[..] else { panic!("{told:?}") };
        let (to, to_mac) =
            if broadcast { (Ipv4Addr::BROADCAST, Mac::BROADCAST) } else { (GUEST, guest_mac) };
        assert_eq!(*source, SocketAddr::new(GATEWAY.into(), 67));
        assert_eq!((*destination, *mac), (SocketAddr::new(to.into(), 68), to_mac));
        assert_eq!(bytes[16..20], GUEST.octets());
    }
    message[28] ^= 1;
    test.frame(&guest_udp(source, all, &message), Offload::default());
    assert_eq!((test.rig.counters.dhcp_answered, test.rig.counters.dhcp_ignored), (2, 1));
    // Without an address it may say nothing else.
    test.frame(&guest_udp(source, SocketAddr::new(PEER.into(), 67), &message), Offload::default());
    assert_eq!(test.rig.counters.spoofed, 1);
}

#[test]
fn whoever_is_near_is_seen_as_the_gateway_at_a_published_port() {
    for (peer, seen) in [
        ("127.0.0.1:4000", GATEWAY),
        ("10.1.2.3:4000", GATEWAY),
        ("[::1]:4000", GATEWAY),
        ("[2001:db8::9]:4000", GATEWAY),
        ("[::ffff:127.0.0.1]:4000", GATEWAY),
        ("[::ffff:9.9.9.9]:4000", PEER),
        ("9.9.9.9:4000", PEER),
        ("192.168.127.2:4000", GATEWAY),
        ("192.168.1.7:4000", Ipv4Addr::new(192, 168, 1, 7)),
    ] {
        let mut test = Test::new();
        test.rig.sockets.waiting.push_back((peer.parse().unwrap(), b"knock".to_vec()));
        let (datagrams, scene) = (&mut test.datagrams, test.egress.scene());
        for forward in [0, 7, 1] {
            datagrams.forward_ready(ForwardId(forward), &mut test.rig.turn(), scene);
        }
        datagrams.flush(&mut test.rig.turn());
        let told = test.rig.received();
        let [Told::Udp { source, destination, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*source, SocketAddr::new(seen.into(), 4_000), "{peer}");
        assert_eq!(*destination, SocketAddr::new(GUEST.into(), 5_000));
        // No policy stands between the guest and whoever came to it.
        let frame = guest_udp(*destination, *source, b"who is there?");
        test.frame(&frame, Offload::default());
        let (_, socket) = test.rig.sockets.only();
        assert_eq!(socket.sent, [(None, b"who is there?".to_vec())]);
        assert_eq!(test.icmp(), None);
    }
}

#[test]
fn what_the_host_says_at_once_is_told() {
    let mut test = Test::new();
    test.rig.sockets.refuses = Some(HostError::NetworkUnreachable);
    test.udp((PEER, 9), b"hello");
    assert_eq!(test.icmp(), Some((icmpv4::UNREACHABLE, icmpv4::NET)));
    test.rig.sockets.refuses = None;
    test.udp((PEER, 9), b"hello");
    test.rig.sockets.only().1.refuses = Some(HostError::TooLarge { mtu: Some(1_400) });
    test.udp((PEER, 9), b"hello");
    let expected = (icmpv4::UNREACHABLE, icmpv4::FRAGMENTATION_NEEDED);
    assert_eq!(test.icmp(), Some(expected));
}

const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0x77);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 9);

fn places6() -> Places {
    Places {
        network: crate::policy::Cidr::new(GATEWAY6.into(), 64).unwrap(),
        gateway: GATEWAY6.into(),
        guest: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 2).into(),
        host: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0xfe).into(),
    }
}

/// An ICMPv6 message of the guest's, as of a neighbor.
fn icmp6(source: Ipv6Addr, destination: Ipv6Addr, header: IcmpHeader, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(8 + body.len()).unwrap();
    let pseudo = Sum::pseudo(source.into(), destination.into(), protocol::ICMPV6, len);
    let message = [&header.build(pseudo, &[body])[..], body].concat();
    let mut frame = guest_frame(source.into(), destination.into(), protocol::ICMPV6, &message);
    frame[14 + 7] = 255;
    frame
}

#[test]
fn a_guest_without_ipv6_hears_nothing_of_it() {
    let mut test = Test::new();
    let solicitation = IcmpHeader { kind: 133, code: 0, rest: [0; 4] };
    test.frame(&icmp6(GUEST6, ndp::ALL_NODES, solicitation, &[]), Offload::default());
    let udp = guest_udp(SocketAddr::new(GUEST6.into(), 9), SocketAddr::new(PEER6.into(), 9), b"x");
    test.frame(&udp, Offload::default());
    assert_eq!(test.rig.counters.unserved, 2);
    assert!(test.rig.link.frames.is_empty() && test.rig.sockets.open.is_empty());
}

#[test]
fn a_guest_with_ipv6_finds_its_router_and_its_settings() {
    let mut test = Test::with_v6(Some(places6()));
    test.datagrams.replace_search(vec!["example".to_owned()]);
    assert_eq!(test.datagrams.next_deadline(), None, "nobody asked yet");
    let solicitation = IcmpHeader { kind: 133, code: 0, rest: [0; 4] };
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let asks = icmp6(Ipv6Addr::UNSPECIFIED, routers, solicitation, &[]);
    test.frame(&asks, Offload::default());
    assert_eq!(test.rig.link.frames[0].1[14 + 7], 255, "it comes from the link itself");
    let advertised = |told: Vec<Told>| {
        let [Told::Icmp { source, destination, bytes }] = &told[..] else { panic!("{told:?}") };
        assert_eq!((*source, *destination), (ndp::LINK_LOCAL.into(), ndp::ALL_NODES.into()));
        bytes[0] == 134
    };
    assert!(advertised(test.rig.received()));
    // It goes on telling of itself.
    for _ in 0..3 {
        test.rig.pass(601);
        assert!(test.datagrams.next_deadline() <= Some(test.rig.now));
        test.datagrams.run_timers(&mut test.rig.turn());
        assert!(advertised(test.rig.received()));
    }
    let solicitation = IcmpHeader { kind: 135, ..solicitation };
    let asks = icmp6(GUEST6, GATEWAY6, solicitation, &GATEWAY6.octets());
    test.frame(&asks, Offload::default());
    assert!(matches!(&test.rig.received()[..], [Told::Icmp { bytes, .. }] if bytes[0] == 136));
    let link_local = SocketAddr::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7).into(), 546);
    let servers = SocketAddr::new(dhcp::v6::ALL_SERVERS.into(), 547);
    test.frame(&guest_udp(link_local, servers, &[11, 1, 2, 3]), Offload::default());
    let told = test.rig.received();
    let [Told::Udp { destination, bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*destination, &bytes[..4]), (link_local, &[7, 1, 2, 3][..]));
}

#[test]
fn datagrams_of_ipv6_go_both_ways() {
    let mut test = Test::with_v6(Some(places6()));
    let guest = SocketAddr::new(GUEST6.into(), 40_000);
    let peer = SocketAddr::new(PEER6.into(), 9);
    test.frame(&guest_udp(guest, peer, b"hello"), Offload::default());
    let (id, socket) = test.rig.sockets.only();
    assert_eq!(socket.peer, Some(peer));
    socket.inbox.push_back(Ok((0, vec![4; 3_000])));
    socket.inbox.push_back(Err(HostError::TooLarge { mtu: Some(1_400) }));
    test.datagrams.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
    test.datagrams.flush(&mut test.rig.turn());
    let told = test.rig.received();
    let [Told::Udp { bytes, .. }, Told::Icmp { source, bytes: error, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(*bytes, vec![4; 3_000]);
    assert_eq!((*source, error[0]), (GATEWAY6.into(), 2));
    for (source, destination, spoofed) in [
        (GATEWAY6, PEER6, true),
        (PEER6, GUEST6, true),
        (GUEST6, Ipv6Addr::LOCALHOST, false),
        (GUEST6, "::ffff:10.0.0.1".parse().unwrap(), false),
        (GUEST6, "64:ff9b::7f00:1".parse().unwrap(), false),
        (GUEST6, "fd00:ec2::254".parse().unwrap(), false),
    ] {
        test.rig.counters.spoofed = 0;
        let (source, to) =
            (SocketAddr::new(source.into(), 1), SocketAddr::new(destination.into(), 9));
        test.frame(&guest_udp(source, to, b"hello"), Offload::default());
        assert_eq!(test.rig.counters.spoofed, u64::from(spoofed), "{source} {to}");
        assert_eq!(test.rig.sockets.open.len(), 1, "{source} {to}");
    }
    test.rig.received();
    let request = IcmpHeader::echo(128, 5, 6);
    test.frame(&icmp6(GUEST6, GATEWAY6, request, b"data"), Offload::default());
    let told = test.rig.received();
    let [Told::Icmp { bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((bytes[0], &bytes[4..]), (129, &b"\0\x05\0\x06data"[..]));
    test.frame(&icmp6(GUEST6, PEER6, request, b"data"), Offload::default());
    assert_eq!(test.datagrams.flows(), (1, 1));
}

proptest! {
    #[test]
    fn no_frame_makes_it_panic_or_lets_it_grow(
        frames in vec((0_u8..4, vec(any::<u8>(), 0..90), any::<u16>(), any::<u16>(), 0_u16..3), 0..60),
    ) {
        let mut test = Test::new();
        for (kind, transport, identification, flags, size) in frames {
            let number = [protocol::UDP, protocol::ICMP, protocol::UDP, 200][usize::from(kind)];
            let header = Ipv4Header {
                identification: identification % 4,
                dont_fragment: false,
                fragment_offset: if flags % 3 == 0 { flags & 0x1ff8 } else { 0 },
                more_fragments: flags % 3 == 0 && flags & 1 == 0,
                ..Ipv4Header::new(GUEST, if flags % 2 == 0 { PEER } else { GATEWAY }, number)
            };
            let macs = Config::default().macs;
            let mut transport = transport;
            if kind == 0 && transport.len() >= 8 {
                let len = u16::try_from(transport.len()).unwrap();
                transport[4..6].copy_from_slice(&len.to_be_bytes());
            }
            let headers = Headers::ipv4(macs, &header, transport.len());
            let segmentation = (size > 0).then_some(Segmentation::Udp(size));
            let offload = Offload { segmentation, ..Offload::default() };
            test.frame(&[headers.as_bytes(), &transport].concat(), offload);
            let (udp, echo) = test.datagrams.flows();
            prop_assert_eq!(udp + echo, test.rig.sockets.open.len());
            // Whatever the guest is told is well-formed.
            understand(&std::mem::take(&mut test.rig.link.frames));
        }
        test.rig.pass(1_000);
        test.datagrams.run_timers(&mut test.rig.turn());
        prop_assert!(test.rig.sockets.open.is_empty());
        prop_assert_eq!(test.datagrams.next_deadline(), None);
    }
}
