//! What a user can say of a machine's network card: features, rings, packets, address.
//!
//! Invariant: a value is one that a card can have. Pure.

use std::fmt;

use crate::config::failure::SpecError;

/// Bytes of an IP packet: what every IPv4 host takes, and what fits with headers in the 16 bits of a length.
const MTUS: std::ops::RangeInclusive<u16> = 576..=65520;

/// A feature of a machine's network card that can be left out, to find out what a guest stumbles over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CardFeature {
    /// Checksums that the guest leaves to the host.
    Csum,
    /// Checksums that the host leaves to the guest.
    GuestCsum,
    /// TCP over IPv4 that the guest sends uncut.
    HostTso4,
    /// TCP over IPv6 that the guest sends uncut.
    HostTso6,
    /// UDP that the guest sends uncut.
    HostUso,
    /// TCP over IPv4 that the guest takes uncut.
    GuestTso4,
    /// TCP over IPv6 that the guest takes uncut.
    GuestTso6,
    /// UDP over IPv4 that the guest takes uncut.
    GuestUso4,
    /// UDP over IPv6 that the guest takes uncut.
    GuestUso6,
    /// One packet in several buffers.
    MrgRxbuf,
    /// The control queue.
    CtrlVq,
    /// Offloads that are changed while the guest runs.
    CtrlGuestOffloads,
    /// The MTU in the configuration.
    Mtu,
    /// The state of the link in the configuration.
    Status,
    /// Notifications by ring index.
    EventIdx,
    /// Descriptors in tables of their own.
    IndirectDesc,
}

impl CardFeature {
    /// All of them, with the names that `--net-without` takes.
    pub const ALL: [(&'static str, Self); 16] = [
        ("csum", Self::Csum),
        ("guest_csum", Self::GuestCsum),
        ("host_tso4", Self::HostTso4),
        ("host_tso6", Self::HostTso6),
        ("host_uso", Self::HostUso),
        ("guest_tso4", Self::GuestTso4),
        ("guest_tso6", Self::GuestTso6),
        ("guest_uso4", Self::GuestUso4),
        ("guest_uso6", Self::GuestUso6),
        ("mrg_rxbuf", Self::MrgRxbuf),
        ("ctrl_vq", Self::CtrlVq),
        ("ctrl_guest_offloads", Self::CtrlGuestOffloads),
        ("mtu", Self::Mtu),
        ("status", Self::Status),
        ("event_idx", Self::EventIdx),
        ("indirect_desc", Self::IndirectDesc),
    ];

    /// Reads names with commas between.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_list(text: &str) -> Result<Vec<Self>, SpecError> {
        text.split(',')
            .map(Self::read)
            .collect::<Result<_, _>>()
            .map_err(|reason| SpecError::value("--net-without", text.as_ref(), reason.to_owned()))
    }

    pub(super) fn read(name: &str) -> Result<Self, &'static str> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, feature)| *feature)
            .ok_or("features are named as in VIRTIO: csum, guest_tso4, mrg_rxbuf, ...")
    }
}

/// Descriptors of a network card's receive and transmit rings: 256, 512 or 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize(u16);

impl Default for RingSize {
    /// 256: a megabyte of the guest's memory waits in it for packets.
    fn default() -> Self {
        Self(256)
    }
}

impl RingSize {
    /// Reads a number of descriptors.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        text.parse().ok().and_then(Self::of).ok_or_else(|| {
            SpecError::value("--net-ring", text.as_ref(), Self::EXPECTING.to_owned())
        })
    }

    /// The number.
    #[must_use]
    pub fn descriptors(self) -> u16 {
        self.0
    }

    pub(super) const EXPECTING: &'static str = "a ring has 256, 512 or 1024 descriptors";

    pub(super) fn of(descriptors: u16) -> Option<Self> {
        matches!(descriptors, 256 | 512 | 1024).then_some(Self(descriptors))
    }
}

/// Bytes of the largest packet, 576 to 65,520.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// What Ethernet has.
    pub const ETHERNET: Self = Self(1500);

    /// Reads a number of bytes.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        text.parse()
            .ok()
            .and_then(Self::of)
            .ok_or_else(|| SpecError::value("--mtu", text.as_ref(), Self::EXPECTING.to_owned()))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u16 {
        self.0
    }

    pub(super) const EXPECTING: &'static str = "an MTU is a number from 576 to 65520";

    pub(super) fn of(bytes: u16) -> Option<Self> {
        MTUS.contains(&bytes).then_some(Self(bytes))
    }
}

/// The hardware address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The guest's, unless the user gives another.
    pub const GUEST: Self = Self([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);

    /// Reads six pairs of hexadecimal digits with colons between.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        Self::read(text)
            .map_err(|reason| SpecError::value("--mac", text.as_ref(), reason.to_owned()))
    }

    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str =
            "an address is six pairs of hexadecimal digits, such as 02:00:00:00:00:01";
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(WRONG)?;
        }
        if pairs.next().is_some() {
            return Err(WRONG);
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err("not the address of one station");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
