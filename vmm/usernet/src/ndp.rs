//! The router of the guest's IPv6 link: neighbor discovery, router advertisements, address autoconfiguration (RFC 4861, 4862, 8106).
//!
//! Invariant: only messages that cannot come from further away than the link are answered, and never one about an address that is
//! not ours, so that the guest's probes for duplicates stay without an answer. Nothing is learnt: there is one guest.

#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::dhcp::encode_domain;
use crate::policy::Cidr;
use crate::wire::{IcmpHeader, Mac, icmpv6};

/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The router's own address on the link.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Advertisements that nobody asked for are so far apart.
pub const INTERVAL: Duration = Duration::from_secs(600);

/// Only what was never forwarded has as many hops left.
const HOP_LIMIT: u8 = 255;
/// Three intervals, in seconds (RFC 4861 section 6.2.1).
const ROUTER_SECONDS: u16 = 1_800;
/// How long addresses of the prefix are valid and preferred (RFC 4861 section 6.2.1).
const VALID_SECONDS: u32 = 2_592_000;
const PREFERRED_SECONDS: u32 = 604_800;
/// "Other configuration" is to be had by DHCPv6.
const OTHER_CONFIGURATION: u8 = 0x40;
/// An advertisement comes from a router, was asked for, overrides what is known.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// A prefix is on the link, and addresses may be made of it.
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;
/// Bytes of domains in an advertisement at most.
const MAX_SEARCH: usize = 256;

/// The router of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Its hardware address.
    pub mac: Mac,
    /// The guest's network.
    pub network: Cidr,
    /// The router's address there, also that of the resolver.
    pub gateway: Ipv6Addr,
    /// The guest's name for the host's loopback.
    pub host: Ipv6Addr,
    /// The link's MTU in bytes.
    pub mtu: u16,
    /// Domains that unqualified names are looked up in.
    pub search: Vec<String>,
}

/// An ICMP message to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sends it.
    pub source: Ipv6Addr,
    /// Who is to receive it.
    pub destination: Ipv6Addr,
    /// Its first eight bytes.
    pub header: IcmpHeader,
    /// What follows them.
    pub body: Vec<u8>,
}

impl Router {
    /// Whether an address of the guest's link is ours.
    #[must_use]
    pub fn is_ours(&self, address: Ipv6Addr) -> bool {
        [self.gateway, self.host, LINK_LOCAL].contains(&address)
    }

    /// Whether the guest may send from `source`: it makes its own addresses.
    #[must_use]
    pub fn may_be_guest(&self, source: Ipv6Addr) -> bool {
        let on_link = self.network.contains(source.into()) || source.is_unicast_link_local();
        on_link && !self.is_ours(source)
    }

    /// Answers a message of neighbor discovery from `source`; `body` is what follows its first eight bytes.
    #[must_use]
    pub fn answer(
        &self,
        source: Ipv6Addr,
        hop_limit: u8,
        header: &IcmpHeader,
        body: &[u8],
    ) -> Option<Message> {
        let from_guest = source.is_unspecified() || self.may_be_guest(source);
        if hop_limit != HOP_LIMIT || header.code != 0 || !from_guest {
            return None;
        }
        match header.kind {
            icmpv6::ROUTER_SOLICITATION => Some(self.advertisement(source)),
            icmpv6::NEIGHBOR_SOLICITATION => {
                let target = Ipv6Addr::from(*body.first_chunk::<16>()?);
                self.is_ours(target).then(|| self.neighbor(target, source))
            }
            _ => None,
        }
    }

    /// What there is on the link, told to `guest`; to all where that is unspecified.
    #[must_use]
    pub fn advertisement(&self, guest: Ipv6Addr) -> Message {
        let [high, low] = ROUTER_SECONDS.to_be_bytes();
        let rest = [64, OTHER_CONFIGURATION, high, low];
        // Times of reachability and retransmission are the guest's own choice.
        let mut body = vec![0; 8];
        body.extend(self.link_layer_option(1));
        let mtu = u32::from(self.mtu.max(1_280)).to_be_bytes();
        body.extend([5, 1, 0, 0]);
        body.extend(mtu);
        self.put_prefix(&mut body);
        body.extend([25, 3, 0, 0]);
        body.extend(u32::from(ROUTER_SECONDS).to_be_bytes());
        body.extend(self.gateway.octets());
        self.put_search(&mut body);
        let header = IcmpHeader { kind: icmpv6::ROUTER_ADVERTISEMENT, code: 0, rest };
        Message { source: LINK_LOCAL, destination: or_all_nodes(guest), header, body }
    }

    /// That `target` is here, told to `asker`; to all where that is unspecified, which is somebody about to take the address.
    fn neighbor(&self, target: Ipv6Addr, asker: Ipv6Addr) -> Message {
        let solicited = if asker.is_unspecified() { 0 } else { SOLICITED };
        let rest = [ROUTER | OVERRIDE | solicited, 0, 0, 0];
        let header = IcmpHeader { kind: icmpv6::NEIGHBOR_ADVERTISEMENT, code: 0, rest };
        let mut body = target.octets().to_vec();
        body.extend(self.link_layer_option(2));
        Message { source: target, destination: or_all_nodes(asker), header, body }
    }

    fn link_layer_option(&self, kind: u8) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.mac.0;
        [kind, 1, a, b, c, d, e, f]
    }

    fn put_prefix(&self, body: &mut Vec<u8>) {
        let std::net::IpAddr::V6(prefix) = self.network.address() else { return };
        // Interface identifiers have 64 bits (RFC 4862 section 5.5.3).
        let autonomous = if self.network.len_bits() == 64 { AUTONOMOUS } else { 0 };
        body.extend([3, 4, self.network.len_bits(), ON_LINK | autonomous]);
        body.extend(VALID_SECONDS.to_be_bytes());
        body.extend(PREFERRED_SECONDS.to_be_bytes());
        body.extend([0; 4]);
        body.extend(prefix.octets());
    }

    fn put_search(&self, body: &mut Vec<u8>) {
        let mut list = Vec::new();
        for domain in &self.search {
            let Some(name) = encode_domain(domain) else { continue };
            if list.len() + name.len() > MAX_SEARCH {
                break;
            }
            list.extend(name);
        }
        if list.is_empty() {
            return;
        }
        list.resize(list.len().next_multiple_of(8), 0);
        let units = u8::try_from(1 + list.len() / 8).unwrap_or(u8::MAX);
        body.extend([31, units, 0, 0]);
        body.extend(u32::from(ROUTER_SECONDS).to_be_bytes());
        body.extend(list);
    }
}

const fn or_all_nodes(guest: Ipv6Addr) -> Ipv6Addr {
    if guest.is_unspecified() { ALL_NODES } else { guest }
}
