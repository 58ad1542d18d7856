//! Ethernet II (RFC 894).

use std::fmt;

use super::{Malformed, Part};

/// What an Ethernet frame carries.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether it names a group of stations, or all of them.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetHeader {
    /// Who is to receive it.
    pub destination: Mac,
    /// Who sends it.
    pub source: Mac,
    /// What it carries: one of [`ethertype`], or a length below 1,536, which nobody here speaks.
    pub ethertype: u16,
}

impl EthernetHeader {
    /// Its bytes.
    pub const LEN: usize = 14;

    /// Reads it from the beginning of a frame; what follows it comes too.
    ///
    /// # Errors
    /// The frame is shorter than its header.
    pub fn parse(frame: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let ([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], rest) = frame.split()?;
        let header = Self {
            destination: Mac([*d0, *d1, *d2, *d3, *d4, *d5]),
            source: Mac([*s0, *s1, *s2, *s3, *s4, *s5]),
            ethertype: u16::from_be_bytes([*t0, *t1]),
        };
        Ok((header, rest))
    }

    /// Its bytes.
    #[must_use]
    pub fn build(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..6].copy_from_slice(&self.destination.0);
        out[6..12].copy_from_slice(&self.source.0);
        out[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        out
    }
}
