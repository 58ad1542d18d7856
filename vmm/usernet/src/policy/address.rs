//! What kind of address an address is.
//!
//! Invariant: an IPv6 address that carries an IPv4 address is never of a milder kind than the address it carries. Pure.
//! The ranges are those of the IANA special-purpose registries (RFC 6890), and what clouds use for their metadata.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cidr::Cidr;
use super::scene::Scene;

/// Addresses that are judged alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The internet.
    Public,
    /// RFC 1918, carrier-grade NAT, unique local addresses, site-local ones, local-use NAT64.
    Private,
    /// `fe80::/10`. IPv4's link-local range counts as [`Self::Metadata`].
    LinkLocal,
    /// Where clouds tell a machine about itself: `169.254.0.0/16` and the like.
    Metadata,
    /// The host: the guest's name for its loopback, and every address it owns.
    Host,
    /// Multicast; never reached.
    Multicast,
    /// Documentation, benchmarks, translation of old times, and what is not assigned.
    Special,
}

impl Group {
    /// All of them, with the names that rules have for them.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("public", Self::Public),
        ("private", Self::Private),
        ("link-local", Self::LinkLocal),
        ("metadata", Self::Metadata),
        ("host", Self::Host),
        ("multicast", Self::Multicast),
        ("special", Self::Special),
    ];
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, group)| group == self).map_or("", |(name, _)| name);
        f.pad(name)
    }
}

/// Why no rule can open an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Never {
    /// `127.0.0.0/8`, `::1`: the loopback of whoever dials it.
    Loopback,
    /// `0.0.0.0/8`, `::`: to dial it reaches the loopback.
    Unspecified,
    /// Multicast of IPv4 or IPv6.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// An address of the guest's own network that nobody there has.
    Unassigned,
}

/// An address judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Its group.
    pub group: Group,
    /// Whether the group is that of an IPv4 address it carries, and its own would be milder.
    pub by_carried: bool,
}

/// The kind of `address` in `scene`.
///
/// # Errors
/// Why no rule opens it.
pub fn kind(address: IpAddr, scene: &Scene) -> Result<Kind, Never> {
    let address = address.to_canonical();
    let mut kind = Kind { group: own_group(address, scene)?, by_carried: false };
    for carried in carried(address).into_iter().flatten() {
        let group = own_group(IpAddr::V4(carried), scene)?;
        // What is not public anyway keeps the name of its outer form, unless that hides the host or metadata.
        let hidden = matches!(group, Group::Host | Group::Metadata);
        if group != Group::Public && (kind.group == Group::Public || hidden) {
            kind = Kind { group, by_carried: true };
        }
    }
    Ok(kind)
}

/// The IPv4 addresses that an IPv6 address may end at.
#[must_use]
pub fn carried(address: IpAddr) -> [Option<Ipv4Addr>; 2] {
    let IpAddr::V6(address) = address else { return [None; 2] };
    if let Some(mapped) = address.to_ipv4_mapped() {
        return [Some(mapped), None];
    }
    let bits = address.to_bits();
    let word = |shift: u32| Some(Ipv4Addr::from_bits((bits >> shift & 0xffff_ffff) as u32));
    let segments = address.segments();
    match segments {
        // NAT64 (RFC 6052), SIIT (RFC 2765) and the IPv4-compatible addresses of RFC 4291.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => {
            [word(0), None]
        }
        // Local-use NAT64 (RFC 8215) is delegated by /48, where byte 8 is left out, and used by /96.
        [0x64, 0xff9b, 1, 0, 0, 0, ..] => [word(0), None],
        [0x64, 0xff9b, 1, high, low, next, last @ ..] => {
            let [a, b] = high.to_be_bytes();
            let ([_, c], [d, _]) = (low.to_be_bytes(), next.to_be_bytes());
            [Some(Ipv4Addr::new(a, b, c, d)), if last == [0, 0] { None } else { word(0) }]
        }
        // 6to4.
        [0x2002, ..] => [word(80), None],
        // Teredo: the server, and the client behind an inversion.
        [0x2001, 0, ..] => [word(64), word(0).map(|client| Ipv4Addr::from_bits(!client.to_bits()))],
        // ISATAP, with and without the universal bit.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => [word(0), None],
        _ => [None; 2],
    }
}

/// Whether all of `range` is a cloud's place for metadata.
#[must_use]
pub(super) fn is_metadata(range: Cidr) -> bool {
    METADATA_V4.iter().any(|&(address, len)| v4(address, len).covers(range))
        || METADATA_V6.iter().any(|&(address, len)| v6(address, len).covers(range))
}

/// Why no address of `range` can be opened, if that is so whatever the scene.
#[must_use]
pub(super) fn never(range: Cidr) -> Option<Never> {
    NEVER_V4
        .iter()
        .map(|&(address, len, why)| (v4(address, len), why))
        .chain(NEVER_V6.iter().map(|&(address, len, why)| (v6(address, len), why)))
        .find(|(never, _)| never.covers(range))
        .map(|(_, why)| why)
}

/// Its group, but for what it may carry.
fn own_group(address: IpAddr, scene: &Scene) -> Result<Group, Never> {
    let single = Cidr::single(address);
    if let Some(never) = never(single) {
        return Err(never);
    }
    if scene.is_host(address) {
        return Ok(Group::Host);
    }
    if scene.in_guest_network(address) && !scene.is_gateway(address) {
        return Err(Never::Unassigned);
    }
    if is_metadata(single) {
        return Ok(Group::Metadata);
    }
    let known = match address {
        IpAddr::V4(_) => GROUPS_V4
            .iter()
            .find(|(range, len, _)| v4(*range, *len).contains(address))
            .map(|&(_, _, group)| group),
        IpAddr::V6(_) => GROUPS_V6
            .iter()
            .find(|(range, len, _)| v6(*range, *len).contains(address))
            .map(|&(_, _, group)| group),
    };
    Ok(known.unwrap_or(if address.is_ipv4() { Group::Public } else { Group::Special }))
}

type Octets = [u8; 4];
type Segments = [u16; 8];

const NEVER_V4: [(Octets, u8, Never); 4] = [
    ([0, 0, 0, 0], 8, Never::Unspecified),
    ([127, 0, 0, 0], 8, Never::Loopback),
    ([224, 0, 0, 0], 4, Never::Multicast),
    ([255, 255, 255, 255], 32, Never::Broadcast),
];

const NEVER_V6: [(Segments, u8, Never); 3] = [
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, Never::Unspecified),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Never::Loopback),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Never::Multicast),
];

const METADATA_V4: [(Octets, u8); 4] = [
    ([169, 254, 0, 0], 16),
    ([100, 100, 100, 200], 32),
    ([168, 63, 129, 16], 32),
    ([192, 0, 0, 192], 32),
];

const METADATA_V6: [(Segments, u8); 4] = [
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    ([0xfd20, 0xce, 0, 0, 0, 0, 0, 0], 32),
    ([0xfd00, 0xc1, 0, 0, 0, 0, 0, 0], 32),
    ([0xfd00, 0x42, 0, 0, 0, 0, 0, 0], 32),
];

const GROUPS_V4: [(Octets, u8, Group); 11] = [
    ([10, 0, 0, 0], 8, Group::Private),
    ([100, 64, 0, 0], 10, Group::Private),
    ([172, 16, 0, 0], 12, Group::Private),
    ([192, 168, 0, 0], 16, Group::Private),
    ([192, 0, 0, 0], 24, Group::Special),
    ([192, 0, 2, 0], 24, Group::Special),
    ([192, 88, 99, 0], 24, Group::Special),
    ([198, 18, 0, 0], 15, Group::Special),
    ([198, 51, 100, 0], 24, Group::Special),
    ([203, 0, 113, 0], 24, Group::Special),
    ([240, 0, 0, 0], 4, Group::Special),
];

/// The first that contains an address counts; what is in none is not assigned.
const GROUPS_V6: [(Segments, u8, Group); 9] = [
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Group::LinkLocal),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Group::Private),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Group::Private),
    ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, Group::Public),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Group::Private),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Group::Special),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Group::Special),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Group::Special),
    ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, Group::Public),
];

const fn v4(octets: Octets, len_bits: u8) -> Cidr {
    let [a, b, c, d] = octets;
    Cidr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len_bits)
        .expect("tables hold lengths up to 32")
}

const fn v6(segments: Segments, len_bits: u8) -> Cidr {
    let [a, b, c, d, e, f, g, h] = segments;
    Cidr::new(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), len_bits)
        .expect("tables hold lengths up to 128")
}
