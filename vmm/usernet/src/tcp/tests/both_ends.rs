//! Any order of segments, losses, full sockets, full links, ends and time: both streams arrive as they were sent, and what is kept
//! stays within its bounds.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::link::Offloads;
use crate::ring::CHUNK;

const PARKED: usize = 12;
const OUT_OF_ORDER: usize = 6;

fn bounds() -> Bounds {
    Bounds {
        tcp_flows: 4,
        ring_bytes: 4 * CHUNK,
        ring_bytes_per_flow: 2 * CHUNK,
        parked: PARKED,
        parked_per_flow: 5,
        out_of_order: OUT_OF_ORDER,
        quantum: 10_000,
        max_window: 1 << 20,
        ..Bounds::default()
    }
}

/// Payloads of one turn that are not offered to the socket yet.
const BATCH: usize = 64;

#[derive(Debug, Clone)]
enum Step {
    /// The guest sends a stretch of its stream, `skew` bytes from what was not acknowledged yet.
    Send {
        skew: i32,
        len: u32,
    },
    /// It acknowledges what it has, with this window.
    Acknowledge {
        window: u16,
    },
    /// It ends its stream, whatever of it has arrived.
    End,
    /// Frames on their way to the guest get lost: those whose bit is set.
    Lose(u8),
    /// The guest looks at what came.
    Look,
    /// The socket takes so much more.
    Space(usize),
    /// The socket says so.
    Writable,
    /// The peer sends so much.
    PeerSends(usize),
    PeerEnds,
    Readable,
    /// The link takes so many frames.
    Room(usize),
    Flush,
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (-3000..6000_i32, 0..5000_u32).prop_map(|(skew, len)| Step::Send { skew, len }),
        4 => prop_oneof![Just(0_u16), 1..2000_u16].prop_map(|window| Step::Acknowledge { window }),
        1 => Just(Step::End),
        1 => any::<u8>().prop_map(Step::Lose),
        4 => Just(Step::Look),
        3 => (0..20_000_usize).prop_map(Step::Space),
        2 => Just(Step::Writable),
        3 => (1..60_000_usize).prop_map(Step::PeerSends),
        1 => Just(Step::PeerEnds),
        3 => Just(Step::Readable),
        2 => (0..10_usize).prop_map(Step::Room),
        6 => Just(Step::Flush),
        3 => (1..700_u64).prop_map(Step::Time),
    ]
}

/// A guest with a stream to send, which it sends in any way it likes.
struct Guest {
    world: World,
    stream: Vec<u8>,
    first: u32,
    /// Of its stream, acknowledged; its FIN counts as a byte behind it.
    acknowledged: u32,
    edge: u32,
    ended: bool,
    peer_first: u32,
    peer_stream: Vec<u8>,
    peer_ended: bool,
    /// What it has of the peer's stream, and what came early.
    arrived: Vec<u8>,
    early: BTreeMap<u32, Vec<u8>>,
    fin_at: Option<u32>,
    was_reset: bool,
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..251_u8).map(|byte| byte.wrapping_mul(seed)).cycle().take(len).collect()
}

impl Guest {
    fn new(large_frames: bool, length: usize, space: usize) -> Self {
        let mut world = World::new(bounds());
        world.link.offloads.checksum = large_frames;
        world.link.offloads = Offloads { tcp4: large_frames, ..world.link.offloads };
        world.sockets.space = space;
        world.sockets.read_limit = 7_000;
        let (first, peer_first) = world.connect();
        Self {
            world,
            stream: pattern(length, 3),
            first,
            acknowledged: 0,
            edge: 0,
            ended: false,
            peer_first,
            peer_stream: Vec::new(),
            peer_ended: false,
            arrived: Vec::new(),
            early: BTreeMap::new(),
            fin_at: None,
            was_reset: false,
        }
    }

    fn len(&self) -> u32 {
        u32::try_from(self.stream.len()).unwrap()
    }

    /// What it acknowledges.
    fn ack(&self) -> u32 {
        let arrived = u32::try_from(self.arrived.len()).unwrap();
        let fin = u32::from(self.fin_at == Some(arrived));
        self.peer_first.wrapping_add(arrived + fin)
    }

    fn send(&mut self, from: u32, len: u32) {
        let to = from.saturating_add(len).min(self.len());
        if from > to {
            return;
        }
        let payload = self.stream[from as usize..to as usize].to_vec();
        let fin = if self.ended && to == self.len() { FIN } else { 0 };
        let seq = self.first.wrapping_add(from);
        let ack = self.ack();
        self.world.segment_with(ACK | fin, seq, ack, 4000, &payload);
    }

    fn acknowledge(&mut self, window: u16) {
        let next = self.acknowledged.min(self.len());
        let (seq, ack) = (self.first.wrapping_add(next), self.ack());
        self.world.segment_with(ACK, seq, ack, window, &[]);
    }

    fn look(&mut self) {
        for got in self.world.got() {
            if got.flags & RST != 0 {
                // What it says after the end belongs to no connection.
                self.was_reset |= !self.is_done();
                continue;
            }
            let acknowledged = got.ack.wrapping_sub(self.first);
            assert!(acknowledged <= self.len() + 1, "it acknowledges what was never sent");
            self.acknowledged = self.acknowledged.max(acknowledged);
            self.edge = self.edge.max(acknowledged + (u32::from(got.window) << 8));
            let offset = got.seq.wrapping_sub(self.peer_first);
            let is_bare = got.payload.is_empty() && got.flags & FIN == 0;
            if is_bare || offset > u32::MAX / 2 {
                continue;
            }
            let end = offset + u32::try_from(got.payload.len()).unwrap();
            assert!(end as usize <= self.peer_stream.len(), "bytes that nobody sent");
            assert!(
                got.payload == self.peer_stream[offset as usize..end as usize],
                "other bytes than were sent"
            );
            if got.flags & FIN != 0 {
                assert!(self.peer_ended && end as usize == self.peer_stream.len());
                self.fin_at = Some(end);
            }
            self.early.insert(offset, got.payload);
            self.absorb();
        }
    }

    /// Takes from what came early all that is no longer early.
    fn absorb(&mut self) {
        while let Some((offset, payload)) = self.early.first_key_value() {
            let at = u32::try_from(self.arrived.len()).unwrap();
            if *offset > at {
                break;
            }
            let known = ((at - offset) as usize).min(payload.len());
            self.arrived.extend_from_slice(&payload[known..]);
            self.early.pop_first();
        }
    }

    fn check(&mut self) {
        let held = self.world.held.get();
        assert!(held <= PARKED + OUT_OF_ORDER + BATCH, "{held} payloads are held");
        let received = &self.world.socket().received;
        assert!(self.stream.starts_with(received), "other bytes reached the peer");
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { skew, len } => {
                let from = self.acknowledged.saturating_add_signed(skew);
                self.send(from, len);
            }
            Step::Acknowledge { window } => self.acknowledge(window),
            Step::End => self.ended = true,
            Step::Lose(which) => {
                let mut place = 0;
                self.world.link.frames.retain(|_| {
                    place += 1;
                    which >> (place % 8) & 1 == 0
                });
            }
            Step::Look => self.look(),
            Step::Space(space) => self.world.socket().space += space,
            Step::Writable => self.event(false, true),
            Step::PeerSends(len) => self.peer_sends(len),
            Step::PeerEnds => {
                self.peer_ended = true;
                self.world.socket().ended = true;
            }
            Step::Readable => self.event(true, false),
            Step::Room(room) => self.world.link_ready(room),
            Step::Flush => self.world.flush(),
            Step::Time(millis) => self.world.pass(Duration::from_millis(millis)),
        }
        self.check();
    }

    fn peer_sends(&mut self, len: usize) {
        let from = self.peer_stream.len();
        if !self.peer_ended && from + len < 400_000 {
            self.peer_stream = pattern(from + len, 5);
            let bytes = self.peer_stream[from..].to_vec();
            self.world.socket().waiting.extend(bytes);
        }
    }

    fn event(&mut self, readable: bool, writable: bool) {
        self.world.ready(Readiness { readable, writable, failed: false });
    }

    /// From here on all goes well; everything must have arrived soon.
    fn settle(&mut self) {
        self.ended = true;
        self.peer_ended = true;
        for _ in 0..600 {
            if self.is_done() {
                break;
            }
            let socket = self.world.socket();
            socket.space = 1 << 20;
            socket.ended = true;
            if socket.closed.is_none() {
                self.event(true, true);
            }
            self.world.link_ready(usize::MAX);
            self.look();
            self.acknowledge(4000);
            self.send(self.acknowledged, 1460);
            let rest = self.acknowledged.saturating_add(1460);
            self.send(rest, self.edge.saturating_sub(rest).min(1460));
            self.world.pass(Duration::from_millis(60));
            self.check();
        }
        self.look();
    }

    fn is_done(&self) -> bool {
        self.acknowledged == self.len() + 1
            && self.arrived.len() == self.peer_stream.len()
            && self.fin_at.is_some()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn both_streams_arrive(
        steps in prop::collection::vec(step(), 0..90),
        large_frames: bool,
        length in 0..60_000_usize,
        space in 0..30_000_usize,
    ) {
        let mut guest = Guest::new(large_frames, length, space);
        for step in &steps {
            guest.step(step);
        }
        guest.settle();
        prop_assert!(!guest.was_reset, "nobody asked for a reset");
        prop_assert!(guest.world.socket().received == guest.stream);
        prop_assert!(guest.world.socket().shut_down);
        prop_assert_eq!(guest.arrived.len(), guest.peer_stream.len());
        prop_assert!(guest.fin_at.is_some(), "the end came through");
        prop_assert_eq!(guest.acknowledged, guest.len() + 1);
        guest.acknowledge(4000);
        guest.world.pass(Duration::from_secs(3));
        prop_assert_eq!(guest.world.stack.tcp_flows(), 0);
        prop_assert_eq!(guest.world.held.get(), 0);
        prop_assert_eq!(guest.world.socket().closed, Some(crate::sockets::Close::Orderly));
    }
}
