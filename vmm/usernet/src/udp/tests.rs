//! Flows: their bounds, their times, their errors, and batches in both directions.

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::icmp::Errors;
use crate::scripted::{Bytes, Rig, Told};
use crate::wire::{IpHeader, Part, UdpHeader, ethertype, icmpv4};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

struct Test {
    rig: Rig,
    udp: Udp,
    delivery: Delivery,
}

fn ends(guest_port: u16, port: u16) -> FlowKey {
    FlowKey {
        guest: Endpoint::new(GUEST.into(), guest_port),
        remote: Endpoint::new(PEER.into(), port),
    }
}

impl Test {
    fn new(bounds: UdpBounds) -> Self {
        Self {
            rig: Rig::new(),
            udp: Udp::new(bounds, 7, SipKey::new([1; 16])),
            delivery: Delivery::new(&Config::default(), Errors::new(GATEWAY, None), 0),
        }
    }

    fn open(&mut self, guest_port: u16, port: u16) -> FlowId {
        let ends = ends(guest_port, port);
        self.udp.open(ends, ends.remote.socket_addr(), &mut self.rig.turn()).unwrap()
    }

    fn send(&mut self, id: FlowId, bytes: &[u8]) {
        self.send_batch(id, &[(bytes, None)]);
    }

    fn send_batch(&mut self, id: FlowId, payloads: &[(&[u8], Option<u16>)]) {
        let unsent =
            |&(bytes, segment): &(&[u8], _)| Unsent { payload: Bytes(bytes.to_vec()), segment };
        let batch: Vec<_> = payloads.iter().map(unsent).collect();
        self.udp.send(id, &batch, &mut self.delivery, &mut self.rig.turn());
    }

    /// The host's socket of `id` gets datagrams.
    fn peer_sends(&mut self, id: FlowId, datagrams: &[&[u8]]) {
        for datagram in datagrams {
            self.rig.sockets.socket(id).inbox.push_back(Ok((0, datagram.to_vec())));
        }
        self.udp.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
    }

    fn flush(&mut self) -> bool {
        self.udp.flush(&mut self.delivery, &mut self.rig.turn())
    }

    fn run_timers(&mut self) {
        self.udp.run_timers(&mut self.rig.turn());
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        let told = self.rig.received().into_iter();
        told.map(|told| match told {
            Told::Udp { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        })
        .collect()
    }
}

#[test]
fn datagrams_go_both_ways_empty_ones_too() {
    let mut test = Test::new(UdpBounds::default());
    let id = test.open(40_000, 9);
    assert_eq!(test.udp.find(&ends(40_000, 9)), Some(id));
    assert_eq!(test.udp.find(&ends(40_001, 9)), None);
    test.send(id, b"question");
    test.send(id, b"");
    let sent = [(None, b"question".to_vec()), (None, vec![])];
    assert_eq!(test.rig.sockets.socket(id).sent, sent);
    test.peer_sends(id, &[b"answer", b"", b"more"]);
    assert!(!test.flush());
    let told = test.rig.received();
    let Told::Udp { source, destination, .. } = told[0] else { panic!("{told:?}") };
    assert_eq!(source, ends(40_000, 9).remote.socket_addr());
    assert_eq!(destination, ends(40_000, 9).guest.socket_addr());
    assert_eq!(told.len(), 3);
    let reads = test.rig.sockets.reads;
    assert!(!test.flush());
    assert_eq!(test.rig.sockets.reads, reads, "a socket that has nothing is left alone");
}

#[test]
fn batches_keep_their_datagrams_in_both_directions() {
    let mut test = Test::new(UdpBounds::default());
    let id = test.open(40_000, 9);
    let batch = vec![7; 5_000];
    test.send_batch(id, &[(&batch, Some(1_200))]);
    assert_eq!(test.rig.sockets.socket(id).sent, [(Some(1_200), batch.clone())]);
    test.rig.sockets.socket(id).inbox.push_back(Ok((1_200, batch)));
    test.udp.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
    test.flush();
    let lens: Vec<usize> = test.received().iter().map(Vec::len).collect();
    assert_eq!(lens, [1_200, 1_200, 1_200, 1_200, 200]);
}

#[test]
fn the_flow_not_used_for_longest_gives_way() {
    let bounds = UdpBounds { flows: 8, dns_flows: 2, ..UdpBounds::default() };
    let mut test = Test::new(bounds);
    let first = test.open(1, 9);
    let second = test.open(2, 9);
    for port in 3..=8 {
        test.open(port, 9);
    }
    test.send(first, b"still here");
    test.open(9, 9);
    assert_eq!(test.rig.sockets.closed, [second]);
    assert_eq!((test.udp.len(), test.rig.sockets.open.len()), (8, 8));
    assert_eq!(test.udp.find(&ends(1, 9)), Some(first));
    // Lookups have a bound of their own and push nobody else out.
    for port in 100..200 {
        test.open(port, DNS_PORT);
        assert!(test.udp.len() <= 10);
    }
    assert_eq!(test.rig.sockets.open.len(), 10);
    assert_eq!(test.udp.find(&ends(1, 9)), Some(first));
    assert_eq!(test.rig.counters.udp_evicted, 1 + 98);
}

#[test]
fn a_socket_that_cannot_be_had_pushes_nobody_out() {
    let bounds = UdpBounds { flows: 2, ..UdpBounds::default() };
    let mut test = Test::new(bounds);
    test.open(1, 9);
    test.open(2, 9);
    test.rig.sockets.refuses = Some(HostError::NoRoom);
    let ends = ends(3, 9);
    let opened = test.udp.open(ends, ends.remote.socket_addr(), &mut test.rig.turn());
    assert_eq!(opened, Err(HostError::NoRoom));
    assert_eq!((test.udp.len(), test.rig.counters.udp_failed), (2, 1));
}

#[test]
fn flows_end_after_their_time() {
    for (port, answered, seconds) in
        [(9, false, 30), (9, true, 180), (DNS_PORT, false, 30), (DNS_PORT, true, 10)]
    {
        let mut test = Test::new(UdpBounds::default());
        let id = test.open(40_000, port);
        test.send(id, b"question");
        if answered {
            test.peer_sends(id, &[b"answer"]);
            test.flush();
        }
        test.rig.pass(seconds - 1);
        test.run_timers();
        assert_eq!(test.udp.len(), 1, "{port} {answered}");
        assert!(test.udp.next_deadline().is_some());
        test.rig.pass(2);
        test.run_timers();
        assert_eq!((test.udp.len(), test.rig.sockets.open.len()), (0, 0), "{port} {answered}");
        assert_eq!(test.udp.next_deadline(), None);
    }
}

#[test]
fn a_flow_in_use_lives_on() {
    let mut test = Test::new(UdpBounds::default());
    let id = test.open(40_000, 9);
    for round in 0..20 {
        test.rig.pass(25);
        test.run_timers();
        if round % 2 == 0 {
            test.send(id, b"question");
        } else {
            test.peer_sends(id, &[b"answer"]);
            test.flush();
        }
    }
    assert_eq!(test.udp.find(&ends(40_000, 9)), Some(id));
}

#[test]
fn an_error_is_told_and_never_spun_on() {
    let mut test = Test::new(UdpBounds::default());
    let id = test.open(40_000, 9);
    test.send(id, b"hello");
    test.rig.sockets.socket(id).error = Some(HostError::Refused);
    test.udp.socket_ready(id, Readiness { failed: true, ..Readiness::default() });
    assert!(!test.flush());
    assert!(!test.flush());
    let told = test.rig.received();
    let [Told::Icmp { source, bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*source, std::net::IpAddr::V4(PEER));
    assert_eq!(bytes[..2], [icmpv4::UNREACHABLE, icmpv4::PORT]);
    // What it quotes is the datagram, by which the guest finds its socket.
    let quoted = Part::frame(&bytes[8..], 1_000);
    let (ip, rest) = IpHeader::parse(ethertype::IPV4, quoted).unwrap().unwrap();
    let (udp, data) = UdpHeader::parse(rest).unwrap();
    assert_eq!((ip.source, ip.destination), (GUEST.into(), PEER.into()));
    assert_eq!((udp.source, udp.destination, data.len()), (40_000, 9, 5));
    assert_eq!(test.udp.len(), 1, "the flow stays");
}

#[test]
fn the_real_mtu_is_told() {
    for (mtu, told_mtu) in [(Some(1_280), 1_280), (Some(1_400), 1_400), (None, 1_280)] {
        let mut test = Test::new(UdpBounds::default());
        let id = test.open(40_000, 9);
        test.rig.sockets.socket(id).inbox.push_back(Err(HostError::TooLarge { mtu }));
        test.udp.socket_ready(id, Readiness { failed: true, ..Readiness::default() });
        test.flush();
        let told = test.rig.received();
        let [Told::Icmp { source, bytes, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*source, std::net::IpAddr::V4(GATEWAY));
        assert_eq!(bytes[..2], [icmpv4::UNREACHABLE, icmpv4::FRAGMENTATION_NEEDED]);
        assert_eq!(u16::from_be_bytes([bytes[6], bytes[7]]), told_mtu);
    }
}

#[test]
fn a_socket_that_only_fails_is_closed() {
    let mut test = Test::new(UdpBounds::default());
    let id = test.open(40_000, 9);
    for _ in 0..1_000 {
        test.rig.sockets.socket(id).inbox.push_back(Err(HostError::Refused));
    }
    test.udp.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
    let mut flushes = 0;
    while test.flush() {
        flushes += 1;
        assert!(flushes < 100);
    }
    assert!(test.udp.is_empty());
    assert_eq!(test.rig.sockets.closed, [id]);
    // The next datagram of the guest has a flow again.
    test.open(40_000, 9);
}

#[test]
fn one_socket_does_not_take_all_turns() {
    let mut test = Test::new(UdpBounds::default());
    let (loud, quiet) = (test.open(1, 9), test.open(2, 9));
    for _ in 0..100 {
        test.peer_sends(loud, &[b"loud"]);
    }
    test.peer_sends(quiet, &[b"quiet"]);
    assert!(test.flush(), "there is more");
    let received = test.received();
    assert!(received.contains(&b"quiet".to_vec()));
    assert_eq!(received.len(), READS_PER_TURN + 1);
    while test.flush() {}
    assert_eq!(test.received().len(), 100 - READS_PER_TURN);
}

#[test]
fn sockets_keep_what_they_have_while_the_link_is_full() {
    // Datagrams alone, and batches as long as they can be.
    for (len, segment, count) in [(1_000, 0, 1_000), (65_000, 1_000, 20)] {
        let mut test = Test::new(UdpBounds::default());
        let id = test.open(1, 9);
        test.rig.make_room(0);
        for _ in 0..count {
            test.rig.sockets.socket(id).inbox.push_back(Ok((segment, vec![7; len])));
        }
        test.udp.socket_ready(id, Readiness { readable: true, ..Readiness::default() });
        while test.flush() {}
        assert!(test.delivery.waiting_bytes() <= MAX_WAITING + 66_000);
        assert!(test.udp.next_deadline() > Some(test.rig.now), "it waits for the link");
        let reads = test.rig.sockets.reads;
        assert!(!test.flush());
        assert_eq!(test.rig.sockets.reads, reads);
        let mut received = 0;
        // The guest takes little at a time.
        for _ in 0..10_000 {
            test.rig.make_room(7);
            test.delivery.link_ready(&mut test.rig.turn());
            test.flush();
            received += test.received().len();
        }
        assert_eq!(received * 1_000, count * len, "nothing was lost");
        assert_eq!(test.rig.counters.datagrams_dropped, 0);
    }
}

#[test]
fn who_comes_through_a_published_port_is_answered_from_there() {
    let mut test = Test::new(UdpBounds::default());
    let own = test.open(5_000, 6_000);
    let peer = SocketAddr::new(PEER.into(), 6_000);
    test.rig.sockets.waiting.push_back((peer, b"knock".to_vec()));
    let guest = Endpoint::new(GUEST.into(), 5_000);
    test.udp.forward_ready(ForwardId(0), guest, |peer| peer, &mut test.rig.turn());
    test.flush();
    let told = test.rig.received();
    let [Told::Udp { source, destination, bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*source, destination.port(), &bytes[..]), (peer, 5_000, &b"knock"[..]));
    // The guest's own flow to the same end is there still, but the answer goes through the published port.
    let published = test.udp.find(&ends(5_000, 6_000)).unwrap();
    assert_ne!(published, own);
    test.send(published, b"who is there?");
    assert_eq!(test.rig.sockets.socket(published).sent.len(), 1);
    // Unanswered it would have ended after 30 s.
    test.rig.pass(100);
    test.run_timers();
    assert_eq!(test.udp.find(&ends(5_000, 6_000)), Some(published));
    // A new policy concerns what the guest began.
    let mut test_sweep = |udp: &mut Udp| udp.sweep(|_| false, &mut test.rig.turn());
    test_sweep(&mut test.udp);
    assert_eq!(test.udp.find(&ends(5_000, 6_000)), Some(published));
}

#[test]
fn strangers_at_a_published_port_are_bounded() {
    let bounds = UdpBounds { flows: 8, ..UdpBounds::default() };
    let mut test = Test::new(bounds);
    let guest = Endpoint::new(GUEST.into(), 5_000);
    for port in 1..200 {
        test.rig.sockets.waiting.push_back((SocketAddr::new(PEER.into(), port), vec![1]));
    }
    let mut more = true;
    while more {
        more = test.udp.forward_ready(ForwardId(0), guest, |peer| peer, &mut test.rig.turn());
        assert_eq!(more, !test.rig.sockets.waiting.is_empty());
        test.flush();
        assert!(test.udp.len() <= 8 && test.rig.sockets.open.len() <= 8);
    }
    let counters = &test.rig.counters;
    assert_eq!((counters.udp_accepted, counters.udp_evicted), (199, 191));
}

#[test]
fn a_published_port_that_only_fails_is_left_alone() {
    let mut test = Test::new(UdpBounds::default());
    test.rig.sockets.refuses = Some(HostError::NoRoom);
    for port in 1..200 {
        test.rig.sockets.waiting.push_back((SocketAddr::new(PEER.into(), port), vec![1]));
    }
    let guest = Endpoint::new(GUEST.into(), 5_000);
    let more = test.udp.forward_ready(ForwardId(0), guest, |peer| peer, &mut test.rig.turn());
    assert!(!more && test.udp.is_empty());
}

#[test]
fn a_sweep_ends_what_is_refused_now() {
    let mut test = Test::new(UdpBounds::default());
    let ids = [test.open(1, 9), test.open(2, 10), test.open(3, DNS_PORT)];
    let udp = &mut test.udp;
    udp.sweep(|to| to.port() == 10, &mut test.rig.turn());
    assert_eq!(test.rig.sockets.closed, [ids[0], ids[2]]);
    assert_eq!((test.udp.len(), test.rig.counters.policy_swept), (1, 2));
}

#[derive(Debug, Clone)]
enum Step {
    Guest(u16, u16),
    Peer(u16, bool),
    Fail(u16),
    Flush,
    Pass(u64),
    Room(usize),
    Late(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![Just(9_u16), Just(DNS_PORT)];
    prop_oneof![
        4 => (0_u16..20, port).prop_map(|(guest, port)| Step::Guest(guest, port)),
        4 => (0_u16..20, any::<bool>()).prop_map(|(flow, empty)| Step::Peer(flow, empty)),
        1 => (0_u16..20).prop_map(Step::Fail),
        3 => Just(Step::Flush),
        2 => (0_u64..100).prop_map(Step::Pass),
        2 => (0_usize..8).prop_map(Step::Room),
        1 => (0_u32..30, 0_u32..3).prop_map(|(index, generation)| Step::Late(index, generation)),
    ]
}

proptest! {
    #[test]
    fn bounds_hold_whatever_happens(steps in vec(step(), 0..300)) {
        let bounds = UdpBounds { flows: 6, dns_flows: 2, ..UdpBounds::default() };
        let mut test = Test::new(bounds);
        for step in steps {
            match step {
                Step::Guest(guest, port) => {
                    let id = test.udp.find(&ends(guest, port));
                    let id = id.unwrap_or_else(|| test.open(guest, port));
                    test.send(id, b"x");
                }
                Step::Peer(flow, empty) => {
                    let id = test.rig.sockets.open.keys().nth(usize::from(flow)).copied();
                    let bytes = if empty { &b""[..] } else { &[1; 700] };
                    if let Some(id) = id {
                        test.peer_sends(id, &[bytes]);
                    }
                }
                Step::Fail(flow) => {
                    let id = test.rig.sockets.open.keys().nth(usize::from(flow)).copied();
                    if let Some(id) = id {
                        test.rig.sockets.socket(id).error = Some(HostError::Refused);
                        test.udp.socket_ready(id, Readiness { failed: true, ..Readiness::default() });
                    }
                }
                Step::Flush => {
                    test.flush();
                }
                Step::Pass(seconds) => {
                    test.rig.pass(seconds);
                    test.run_timers();
                }
                Step::Room(frames) => {
                    test.rig.make_room(frames);
                    test.delivery.link_ready(&mut test.rig.turn());
                }
                Step::Late(index, generation) => {
                    let readable = Readiness { readable: true, ..Readiness::default() };
                    test.udp.socket_ready(FlowId::new(index, generation), readable);
                }
            }
            prop_assert!(test.udp.flows.len() <= 6 && test.udp.dns.len() <= 2);
            prop_assert_eq!(test.udp.len(), test.rig.sockets.open.len());
            prop_assert!(test.udp.ready.len() <= test.udp.len());
            prop_assert!(test.delivery.waiting_bytes() <= crate::delivery::MAX_WAITING);
        }
        test.rig.pass(1_000);
        test.run_timers();
        prop_assert!(test.udp.is_empty() && test.rig.sockets.open.is_empty());
    }
}
