//! The network as the user wrote it: shared by `run` and `net`.
//!
//! Invariant: a [`NetSpec`] is syntactically right and nothing more, as any part of a [`super::spec::Spec`]. Rules are kept as they were
//! written; the policy reads them. Pure.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use openshell_usernet::policy::RefuseBy;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::failure::SpecError;
use super::net_limits::NetLimit;
use super::spec::Bandwidth;
use super::units::parse_size;

/// The port of DNS, where none is given.
const DNS_PORT: u16 = 53;
/// Bytes of an IP packet: what every IPv4 host takes, and what fits with headers in the 16 bits of a length.
const MTUS: std::ops::RangeInclusive<u16> = 576..=65520;

/// The network of one machine, as asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// Whether there is one.
    pub mode: Option<NetMode>,
    /// Ports of the host that lead to the guest.
    pub publish: Vec<PublishSpec>,
    /// Rules that allow. Of these and those that deny, the most specific comes first.
    pub allow: Vec<String>,
    /// Rules that deny.
    pub deny: Vec<String>,
    /// A policy file; its rules come after those above.
    pub policy: Option<PathBuf>,
    /// How the guest hears of refusals.
    pub refuse: Option<RefuseBy>,
    /// Resolvers to ask, in order, instead of the host's.
    pub dns: Vec<SocketAddr>,
    /// The file that names the host's resolvers, where it is not the usual one.
    pub resolv_conf: Option<PathBuf>,
    /// Whether the guest has IPv6 too.
    pub ipv6: bool,
    /// Largest packet in bytes.
    pub mtu: Option<Mtu>,
    /// The guest's hardware address.
    pub mac: Option<MacAddress>,
    /// What the guest is refused is written to this file.
    pub log: Option<PathBuf>,
    /// Every frame is written to this file.
    pub pcap: Option<PathBuf>,
    /// Bytes per second, each way.
    pub bw: Option<Bandwidth>,
    /// Packets per second, each way.
    pub pps: Option<u64>,
    /// Bounds that are not the usual ones.
    pub limits: Vec<NetLimit>,
    /// Features that a machine's network card does not offer.
    pub without: Vec<CardFeature>,
    /// Descriptors of its rings.
    pub ring_size: Option<RingSize>,
}

impl NetSpec {
    /// This specification with `file` filling in what it does not say. Lists are taken from one side as a whole.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        fn list<T>(own: Vec<T>, other: Vec<T>) -> Vec<T> {
            if own.is_empty() { other } else { own }
        }
        Self {
            mode: self.mode.or(file.mode),
            publish: list(self.publish, file.publish),
            allow: list(self.allow, file.allow),
            deny: list(self.deny, file.deny),
            policy: self.policy.or(file.policy),
            refuse: self.refuse.or(file.refuse),
            dns: list(self.dns, file.dns),
            resolv_conf: self.resolv_conf.or(file.resolv_conf),
            ipv6: self.ipv6 || file.ipv6,
            mtu: self.mtu.or(file.mtu),
            mac: self.mac.or(file.mac),
            log: self.log.or(file.log),
            pcap: self.pcap.or(file.pcap),
            bw: self.bw.or(file.bw),
            pps: self.pps.or(file.pps),
            limits: list(self.limits, file.limits),
            without: list(self.without, file.without),
            ring_size: self.ring_size.or(file.ring_size),
        }
    }

    /// Reads how refusals are told.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_refuse(text: &str) -> Result<RefuseBy, SpecError> {
        refuse(text)
            .map_err(|reason| SpecError::value("--net-refuse", text.as_ref(), reason.to_owned()))
    }

    /// Reads a resolver: an address, with a port when it is not 53.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_dns(text: &str) -> Result<SocketAddr, SpecError> {
        resolver(text).map_err(|reason| SpecError::value("--dns", text.as_ref(), reason.to_owned()))
    }

    /// Reads a rate in bytes per second.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_bw(text: &str) -> Result<Bandwidth, SpecError> {
        rate(text).map_err(|reason| SpecError::value("--net-bw", text.as_ref(), reason.to_owned()))
    }

    /// Reads a rate in packets per second.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse_pps(text: &str) -> Result<u64, SpecError> {
        text.parse().ok().filter(|&rate| rate > 0).ok_or_else(|| {
            SpecError::value("--net-pps", text.as_ref(), "not a whole number above 0".to_owned())
        })
    }
}

/// Whether a machine has a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetMode {
    /// A network card, served by the stack in this process.
    #[default]
    User,
    /// No network card.
    None,
}

impl NetMode {
    /// What `--net` takes.
    pub const NAMES: [&'static str; 2] = ["user", "none"];

    /// The mode named `name`, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "user" => Some(Self::User),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}

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

    fn read(name: &str) -> Result<Self, &'static str> {
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

    const EXPECTING: &'static str = "a ring has 256, 512 or 1024 descriptors";

    fn of(descriptors: u16) -> Option<Self> {
        matches!(descriptors, 256 | 512 | 1024).then_some(Self(descriptors))
    }
}

/// What a published port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublishSpec {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
    /// What it carries.
    pub transport: Transport,
}

impl PublishSpec {
    /// Reads `[ADDR:]HOST:GUEST[/tcp|/udp]`; an IPv6 address stands in brackets. Without an address it is the host's loopback.
    ///
    /// # Errors
    /// [`SpecError::Value`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        Self::read(text)
            .map_err(|reason| SpecError::value("--publish", text.as_ref(), reason.to_owned()))
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let (ports, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err("only /tcp or /udp may follow the ports"),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or("two ports are needed: HOST:GUEST")?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, host)) => (listen_address(address)?, host),
        };
        Ok(Self {
            host: SocketAddr::new(address, port(host)?),
            guest_port: port(guest)?,
            transport,
        })
    }
}

impl fmt::Display for PublishSpec {
    /// As [`Self::parse`] takes it, complete.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest_port, self.transport)
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

    const EXPECTING: &'static str = "an MTU is a number from 576 to 65520";

    fn of(bytes: u16) -> Option<Self> {
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

    fn read(text: &str) -> Result<Self, &'static str> {
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

fn listen_address(text: &str) -> Result<IpAddr, &'static str> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(six) => six.parse().map(IpAddr::V6).map_err(|_| "not an IPv6 address in brackets"),
        None => text
            .parse()
            .map(IpAddr::V4)
            .map_err(|_| "not an IPv4 address, or an IPv6 address without brackets"),
    }
}

fn port(text: &str) -> Result<u16, &'static str> {
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|&port| digits && port != 0)
        .ok_or("a port is a number from 1 to 65535")
}

fn resolver(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .or_else(|_| text.parse().map(|address| SocketAddr::new(address, DNS_PORT)))
        .ok()
        .filter(|address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0)
        .ok_or("a resolver is an address, such as 192.0.2.1, or 192.0.2.1:53")
}

fn refuse(text: &str) -> Result<RefuseBy, &'static str> {
    RefuseBy::named(text).ok_or("none of reset, icmp, drop")
}

fn rate(text: &str) -> Result<Bandwidth, &'static str> {
    match parse_size(text, None)? {
        0 => Err("a rate of 0 would stop it for good"),
        rate => Ok(Bandwidth(rate)),
    }
}

/// The keys of the table `[net]` in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mode: Option<String>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    policy: Option<PathBuf>,
    refuse: Option<String>,
    #[serde(default)]
    dns: Vec<String>,
    resolv_conf: Option<PathBuf>,
    #[serde(default)]
    ipv6: bool,
    mtu: Option<u16>,
    mac: Option<String>,
    log: Option<PathBuf>,
    pcap: Option<PathBuf>,
    bw: Option<String>,
    pps: Option<u64>,
    #[serde(default)]
    limits: Vec<String>,
    #[serde(default)]
    without: Vec<String>,
    ring: Option<u16>,
}

impl Table {
    fn into_spec<E: de::Error>(self) -> Result<NetSpec, E> {
        fn each<T, E: de::Error>(
            texts: &[String],
            read: fn(&str) -> Result<T, &'static str>,
        ) -> Result<Vec<T>, E> {
            texts.iter().map(|text| one(text, read)).collect()
        }
        fn one<T, E: de::Error>(
            text: &str,
            read: fn(&str) -> Result<T, &'static str>,
        ) -> Result<T, E> {
            read(text).map_err(|reason| E::custom(format!("{text}: {reason}")))
        }
        let limit = |text: &str| {
            NetLimit::read(text).map_err(|reason| E::custom(format!("{text}: {reason}")))
        };
        let mtu = |bytes| Mtu::of(bytes).ok_or_else(|| E::custom(Mtu::EXPECTING));
        let ring_size = |number| RingSize::of(number).ok_or_else(|| E::custom(RingSize::EXPECTING));
        if self.pps == Some(0) {
            return Err(E::custom("pps: a rate of 0 would stop it for good"));
        }
        Ok(NetSpec {
            mode: self.mode.map(|name| mode(&name)).transpose()?,
            publish: each(&self.publish, PublishSpec::read)?,
            allow: self.allow,
            deny: self.deny,
            policy: self.policy,
            refuse: self.refuse.as_deref().map(|text| one(text, refuse)).transpose()?,
            dns: each(&self.dns, resolver)?,
            resolv_conf: self.resolv_conf,
            ipv6: self.ipv6,
            mtu: self.mtu.map(mtu).transpose()?,
            mac: self.mac.as_deref().map(|text| one(text, MacAddress::read)).transpose()?,
            log: self.log,
            pcap: self.pcap,
            bw: self.bw.as_deref().map(|text| one(text, rate)).transpose()?,
            pps: self.pps,
            limits: self.limits.iter().map(|text| limit(text)).collect::<Result<_, _>>()?,
            without: each(&self.without, CardFeature::read)?,
            ring_size: self.ring.map(ring_size).transpose()?,
        })
    }
}

fn mode<E: de::Error>(name: &str) -> Result<NetMode, E> {
    NetMode::named(name).ok_or_else(|| E::unknown_variant(name, &NetMode::NAMES))
}

impl<'de> Deserialize<'de> for NetSpec {
    /// `net = "none"`, or a table `[net]`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = NetSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"user\", \"none\" or a table")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<NetSpec, E> {
                Ok(NetSpec { mode: Some(mode(name)?), ..NetSpec::default() })
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<NetSpec, M::Error> {
                Table::deserialize(MapAccessDeserializer::new(map))?.into_spec()
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Reads the value of `--net`.
///
/// # Errors
/// [`SpecError::Value`].
pub fn parse_mode(text: &OsStr) -> Result<NetMode, SpecError> {
    text.to_str()
        .and_then(NetMode::named)
        .ok_or_else(|| SpecError::value("--net", text, "none of user, none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_on_loopback_unless_said_otherwise() {
        for (text, want) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("53:53/udp", "127.0.0.1:53:53/udp"),
            ("0.0.0.0:1:65535", "0.0.0.0:1:65535/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
        ] {
            let spec = PublishSpec::parse(text).unwrap();
            assert_eq!(spec.to_string(), want);
            assert_eq!(PublishSpec::parse(want).unwrap(), spec);
        }
    }

    #[test]
    fn values_that_are_not_right_are_refused() {
        const PORT: &str = "a port is a number from 1 to 65535";
        const ADDRESS: &str = "not an IPv4 address, or an IPv6 address without brackets";
        for (text, want) in [
            ("80", "two ports are needed: HOST:GUEST"),
            ("", "two ports are needed: HOST:GUEST"),
            ("0:80", PORT),
            ("80:", PORT),
            ("80:+1", PORT),
            ("80:65536", PORT),
            ("::1:80:80", ADDRESS),
            ("localhost:80:80", ADDRESS),
            ("[127.0.0.1]:80:80", "not an IPv6 address in brackets"),
            ("80:80/sctp", "only /tcp or /udp may follow the ports"),
            ("80:80/udp/tcp", "only /tcp or /udp may follow the ports"),
        ] {
            let error = PublishSpec::parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("--publish {text}: {want}"));
        }
        for text in ["", "5a:94", "5a:94:ef:e4:0c:eeg", "5a:94:ef:e4:0c:+e", "1:2:3:4:5:6:7"] {
            assert!(MacAddress::parse(text).unwrap_err().to_string().contains("six pairs"));
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(MacAddress::parse(text).unwrap_err().to_string().ends_with("one station"));
        }
        for text in ["575", "65521", "x", "-1", "1e3"] {
            assert!(Mtu::parse(text).is_err(), "{text}");
        }
        for text in ["", "0.0.0.0", "::", "1.2.3.4:0", "one.one.one.one"] {
            assert!(NetSpec::parse_dns(text).is_err(), "{text}");
        }
        assert!(NetSpec::parse_bw("100").is_err() && NetSpec::parse_bw("0M").is_err());
        assert!(NetSpec::parse_pps("0").is_err() && NetSpec::parse_pps("many").is_err());
        assert!(parse_mode("tap".as_ref()).is_err());
        for text in ["", "csum,", "tso", "CSUM"] {
            assert!(CardFeature::parse_list(text).is_err(), "{text}");
        }
        let names = CardFeature::ALL.map(|(name, _)| name).join(",");
        let all = CardFeature::ALL.map(|(_, feature)| feature);
        assert_eq!(CardFeature::parse_list(&names).unwrap(), all);
        for text in ["255", "128", "2048", "x"] {
            assert!(RingSize::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_resolver_has_port_53_unless_said_otherwise() {
        for (text, want) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]:54", "[2001:db8::1]:54"),
        ] {
            assert_eq!(NetSpec::parse_dns(text).unwrap().to_string(), want);
        }
    }

    #[derive(Deserialize)]
    struct File {
        net: NetSpec,
    }

    fn file(text: &str) -> Result<NetSpec, String> {
        toml::from_str::<File>(text)
            .map(|file| file.net)
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_file_says_all_that_flags_say() {
        let text = r#"
[net]
mode = "user"
publish = ["8080:80", "53:53/udp"]
allow = ["private"]
deny = ["192.0.2.0/24"]
policy = "policy.toml"
dns = ["192.0.2.1"]
refuse = "icmp"
resolv_conf = "resolv.conf"
ipv6 = true
mtu = 9000
mac = "5a:94:ef:e4:0c:ee"
log = "net.log"
pcap = "out.pcap"
bw = "1M"
pps = 1000
limits = ["tcp-flows=100"]
without = ["mrg_rxbuf", "csum"]
ring = 512
"#;
        let want = NetSpec {
            mode: Some(NetMode::User),
            publish: ["8080:80", "53:53/udp"]
                .iter()
                .map(|text| PublishSpec::parse(text).unwrap())
                .collect(),
            allow: vec!["private".into()],
            deny: vec!["192.0.2.0/24".into()],
            policy: Some("policy.toml".into()),
            dns: vec![NetSpec::parse_dns("192.0.2.1").unwrap()],
            resolv_conf: Some("resolv.conf".into()),
            refuse: Some(RefuseBy::Icmp),
            ipv6: true,
            mtu: Some(Mtu::parse("9000").unwrap()),
            mac: Some(MacAddress::GUEST),
            log: Some("net.log".into()),
            pcap: Some("out.pcap".into()),
            bw: Some(Bandwidth(1 << 20)),
            pps: Some(1000),
            limits: vec![NetLimit::parse("tcp-flows=100").unwrap()],
            without: vec![CardFeature::MrgRxbuf, CardFeature::Csum],
            ring_size: Some(RingSize::parse("512").unwrap()),
        };
        assert_eq!(file(text).unwrap(), want);
        assert_eq!(NetSpec::default().or(want.clone()), want);
        assert_eq!(file("net = \"none\"").unwrap().mode, Some(NetMode::None));
        let flags =
            NetSpec { allow: vec!["host".into()], mtu: Some(Mtu::ETHERNET), ..NetSpec::default() };
        let both = flags.or(want.clone());
        assert_eq!((both.allow, both.mtu), (vec!["host".into()], Some(Mtu::ETHERNET)));
        assert_eq!(both.publish, want.publish);
    }

    #[test]
    fn a_file_that_is_not_right_is_refused() {
        for (text, want) in [
            ("net = \"tap\"", "unknown variant `tap`, expected `user` or `none`"),
            ("net = 3", "invalid type: integer `3`, expected \"user\", \"none\" or a table"),
            ("[net]\nlimits = [\"flows\"]", "flows: a limit is NAME=VALUE"),
            ("[net]\nrefuse = \"no\"", "no: none of reset, icmp, drop"),
            ("[net]\npublish = [\"80\"]", "80: two ports are needed: HOST:GUEST"),
            ("[net]\nmtu = 10", "an MTU is a number from 576 to 65520"),
            ("[net]\nring = 100", "a ring has 256, 512 or 1024 descriptors"),
            ("[net]\npps = 0", "pps: a rate of 0 would stop it for good"),
        ] {
            assert_eq!(file(text).unwrap_err(), want);
        }
        assert!(file("[net]\nports = []").unwrap_err().starts_with("unknown field `ports`"));
    }
}
