//! A link and sockets that tests script, and a guest that understands what the link carried.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::counters::Counters;
use crate::fragments::{DatagramKey, Fragments, Limits};
use crate::link::{Frame, Link, LinkFull, Offload, Offloads, Payload, Segmentation};
use crate::sockets::{
    Close, Connect, Datagrams, ForwardId, HostError, Received, Sockets, Unsendable, Unsent,
};
use crate::turn::Turn;
use crate::wire::{
    EthernetHeader, Headers, IpHeader, Mac, Macs, Part, Sum, UdpHeader, ethertype, protocol,
};
use crate::{FlowId, Instant};

/// Payload that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Payload for Bytes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn skip(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let len = out.len().min(self.0.len());
        out[..len].copy_from_slice(&self.0[..len]);
        len
    }
}

/// A link that keeps what it carries.
#[derive(Debug)]
pub(crate) struct ScriptedLink {
    pub(crate) offloads: Offloads,
    /// Frames that it still takes.
    pub(crate) room: usize,
    pub(crate) frames: Vec<(Offload, Vec<u8>)>,
}

impl Link for ScriptedLink {
    type Payload = Bytes;

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        self.room = self.room.checked_sub(1).ok_or(LinkFull)?;
        self.frames.push((offload, [head, &body.concat()].concat()));
        Ok(())
    }
}

/// One socket of the host.
#[derive(Debug, Default)]
pub(crate) struct ScriptedSocket {
    pub(crate) peer: Option<SocketAddr>,
    /// What was sent: sequence number of an echo or segment size, and bytes.
    pub(crate) sent: Vec<(Option<u16>, Vec<u8>)>,
    /// What is to be read: sequence number of an echo or segment size, and bytes.
    pub(crate) inbox: VecDeque<Result<(u16, Vec<u8>), HostError>>,
    pub(crate) error: Option<HostError>,
    /// What every sending says.
    pub(crate) refuses: Option<HostError>,
}

/// Sockets of the host.
#[derive(Debug, Default)]
pub(crate) struct ScriptedSockets {
    pub(crate) open: BTreeMap<FlowId, ScriptedSocket>,
    pub(crate) closed: Vec<FlowId>,
    /// What opening a socket says.
    pub(crate) refuses: Option<HostError>,
    /// Who waits at a published port, each with a datagram.
    pub(crate) waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(crate) reads: usize,
}

impl ScriptedSockets {
    pub(crate) fn socket(&mut self, flow: FlowId) -> &mut ScriptedSocket {
        self.open.get_mut(&flow).expect("an open socket")
    }

    /// The only socket there is.
    pub(crate) fn only(&mut self) -> (FlowId, &mut ScriptedSocket) {
        assert_eq!(self.open.len(), 1);
        self.open.iter_mut().next().map(|(flow, socket)| (*flow, socket)).unwrap()
    }

    fn new_socket(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        if let Some(error) = self.refuses {
            return Err(error);
        }
        let socket = ScriptedSocket { peer: Some(peer), ..ScriptedSocket::default() };
        assert!(self.open.insert(flow, socket).is_none(), "{flow:?} has a socket");
        Ok(())
    }

    fn receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<(u16, usize)>, HostError> {
        self.reads += 1;
        let Some(next) = self.socket(flow).inbox.pop_front() else { return Ok(None) };
        let (number, bytes) = next?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(Some((number, bytes.len())))
    }

    fn send(&mut self, flow: FlowId, number: Option<u16>, bytes: &[u8]) -> Result<(), HostError> {
        let socket = self.socket(flow);
        match socket.refuses {
            Some(error) => Err(error),
            None => {
                socket.sent.push((number, bytes.to_vec()));
                Ok(())
            }
        }
    }
}

impl Sockets<Bytes> for ScriptedSockets {
    fn tcp_connect(&mut self, _: FlowId, _: SocketAddr) -> Result<Connect, HostError> {
        unreachable!("no TCP here")
    }

    fn tcp_accept(&mut self, _: ForwardId, _: FlowId) -> Result<Option<SocketAddr>, HostError> {
        unreachable!("no TCP here")
    }

    fn tcp_send(&mut self, _: FlowId, _: &[Bytes]) -> Result<usize, HostError> {
        unreachable!("no TCP here")
    }

    fn tcp_send_bytes(&mut self, _: FlowId, _: &[u8]) -> Result<usize, HostError> {
        unreachable!("no TCP here")
    }

    fn tcp_receive(&mut self, _: FlowId, _: &mut [&mut [u8]]) -> Result<Received, HostError> {
        unreachable!("no TCP here")
    }

    fn tcp_send_space(&mut self, _: FlowId) -> usize {
        unreachable!("no TCP here")
    }

    fn tcp_shutdown_write(&mut self, _: FlowId) {
        unreachable!("no TCP here")
    }

    fn udp_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.new_socket(flow, peer)
    }

    fn udp_accept(&mut self, _: ForwardId, flow: FlowId) -> Result<Option<SocketAddr>, HostError> {
        let Some((peer, bytes)) = self.waiting.pop_front() else { return Ok(None) };
        self.new_socket(flow, peer)?;
        self.socket(flow).inbox.push_back(Ok((0, bytes)));
        Ok(Some(peer))
    }

    fn udp_send(&mut self, flow: FlowId, batch: &[Unsent<Bytes>]) -> Result<(), Unsendable> {
        for (index, Unsent { payload, segment }) in batch.iter().enumerate() {
            let sent = self.send(flow, *segment, &payload.0);
            sent.map_err(|error| Unsendable { index, error })?;
        }
        Ok(())
    }

    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        self.send(flow, None, bytes)
    }

    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        let received = self.receive(flow, into)?;
        Ok(received.map(|(segment, len)| {
            let segment = if segment == 0 { len } else { usize::from(segment) };
            Datagrams { len, segment }
        }))
    }

    fn echo_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.new_socket(flow, peer)
    }

    fn echo_send(&mut self, flow: FlowId, sequence: u16, data: &[u8]) -> Result<(), HostError> {
        self.send(flow, Some(sequence), data)
    }

    fn echo_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<(u16, usize)>, HostError> {
        self.receive(flow, into)
    }

    fn take_error(&mut self, flow: FlowId) -> Option<HostError> {
        self.socket(flow).error.take()
    }

    fn close(&mut self, flow: FlowId, _: Close) {
        assert!(self.open.remove(&flow).is_some(), "{flow:?} has no socket");
        self.closed.push(flow);
    }
}

/// Everything a turn needs.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) now: Instant,
    pub(crate) link: ScriptedLink,
    pub(crate) sockets: ScriptedSockets,
    pub(crate) counters: Counters,
    pub(crate) link_full: bool,
}

impl Rig {
    /// A link without offloads that takes everything.
    pub(crate) fn new() -> Self {
        Self {
            now: seconds(1_000),
            link: ScriptedLink { offloads: Offloads::default(), room: usize::MAX, frames: vec![] },
            sockets: ScriptedSockets::default(),
            counters: Counters::default(),
            link_full: false,
        }
    }

    pub(crate) const fn all_offloads() -> Offloads {
        Offloads { checksum: true, tcp4: true, tcp6: true, udp: true }
    }

    pub(crate) fn turn(&mut self) -> Turn<'_, Bytes> {
        Turn {
            now: self.now,
            link: &mut self.link,
            sockets: &mut self.sockets,
            counters: &mut self.counters,
            link_full: &mut self.link_full,
        }
    }

    /// The link has room for so many frames more.
    pub(crate) const fn make_room(&mut self, frames: usize) {
        self.link.room = frames;
        self.link_full = false;
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now = self.now + std::time::Duration::from_secs(seconds);
    }

    /// What the guest makes of the frames since the last time.
    pub(crate) fn received(&mut self) -> Vec<Told> {
        understand(&std::mem::take(&mut self.link.frames))
    }
}

pub(crate) fn seconds(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

/// What a guest reads off the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// A datagram.
    Udp { mac: Mac, source: SocketAddr, destination: SocketAddr, bytes: Vec<u8> },
    /// An ICMP message with its first eight bytes.
    Icmp { source: IpAddr, destination: IpAddr, bytes: Vec<u8> },
    /// Something else, with its ethertype.
    Other(u16, Vec<u8>),
}

/// As a guest would: completes checksums and verifies the others, cuts what is to be cut, joins fragments.
pub(crate) fn understand(frames: &[(Offload, Vec<u8>)]) -> Vec<Told> {
    let mut told = Vec::new();
    let limits = Limits { datagrams: 1_000, bytes: 1 << 24, ..Limits::default() };
    let mut fragments = Fragments::new(limits);
    for (offload, bytes) in frames {
        let mut bytes = bytes.clone();
        if let Some(partial) = offload.checksum {
            let start = usize::from(partial.start);
            let at = start + usize::from(partial.offset);
            let sum = Sum::new().with(&bytes[start..]).finish();
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let (ethernet, part) = EthernetHeader::parse(Part::whole(&bytes)).unwrap();
        let Some(ip) = IpHeader::parse(ethernet.ethertype, part) else {
            told.push(Told::Other(ethernet.ethertype, bytes));
            continue;
        };
        let (ip, payload) = ip.unwrap();
        let whole = match ip.fragment {
            None => Some(payload.all().unwrap().to_vec()),
            Some(place) => {
                assert_eq!(*offload, Offload::default(), "a fragment has no offloads");
                let key = DatagramKey {
                    source: ip.source,
                    destination: ip.destination,
                    protocol: ip.protocol,
                    identification: place.identification,
                };
                let payload = Bytes(payload.all().unwrap().to_vec());
                fragments.add(seconds(0), key, place, &payload).unwrap()
            }
        };
        if let Some(whole) = whole {
            told.extend(transport(ethernet.destination, &ip, &whole, *offload));
        }
    }
    assert_eq!(fragments.kept().0, 0, "datagrams that never became whole");
    told
}

fn transport(mac: Mac, ip: &IpHeader, bytes: &[u8], offload: Offload) -> Vec<Told> {
    let (source, destination) = (ip.source, ip.destination);
    let len = u32::try_from(bytes.len()).unwrap();
    let pseudo = match ip.protocol {
        protocol::ICMP => Sum::new(),
        number => Sum::pseudo(source, destination, number, len),
    };
    assert_eq!(pseudo.with(bytes).finish(), 0, "wrong checksum");
    if ip.protocol != protocol::UDP {
        return vec![Told::Icmp { source, destination, bytes: bytes.to_vec() }];
    }
    let (header, data) = UdpHeader::parse(Part::whole(bytes)).unwrap();
    let data = data.all().unwrap();
    let size = match offload.segmentation {
        Some(Segmentation::Udp(size)) => usize::from(size),
        other => {
            assert_eq!(other, None);
            data.len().max(1)
        }
    };
    let mut pieces: Vec<&[u8]> = data.chunks(size).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let told = pieces.into_iter().map(|piece| Told::Udp {
        mac,
        source: SocketAddr::new(source, header.source),
        destination: SocketAddr::new(destination, header.destination),
        bytes: piece.to_vec(),
    });
    told.collect()
}

/// A frame of the guest's.
pub(crate) fn guest_frame(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &[u8],
) -> Vec<u8> {
    let config = Config::default();
    let macs = Macs { gateway: config.macs.guest, guest: config.macs.gateway };
    let mut headers = Headers::ip(macs, source, destination, protocol, transport.len());
    headers.push(&[]);
    [headers.as_bytes(), transport].concat()
}

/// The same with UDP.
pub(crate) fn guest_udp(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let header = UdpHeader { source: source.port(), destination: destination.port() };
    let len = u32::try_from(data.len() + 8).unwrap();
    let pseudo = Sum::pseudo(source.ip(), destination.ip(), protocol::UDP, len);
    let transport = [&header.build_summed(pseudo, data.len(), &[data])[..], data].concat();
    guest_frame(source.ip(), destination.ip(), protocol::UDP, &transport)
}

/// Hands `bytes` to `take` as the stack would: the header of IP, all of the packet, what is behind the header, and the frame.
pub(crate) fn with_frame<R>(
    bytes: &[u8],
    offload: Offload,
    take: impl FnOnce(&IpHeader, Part<'_>, Part<'_>, Frame<'_, Bytes>) -> R,
) -> R {
    let head = &bytes[..bytes.len().min(crate::link::HEAD_LEN)];
    let (ethernet, packet) = EthernetHeader::parse(Part::frame(head, bytes.len())).unwrap();
    assert!(matches!(ethernet.ethertype, ethertype::IPV4 | ethertype::IPV6));
    let (ip, transport) = IpHeader::parse(ethernet.ethertype, packet).unwrap().unwrap();
    take(&ip, packet, transport, Frame { head, payload: Bytes(bytes.to_vec()), offload })
}
