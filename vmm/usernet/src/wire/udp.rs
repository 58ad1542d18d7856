//! UDP (RFC 768).

use super::{Malformed, Part, Sum};

/// The header of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    /// Of the sender.
    pub source: u16,
    /// Of the receiver.
    pub destination: u16,
}

impl UdpHeader {
    /// Its bytes.
    pub const LEN: usize = 8;
    /// Where its checksum stands.
    pub const CHECKSUM_OFFSET: u16 = 6;

    /// Reads it; its payload comes too, without padding.
    ///
    /// # Errors
    /// Too short, or a length that contradicts the packet's.
    pub fn parse(part: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let ([s0, s1, d0, d1, l0, l1, _, _], rest) = part.split()?;
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let payload = len.checked_sub(Self::LEN).ok_or(Malformed::Length)?;
        if payload > rest.len() {
            return Err(Malformed::Truncated);
        }
        let header = Self {
            source: u16::from_be_bytes([*s0, *s1]),
            destination: u16::from_be_bytes([*d0, *d1]),
        };
        Ok((header, rest.truncate(payload)))
    }

    /// Its bytes with this checksum field, in front of a payload of `payload_len` bytes. A length above 65,535 is written as
    /// 65,535: callers stay below.
    #[must_use]
    pub fn build(&self, payload_len: usize, checksum: u16) -> [u8; Self::LEN] {
        let len = u16::try_from(payload_len.saturating_add(Self::LEN)).unwrap_or(u16::MAX);
        let mut out = [0; Self::LEN];
        out[..2].copy_from_slice(&self.source.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination.to_be_bytes());
        out[4..6].copy_from_slice(&len.to_be_bytes());
        out[6..].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    /// Its bytes with the checksum of header and `body`, whose pieces make `payload_len` bytes; `pseudo` is the sum of the
    /// pseudo-header.
    #[must_use]
    pub fn build_summed(&self, pseudo: Sum, payload_len: usize, body: &[&[u8]]) -> [u8; Self::LEN] {
        let sum = pseudo.with(&self.build(payload_len, 0));
        let sum = body.iter().fold(sum, |sum, piece| sum.with(piece));
        self.build(payload_len, sum.finish_udp())
    }
}
