//! Wire formats: headers that are checked once and then plain values, and builders into fixed arrays.
//!
//! Of a frame from the guest only the first bytes are at hand ([`crate::link::HEAD_LEN`]); a [`Part`] is a stretch of a frame that
//! knows its true length too. Invariant: `parse` accepts a header only when it is wholly at hand and every length in it agrees with
//! the true length of what it stands in; no `parse` panics or allocates. Layer 4 checksums are not verified: the guest's memory
//! is not a wire. RFC 791, 768, 792, 826, 894, 4443, 8200, 9293.

mod arp;
mod checksum;
mod ethernet;
mod headers;
mod icmp;
mod ip;
mod ipv4;
mod ipv6;
mod part;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub use arp::{ArpOperation, ArpPacket};
pub use checksum::Sum;
pub use ethernet::{EthernetHeader, Mac, ethertype};
pub use headers::{Headers, Macs};
pub use icmp::{Icmp, IcmpHeader, icmpv4, icmpv6};
pub use ip::IpHeader;
pub use ipv4::Ipv4Header;
pub use ipv6::Ipv6Header;
pub use part::{Malformed, Part};
pub use tcp::{TcpFlags, TcpHeader};
pub use udp::UdpHeader;

/// Numbers of the protocols above IP.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Where a packet stands among the fragments of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentPlace {
    /// What names the datagram, together with addresses and protocol.
    pub identification: u32,
    /// Bytes of the datagram's payload before this one; a multiple of 8, below 65,536.
    pub offset: u32,
    /// Whether others follow.
    pub more: bool,
}
