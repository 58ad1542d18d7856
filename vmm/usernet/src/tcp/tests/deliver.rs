//! How bytes go both ways.

use super::*;

const MSS: usize = 1460;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

#[test]
fn the_segments_of_a_turn_are_sent_at_once_and_acknowledged_once() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    let data = bytes(10 * MSS);
    let mut at = seq;
    for part in data.chunks(MSS) {
        world.segment(ACK, at, ack, part);
        at += 1460;
    }
    assert!(world.socket().received.is_empty());
    world.flush();
    assert_eq!(world.socket().received, data);
    let got = world.one();
    assert_eq!((got.flags, got.seq, got.ack), (ACK, ack, at));
    assert_eq!(world.held.get(), 0);
}

#[test]
fn answers_carry_the_acknowledgment() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.socket().waiting.extend(b"pong");
    world.segment(ACK, seq, ack, b"ping");
    let (id, _) = world.sockets.last();
    world.ready_of(id, EVERYTHING);
    let got = world.one();
    assert_eq!((got.ack, got.payload.as_slice()), (seq + 4, &b"pong"[..]));
}

#[test]
fn a_full_socket_holds_back_and_closes_the_window() {
    let mut world = World::new(Bounds::default());
    world.sockets.space = 4 * MSS;
    let (seq, ack) = world.connect();
    let data = bytes(6 * MSS);
    // The guest believes the edge of the SYN-ACK's window, 4 segments.
    world.socket().space = 2 * MSS;
    for (at, part) in data.chunks(MSS).take(4).enumerate() {
        world.segment(ACK, seq + u32::try_from(at * MSS).unwrap(), ack, part);
    }
    world.flush();
    assert_eq!(world.socket().received, &data[..2 * MSS]);
    let got = world.one();
    assert_eq!(got.ack, seq + 4 * 1460, "what is held back will arrive");
    assert!(u32::from(got.window) << 8 < 256, "{}", got.window);
    assert_eq!(world.held.get(), 2);
    world.pass(Duration::from_secs(3));
    world.silence();
    world.socket().space = 1 << 20;
    world.ready(Readiness { writable: true, ..Readiness::default() });
    assert_eq!(world.socket().received, &data[..4 * MSS]);
    let got = world.one();
    assert_eq!(got.ack, seq + 4 * 1460);
    assert!(got.window > 100, "the window is told again");
    assert_eq!(world.held.get(), 0);
}

#[test]
fn a_window_never_moves_back_and_never_exceeds_the_space() {
    let mut world = World::new(Bounds::default());
    world.sockets.space = 20_000;
    let (seq, ack) = world.connect();
    let (mut at, mut edge) = (seq, seq + 20_000);
    for step in 0..50 {
        let part = bytes(1000 + step);
        let len = u32::try_from(part.len()).unwrap();
        if at + len > edge {
            break;
        }
        world.segment(ACK, at, ack, &part);
        world.flush();
        at += len;
        let got = world.one();
        let told = got.ack + (u32::from(got.window) << 8);
        assert!(told + 255 >= edge, "step {step}");
        let space = u32::try_from(world.socket().space).unwrap();
        assert!(told <= at + space, "step {step}");
        edge = edge.max(told);
        if step % 7 == 0 {
            world.socket().space += 3000;
        }
    }
    assert!(at > seq + 19_000, "it was used up");
}

#[test]
fn a_socket_that_only_ran_short_is_looked_at_again() {
    let mut world = World::new(Bounds::default());
    world.sockets.space = 3000;
    let (seq, ack) = world.connect();
    world.segment(ACK, seq, ack, &bytes(1460));
    world.segment(ACK, seq + 1460, ack, &bytes(1460));
    world.flush();
    let got = world.one();
    assert!(got.window == 0 || u32::from(got.window) << 8 < 1460);
    world.socket().space = 1 << 20;
    world.pass(Duration::from_millis(20));
    assert!(world.one().window > 100, "without any event");
}

#[test]
fn too_much_is_dropped_and_comes_again() {
    let mut world = World::new(Bounds::default());
    world.sockets.space = 60_000;
    let (seq, ack) = world.connect();
    world.socket().space = 0;
    let data = bytes(20 * MSS);
    for (at, part) in data.chunks(MSS).enumerate() {
        world.segment(ACK, seq + u32::try_from(at * MSS).unwrap(), ack, part);
    }
    world.flush();
    assert_eq!(world.held.get(), 16);
    let got = world.one();
    assert_eq!(got.ack, seq + 16 * 1460, "only what is kept is acknowledged");
    world.socket().space = 1 << 20;
    world.ready(Readiness { writable: true, ..Readiness::default() });
    world.got();
    for at in 16..20 {
        world.segment(ACK, seq + at * 1460, ack, &data[at as usize * MSS..][..MSS]);
    }
    world.flush();
    assert_eq!(world.socket().received, data);
}

#[test]
fn what_comes_out_of_order_waits_and_says_so_each_time() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    let data = bytes(5 * MSS);
    let part = |at: usize| &data[at * MSS..(at + 1) * MSS];
    for at in [1_u32, 3, 4, 3] {
        world.segment(ACK, seq + at * 1460, ack, part(at as usize));
    }
    let got = world.got();
    assert_eq!(got.len(), 4, "one for each");
    assert!(got.iter().all(|got| got.ack == seq && got.flags == ACK));
    world.segment(ACK, seq, ack, part(0));
    world.flush();
    assert_eq!(world.one().ack, seq + 2 * 1460);
    // Overlaps both what is known and what waits.
    world.segment(ACK, seq + 1460, ack, &data[MSS..3 * MSS + 10]);
    world.flush();
    assert_eq!(world.one().ack, seq + 5 * 1460);
    assert_eq!(world.socket().received, data);
    assert_eq!(world.held.get(), 0);
}

#[test]
fn what_waits_out_of_order_is_bounded_over_all_connections() {
    let mut world = World::new(Bounds::default());
    for port in 1..=10 {
        world.ports.0 = port;
        let (seq, ack) = world.connect();
        for at in 1..=20 {
            world.segment(ACK, seq + at * 10, ack, &[1; 10]);
        }
        world.got();
    }
    assert_eq!(world.held.get(), 64);
}

#[test]
fn the_guest_is_sent_what_its_window_takes_and_no_more_is_read() {
    let mut world = World::new(Bounds::default());
    world.segment(SYN, 1000, 0, &[]);
    world.flush();
    let ack = world.one().seq + 1;
    // 40 << 7 is 5,120 bytes.
    world.segment_with(ACK, 1001, ack, 40, &[]);
    world.flush();
    let data = bytes(20_000);
    world.peer_sends(&data);
    let got = world.got();
    assert_eq!(
        got.iter().map(|got| got.payload.len()).collect::<Vec<_>>(),
        [1460, 1460, 1460, 740]
    );
    assert_eq!(world.socket().waiting.len(), 20_000 - 5_120);
    world.segment_with(ACK, 1001, ack + 5_120, 40, &[]);
    world.flush();
    assert_eq!(world.got().iter().map(|got| got.payload.len()).sum::<usize>(), 5_120);
}

#[test]
fn frames_are_as_large_as_the_guest_takes_them() {
    let mut world = World::new(Bounds::default());
    world.link.offloads = Offloads { checksum: true, tcp4: true, ..Offloads::default() };
    let (seq, mut ack) = world.connect();
    let data = bytes(1 << 20);
    world.peer_sends(&data);
    let mut arrived = Vec::new();
    let mut frames = 0;
    for _ in 0..40 {
        for got in world.got() {
            assert_eq!(got.seq, ack);
            ack = ack.wrapping_add(u32::try_from(got.payload.len()).unwrap());
            if got.payload.len() > MSS {
                assert_eq!(got.segmentation, Some(Segmentation::Tcp4(1460)));
            }
            arrived.extend(got.payload);
            frames += 1;
        }
        world.segment(ACK, seq, ack, &[]);
        world.flush();
    }
    assert_eq!(arrived.len(), data.len());
    assert!(arrived == data);
    assert!(frames < 30, "{frames} frames for 1 MiB");
}

#[test]
fn a_closed_window_is_probed() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.segment_with(ACK, seq, ack, 0, &[]);
    world.flush();
    world.peer_sends(b"hello");
    world.silence();
    for _ in 0..3 {
        world.pass(Duration::from_millis(5010));
        let probe = world.one();
        assert_eq!((probe.flags, probe.seq, probe.payload.len()), (ACK, ack - 1, 0));
        world.segment_with(ACK, seq, ack, 0, &[]);
        world.flush();
        world.silence();
    }
    world.segment_with(ACK, seq, ack, 100, &[]);
    world.flush();
    assert_eq!(world.one().payload, b"hello");
}

#[test]
fn three_duplicates_bring_the_lost_segment_back() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    let data = bytes(5 * MSS);
    world.peer_sends(&data);
    assert_eq!(world.got().len(), 5);
    for _ in 0..2 {
        world.segment(ACK, seq, ack, &[]);
        world.flush();
        world.silence();
    }
    world.segment(ACK, seq, ack, &[]);
    world.flush();
    let again = world.one();
    assert_eq!((again.seq, again.payload.as_slice()), (ack, &data[..MSS]));
    // A second hole behind the first one.
    world.segment(ACK, seq, ack + 2 * 1460, &[]);
    world.flush();
    assert_eq!(world.one().seq, ack + 2 * 1460);
    world.segment(ACK, seq, ack + 5 * 1460, &[]);
    world.flush();
    world.silence();
    assert_eq!(world.stack.counters().tcp_retransmitted, 2);
}

#[test]
fn a_guest_that_stays_silent_is_sent_it_again_and_then_given_up() {
    let mut world = World::new(Bounds::default());
    let (_, ack) = world.connect();
    world.peer_sends(b"hello");
    world.one();
    let mut wait = 200;
    for _ in 0..8 {
        world.pass(Duration::from_millis(wait - 20));
        world.silence();
        world.pass(Duration::from_millis(30));
        let again = world.one();
        assert_eq!((again.seq, again.payload.as_slice()), (ack, &b"hello"[..]));
        wait *= 2;
    }
    world.pass(Duration::from_millis(wait));
    assert_eq!(world.one().flags, RST | ACK);
    assert_eq!((world.stack.tcp_flows(), world.sockets.open()), (0, 0));
}

#[test]
fn keep_alives_are_answered() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    for payload in [&[][..], &[0][..]] {
        world.segment(ACK, seq - 1, ack, payload);
        world.flush();
        let got = world.one();
        assert_eq!((got.flags, got.seq, got.ack), (ACK, ack, seq));
    }
    world.segment(ACK, seq, ack, &[]);
    world.flush();
    world.silence();
}

#[test]
fn a_full_link_loses_nothing() {
    let mut world = World::new(Bounds::default());
    let (seq, ack) = world.connect();
    world.link.room = 3;
    let data = bytes(10 * MSS);
    world.peer_sends(&data);
    world.segment(ACK, seq, ack, b"x");
    world.flush();
    let mut arrived: Vec<u8> = world.got().into_iter().flat_map(|got| got.payload).collect();
    assert_eq!(arrived, &data[..3 * MSS]);
    for _ in 0..4 {
        world.link_ready(3);
        arrived.extend(world.got().into_iter().flat_map(|got| got.payload));
    }
    assert_eq!(arrived, data);
    assert_eq!(world.stack.counters().tcp_retransmitted, 0);
}

#[test]
fn rings_are_given_back_and_bounded() {
    let mut world = World::new(Bounds { ring_bytes: 256 << 10, ..Bounds::default() });
    let (mut ends, mut answered) = (Vec::new(), 0);
    for port in 1..=20 {
        world.ports.0 = port;
        ends.push(world.connect());
        world.peer_sends(&bytes(100));
        answered += world.got().len();
    }
    assert_eq!(answered, 4, "four rings of 64 KiB");
    for (port, (seq, ack)) in (1..=20).zip(ends) {
        world.ports.0 = port;
        world.segment(ACK, seq, ack + 100, &[]);
        world.flush();
        answered += world.got().len();
    }
    assert_eq!(answered, 20, "the others as the first ones give back");
}

#[test]
fn one_busy_connection_leaves_the_others_their_turn() {
    let mut world = World::new(Bounds::default());
    world.link.offloads = Offloads { checksum: true, tcp4: true, ..Offloads::default() };
    let mut ids = Vec::new();
    for port in 1..=3 {
        world.ports.0 = port;
        world.connect();
        let (id, socket) = world.sockets.last();
        socket.waiting.extend(bytes(1 << 20));
        ids.push(id);
    }
    for id in ids {
        let mut io = Io { link: &mut world.link, sockets: &mut world.sockets };
        let readable = Readiness { readable: true, ..Readiness::default() };
        world.stack.socket_ready(world.now, id, readable, &mut io);
    }
    world.flush();
    let ports: Vec<u16> = world
        .link
        .frames
        .iter()
        .map(|(_, frame)| u16::from_be_bytes([frame[36], frame[37]]))
        .collect();
    for window in ports.chunks(12).take(3) {
        for port in 1..=3 {
            assert!(window.contains(&port), "{ports:?}");
        }
    }
}
