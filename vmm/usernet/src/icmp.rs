//! ICMP errors to the guest (RFC 792, 1812 section 4.3.2, 4443 section 2.4): what they quote, when there is none, how many.
//!
//! Invariant: no error is about an error, a fragment other than the first, or a packet from or to more than one host; and there are
//! never more of them than their pace allows.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::delivery::Header;
use crate::limits::TokenBucket;
use crate::link::HEAD_LEN;
use crate::sockets::HostError;
use crate::table::FlowKey;
use crate::time::Instant;
use crate::wire::{
    Icmp, IcmpHeader, IpHeader, Ipv4Header, Ipv6Header, Part, Sum, TcpHeader, UdpHeader, icmpv4,
    icmpv6, protocol,
};

/// Errors in a row, and a second after that.
const BURST: u64 = 50;
const PER_SECOND: u64 = 100;

/// What the guest is told about a packet of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens at that port.
    Port,
    /// The host does not speak that protocol.
    Protocol,
    /// No way to the host.
    Host,
    /// No way to the network.
    Network,
    /// Forbidden.
    Prohibited,
    /// It may go no further: no hop was left.
    Hops,
    /// Longer than the path takes, whose MTU in bytes comes along where it is known.
    TooBig(Option<u16>),
}

impl Fault {
    /// What the guest is told when the host said this; `None`: nothing.
    #[must_use]
    pub const fn of(error: HostError) -> Option<Self> {
        match error {
            HostError::Refused => Some(Self::Port),
            HostError::NetworkUnreachable => Some(Self::Network),
            HostError::HostUnreachable | HostError::TimedOut => Some(Self::Host),
            HostError::Prohibited => Some(Self::Prohibited),
            HostError::TooLarge { mtu } => Some(Self::TooBig(mtu)),
            HostError::Reset | HostError::NoRoom | HostError::Other(_) => None,
        }
    }

    /// Whether the destination itself says so, not a router on the way.
    const fn is_from_destination(self) -> bool {
        matches!(self, Self::Port | Self::Protocol)
    }

    fn header(self, icmp: Icmp) -> IcmpHeader {
        let (kind, code, rest) = match icmp {
            Icmp::V4 => match self {
                Self::Port => (icmpv4::UNREACHABLE, icmpv4::PORT, [0; 4]),
                Self::Protocol => (icmpv4::UNREACHABLE, icmpv4::PROTOCOL, [0; 4]),
                Self::Host => (icmpv4::UNREACHABLE, icmpv4::HOST, [0; 4]),
                Self::Network => (icmpv4::UNREACHABLE, icmpv4::NET, [0; 4]),
                Self::Prohibited => (icmpv4::UNREACHABLE, icmpv4::PROHIBITED, [0; 4]),
                Self::Hops => (icmpv4::TIME_EXCEEDED, 0, [0; 4]),
                Self::TooBig(mtu) => {
                    let [high, low] = mtu.unwrap_or(1_280).max(68).to_be_bytes();
                    (icmpv4::UNREACHABLE, icmpv4::FRAGMENTATION_NEEDED, [0, 0, high, low])
                }
            },
            Icmp::V6 => match self {
                Self::Port => (icmpv6::UNREACHABLE, icmpv6::PORT, [0; 4]),
                // The next header that is not known is field 6 of the IPv6 header.
                Self::Protocol => (icmpv6::PARAMETER_PROBLEM, 1, [0, 0, 0, 6]),
                Self::Host => (icmpv6::UNREACHABLE, icmpv6::ADDRESS, [0; 4]),
                Self::Network => (icmpv6::UNREACHABLE, icmpv6::NO_ROUTE, [0; 4]),
                Self::Prohibited => (icmpv6::UNREACHABLE, icmpv6::PROHIBITED, [0; 4]),
                Self::Hops => (icmpv6::TIME_EXCEEDED, 0, [0; 4]),
                Self::TooBig(mtu) => {
                    let mtu = u32::from(mtu.unwrap_or(1_280).max(1_280));
                    (icmpv6::PACKET_TOO_BIG, 0, mtu.to_be_bytes())
                }
            },
        };
        IcmpHeader { kind, code, rest }
    }
}

/// The beginning of a packet of the guest, as an error about it quotes it.
#[derive(Debug, Clone, Copy)]
pub struct Quote {
    source: IpAddr,
    destination: IpAddr,
    bytes: [u8; HEAD_LEN],
    len: usize,
}

impl Quote {
    /// Of a packet that arrived: `packet` is all of it, `ip` its header and `transport` what stands behind that. `None`: there must
    /// be no error about it.
    #[must_use]
    pub fn of(ip: &IpHeader, packet: Part<'_>, transport: Part<'_>) -> Option<Self> {
        if ip.fragment.is_some_and(|place| place.offset != 0) || is_icmp_error(ip, transport) {
            return None;
        }
        // Eight bytes behind the IP header, by which the guest finds its socket (RFC 792).
        let behind = transport.bytes().len().min(transport.len());
        if behind < 8 {
            return None;
        }
        Self::new(ip.source, ip.destination, packet.bytes())
    }

    /// Of a UDP datagram of `len` bytes that the guest sent on the flow `key` some time ago.
    #[must_use]
    pub fn udp(key: &FlowKey, len: u16) -> Option<Self> {
        let header = UdpHeader { source: key.guest.port, destination: key.remote.port };
        Self::made_up(key, protocol::UDP, usize::from(len), &header.build(usize::from(len), 0))
    }

    /// Of an echo request that the guest sent on the flow `key` some time ago.
    #[must_use]
    pub fn echo(key: &FlowKey, sequence: u16) -> Option<Self> {
        let (kind, number) = match key.remote.ip() {
            IpAddr::V4(_) => (icmpv4::ECHO_REQUEST, protocol::ICMP),
            IpAddr::V6(_) => (icmpv6::ECHO_REQUEST, protocol::ICMPV6),
        };
        let header = IcmpHeader::echo(kind, key.guest.port, sequence);
        Self::made_up(key, number, 0, &header.build(Sum::new(), &[]))
    }

    /// Of a segment that the guest sent on the flow `key` some time ago: its SYN.
    #[must_use]
    pub fn tcp(key: &FlowKey, header: &TcpHeader) -> Option<Self> {
        let bytes = header.build(0);
        Self::made_up(key, protocol::TCP, 0, bytes.get(..header.built_len())?)
    }

    fn made_up(key: &FlowKey, protocol: u8, len: usize, transport: &[u8]) -> Option<Self> {
        let (source, destination) = (key.guest.ip(), key.remote.ip());
        let len = len + transport.len();
        let mut bytes = [0; Ipv6Header::LEN + TcpHeader::MAX_BUILT_LEN];
        let ip_len = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header::new(source, destination, protocol).build(len);
                bytes.get_mut(..header.len())?.copy_from_slice(&header);
                header.len()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header::new(source, destination, protocol).build(len);
                bytes.get_mut(..header.len())?.copy_from_slice(&header);
                header.len()
            }
            _ => return None,
        };
        let end = ip_len + transport.len();
        bytes.get_mut(ip_len..end)?.copy_from_slice(transport);
        Self::new(source, destination, bytes.get(..end)?)
    }

    fn new(source: IpAddr, destination: IpAddr, packet: &[u8]) -> Option<Self> {
        if is_not_one_host(source) || is_not_one_host(destination) {
            return None;
        }
        let len = packet.len().min(HEAD_LEN);
        let mut bytes = [0; HEAD_LEN];
        bytes.get_mut(..len)?.copy_from_slice(packet.get(..len)?);
        Some(Self { source, destination, bytes, len })
    }

    /// What is quoted.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

fn is_icmp_error(ip: &IpHeader, transport: Part<'_>) -> bool {
    let icmp = match ip.protocol {
        protocol::ICMP => Icmp::V4,
        protocol::ICMPV6 => Icmp::V6,
        _ => return false,
    };
    // What cannot be seen counts as one.
    transport.bytes().first().is_none_or(|kind| icmp.is_error(*kind))
}

fn is_not_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unspecified(),
    }
}

/// Errors to one guest.
#[derive(Debug)]
pub struct Errors {
    gateway: Ipv4Addr,
    gateway6: Option<Ipv6Addr>,
    pace: TokenBucket,
}

impl Errors {
    /// From routers with these addresses; without one for IPv6, errors for that name the destination as their source.
    #[must_use]
    pub fn new(gateway: Ipv4Addr, gateway6: Option<Ipv6Addr>) -> Self {
        Self { gateway, gateway6, pace: TokenBucket::new(PER_SECOND, BURST) }
    }

    /// Whether another error keeps to their pace.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.pace.take(now, 1)
    }

    /// The message that tells of `fault`; the quote follows it.
    #[must_use]
    pub fn header(&self, fault: Fault, quote: &Quote) -> Header {
        let (icmp, router) = match quote.destination {
            IpAddr::V4(_) => (Icmp::V4, Some(IpAddr::V4(self.gateway))),
            IpAddr::V6(_) => (Icmp::V6, self.gateway6.map(IpAddr::V6)),
        };
        let router = router.filter(|_| !fault.is_from_destination());
        let source = router.unwrap_or(quote.destination);
        Header::Icmp { source, destination: quote.source, header: fault.header(icmp) }
    }
}
