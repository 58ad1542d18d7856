//! The headers of one frame of ours, put together in place.

use std::net::IpAddr;

use super::{EthernetHeader, Ipv4Header, Ipv6Header, Mac, ethertype};

/// Room for Ethernet, IPv6 with a fragment header and TCP with the options that are built.
const ROOM: usize = 14 + 40 + 8 + 28;

/// The hardware addresses of a frame to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macs {
    /// Ours.
    pub gateway: Mac,
    /// The guest's.
    pub guest: Mac,
}

/// Headers, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    bytes: [u8; ROOM],
    len: usize,
}

impl Headers {
    /// An Ethernet header to the guest.
    #[must_use]
    pub fn ethernet(macs: Macs, ethertype: u16) -> Self {
        let mut headers = Self { bytes: [0; ROOM], len: 0 };
        let header = EthernetHeader { destination: macs.guest, source: macs.gateway, ethertype };
        headers.push(&header.build());
        headers
    }

    /// Ethernet and IPv4.
    #[must_use]
    pub fn ipv4(macs: Macs, header: &Ipv4Header, payload_len: usize) -> Self {
        let mut headers = Self::ethernet(macs, ethertype::IPV4);
        headers.push(&header.build(payload_len));
        headers
    }

    /// Ethernet and IPv6.
    #[must_use]
    pub fn ipv6(macs: Macs, header: &Ipv6Header, payload_len: usize) -> Self {
        let mut headers = Self::ethernet(macs, ethertype::IPV6);
        match header.fragment {
            None => headers.push(&header.build(payload_len)),
            Some(place) => headers.push(&header.build_fragment(place, payload_len)),
        }
        headers
    }

    /// Ethernet and the IP of the addresses' family, for a payload of `payload_len` bytes that is whole. Where the families differ,
    /// both are written as IPv6, IPv4 as a mapped address.
    #[must_use]
    pub fn ip(
        macs: Macs,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        payload_len: usize,
    ) -> Self {
        let mapped = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Self::ipv4(macs, &Ipv4Header::new(source, destination, protocol), payload_len)
            }
            _ => {
                let header = Ipv6Header::new(mapped(source), mapped(destination), protocol);
                Self::ipv6(macs, &header, payload_len)
            }
        }
    }

    /// Adds a header.
    ///
    /// # Panics
    /// When more is added than Ethernet, one IP header with a fragment header and one TCP header need: the headers of one frame
    /// are the caller's choice, never the guest's.
    pub fn push(&mut self, header: &[u8]) {
        let end = self.len + header.len();
        self.bytes
            .get_mut(self.len..end)
            .expect("the headers of a frame are Ethernet, IP and one of layer 4")
            .copy_from_slice(header);
        self.len = end;
    }

    /// All of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Their length in bytes: where the next one will begin.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}
