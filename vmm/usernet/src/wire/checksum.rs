//! The Internet checksum: the ones' complement of a ones' complement sum (RFC 1071).

use std::net::IpAddr;

/// A ones' complement sum under way, over pieces of any length.
///
/// It is kept in little-endian order, which RFC 1071 section 2 allows, and with the bytes exchanged while an odd number of them has
/// been added.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { total: 0, odd: false }
    }

    /// The pseudo-header in front of a layer 4 packet of `len` bytes, header included (RFC 9293 section 3.1, RFC 8200 section 8.1).
    /// Addresses of different families do not occur; of such, what there is counts.
    #[must_use]
    pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> Self {
        let mut sum = Self::new();
        for address in [source, destination] {
            match address {
                IpAddr::V4(v4) => sum = sum.with(&v4.octets()),
                IpAddr::V6(v6) => sum = sum.with(&v6.octets()),
            }
        }
        sum.with(&len.to_be_bytes()).with(&[0, protocol])
    }

    /// With `bytes` behind what was added before.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let mut sum = 0_u64;
        // Halves of eight bytes, so that 2^31 of them fit without a carry.
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            let word = u64::from_le_bytes(*chunk);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let (pairs, rest) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_le_bytes(*pair));
        }
        sum += rest.first().map_or(0, |last| u64::from(*last));
        let mut folded = fold(sum);
        if self.odd {
            folded = folded.swap_bytes();
        }
        Self { total: self.total + u64::from(folded), odd: self.odd ^ (bytes.len() % 2 == 1) }
    }

    /// The sum as it is put where the receiver is to complete it.
    #[must_use]
    pub fn partial(self) -> u16 {
        fold(self.total).swap_bytes()
    }

    /// The checksum.
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.partial()
    }

    /// The checksum of UDP, which is never 0 because 0 means that there is none.
    #[must_use]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The sum of the 16-bit words of `sum`, with the carries added at the end.
#[expect(clippy::cast_possible_truncation, reason = "each step leaves fewer bits, the last one 16")]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}
