//! TCP (RFC 9293). Of the options, those of a SYN that matter here are read: maximum segment size and window scale.

use std::ops::BitOr;

use super::{Malformed, Part, Sum};

/// Control bits of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(1);
    /// Synchronises sequence numbers.
    pub const SYN: Self = Self(2);
    /// Resets the connection.
    pub const RST: Self = Self(4);
    /// Push.
    pub const PSH: Self = Self(8);
    /// The acknowledgment number means something.
    pub const ACK: Self = Self(16);

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHeader {
    /// Of the sender.
    pub source: u16,
    /// Of the receiver.
    pub destination: u16,
    /// Of the first byte of payload, or of the SYN.
    pub sequence: u32,
    /// The next sequence number that the sender expects.
    pub acknowledgment: u32,
    /// Control bits. The urgent bit is kept and means nothing here.
    pub flags: TcpFlags,
    /// Bytes that the sender takes, before scaling.
    pub window: u16,
    /// The largest payload that the sender takes; read and written in a SYN only.
    pub mss: Option<u16>,
    /// By how many bits later windows of the sender are shifted, at most 14; read and written in a SYN only.
    pub window_scale: Option<u8>,
}

impl TcpHeader {
    /// Its bytes without options.
    pub const LEN: usize = 20;
    /// Its bytes with both options.
    pub const MAX_BUILT_LEN: usize = 28;
    /// Where its checksum stands.
    pub const CHECKSUM_OFFSET: u16 = 16;

    /// Reads it; its payload comes too. Options that make no sense end the reading of options, not of the segment.
    ///
    /// # Errors
    /// Too short, or a header length that contradicts the packet's.
    pub fn parse(part: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let (fixed, _) = part.split::<{ Self::LEN }>()?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < Self::LEN {
            return Err(Malformed::Length);
        }
        let (all, payload) = part.split_at(header_len)?;
        let mut header = Self {
            source: u16::from_be_bytes([fixed[0], fixed[1]]),
            destination: u16::from_be_bytes([fixed[2], fixed[3]]),
            sequence: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            acknowledgment: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            flags: TcpFlags(fixed[13]),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            mss: None,
            window_scale: None,
        };
        if header.flags.has(TcpFlags::SYN) {
            header.read_options(all.get(Self::LEN..).unwrap_or_default());
        }
        Ok((header, payload))
    }

    fn read_options(&mut self, mut options: &[u8]) {
        loop {
            match options {
                [] | [0, ..] => return,
                [1, rest @ ..] => options = rest,
                [kind, len, ..] => {
                    let Some((option, rest)) = options.split_at_checked(usize::from(*len)) else {
                        return;
                    };
                    match (kind, option) {
                        // Shorter than its own two bytes: it would not get on.
                        (_, [] | [_]) => return,
                        (2, [_, _, high, low]) => {
                            self.mss = Some(u16::from_be_bytes([*high, *low]));
                        }
                        (3, [_, _, shift]) => self.window_scale = Some((*shift).min(14)),
                        _ => {}
                    }
                    options = rest;
                }
                [_] => return,
            }
        }
    }

    /// How many bytes [`Self::build`] writes.
    #[must_use]
    pub const fn built_len(&self) -> usize {
        if !self.flags.has(TcpFlags::SYN) {
            return Self::LEN;
        }
        let mss = if self.mss.is_some() { 4 } else { 0 };
        let scale = if self.window_scale.is_some() { 4 } else { 0 };
        Self::LEN + mss + scale
    }

    /// Its bytes, the first [`Self::built_len`] of the array, with this checksum field.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a header has at most 28 bytes")]
    pub fn build(&self, checksum: u16) -> [u8; Self::MAX_BUILT_LEN] {
        let mut out = [0; Self::MAX_BUILT_LEN];
        out[..2].copy_from_slice(&self.source.to_be_bytes());
        out[2..4].copy_from_slice(&self.destination.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..12].copy_from_slice(&self.acknowledgment.to_be_bytes());
        out[12] = (self.built_len() as u8 / 4) << 4;
        out[13] = self.flags.0;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..18].copy_from_slice(&checksum.to_be_bytes());
        if self.flags.has(TcpFlags::SYN) {
            let mut at = Self::LEN;
            if let Some(mss) = self.mss {
                let [high, low] = mss.to_be_bytes();
                out[at..at + 4].copy_from_slice(&[2, 4, high, low]);
                at += 4;
            }
            if let Some(shift) = self.window_scale {
                out[at..at + 4].copy_from_slice(&[1, 3, 3, shift]);
            }
        }
        out
    }

    /// As [`Self::build`], with the checksum of header and `body`; `pseudo` is the sum of the pseudo-header.
    #[must_use]
    pub fn build_summed(&self, pseudo: Sum, body: &[&[u8]]) -> [u8; Self::MAX_BUILT_LEN] {
        let sum = pseudo.with(&self.build(0)[..self.built_len()]);
        let sum = body.iter().fold(sum, |sum, piece| sum.with(piece));
        self.build(sum.finish())
    }
}
