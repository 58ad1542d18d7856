//! Ranges of addresses.
//!
//! Invariant: no bit below the prefix is set, and a mapped IPv4 address (`::ffff:0:0/96`) is kept as the IPv4 address it is. Pure.

use std::fmt;
use std::net::IpAddr;

/// An address with a prefix length. IPv4 and IPv6 never contain one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    len_bits: u8,
}

impl Cidr {
    /// The range of the first `len_bits` bits of `address`; bits below are cleared. `None` when the address has fewer bits.
    #[must_use]
    pub const fn new(address: IpAddr, len_bits: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                // A prefix that reaches above the mapped part is one of IPv6.
                Some(v4) if len_bits >= 96 && len_bits <= 128 => {
                    return Self::new(IpAddr::V4(v4), len_bits - 96);
                }
                _ => address,
            },
            IpAddr::V4(_) => address,
        };
        match address {
            IpAddr::V4(v4) if len_bits <= 32 => {
                let mask = if len_bits == 0 { 0 } else { u32::MAX << (32 - len_bits) };
                let bits = std::net::Ipv4Addr::from_bits(v4.to_bits() & mask);
                Some(Self { address: IpAddr::V4(bits), len_bits })
            }
            IpAddr::V6(v6) if len_bits <= 128 => {
                let mask = if len_bits == 0 { 0 } else { u128::MAX << (128 - len_bits) };
                let bits = std::net::Ipv6Addr::from_bits(v6.to_bits() & mask);
                Some(Self { address: IpAddr::V6(bits), len_bits })
            }
            _ => None,
        }
    }

    /// The range of `address` alone.
    #[must_use]
    pub const fn single(address: IpAddr) -> Self {
        let address = match address {
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => address,
            },
            IpAddr::V4(_) => address,
        };
        Self { address, len_bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Its first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Bits of its prefix.
    #[must_use]
    pub const fn len_bits(self) -> u8 {
        self.len_bits
    }

    /// Whether it is one address.
    #[must_use]
    pub const fn is_single(self) -> bool {
        self.len_bits == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The bits that its addresses have in common, IPv4 counted as mapped into IPv6.
    pub(super) fn fixed_bits(self) -> usize {
        usize::from(self.len_bits) + if self.address.is_ipv4() { 96 } else { 0 }
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(of), IpAddr::V4(other)) => {
                (of.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.len_bits)
            }
            (IpAddr::V6(of), IpAddr::V6(other)) => {
                (of.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.len_bits)
            }
            _ => false,
        }
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.len_bits <= other.len_bits && self.contains(other.address)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.is_single() { Ok(()) } else { write!(f, "/{}", self.len_bits) }
    }
}
