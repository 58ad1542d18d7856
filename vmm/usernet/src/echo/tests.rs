//! Requests and replies of others: nothing made up, everything bounded.

use std::net::Ipv4Addr;

use super::*;
use crate::config::Config;
use crate::icmp::Errors;
use crate::scripted::{Rig, Told};
use crate::table::Endpoint;
use crate::wire::{Part, icmpv4};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

struct Test {
    rig: Rig,
    echo: Echo,
    delivery: Delivery,
}

fn ends(identifier: u16) -> FlowKey {
    FlowKey {
        guest: Endpoint::new(GUEST.into(), identifier),
        remote: Endpoint::new(Ipv4Addr::new(203, 0, 113, 9).into(), 0),
    }
}

impl Test {
    fn new() -> Self {
        let errors = Errors::new(Ipv4Addr::new(192, 168, 127, 1), None);
        Self {
            rig: Rig::new(),
            echo: Echo::new(EchoBounds::default(), 3, SipKey::new([2; 16])),
            delivery: Delivery::new(&Config::default(), errors, 0),
        }
    }

    fn request(&mut self, identifier: u16, sequence: u16) -> Result<(), Fault> {
        let ends = ends(identifier);
        let peer = ends.remote.socket_addr();
        self.echo.request(ends, peer, sequence, b"data", &mut self.rig.turn())
    }

    fn flush(&mut self) -> bool {
        self.echo.flush(&mut self.delivery, &mut self.rig.turn())
    }
}

#[test]
fn a_reply_is_what_the_peer_sent() {
    let mut test = Test::new();
    test.request(77, 1).unwrap();
    test.request(77, 2).unwrap();
    assert!(!test.flush());
    assert_eq!(test.rig.received(), [], "nothing is made up");
    let (id, socket) = test.rig.sockets.only();
    assert_eq!(socket.sent, [(Some(1), b"data".to_vec()), (Some(2), b"data".to_vec())]);
    socket.inbox.push_back(Ok((2, b"changed on the way".to_vec())));
    test.echo.socket_ready(id);
    assert!(!test.flush());
    let told = test.rig.received();
    let [Told::Icmp { source, destination, bytes }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((*source, *destination), (ends(77).remote.ip(), GUEST.into()));
    let (header, data) = IcmpHeader::parse(Part::whole(bytes)).unwrap();
    assert_eq!(header, IcmpHeader::echo(icmpv4::ECHO_REPLY, 77, 2));
    assert_eq!(data.all().unwrap(), b"changed on the way");
}

#[test]
fn requests_keep_to_their_pace() {
    let mut test = Test::new();
    let admitted = (0..1_000).filter(|_| test.echo.admit(&mut test.rig.turn())).count();
    assert_eq!(admitted, 50);
    assert_eq!(test.rig.counters.echo_limited, 950);
    test.rig.pass(1);
    let admitted = (0..1_000).filter(|_| test.echo.admit(&mut test.rig.turn())).count();
    assert_eq!(admitted, 50);
}

#[test]
fn the_oldest_identifier_gives_way_and_idle_ones_end() {
    let mut test = Test::new();
    for identifier in 0..100 {
        test.request(identifier, 1).unwrap();
        assert!(test.echo.len() <= 64);
    }
    assert_eq!((test.rig.sockets.open.len(), test.rig.counters.echo_evicted), (64, 36));
    test.rig.pass(59);
    test.request(99, 2).unwrap();
    test.echo.run_timers(&mut test.rig.turn());
    assert_eq!(test.echo.len(), 64);
    test.rig.pass(2);
    test.echo.run_timers(&mut test.rig.turn());
    assert_eq!(test.echo.len(), 1);
    test.rig.pass(61);
    test.echo.run_timers(&mut test.rig.turn());
    assert_eq!((test.rig.sockets.open.len(), test.echo.next_deadline()), (0, None));
}

#[test]
fn a_host_that_sends_none_is_silent() {
    let mut test = Test::new();
    test.rig.sockets.refuses = Some(HostError::Prohibited);
    assert_eq!(test.request(1, 1), Ok(()));
    assert_eq!((test.echo.len(), test.rig.counters.echo_failed), (0, 1));
    assert_eq!(test.rig.received(), []);
}

#[test]
fn errors_are_told_and_never_spun_on() {
    let mut test = Test::new();
    test.request(5, 9).unwrap();
    let (id, socket) = test.rig.sockets.only();
    socket.inbox.push_back(Err(HostError::HostUnreachable));
    test.echo.socket_ready(id);
    assert!(!test.flush());
    let told = test.rig.received();
    let [Told::Icmp { bytes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(bytes[..2], [icmpv4::UNREACHABLE, icmpv4::HOST]);
    let (quoted, _) = IcmpHeader::parse(Part::whole(&bytes[28..])).unwrap();
    assert_eq!(quoted, IcmpHeader::echo(icmpv4::ECHO_REQUEST, 5, 9));
    // It fails at once as well.
    test.rig.sockets.only().1.refuses = Some(HostError::NetworkUnreachable);
    assert_eq!(test.request(5, 10), Err(Fault::Network));
    let (id, socket) = test.rig.sockets.only();
    socket.inbox.extend(vec![Err(HostError::HostUnreachable); 1_000]);
    test.echo.socket_ready(id);
    let mut flushes = 0;
    while test.flush() {
        flushes += 1;
        assert!(flushes < 10);
    }
    assert_eq!((test.echo.len(), test.rig.sockets.open.len()), (0, 0));
}

#[test]
fn a_sweep_ends_what_is_refused_now() {
    let mut test = Test::new();
    test.request(5, 9).unwrap();
    test.echo.sweep(|_| true, &mut test.rig.turn());
    assert_eq!(test.echo.len(), 1);
    test.echo.sweep(|_| false, &mut test.rig.turn());
    assert_eq!((test.echo.len(), test.rig.sockets.open.len()), (0, 0));
}
