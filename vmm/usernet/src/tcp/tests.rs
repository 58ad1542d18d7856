//! A guest made by hand, and what it sees of the stack.

mod both_ends;
mod close;
mod deliver;
mod open;
mod simulated;

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Bounds, Config, Forward, ForwardProtocol};
use crate::link::{HEAD_LEN, Offload, Offloads, Segmentation};
use crate::mock::{Bytes, EVERYTHING, MockLink, MockSocket, MockSockets};
use crate::policy::Policy;
use crate::sockets::{ForwardId, Readiness};
use crate::wire::{
    EthernetHeader, Headers, Ipv4Header, Macs, Part, Sum, TcpFlags, TcpHeader, protocol,
};
use crate::{FlowId, Frame, Instant, Io, Stack};

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 1;
pub(crate) const RST: u8 = 4;

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 9);

/// A segment that the guest got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) flags: u8,
    seq: u32,
    pub(crate) ack: u32,
    window: u16,
    mss: Option<u16>,
    scale: Option<u8>,
    pub(crate) payload: Vec<u8>,
    segmentation: Option<Segmentation>,
}

/// The stack between a guest and peers that the test plays.
pub(crate) struct World {
    pub(crate) stack: Stack<Bytes>,
    pub(crate) link: MockLink,
    pub(crate) sockets: MockSockets,
    held: Rc<Cell<usize>>,
    now: Instant,
    pub(crate) macs: Macs,
    /// The guest's and the peer's port.
    pub(crate) ports: (u16, u16),
    pub(crate) peer: Ipv4Addr,
}

impl World {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self::of(Config { bounds, ..Config::default() })
    }

    /// With this policy.
    pub(crate) fn under(policy: Policy) -> Self {
        Self::of(Config { policy: Arc::new(policy), ..Config::default() })
    }

    fn of(config: Config) -> Self {
        let forward = Forward { protocol: ForwardProtocol::Tcp, guest_port: 8080 };
        let config = Config { forwards: vec![forward], ..config };
        let macs = config.macs;
        let link = MockLink { room: usize::MAX, ..MockLink::default() };
        let sockets =
            MockSockets { space: 1 << 20, read_limit: usize::MAX, ..MockSockets::default() };
        Self {
            stack: Stack::new(config, [7; 16]),
            link,
            sockets,
            held: Rc::default(),
            now: Instant::from_nanos(1_000_000_000),
            macs,
            ports: (40_000, 443),
            peer: PEER,
        }
    }

    /// A segment of the guest, not flushed.
    pub(crate) fn segment(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        self.segment_with(flags, seq, ack, u16::MAX, payload);
    }

    fn segment_with(&mut self, flags: u8, seq: u32, ack: u32, window: u16, payload: &[u8]) {
        let syn = flags & SYN != 0;
        let header = TcpHeader {
            source: self.ports.0,
            destination: self.ports.1,
            sequence: seq,
            acknowledgment: ack,
            flags: TcpFlags(flags),
            window,
            mss: syn.then_some(1460),
            window_scale: syn.then_some(7),
        };
        let len = header.built_len() + payload.len();
        let swapped = Macs { gateway: self.macs.guest, guest: self.macs.gateway };
        let ip = Ipv4Header::new(GUEST, self.peer, protocol::TCP);
        let mut headers = Headers::ipv4(swapped, &ip, len);
        headers.push(&header.build(0)[..header.built_len()]);
        self.frame(&[headers.as_bytes(), payload].concat());
    }

    pub(crate) fn frame(&mut self, bytes: &[u8]) {
        let payload = Bytes::new(bytes.to_vec(), &self.held);
        let frame = Frame {
            head: &bytes[..bytes.len().min(HEAD_LEN)],
            payload,
            offload: Offload::default(),
        };
        let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.guest_frame(self.now, frame, &mut io);
    }

    pub(crate) fn flush(&mut self) {
        for _ in 0..100 {
            let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
            self.stack.run_timers(self.now, &mut io);
            self.stack.flush(self.now, &mut io);
            if self.stack.next_deadline().is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("there is always more to do");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.flush();
    }

    fn ready(&mut self, readiness: Readiness) {
        let (id, _) = self.sockets.last();
        self.ready_of(id, readiness);
    }

    fn ready_of(&mut self, id: FlowId, readiness: Readiness) {
        let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.socket_ready(self.now, id, readiness, &mut io);
        self.flush();
    }

    fn forward_ready(&mut self) {
        let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.forward_ready(self.now, ForwardId(0), &mut io);
        self.flush();
    }

    fn link_ready(&mut self, room: usize) {
        self.link.room = room;
        let mut io = Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.link_ready(self.now, &mut io);
        self.flush();
    }

    /// The peer sends these bytes.
    fn peer_sends(&mut self, bytes: &[u8]) {
        self.socket().waiting.extend(bytes);
        self.ready(Readiness { readable: true, ..Readiness::default() });
    }

    fn peer_ends(&mut self) {
        self.socket().ended = true;
        self.ready(Readiness { readable: true, ..Readiness::default() });
    }

    fn socket(&mut self) -> &mut MockSocket {
        self.sockets.last().1
    }

    /// What the guest got since it last looked, pure TCP.
    pub(crate) fn got(&mut self) -> Vec<Got> {
        self.link.frames.drain(..).map(|(offload, frame)| parse(offload, &frame)).collect()
    }

    /// The only segment since the guest last looked.
    pub(crate) fn one(&mut self) -> Got {
        let mut got = self.got();
        assert_eq!(got.len(), 1, "{got:?}");
        got.remove(0)
    }

    fn silence(&mut self) {
        assert_eq!(self.got(), []);
    }

    /// A connection that stands: what the guest sends next, and what it expects.
    pub(crate) fn connect(&mut self) -> (u32, u32) {
        self.segment(SYN, 1000, 0, &[]);
        self.flush();
        let answer = self.one();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1001));
        self.segment(ACK, 1001, answer.seq.wrapping_add(1), &[]);
        self.flush();
        self.silence();
        (1001, answer.seq.wrapping_add(1))
    }
}

/// Checks everything about a frame that a guest's kernel would.
fn parse(offload: Offload, frame: &[u8]) -> Got {
    let (ethernet, rest) = EthernetHeader::parse(Part::whole(frame)).unwrap();
    assert_eq!(ethernet.ethertype, 0x0800);
    let (ip, rest) = Ipv4Header::parse(rest).unwrap();
    assert_eq!((ip.destination, ip.protocol), (GUEST, protocol::TCP));
    let (tcp, payload) = TcpHeader::parse(rest).unwrap();
    let (source, destination) = (IpAddr::V4(ip.source), IpAddr::V4(ip.destination));
    let bytes = rest.all().unwrap();
    let pseudo =
        Sum::pseudo(source, destination, protocol::TCP, u32::try_from(bytes.len()).unwrap());
    match offload.checksum {
        None => assert_eq!(pseudo.with(bytes).finish(), 0, "the checksum is whole"),
        Some(partial) => {
            assert_eq!((partial.start, partial.offset), (34, 16));
            let field = u16::from_be_bytes([bytes[16], bytes[17]]);
            assert_eq!(field, pseudo.partial(), "the checksum is that of the pseudo-header");
        }
    }
    Got {
        flags: tcp.flags.0 & !8,
        seq: tcp.sequence,
        ack: tcp.acknowledgment,
        window: tcp.window,
        mss: tcp.mss,
        scale: tcp.window_scale,
        payload: payload.all().unwrap().to_vec(),
        segmentation: offload.segmentation,
    }
}
