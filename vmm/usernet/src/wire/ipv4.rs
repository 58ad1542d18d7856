//! IPv4 (RFC 791). Options are skipped.

use std::net::Ipv4Addr;

use super::{FragmentPlace, Malformed, Part, Sum};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Who sends it.
    pub source: Ipv4Addr,
    /// Who is to receive it.
    pub destination: Ipv4Addr,
    /// What it carries, one of [`super::protocol`].
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Type of service: six bits of DSCP and two of ECN.
    pub tos: u8,
    /// Whether routers must not cut it.
    pub dont_fragment: bool,
    /// Names the datagram that a fragment belongs to; without meaning elsewhere.
    pub identification: u16,
    /// Bytes of the datagram's payload before this one, a multiple of 8 below 65,536.
    pub fragment_offset: u16,
    /// Whether fragments follow.
    pub more_fragments: bool,
}

impl Ipv4Header {
    /// Its bytes without options.
    pub const LEN: usize = 20;

    /// A packet of ours: 64 hops, not to be cut.
    #[must_use]
    pub const fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            identification: 0,
            fragment_offset: 0,
            more_fragments: false,
        }
    }

    /// Where it stands among fragments; `None` for a whole datagram.
    #[must_use]
    pub fn fragment(&self) -> Option<FragmentPlace> {
        (self.fragment_offset != 0 || self.more_fragments).then(|| FragmentPlace {
            identification: u32::from(self.identification),
            offset: u32::from(self.fragment_offset),
            more: self.more_fragments,
        })
    }

    /// Reads it and verifies its checksum; its payload comes too, without padding.
    ///
    /// # Errors
    /// Too short, not version 4, lengths that contradict each other or the frame, wrong checksum.
    pub fn parse(part: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let (fixed, _) = part.split::<{ Self::LEN }>()?;
        if fixed[0] >> 4 != 4 {
            return Err(Malformed::Version);
        }
        let header_len = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_len < Self::LEN || total < header_len {
            return Err(Malformed::Length);
        }
        if total > part.len() {
            return Err(Malformed::Truncated);
        }
        let (header, payload) = part.truncate(total).split_at(header_len)?;
        if Sum::new().with(header).finish() != 0 {
            return Err(Malformed::Checksum);
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        let header = Self {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            protocol: fixed[9],
            ttl: fixed[8],
            tos: fixed[1],
            dont_fragment: flags & DONT_FRAGMENT != 0,
            identification: u16::from_be_bytes([fixed[4], fixed[5]]),
            fragment_offset: (flags & 0x1fff) << 3,
            more_fragments: flags & MORE_FRAGMENTS != 0,
        };
        Ok((header, payload))
    }

    /// Its bytes in front of a payload of `payload_len` bytes. A total above 65,535 is written as 65,535: callers stay below.
    #[must_use]
    pub fn build(&self, payload_len: usize) -> [u8; Self::LEN] {
        let total = u16::try_from(payload_len.saturating_add(Self::LEN)).unwrap_or(u16::MAX);
        let mut flags = self.fragment_offset >> 3;
        if self.dont_fragment {
            flags |= DONT_FRAGMENT;
        }
        if self.more_fragments {
            flags |= MORE_FRAGMENTS;
        }
        let mut out = [0; Self::LEN];
        out[0] = 0x45;
        out[1] = self.tos;
        out[2..4].copy_from_slice(&total.to_be_bytes());
        out[4..6].copy_from_slice(&self.identification.to_be_bytes());
        out[6..8].copy_from_slice(&flags.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[12..16].copy_from_slice(&self.source.octets());
        out[16..].copy_from_slice(&self.destination.octets());
        let checksum = Sum::new().with(&out).finish();
        out[10..12].copy_from_slice(&checksum.to_be_bytes());
        out
    }
}
