//! How connections begin.

use super::*;
use crate::sockets::{Close, Connect, HostError};

#[test]
fn the_guest_hears_of_success_when_the_host_has_connected() {
    let mut world = World::new(Bounds::default());
    world.sockets.connects.push_back(Ok(Connect::UnderWay));
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    world.silence();
    assert_eq!(world.sockets.opened.len(), 1, "a SYN that is repeated is no second one");
    assert_eq!(world.socket().peer, Some("93.184.216.9:443".parse().unwrap()));
    world.ready(Readiness { writable: true, ..Readiness::default() });
    let answer = world.one();
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1001));
    assert_eq!((answer.mss, answer.scale), (Some(1460), Some(8)));
    assert_eq!(answer.window, u16::MAX);
}

#[test]
fn a_syn_ack_that_got_lost_is_repeated() {
    let mut world = World::new(Bounds::default());
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    let first = world.one();
    for wait in [1, 2, 4] {
        world.pass(Duration::from_secs(wait) - Duration::from_millis(50));
        world.silence();
        world.pass(Duration::from_millis(60));
        assert_eq!(world.one(), first);
    }
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    assert_eq!(world.one(), first, "the guest asks again");
    world.pass(Duration::from_secs(9));
    assert_eq!(world.one().flags, RST | ACK);
    assert_eq!(world.socket().closed, Some(Close::Reset));
    assert_eq!(world.stack.tcp_flows(), 0);
}

#[test]
fn what_the_host_says_is_what_the_guest_hears() {
    let reset = Some((RST | ACK, 0, 1001));
    for (error, expected) in [
        (HostError::Refused, reset),
        (HostError::Reset, reset),
        (HostError::Other(5), reset),
        (HostError::TimedOut, None),
        (HostError::NoRoom, None),
    ] {
        for at_once in [true, false] {
            let mut world = World::new(Bounds::default());
            let connect = if at_once { Err(error) } else { Ok(Connect::UnderWay) };
            world.sockets.connects.push_back(connect);
            world.segment(SYN, 1000, 0, &[]);
            world.flush();
            if !at_once {
                world.silence();
                world.socket().error = Some(error);
                world.ready(Readiness { failed: true, ..Readiness::default() });
            }
            let got = world.got();
            let got = got.first().map(|got| (got.flags, got.seq, got.ack));
            assert_eq!(got, expected, "{error:?}");
            assert_eq!(world.stack.tcp_flows(), 0);
            assert_eq!(world.sockets.open(), 0);
        }
    }
}

#[test]
fn one_that_takes_too_long_ends_in_silence() {
    let mut world = World::new(Bounds::default());
    world.sockets.connects.push_back(Ok(Connect::UnderWay));
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    world.pass(Duration::from_secs(31));
    world.silence();
    assert_eq!((world.stack.tcp_flows(), world.sockets.open()), (0, 0));
}

#[test]
fn black_holes_give_way_in_the_order_of_their_age() {
    let mut world = World::new(Bounds::default());
    for peer in 0..20 {
        world.peer = Ipv4Addr::new(93, 184, 216, peer);
        for port in 0..70 {
            world.ports.0 = 1000 + u16::from(peer) * 100 + port;
            world.sockets.connects.push_back(Ok(Connect::UnderWay));
            world.segment(SYN, 1000, 0, &[]);
        }
    }
    world.flush();
    world.silence();
    assert_eq!(world.sockets.open(), 1024, "20 addresses of 64 each would be more");
    world.ports.0 = 60_000;
    world.peer = PEER;
    world.connect();
    assert_eq!(world.sockets.open(), 1024, "and a live one has room at once");
}

#[test]
fn a_guest_that_gives_up_is_heard() {
    let mut world = World::new(Bounds::default());
    world.sockets.connects.push_back(Ok(Connect::UnderWay));
    world.segment(SYN, 1000, 0, &[]);
    world.segment(RST, 1001, 0, &[]);
    world.flush();
    world.silence();
    assert_eq!((world.stack.tcp_flows(), world.sockets.open()), (0, 0));
}

#[test]
fn one_tuple_serves_again_at_once() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.segment(RST, seq, 0, &[]);
    world.segment(SYN, 5000, 0, &[]);
    world.flush();
    let answer = world.one();
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, 5001));
    assert_eq!(world.sockets.opened.len(), 2);
    assert_ne!(ack, answer.seq);
}

#[test]
fn what_the_policy_refuses_is_reset() {
    let mut world = World::new(Bounds::default());
    for peer in [
        Ipv4Addr::new(192, 168, 127, 1),
        Ipv4Addr::new(192, 168, 127, 254),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(127, 0, 0, 1),
        Ipv4Addr::new(10, 0, 0, 1),
    ] {
        world.peer = peer;
        world.segment(SYN, 1000, 0, &[]);
        world.flush();
        let got = world.one();
        assert_eq!((got.flags, got.seq, got.ack), (RST | ACK, 0, 1001), "{peer}");
    }
    assert!(world.sockets.opened.is_empty());
}

#[test]
fn segments_of_no_connection_are_reset_and_resets_are_not() {
    let mut world = World::new(Bounds::default());
    world.segment(ACK, 77, 99, b"abc");
    world.flush();
    let got = world.one();
    assert_eq!((got.flags, got.seq), (RST, 99));
    world.segment(FIN, 77, 0, b"abc");
    world.flush();
    let got = world.one();
    assert_eq!((got.flags, got.seq, got.ack), (RST | ACK, 0, 81));
    world.segment(RST, 77, 99, &[]);
    world.segment(RST | ACK, 77, 99, &[]);
    world.segment(RST | SYN, 77, 99, &[]);
    world.flush();
    world.silence();
}

#[test]
fn a_full_table_refuses_until_one_was_idle_for_long() {
    let mut world = World::new(Bounds { tcp_flows: 2, ..Bounds::default() });
    for port in [1, 2] {
        world.ports.0 = port;
        world.connect();
    }
    world.ports.0 = 3;
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    assert_eq!(world.one().flags, RST | ACK);
    assert_eq!(world.stack.counters().tcp_full, 1);
    world.pass(Duration::from_secs(3601));
    world.silence();
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    let got: Vec<u8> = world.got().iter().map(|got| got.flags).collect();
    assert_eq!(got, [RST | ACK, SYN | ACK]);
    assert_eq!(world.stack.counters().tcp_evicted, 1);
}

#[test]
fn somebody_at_a_published_port_reaches_the_guest() {
    for (peer, seen) in [
        ("198.51.100.7:5555", (Ipv4Addr::new(198, 51, 100, 7), 5555)),
        ("127.0.0.1:5555", (Ipv4Addr::new(192, 168, 127, 1), 5555)),
        ("[2001:db8::7]:5555", (Ipv4Addr::new(192, 168, 127, 1), 5555)),
    ] {
        let mut world = World::new(Bounds::default());
        world.sockets.waiting.push_back(peer.parse().unwrap());
        world.forward_ready();
        (world.peer, world.ports) = (seen.0, (8080, seen.1));
        let frame = world.link.frames.front().unwrap().1.clone();
        assert_eq!(frame[26..30], seen.0.octets(), "{peer}");
        assert_eq!(frame[34..36], seen.1.to_be_bytes(), "{peer}");
        let syn = world.one();
        assert_eq!((syn.flags, syn.mss, syn.scale), (SYN, Some(1460), Some(8)));
        world.pass(Duration::from_millis(1010));
        assert_eq!(world.one(), syn, "it is repeated");
        world.socket().waiting.extend(b"hello");
        world.segment(SYN | ACK, 9000, syn.seq + 1, &[]);
        world.flush();
        let got = world.got();
        assert_eq!(got.len(), 1, "{got:?}");
        assert_eq!((got[0].flags, got[0].ack), (ACK, 9001));
        assert_eq!(got[0].payload, b"hello");
        world.segment(ACK, 9001, syn.seq + 6, b"there");
        world.flush();
        assert_eq!(world.one().ack, 9006);
        assert_eq!(world.socket().received, b"there");
    }
}

#[test]
fn a_guest_that_listens_to_nobody_resets_the_peer() {
    let mut world = World::new(Bounds::default());
    world.sockets.waiting.push_back("198.51.100.7:5555".parse().unwrap());
    world.forward_ready();
    (world.peer, world.ports) = (Ipv4Addr::new(198, 51, 100, 7), (8080, 5555));
    let syn = world.one();
    world.segment(RST | ACK, 0, syn.seq + 1, &[]);
    world.flush();
    world.silence();
    assert_eq!(world.socket().closed, Some(Close::Reset));
}
