//! IPv4 or IPv6, whichever an Ethernet frame carries.

use std::net::IpAddr;

use super::{FragmentPlace, Ipv4Header, Ipv6Header, Malformed, Part, ethertype};

/// What matters of an IP header of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// Who sends it.
    pub source: IpAddr,
    /// Who is to receive it; of the same version.
    pub destination: IpAddr,
    /// What it carries, one of [`super::protocol`].
    pub protocol: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Where it stands among fragments; `None` for a whole datagram.
    pub fragment: Option<FragmentPlace>,
}

impl IpHeader {
    /// Reads what a frame of this `ethertype` carries; what stands behind it comes too. `None`: it is not IP.
    ///
    /// # Errors
    /// As [`Ipv4Header::parse`] and [`Ipv6Header::parse`].
    pub fn parse(ethertype: u16, part: Part<'_>) -> Option<Result<(Self, Part<'_>), Malformed>> {
        match ethertype {
            ethertype::IPV4 => {
                Some(Ipv4Header::parse(part).map(|(header, rest)| (Self::from(header), rest)))
            }
            ethertype::IPV6 => {
                Some(Ipv6Header::parse(part).map(|(header, rest)| (Self::from(header), rest)))
            }
            _ => None,
        }
    }
}

impl From<Ipv4Header> for IpHeader {
    fn from(header: Ipv4Header) -> Self {
        Self {
            source: IpAddr::V4(header.source),
            destination: IpAddr::V4(header.destination),
            protocol: header.protocol,
            hop_limit: header.ttl,
            fragment: header.fragment(),
        }
    }
}

impl From<Ipv6Header> for IpHeader {
    fn from(header: Ipv6Header) -> Self {
        Self {
            source: IpAddr::V6(header.source),
            destination: IpAddr::V6(header.destination),
            protocol: header.protocol,
            hop_limit: header.hop_limit,
            fragment: header.fragment,
        }
    }
}
