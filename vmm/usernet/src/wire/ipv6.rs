//! IPv6 (RFC 8200). Extension headers are skipped, as far as a host skips them, and bounded.

use std::net::Ipv6Addr;

use super::{FragmentPlace, Malformed, Part};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// The order of RFC 8200 section 4.1 has no more than these, routing with options on either side.
const MAX_EXTENSIONS: usize = 6;

/// The header of a packet, extension headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Header {
    /// Who sends it.
    pub source: Ipv6Addr,
    /// Who is to receive it.
    pub destination: Ipv6Addr,
    /// What it carries behind its extension headers, one of [`super::protocol`]. Of a fragment, what its fragment header says.
    pub protocol: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Six bits of DSCP and two of ECN.
    pub traffic_class: u8,
    /// Where it stands among fragments; `None` for a whole datagram.
    pub fragment: Option<FragmentPlace>,
}

impl Ipv6Header {
    /// Its bytes without extension headers.
    pub const LEN: usize = 40;

    /// A packet of ours: 64 hops.
    #[must_use]
    pub const fn new(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8) -> Self {
        Self { source, destination, protocol, hop_limit: 64, traffic_class: 0, fragment: None }
    }

    /// Reads it; what stands behind its extension headers comes too, without padding. Of a fragment, that is what follows the
    /// fragment header; a fragment header that says that the datagram is whole counts as none (RFC 6946).
    ///
    /// # Errors
    /// Too short, not version 6, lengths that contradict each other or the frame, a jumbogram, extension headers that are too
    /// many, out of order or ask for a route.
    pub fn parse(part: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let (fixed, rest) = part.split::<{ Self::LEN }>()?;
        if fixed[0] >> 4 != 6 {
            return Err(Malformed::Version);
        }
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if len > rest.len() {
            return Err(Malformed::Truncated);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            Ipv6Addr::from(octets)
        };
        let mut header = Self {
            source: address(8),
            destination: address(24),
            protocol: fixed[6],
            hop_limit: fixed[7],
            traffic_class: fixed[0] << 4 | fixed[1] >> 4,
            fragment: None,
        };
        let payload = header.skip_extensions(rest.truncate(len))?;
        Ok((header, payload))
    }

    fn skip_extensions<'a>(&mut self, mut rest: Part<'a>) -> Result<Part<'a>, Malformed> {
        for count in 0..=MAX_EXTENSIONS {
            match self.protocol {
                HOP_BY_HOP if count > 0 => return Err(Malformed::Extension),
                AUTHENTICATION => return Err(Malformed::Extension),
                HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => {}
                _ => return Ok(rest),
            }
            let (bytes, _) = rest.split::<8>()?;
            let mut len = 8;
            match self.protocol {
                // Whoever would have to visit other nodes first is none of ours (RFC 5095).
                ROUTING if bytes[3] != 0 => return Err(Malformed::Extension),
                FRAGMENT => {
                    let field = u16::from_be_bytes([bytes[2], bytes[3]]);
                    let place = FragmentPlace {
                        identification: u32::from_be_bytes([
                            bytes[4], bytes[5], bytes[6], bytes[7],
                        ]),
                        offset: u32::from(field & 0xfff8),
                        more: field & 1 == 1,
                    };
                    self.fragment = (place.offset != 0 || place.more).then_some(place);
                }
                _ => len += usize::from(bytes[1]) * 8,
            }
            self.protocol = bytes[0];
            (_, rest) = rest.split_at(len)?;
            if self.fragment.is_some() {
                return Ok(rest);
            }
        }
        Err(Malformed::Extension)
    }

    /// Its bytes in front of a payload of `payload_len` bytes, without extension headers. A payload above 65,535 is written as
    /// 65,535: callers stay below.
    #[must_use]
    pub fn build(&self, payload_len: usize) -> [u8; Self::LEN] {
        let len = u16::try_from(payload_len).unwrap_or(u16::MAX);
        let mut out = [0; Self::LEN];
        out[0] = 0x60 | self.traffic_class >> 4;
        out[1] = self.traffic_class << 4;
        out[4..6].copy_from_slice(&len.to_be_bytes());
        out[6] = self.protocol;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.source.octets());
        out[24..].copy_from_slice(&self.destination.octets());
        out
    }

    /// Its bytes and those of a fragment header in front of a payload of `payload_len` bytes.
    #[must_use]
    pub fn build_fragment(&self, place: FragmentPlace, payload_len: usize) -> [u8; Self::LEN + 8] {
        let mut out = [0; Self::LEN + 8];
        let outer = Self { protocol: FRAGMENT, ..*self };
        out[..Self::LEN].copy_from_slice(&outer.build(payload_len.saturating_add(8)));
        out[Self::LEN] = self.protocol;
        let offset = u16::try_from(place.offset).unwrap_or(u16::MAX) & 0xfff8;
        let field = offset | u16::from(place.more);
        out[Self::LEN + 2..Self::LEN + 4].copy_from_slice(&field.to_be_bytes());
        out[Self::LEN + 4..].copy_from_slice(&place.identification.to_be_bytes());
        out
    }
}
