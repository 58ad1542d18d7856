//! How connections end.

use super::*;
use crate::sockets::{Close, HostError};

#[test]
fn the_guest_ends_first() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.segment(FIN | ACK, seq, ack, b"bye");
    world.flush();
    assert_eq!(world.one().ack, seq + 4, "its bytes and its FIN");
    assert_eq!(world.socket().received, b"bye");
    assert!(world.socket().shut_down);
    world.peer_sends(b"answer");
    let got = world.one();
    assert_eq!((got.flags, got.payload.as_slice()), (ACK, &b"answer"[..]));
    world.segment(ACK, seq + 4, ack + 6, &[]);
    world.peer_ends();
    let got = world.one();
    assert_eq!((got.flags, got.seq), (FIN | ACK, ack + 6));
    world.segment(ACK, seq + 4, ack + 7, &[]);
    world.flush();
    world.silence();
    assert_eq!(world.socket().closed, Some(Close::Orderly));
    assert_eq!(world.stack.tcp_flows(), 0);
}

#[test]
fn the_host_ends_first() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().waiting.extend(b"all");
    world.peer_ends();
    let got = world.one();
    assert_eq!((got.flags, got.payload.as_slice()), (FIN | ACK, &b"all"[..]));
    world.segment(ACK, seq, ack + 4, b"more");
    world.flush();
    assert_eq!(world.one().ack, seq + 4);
    assert_eq!(world.socket().received, b"more");
    world.segment(FIN | ACK, seq + 4, ack + 4, &[]);
    world.flush();
    let last = world.one();
    assert_eq!((last.flags, last.seq, last.ack), (ACK, ack + 4, seq + 5));
    assert_eq!(world.socket().closed, Some(Close::Orderly));
    assert!(world.socket().shut_down);
    world.segment(FIN | ACK, seq + 4, ack + 4, &[]);
    world.flush();
    assert_eq!(world.one(), last, "the guest may ask for it again");
    world.pass(Duration::from_millis(2020));
    assert_eq!(world.stack.tcp_flows(), 0);
    world.silence();
}

#[test]
fn connections_that_only_wait_make_room_for_new_ones() {
    let mut world = World::new(Bounds { tcp_flows: 3, ..Bounds::default() });
    world.ports.0 = 50_000;
    let (seq_in_use, ack_in_use) = world.connect();
    for port in 1..20 {
        world.ports.0 = 40_000 + port;
        let (seq, ack) = world.connect();
        world.peer_ends();
        world.segment(FIN | ACK, seq, ack + 1, &[]);
        world.flush();
        world.got();
    }
    assert_eq!(world.stack.tcp_flows(), 3);
    world.ports.0 = 50_000;
    world.segment(ACK, seq_in_use, ack_in_use, b"x");
    world.flush();
    assert_eq!(world.one().ack, seq_in_use + 1, "the one that is in use stands");
}

#[test]
fn a_new_connection_need_not_wait_for_the_old_one() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.peer_ends();
    world.segment(FIN | ACK, seq, ack + 1, &[]);
    world.flush();
    world.got();
    world.segment(SYN, seq - 100, 0, &[]);
    world.flush();
    assert_eq!(world.one().flags, ACK, "an old one");
    world.segment(SYN, seq + 100, 0, &[]);
    world.flush();
    let got = world.one();
    assert_eq!((got.flags, got.ack), (SYN | ACK, seq + 101));
}

#[test]
fn both_end_at_once() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.peer_ends();
    assert_eq!(world.one().flags, FIN | ACK);
    world.segment(FIN | ACK, seq, ack, &[]);
    world.flush();
    assert_eq!(world.one().ack, seq + 1);
    world.segment(ACK, seq + 1, ack + 1, &[]);
    world.pass(Duration::from_secs(3));
    assert_eq!((world.stack.tcp_flows(), world.sockets.open()), (0, 0));
}

#[test]
fn an_end_out_of_order_waits_for_what_is_missing() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.segment(FIN | ACK, seq + 5, ack, b"world");
    world.flush();
    assert_eq!(world.one().ack, seq);
    assert!(!world.socket().shut_down);
    world.segment(ACK, seq, ack, b"hello");
    world.flush();
    assert_eq!(world.one().ack, seq + 11);
    assert_eq!(world.socket().received, b"helloworld");
    assert!(world.socket().shut_down);
}

#[test]
fn an_end_waits_for_a_full_socket() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().space = 2;
    world.segment(FIN | ACK, seq, ack, b"hello");
    world.flush();
    assert_eq!(world.one().ack, seq + 5, "the bytes are kept, the end is not there yet");
    assert!(!world.socket().shut_down);
    world.segment(FIN | ACK, seq + 5, ack, &[]);
    world.flush();
    world.socket().space = 100;
    world.got();
    world.ready(Readiness { writable: true, ..Readiness::default() });
    assert_eq!(world.one().ack, seq + 6);
    assert!(world.socket().shut_down);
    assert_eq!(world.socket().received, b"hello");
}

#[test]
fn an_end_at_the_host_is_told_through_a_closed_window() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.segment_with(ACK, seq, ack, 0, &[]);
    world.flush();
    world.peer_ends();
    // It is not read as long as there might be bytes before it, but asked about.
    let flags: Vec<u8> = world.got().iter().map(|got| got.flags).collect();
    if flags.is_empty() {
        world.pass(Duration::from_millis(5010));
        world.one();
        world.segment_with(ACK, seq, ack, 10, &[]);
        world.flush();
        assert_eq!(world.one().flags, FIN | ACK);
    } else {
        assert_eq!(flags, [FIN | ACK]);
    }
}

#[test]
fn a_reset_of_the_guest_reaches_the_peer() {
    for (offset, heard) in [(0, true), (1000, true), (u32::MAX, false), (u32::MAX / 2, false)] {
        let mut world = World::new(Bounds::default());
        let (seq, _) = world.connect();
        world.segment(RST, seq.wrapping_add(offset), 0, &[]);
        world.flush();
        world.silence();
        assert_eq!(world.socket().closed, heard.then_some(Close::Reset), "{offset}");
        assert_eq!(world.stack.tcp_flows(), usize::from(!heard));
    }
}

#[test]
fn a_loss_at_the_host_is_told_behind_the_last_byte() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().waiting.extend(b"last words");
    world.socket().error = Some(HostError::Reset);
    world.ready(Readiness { readable: true, failed: true, ..Readiness::default() });
    let got = world.got();
    assert_eq!(got[0].payload, b"last words");
    assert_eq!((got[1].flags, got[1].seq, got[1].ack), (RST | ACK, ack + 10, seq));
    assert_eq!((world.stack.tcp_flows(), world.sockets.open()), (0, 0));
}

#[test]
fn a_loss_found_by_sending_is_told_at_once() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().error = Some(HostError::Reset);
    world.segment(ACK, seq, ack, b"hello");
    world.flush();
    let got = world.one();
    assert_eq!((got.flags, got.seq), (RST | ACK, ack));
    assert_eq!(world.held.get(), 0);
}

#[test]
fn a_reset_waits_for_room_at_the_link() {
    let mut world = World::new(Bounds::default());
    world.connect();
    world.link.room = 0;
    world.socket().error = Some(HostError::Reset);
    world.ready(Readiness { failed: true, ..Readiness::default() });
    assert_eq!(world.stack.tcp_flows(), 0);
    world.link_ready(10);
    assert_eq!(world.one().flags, RST | ACK);
}

#[test]
fn a_change_of_the_policy_ends_what_it_forbids() {
    use crate::policy::{Fallback, Policy};
    let mut world = World::new(Bounds::default());
    world.connect();
    let policy = Arc::new(Policy::new(Vec::new(), Fallback::Nothing).unwrap());
    let mut io = Io { link: &mut world.link, sockets: &mut world.sockets };
    world.stack.set_policy(world.now, policy, &mut io);
    assert_eq!(world.one().flags, RST | ACK);
    assert_eq!((world.stack.tcp_flows(), world.socket().closed), (0, Some(Close::Reset)));
}

#[test]
fn a_reset_of_the_card_gives_the_guest_its_memory_back() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().space = 0;
    world.segment(ACK, seq, ack, b"kept");
    world.flush();
    world.got();
    world.ports.0 += 1;
    let (seq, ack) = world.connect();
    world.segment(ACK, seq + 10, ack, b"early");
    assert_eq!(world.held.get(), 2);
    let mut io = Io { link: &mut world.link, sockets: &mut world.sockets };
    world.stack.link_reset(world.now, &mut io);
    assert_eq!(world.held.get(), 0);
    assert_eq!(world.stack.tcp_flows(), 1, "what was promised cannot be kept");
}
