//! Frames of a guest into the whole stack, between events of sockets, a link that is full and time: no panic, every bound holds, and
//! the stack never has something to do at once for ever.
#![no_main]

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::Script;
use openshell_usernet::config::{Bounds, Forward, ForwardProtocol};
use openshell_usernet::link::{HEAD_LEN, Offload, Segmentation};
use openshell_usernet::mock::{Bytes, MockLink, MockSockets};
use openshell_usernet::policy::{Places, Policy, RefuseBy};
use openshell_usernet::sockets::{Connect, ForwardId, HostError, Readiness};
use openshell_usernet::wire::{
    EthernetHeader, Headers, Ipv4Header, Macs, TcpFlags, TcpHeader, UdpHeader, ethertype, protocol,
};
use openshell_usernet::{Config, Frame, Instant, Io, Stack};

const PARKED: usize = 8;
const OUT_OF_ORDER: usize = 4;
/// Payloads of one turn that no socket was offered.
const BATCH: usize = 64;

struct World {
    stack: Stack<Bytes>,
    link: MockLink,
    sockets: MockSockets,
    held: Rc<Cell<usize>>,
    now: Instant,
    macs: Macs,
}

fn bounds() -> Bounds {
    Bounds {
        tcp_flows: 6,
        pending: 3,
        pending_per_destination: 2,
        ring_bytes: 256 << 10,
        parked: PARKED,
        parked_per_flow: 3,
        out_of_order: OUT_OF_ORDER,
        ..Bounds::default()
    }
}

impl World {
    /// `kind` says what the link takes, whether there is IPv6, and how the policy refuses.
    fn new(kind: u8) -> Self {
        let forward = |protocol| Forward { protocol, guest_port: 80 };
        let forwards = vec![forward(ForwardProtocol::Tcp), forward(ForwardProtocol::Udp)];
        let resolvers = vec![SocketAddr::from(([192, 0, 2, 53], 53))];
        let (_, refuse_by) = RefuseBy::NAMES[usize::from(kind >> 4) % RefuseBy::NAMES.len()];
        let config = Config {
            bounds: bounds(),
            forwards,
            resolvers,
            v6: (kind & 8 != 0).then(Places::unique_local),
            policy: Arc::new(Policy::default().refusing(refuse_by)),
            ..Config::default()
        };
        let mut link = MockLink { room: 1 << 20, ..MockLink::default() };
        link.offloads.checksum = kind & 1 != 0;
        link.offloads.tcp4 = kind & 2 != 0;
        link.offloads.udp = kind & 4 != 0;
        Self {
            macs: config.macs,
            stack: Stack::new(config, [1; 16]),
            link,
            sockets: MockSockets { space: 3_000, read_limit: 2_000, ..MockSockets::default() },
            held: Rc::default(),
            now: Instant::from_nanos(0),
        }
    }

    fn frame(&mut self, bytes: Vec<u8>, offload: Offload) {
        let head = bytes[..bytes.len().min(HEAD_LEN)].to_vec();
        let payload = Bytes::new(bytes, &self.held);
        let frame = Frame { head: &head, payload, offload };
        let io = &mut Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.guest_frame(self.now, frame, io);
    }

    /// A segment to one of a few peers, with numbers near those that the guest was told last.
    fn segment(&mut self, script: &mut Script<'_>, known: (u32, u32)) {
        let (ports, flags) = (script.byte(), script.byte());
        let near = |by: i8| i32::from(by) * 97;
        let header = TcpHeader {
            source: if ports & 8 == 0 { 1000 + u16::from(ports & 3) } else { 80 },
            destination: if ports & 16 == 0 { 443 } else { 53 },
            sequence: known.0.wrapping_add_signed(near(script.byte() as i8)),
            acknowledgment: known.1.wrapping_add_signed(near(script.byte() as i8)),
            flags: TcpFlags(flags),
            window: u16::from(script.byte()) << 6,
            mss: (ports & 32 != 0).then_some(u16::from(ports) * 8),
            window_scale: (ports & 64 != 0).then_some(ports >> 4),
        };
        let payload = vec![flags; usize::from(script.byte()) * 7];
        let peer = if ports & 16 == 0 { [93, 184, 216, 34] } else { [192, 168, 127, 1] };
        let len = header.built_len() + payload.len();
        let ip = Ipv4Header::new([192, 168, 127, 2].into(), peer.into(), protocol::TCP);
        let mut headers = Headers::ipv4(self.swapped(), &ip, len);
        headers.push(&header.build(0)[..header.built_len()]);
        self.frame([headers.as_bytes(), &payload].concat(), Offload::default());
    }

    fn datagram(&mut self, script: &mut Script<'_>) {
        let (kind, len) = (script.byte(), script.byte());
        let data = script.bytes(usize::from(len));
        let (peer, port) = match kind & 3 {
            0 => ([192, 168, 127, 1], 53),
            1 => ([255, 255, 255, 255], 67),
            2 => ([93, 184, 216, 34], 123),
            _ => ([192, 168, 127, 254], 9),
        };
        let number = if kind & 4 == 0 { protocol::UDP } else { protocol::ICMP };
        let ip = Ipv4Header::new([192, 168, 127, 2].into(), peer.into(), number);
        let udp = UdpHeader { source: 5000 + u16::from(kind >> 4), destination: port };
        let mut headers = Headers::ipv4(self.swapped(), &ip, 8 + data.len());
        headers.push(&udp.build(data.len(), 0));
        let segmentation = (kind & 8 != 0).then_some(Segmentation::Udp(u16::from(len) / 3));
        let offload = Offload { segmentation, ..Offload::default() };
        self.frame([headers.as_bytes(), data].concat(), offload);
    }

    const fn swapped(&self) -> Macs {
        Macs { gateway: self.macs.guest, guest: self.macs.gateway }
    }

    /// The numbers that the next segment of the guest would have, by the last segment that it got.
    fn known(&mut self) -> Option<(u32, u32)> {
        let mut known = None;
        for (_, frame) in self.link.frames.drain(..) {
            assert!(frame.len() <= 14 + 65_535);
            if frame.len() >= 54 && frame[23] == protocol::TCP {
                let number =
                    |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four"));
                let syn = u32::from(frame[47] & 2 != 0);
                let len = u32::try_from(frame.len() - 54).expect("a frame is short");
                known = Some((number(42), number(38).wrapping_add(syn.max(len))));
            }
        }
        known
    }

    fn event(&mut self, script: &mut Script<'_>) {
        let (which, what) = (usize::from(script.byte()), script.byte());
        let open: Vec<_> =
            self.sockets.sockets.iter().filter(|(_, of)| of.closed.is_none()).collect();
        let Some(id) = open.get(which % open.len().max(1)).map(|(id, _)| **id) else { return };
        let socket = self.sockets.sockets.get_mut(&id).expect("it is open");
        socket.space += usize::from(what) * 30;
        match what & 7 {
            0 => socket.ended = true,
            1 => socket.error = Some(HostError::Reset),
            2 => socket.error = Some(HostError::HostUnreachable),
            3 => socket.waiting_datagrams.push_back(vec![what; usize::from(script.byte())]),
            _ => socket.waiting.extend(vec![what; usize::from(what) * 40]),
        }
        let readiness = Readiness {
            readable: what & 8 != 0,
            writable: what & 16 != 0,
            failed: what & 7 == 1 || what & 7 == 2,
        };
        let io = &mut Io { link: &mut self.link, sockets: &mut self.sockets };
        self.stack.socket_ready(self.now, id, readiness, io);
    }

    fn flush(&mut self) {
        for _ in 0..1_000 {
            let io = &mut Io { link: &mut self.link, sockets: &mut self.sockets };
            self.stack.run_timers(self.now, io);
            self.stack.flush(self.now, io);
            if self.stack.next_deadline().is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("there is always more to do");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let mut world = World::new(script.byte());
    let mut known = (1_000, 0);
    while script.goes_on() {
        let step = script.byte();
        match step & 15 {
            0 => {
                let len = usize::from(script.byte());
                world.frame(script.bytes(len).to_vec(), Offload::default());
            }
            1 => {
                let header = EthernetHeader {
                    destination: world.macs.gateway,
                    source: world.macs.guest,
                    ethertype: if step & 16 == 0 { ethertype::IPV4 } else { ethertype::IPV6 },
                };
                let len = usize::from(script.byte());
                let bytes = [&header.build()[..], script.bytes(len)].concat();
                world.frame(bytes, Offload::default());
            }
            2..=7 => world.segment(&mut script, known),
            8 => world.datagram(&mut script),
            9 | 10 => world.event(&mut script),
            11 => {
                let connect = match step >> 4 {
                    0..=3 => Ok(Connect::UnderWay),
                    4 => Err(HostError::Refused),
                    5 => Err(HostError::NetworkUnreachable),
                    _ => Ok(Connect::Done),
                };
                world.sockets.connects.push_back(connect);
            }
            12 => {
                let peer = SocketAddr::from(([198, 51, 100, step], u16::from(script.byte())));
                world.sockets.waiting.push_back(peer);
                let io = &mut Io { link: &mut world.link, sockets: &mut world.sockets };
                let forward = ForwardId(u16::from(step >> 4) % 3);
                world.stack.forward_ready(world.now, forward, io);
            }
            13 => {
                world.link.room = usize::from(script.byte());
                let io = &mut Io { link: &mut world.link, sockets: &mut world.sockets };
                match step >> 4 {
                    0 => world.stack.link_reset(world.now, io),
                    _ => world.stack.link_ready(world.now, io),
                }
            }
            14 => {
                world.now =
                    world.now + Duration::from_millis(u64::from(script.byte()) << (step >> 5))
            }
            _ => world.flush(),
        }
        known = world.known().unwrap_or(known);
        assert!(world.stack.tcp_flows() <= 6);
        assert!(world.held.get() <= PARKED + OUT_OF_ORDER + 6 * BATCH);
    }
    world.link.room = 1 << 20;
    let io = &mut Io { link: &mut world.link, sockets: &mut world.sockets };
    world.stack.link_ready(world.now, io);
    world.flush();
    assert!(world.held.get() <= PARKED + OUT_OF_ORDER);
});
