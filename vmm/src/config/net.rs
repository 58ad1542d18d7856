//! The network as the user wrote it: shared by `run` and `net`.
//!
//! Invariant: a [`NetSpec`] is syntactically right and nothing more, as any part of a [`super::spec::Spec`]. Rules are kept as they were
//! written; the policy reads them. Pure.

mod card;

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

pub use card::{CardFeature, MacAddress, Mtu, RingSize};

/// The port of DNS, where none is given.
const DNS_PORT: u16 = 53;
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
        fn one<T, R: fmt::Display, E: de::Error>(
            text: &str,
            read: impl Fn(&str) -> Result<T, R>,
        ) -> Result<T, E> {
            read(text).map_err(|reason| E::custom(format!("{text}: {reason}")))
        }
        fn each<T, R: fmt::Display, E: de::Error>(
            texts: &[String],
            read: impl Fn(&str) -> Result<T, R>,
        ) -> Result<Vec<T>, E> {
            texts.iter().map(|text| one(text, &read)).collect()
        }
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
            limits: each(&self.limits, NetLimit::read)?,
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
mod tests;
