//! One rule: an action, what it is about, and how it is matched.
//!
//! Invariant: whatever a rule matches when it allows, it also matches when it denies; never the reverse. Pure.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::address::{Group, Kind, carried, is_metadata};
use super::cidr::Cidr;
use super::pattern::NamePattern;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it through.
    Allow,
    /// Refuses it.
    Deny,
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A UDP flow.
    Udp,
    /// An ICMP echo.
    Icmp,
    /// A name that is looked up.
    Dns,
}

impl Protocol {
    /// All of them, with the names that rules have for them.
    pub const NAMES: [(&'static str, Self); 4] =
        [("tcp", Self::Tcp), ("udp", Self::Udp), ("icmp", Self::Icmp), ("dns", Self::Dns)];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, of)| *of == self).map_or("", |(name, _)| name)
    }
}

/// Where a rule points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everywhere.
    Any,
    /// A group of addresses.
    Group(Group),
    /// A range of addresses.
    Range(Cidr),
    /// Public addresses that were the answer to a name.
    Name(NamePattern),
}

/// The ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// First and last, in the order written; empty: all of them.
    ranges: Vec<(u16, u16)>,
}

impl Ports {
    /// The most ranges of one rule.
    pub const MAX_RANGES: usize = 64;

    /// The ranges, each from its first port to its last. `None`: a range that ends before it begins or holds port 0, or more of
    /// them than [`Self::MAX_RANGES`]. No range at all means every port.
    #[must_use]
    pub fn new(ranges: Vec<(u16, u16)>) -> Option<Self> {
        let right = ranges.iter().all(|&(first, last)| first != 0 && first <= last);
        (right && ranges.len() <= Self::MAX_RANGES).then_some(Self { ranges })
    }

    /// Whether they are all ports.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.is_all() || self.ranges.iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    /// The ranges as given.
    #[must_use]
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    fn covers(&self, other: &Self) -> bool {
        self.is_all()
            || !other.is_all()
                && other.ranges.iter().all(|&(first, last)| {
                    self.ranges.iter().any(|&(from, to)| from <= first && last <= to)
                })
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// What it judges; all unless given.
    pub protocol: Option<Protocol>,
    /// Where it points.
    pub target: Target,
    /// Which ports; what has no port is matched by a rule for all ports only.
    pub ports: Ports,
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination {
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
    /// `None` for what has no port.
    pub(super) port: Option<u16>,
    pub(super) kind: Kind,
}

impl Rule {
    /// Whether it decides about a flow to `to`; `pinned` tells whether the address was the answer to a name like this.
    pub(super) fn matches_flow(
        &self,
        to: &Destination,
        pinned: impl FnOnce(&NamePattern) -> bool,
    ) -> bool {
        self.protocol.is_none_or(|of| of == to.protocol)
            && to.port.map_or(self.ports.is_all(), |port| self.ports.contains(port))
            && match &self.target {
                Target::Name(pattern) => {
                    (self.action == Action::Deny || to.kind.group == Group::Public)
                        && pinned(pattern)
                }
                _ => self.matches_address(to.address, to.kind),
            }
    }

    /// Whether it decides about an answer that holds `address`, which is not public: an answer is worth giving if anything there may be reached. A
    /// permission to look a name up is none to be led anywhere.
    pub(super) fn matches_answer(&self, address: IpAddr, kind: Kind) -> bool {
        self.protocol != Some(Protocol::Dns)
            && self.tells_of_names()
            && self.matches_address(address, kind)
    }

    /// Whether it decides about looking up `name`.
    pub(super) fn matches_name(&self, name: &str) -> bool {
        self.tells_of_names()
            && match &self.target {
                Target::Name(pattern) => pattern.matches(name),
                Target::Any | Target::Group(Group::Public) => true,
                Target::Group(_) | Target::Range(_) => false,
            }
    }

    /// Whether `other` has nothing left to decide where this one comes first.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let target = match (&self.target, &other.target) {
            (Target::Any, _) | (Target::Group(Group::Public), Target::Name(_)) => true,
            (Target::Group(of), Target::Group(other)) => of == other,
            // A range that allows stops before the host and metadata, so it covers another one only as strict as itself.
            (Target::Range(of), Target::Range(other)) => {
                of == other || self.action == Action::Deny && of.covers(*other)
            }
            (Target::Name(of), Target::Name(other)) => of.covers(other),
            _ => false,
        };
        // To look a name up is more than to reach it: a rule for one protocol leaves that to the next.
        let protocol = self.protocol.is_none() || self.protocol == other.protocol;
        let names = self.tells_of_names() || !other.tells_of_names();
        target && protocol && names && self.ports.covers(&other.ports)
    }

    /// The order of rules that have none of their own, such as flags: the more specific comes first, and of two alike the one that
    /// denies. A single address comes before a range around it, that before a name, that before a group, that before `any`.
    #[must_use]
    pub fn by_specificity(&self, other: &Self) -> Ordering {
        other.specificity().cmp(&self.specificity())
    }

    fn specificity(&self) -> (u8, usize, bool, bool, bool) {
        let (kind, len) = match &self.target {
            Target::Any => (0, 0),
            Target::Group(_) => (1, 0),
            Target::Name(pattern) => (2, pattern.specificity()),
            Target::Range(range) => (3, range.fixed_bits()),
        };
        let denies = self.action == Action::Deny;
        (kind, len, !self.ports.is_all(), self.protocol.is_some(), denies)
    }

    /// A refusal of some ports or one protocol leaves a reason to look a name up; a permission of some is a reason to.
    fn tells_of_names(&self) -> bool {
        self.protocol == Some(Protocol::Dns)
            || self.action == Action::Allow
            || self.protocol.is_none() && self.ports.is_all()
    }

    fn matches_address(&self, address: IpAddr, kind: Kind) -> bool {
        match (&self.target, self.action) {
            (Target::Any, _) => true,
            (Target::Group(group), _) => *group == kind.group,
            (Target::Range(range), Action::Deny) => {
                range.contains(address)
                    || carried(address).iter().flatten().any(|&v4| range.contains(v4.into()))
            }
            // A wide range does not say that the host and metadata in it are meant.
            (Target::Range(range), Action::Allow) => {
                range.contains(address)
                    && (range.is_single()
                        || match kind.group {
                            Group::Host => false,
                            Group::Metadata => is_metadata(*range),
                            _ => !kind.by_carried,
                        })
            }
            (Target::Name(_), _) => false,
        }
    }
}
