//! The way of datagrams to the guest: checksums, segmentation, fragments, and what waits while the link is full.
//!
//! Invariant: datagrams arrive in the order in which they were given, whole or not at all; what waits never exceeds
//! [`MAX_WAITING`] bytes, the oldest giving way. RFC 791, 8200, VIRTIO 1.2 section 5.1.6.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::icmp::{Errors, Fault, Quote};
use crate::link::{LinkFull, Offload, Offloads, PartialChecksum, Payload, Segmentation};
use crate::turn::Turn;
use crate::wire::{
    FragmentPlace, Headers, IcmpHeader, Ipv4Header, Ipv6Header, Mac, Macs, Sum, UdpHeader, icmpv6,
    protocol,
};

/// Bytes that wait for the link at most.
pub const MAX_WAITING: usize = 256 << 10;
/// What one datagram that waits costs beside its bytes.
const OVERHEAD: usize = 128;
/// Datagrams in one frame at most: Linux takes no more (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// The longest packet that IPv4 describes.
const MAX_PACKET: usize = 65_535;

/// What stands in front of the bytes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// UDP.
    Udp {
        /// As the guest sees it.
        source: SocketAddr,
        /// The guest's end.
        destination: SocketAddr,
        /// Each datagram has so many of the bytes, the last one at most; 0 stands for one datagram.
        segment: usize,
    },
    /// ICMP of the addresses' family.
    Icmp {
        /// As the guest sees it.
        source: IpAddr,
        /// The guest's address.
        destination: IpAddr,
        /// The first eight bytes of the message; their checksum is computed.
        header: IcmpHeader,
    },
}

/// How far the bytes of one [`Header`] have gone.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Bytes whose datagrams are sent.
    sent: usize,
    /// Of the datagram behind them, bytes that are sent in fragments, its header included.
    fragmented: usize,
    identification: u32,
}

#[derive(Debug)]
struct Waiting {
    header: Header,
    mac: Mac,
    bytes: Vec<u8>,
    progress: Progress,
}

/// The way of datagrams to one guest.
#[derive(Debug)]
pub struct Delivery {
    macs: Macs,
    mtu: usize,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    identification: u32,
    errors: Errors,
}

impl Delivery {
    /// Over the link that `config` describes. `identification` is where the numbers of datagrams in fragments begin; they should
    /// not be guessed (RFC 7739).
    #[must_use]
    pub fn new(config: &Config, errors: Errors, identification: u32) -> Self {
        Self {
            macs: config.macs,
            mtu: usize::from(config.mtu.max(576)),
            errors,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            identification,
        }
    }

    /// Sends `bytes` behind `header`, now or when the link has room. Datagrams that no packet can hold are dropped and counted.
    pub fn send<P: Payload>(&mut self, header: Header, bytes: &[u8], turn: &mut Turn<'_, P>) {
        self.send_to(self.macs.guest, header, bytes, turn);
    }

    /// Tells the guest of `fault` about what is quoted, if there may be an error about it, and as their pace allows.
    pub fn report<P: Payload>(
        &mut self,
        fault: Fault,
        quote: Option<Quote>,
        turn: &mut Turn<'_, P>,
    ) {
        let Some(quote) = quote else { return };
        if self.errors.admit(turn.now) {
            turn.counters.icmp_errors_sent += 1;
            self.send(self.errors.header(fault, &quote), quote.as_bytes(), turn);
        } else {
            turn.counters.icmp_errors_limited += 1;
        }
    }

    /// As [`Self::send`], to another hardware address than the guest's own: a multicast one, or all.
    pub fn send_to<P: Payload>(
        &mut self,
        mac: Mac,
        header: Header,
        bytes: &[u8],
        turn: &mut Turn<'_, P>,
    ) {
        let mut progress = Progress { identification: self.identification, ..Progress::default() };
        self.identification = self.identification.wrapping_add(count(header, bytes.len()));
        if longest_packet(header, bytes.len()) > MAX_PACKET {
            turn.counters.datagrams_dropped += 1;
            return;
        }
        self.link_ready(turn);
        let full = !self.waiting.is_empty()
            || self.write(mac, header, bytes, &mut progress, turn).is_err();
        if full {
            self.wait(Waiting { header, mac, bytes: bytes.to_vec(), progress }, turn);
        }
    }

    /// The link may have room again.
    pub fn link_ready<P: Payload>(&mut self, turn: &mut Turn<'_, P>) {
        while let Some(mut first) = self.waiting.pop_front() {
            let Waiting { header, mac, bytes, progress } = &mut first;
            if self.write(*mac, *header, bytes, progress, turn).is_err() {
                self.waiting.push_front(first);
                return;
            }
            self.waiting_bytes -= first.bytes.len() + OVERHEAD;
        }
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    /// Bytes that wait.
    #[must_use]
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    fn wait<P: Payload>(&mut self, datagram: Waiting, turn: &mut Turn<'_, P>) {
        self.waiting_bytes += datagram.bytes.len() + OVERHEAD;
        self.waiting.push_back(datagram);
        while self.waiting_bytes > MAX_WAITING {
            let Some(oldest) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= oldest.bytes.len() + OVERHEAD;
            turn.counters.datagrams_dropped += 1;
        }
    }

    /// Sends what `progress` has not yet sent, and notes there how far it came.
    fn write<P: Payload>(
        &self,
        mac: Mac,
        header: Header,
        bytes: &[u8],
        progress: &mut Progress,
        turn: &mut Turn<'_, P>,
    ) -> Result<(), LinkFull> {
        let macs = Macs { guest: mac, ..self.macs };
        loop {
            let rest = bytes.get(progress.sent..).unwrap_or_default();
            let packet = Packet::next(header, rest, self.mtu, turn.link.offloads());
            if packet.len() <= self.mtu || packet.segmentation.is_some() {
                packet.send_whole(macs, progress.identification, turn)?;
            } else {
                packet.send_fragments(macs, self.mtu, progress, turn)?;
            }
            progress.sent += packet.bytes.len();
            progress.fragmented = 0;
            let datagrams = count(header, packet.bytes.len());
            progress.identification = progress.identification.wrapping_add(datagrams);
            if progress.sent >= bytes.len() {
                return Ok(());
            }
        }
    }
}

/// How many datagrams `len` bytes behind `header` are.
fn count(header: Header, len: usize) -> u32 {
    match header {
        Header::Udp { segment, .. } if segment > 0 => {
            u32::try_from(len.div_ceil(segment)).unwrap_or(u32::MAX).max(1)
        }
        _ => 1,
    }
}

/// The length of the longest packet that `len` bytes behind `header` make.
fn longest_packet(header: Header, len: usize) -> usize {
    let longest = match header {
        Header::Udp { segment, .. } if segment > 0 => segment.min(len),
        _ => len,
    };
    longest.saturating_add(8 + ip_len(header))
}

const fn ip_len(header: Header) -> usize {
    match header {
        Header::Udp { source: SocketAddr::V4(_), .. }
        | Header::Icmp { source: IpAddr::V4(_), .. } => Ipv4Header::LEN,
        _ => Ipv6Header::LEN,
    }
}

/// One packet, or several equal datagrams that the guest cuts itself.
#[derive(Debug)]
struct Packet<'a> {
    header: Header,
    bytes: &'a [u8],
    segmentation: Option<Segmentation>,
    partial_checksum: bool,
}

impl<'a> Packet<'a> {
    /// As much of `rest` as goes in one.
    fn next(header: Header, rest: &'a [u8], mtu: usize, offloads: Offloads) -> Self {
        let segment = match header {
            Header::Udp { segment, .. } if segment > 0 && segment < rest.len() => segment,
            _ => {
                let partial_checksum = offloads.checksum && matches!(header, Header::Udp { .. });
                return Self { header, bytes: rest, segmentation: None, partial_checksum };
            }
        };
        let room = (MAX_PACKET - 8 - ip_len(header)) / segment;
        let fits = segment + 8 + ip_len(header) <= mtu;
        let count =
            if offloads.udp && offloads.checksum && fits { room.min(MAX_SEGMENTS) } else { 1 };
        let bytes = rest.get(..segment * count.max(1)).unwrap_or(rest);
        let several = bytes.len() > segment;
        let size = u16::try_from(segment).ok().filter(|_| several);
        Self {
            header,
            bytes,
            segmentation: size.map(Segmentation::Udp),
            partial_checksum: offloads.checksum,
        }
    }

    const fn addresses(&self) -> (IpAddr, IpAddr) {
        match self.header {
            Header::Udp { source, destination, .. } => (source.ip(), destination.ip()),
            Header::Icmp { source, destination, .. } => (source, destination),
        }
    }

    const fn protocol(&self) -> u8 {
        match self.header {
            Header::Udp { .. } => protocol::UDP,
            Header::Icmp { source: IpAddr::V4(_), .. } => protocol::ICMP,
            Header::Icmp { .. } => protocol::ICMPV6,
        }
    }

    /// Its length with IP.
    const fn len(&self) -> usize {
        ip_len(self.header) + 8 + self.bytes.len()
    }

    /// UDP or ICMP, with a whole or a partial checksum.
    fn layer4(&self, partial: bool) -> [u8; 8] {
        let (from, to) = self.addresses();
        let len = u32::try_from(8 + self.bytes.len()).unwrap_or(u32::MAX);
        let pseudo = Sum::pseudo(from, to, self.protocol(), len);
        match self.header {
            Header::Udp { source, destination, .. } => {
                let header = UdpHeader { source: source.port(), destination: destination.port() };
                if partial {
                    header.build(self.bytes.len(), pseudo.partial())
                } else {
                    header.build_summed(pseudo, self.bytes.len(), &[self.bytes])
                }
            }
            Header::Icmp { source: IpAddr::V4(_), header, .. } => {
                header.build(Sum::new(), &[self.bytes])
            }
            Header::Icmp { header, .. } => header.build(pseudo, &[self.bytes]),
        }
    }

    fn send_whole<P: Payload>(
        &self,
        macs: Macs,
        identification: u32,
        turn: &mut Turn<'_, P>,
    ) -> Result<(), LinkFull> {
        let mut headers = self.ip(macs, None, identification, 8 + self.bytes.len());
        let start = u16::try_from(headers.len()).unwrap_or(0);
        headers.push(&self.layer4(self.partial_checksum));
        let offset = UdpHeader::CHECKSUM_OFFSET;
        let checksum = self.partial_checksum.then_some(PartialChecksum { start, offset });
        let offload = Offload { checksum, segmentation: self.segmentation, checksum_valid: false };
        turn.send(offload, headers.as_bytes(), &[self.bytes])
    }

    /// In fragments, from where it was left.
    fn send_fragments<P: Payload>(
        &self,
        macs: Macs,
        mtu: usize,
        progress: &mut Progress,
        turn: &mut Turn<'_, P>,
    ) -> Result<(), LinkFull> {
        let layer4 = self.layer4(false);
        let total = layer4.len() + self.bytes.len();
        let own = match self.header {
            Header::Udp { source: SocketAddr::V4(_), .. }
            | Header::Icmp { source: IpAddr::V4(_), .. } => Ipv4Header::LEN,
            _ => Ipv6Header::LEN + 8,
        };
        let room = mtu.saturating_sub(own).max(8) & !7;
        while progress.fragmented < total {
            let start = progress.fragmented;
            let end = (start + room).min(total);
            let place = FragmentPlace {
                identification: progress.identification,
                offset: u32::try_from(start).unwrap_or(0),
                more: end < total,
            };
            let mut headers = self.ip(macs, Some(place), 0, end - start);
            let from = start.saturating_sub(layer4.len());
            let bytes = self.bytes.get(from..end - layer4.len()).unwrap_or_default();
            if start == 0 {
                headers.push(&layer4);
            }
            turn.send(Offload::default(), headers.as_bytes(), &[bytes])?;
            progress.fragmented = end;
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "IPv4 has half as many numbers")]
    fn ip(
        &self,
        macs: Macs,
        fragment: Option<FragmentPlace>,
        identification: u32,
        len: usize,
    ) -> Headers {
        match self.addresses() {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let place =
                    fragment.unwrap_or(FragmentPlace { identification, offset: 0, more: false });
                let header = Ipv4Header {
                    identification: place.identification as u16,
                    fragment_offset: place.offset as u16,
                    more_fragments: place.more,
                    dont_fragment: fragment.is_none(),
                    ..Ipv4Header::new(source, destination, self.protocol())
                };
                Headers::ipv4(macs, &header, len)
            }
            (source, destination) => {
                let v6 = |address: IpAddr| match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let header = Ipv6Header::new(v6(source), v6(destination), self.protocol());
                // Neighbor discovery believes nobody from further away (RFC 4861 section 6.1).
                let hop_limit = if self.is_link_local_icmp() { 255 } else { header.hop_limit };
                Headers::ipv6(macs, &Ipv6Header { fragment, hop_limit, ..header }, len)
            }
        }
    }

    fn is_link_local_icmp(&self) -> bool {
        matches!(self.header, Header::Icmp { header, .. }
            if icmpv6::NEIGHBOR_DISCOVERY.contains(&header.kind))
            && self.protocol() == protocol::ICMPV6
    }
}
