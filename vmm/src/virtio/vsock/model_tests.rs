//! Random interleavings of guest, host and time against the pure core.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::mux::{HostRead, Input, MAX_STREAMS, Mux};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_SEND, TYPE_STREAM};
use super::stream::{Action, BUF_ALLOC, Outgoing, StreamId};

const CID: u64 = 3;
const GUEST_BUFFER: u32 = 10_000;

/// Both ends of one stream, and the socket between the core and the host program.
#[derive(Default)]
struct World {
    id: Option<StreamId>,
    connected: bool,
    socket_room: usize,
    socket: VecDeque<u8>,
    guest_sent: Vec<u8>,
    host_got: Vec<u8>,
    host_sent: Vec<u8>,
    guest_got: Vec<u8>,
    guest_read: u32,
    credit: (u32, u32),
    write_ended: bool,
    guest_ended: bool,
    host_ended: bool,
    told_end: bool,
    reset: bool,
}

impl World {
    fn packet(&self, op: Op, len: u32, flags: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: 2,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.guest_read,
        }
    }

    fn act(&mut self, mux: &mut Mux) {
        while let Some(action) = mux.next_action() {
            match action {
                Action::Connect(id, port) => {
                    assert_eq!(port, 2);
                    self.id = Some(id);
                    mux.connected(id);
                }
                Action::Flush(id) => self.flush(mux, id),
                Action::ShutdownWrite(_) => self.write_ended = true,
                Action::ShutdownRead(_) | Action::Close(_) => {}
            }
        }
    }

    fn flush(&mut self, mux: &mut Mux, id: StreamId) {
        loop {
            let (front, back) = mux.backlog(id);
            let waiting: Vec<u8> = front.iter().chain(back).copied().collect();
            assert!(waiting.len() <= BUF_ALLOC as usize);
            if waiting.is_empty() {
                return;
            }
            let take = waiting.len().min(self.socket_room);
            if take == 0 {
                mux.set_writable(id, false);
                return;
            }
            self.socket_room -= take;
            self.host_got.extend(&waiting[..take]);
            mux.flushed(id, take);
        }
    }

    fn guest_sends(&mut self, mux: &mut Mux, want: u32, now: Duration) {
        let sent = u32::try_from(self.guest_sent.len()).unwrap();
        let len = want.min(self.credit.0 - (sent - self.credit.1));
        if !self.connected || self.guest_ended || len == 0 {
            return;
        }
        let bytes: Vec<u8> = (sent..sent + len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        self.guest_sent.extend(&bytes);
        let Input::Payload { id, direct } = mux.on_packet(&self.packet(Op::ReadWrite, len, 0), now)
        else {
            panic!("payload within the credit was refused");
        };
        let take = if direct { bytes.len().min(self.socket_room) } else { 0 };
        self.socket_room -= take;
        self.host_got.extend(&bytes[..take]);
        mux.forwarded(id, u32::try_from(take).unwrap());
        mux.buffer(id, &bytes[take..]);
        self.flush(mux, id);
    }

    fn guest_receives(&mut self, mux: &mut Mux, room: u32, now: Duration) {
        match mux.next_outgoing() {
            None => {}
            Some(Outgoing::Control(header)) => {
                self.credit = (header.buf_alloc, header.fwd_cnt);
                match Op::from_raw(header.op) {
                    Some(Op::Response) => self.connected = true,
                    Some(Op::Reset) => self.reset = true,
                    Some(Op::Shutdown) => self.told_end |= header.flags & SHUTDOWN_SEND != 0,
                    _ => {}
                }
            }
            Some(Outgoing::Payload { id, max_bytes }) => {
                let len = (max_bytes.min(room) as usize).min(self.socket.len());
                let end = match len {
                    0 if room > 0 && self.host_ended => HostRead::Ended,
                    0 if room > 0 => HostRead::Drained,
                    _ => HostRead::More,
                };
                if len > 0 {
                    self.guest_got.extend(self.socket.drain(..len));
                    let header = mux.payload_header(id, u32::try_from(len).unwrap()).unwrap();
                    self.credit = (header.buf_alloc, header.fwd_cnt);
                    let unread = self.guest_got.len() - self.guest_read as usize;
                    assert!(unread <= GUEST_BUFFER as usize, "the guest was sent too much");
                }
                mux.host_read(id, end, now);
            }
        }
    }

    fn step(&mut self, mux: &mut Mux, (kind, size): (u8, u32), now: Duration) {
        let Some(id) = self.id else { return };
        match kind {
            0 => self.guest_sends(mux, size, now),
            1 => self.guest_receives(mux, size.max(1), now),
            2 if !self.host_ended => {
                let from = self.host_sent.len();
                let bytes: Vec<u8> =
                    (from..from + size as usize).map(|i| u8::try_from(i % 241).unwrap()).collect();
                self.host_sent.extend(&bytes);
                self.socket.extend(bytes);
                mux.set_readable(id);
            }
            3 => {
                self.socket_room = size as usize;
                mux.set_writable(id, true);
                self.flush(mux, id);
            }
            4 if self.connected => {
                self.guest_read = u32::try_from(self.guest_got.len()).unwrap();
                mux.on_packet(&self.packet(Op::CreditUpdate, 0, 0), now);
            }
            5 if self.connected && !self.guest_ended && size % 16 == 0 => {
                self.guest_ended = true;
                mux.on_packet(&self.packet(Op::Shutdown, 0, SHUTDOWN_SEND), now);
            }
            6 if !self.host_ended && size % 16 == 0 => {
                self.host_ended = true;
                mux.set_readable(id);
            }
            7 if self.connected => {
                mux.on_packet(&self.packet(Op::CreditRequest, 0, 0), now);
            }
            _ => {}
        }
        self.act(mux);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn both_directions_arrive_whole_and_in_order(
        steps in prop::collection::vec((0_u8..8, 0_u32..60_000), 1..200)
    ) {
        let (mut mux, mut world, now) = (Mux::new(CID), World::default(), Duration::ZERO);
        mux.on_packet(&world.packet(Op::Request, 0, 0), now);
        world.act(&mut mux);
        for step in steps {
            world.step(&mut mux, step, now);
            assert!(world.guest_sent.starts_with(&world.host_got));
            assert!(world.host_sent.starts_with(&world.guest_got));
        }
        for _ in 0..400 {
            for step in [(1, 60_000), (4, 0), (3, 60_000)] {
                world.step(&mut mux, step, now);
            }
        }
        assert!(!world.reset);
        assert!(world.host_got == world.guest_sent);
        assert!(world.guest_got == world.host_sent);
        assert_eq!(world.write_ended, world.guest_ended);
        assert_eq!(world.told_end, world.host_ended);
    }

    #[test]
    fn any_packet_bytes_keep_the_bounds(
        packets in prop::collection::vec((any::<[u8; 28]>(), 0_u32..400, 0_u16..9, any::<bool>()), 1..400)
    ) {
        let mut mux = Mux::new(CID);
        for (noise, port, op, mended) in packets {
            let mut bytes = [0; super::packet::HEADER_BYTES];
            bytes[16..].copy_from_slice(&noise);
            let mut header = Header { src_cid: CID, dst_cid: HOST_CID, ..Header::parse(&bytes) };
            if mended {
                header = Header { src_port: port, dst_port: 2, kind: TYPE_STREAM, op, ..header };
            }
            if let Input::Payload { id, .. } = mux.on_packet(&header, Duration::ZERO) {
                mux.buffer(id, &vec![0; header.len as usize]);
                assert!(mux.backlog(id).0.len() <= BUF_ALLOC as usize);
            }
            while let Some(action) = mux.next_action() {
                if let Action::Connect(id, port) = action {
                    if port % 2 == 0 { mux.connected(id) } else { mux.host_failed(id) }
                }
            }
            assert!(mux.len() <= MAX_STREAMS);
        }
        // Every pending answer fits in one buffer each: streams and strangers are bounded.
        let mut left = 0;
        while mux.next_outgoing().is_some_and(|out| matches!(out, Outgoing::Control(_))) {
            left += 1;
            assert!(left <= 4 * (MAX_STREAMS + super::mux::MAX_STRAY_RESETS));
        }
    }
}
