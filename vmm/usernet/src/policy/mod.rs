//! What a guest may reach: one pure function, asked before any translation, for TCP, UDP, ICMP and DNS alike.
//!
//! Rules are tried in their order and the first that matches decides; what none matches is decided by the [`Fallback`]. Some
//! addresses no rule can open: see [`Never`]. Invariant: an address is judged as the mildest *and* the strictest thing it could
//! mean, so that no spelling of an address (mapped, translated, tunnelled, an alias of the host) is milder than another. A policy
//! is immutable and shared as an `Arc`; replacing it is replacing the `Arc`, after which live flows are judged again.

mod address;
mod cidr;
mod egress;
mod pattern;
mod pins;
mod rule;
mod scene;
mod text;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use address::{Group, Kind, Never, carried, kind};
pub use cidr::Cidr;
pub use egress::{Egress, Refusal};
pub use pattern::{NamePattern, PatternError};
pub use pins::Pins;
use rule::Destination;
pub use rule::{Action, Ports, Protocol, Rule, Target};
pub use scene::{Places, Scene};
pub use text::{RuleError, RuleFault};

use crate::Instant;

/// What becomes of that which no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Fallback {
    /// The public internet and every name are open, all else is closed.
    #[default]
    Public,
    /// Nothing is open.
    Nothing,
}

/// How the guest hears that a packet of its own is refused. Names that are refused do not exist in any case, and that the gateway
/// serves nothing at a port is no secret and no rule: it says so in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum RefuseBy {
    /// Connections are reset, for all else there is an ICMP error: who asked knows at once.
    #[default]
    Reset,
    /// An ICMP error for all: who asked knows that it was a router that refused.
    Icmp,
    /// Nothing: who asked waits.
    Silence,
}

impl RefuseBy {
    /// All of them, with the names that users have for them.
    pub const NAMES: [(&'static str, Self); 3] =
        [("reset", Self::Reset), ("icmp", Self::Icmp), ("drop", Self::Silence)];

    /// The one named `name`, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, by)| *by)
    }
}

/// Rules in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    fallback: Fallback,
    refuse_by: RefuseBy,
    by_name: bool,
}

/// Why rules make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// More than [`Policy::MAX_RULES`].
    #[error("{count} rules; a policy has at most {}", Policy::MAX_RULES)]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A rule that comes too late. Both are counted from 0.
    #[error("rule `{rule}` can never decide: `{earlier}` before it matches first")]
    Unreachable {
        /// Which one.
        index: usize,
        /// The rule.
        rule: Box<Rule>,
        /// The one that takes all it could match.
        earlier: Box<Rule>,
    },
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The guest begins a TCP connection or a UDP flow, or one goes on (`live`): then a name whose time has run out still counts.
    Flow {
        /// [`Protocol::Tcp`] or [`Protocol::Udp`].
        transport: Transport,
        /// As the guest wrote it.
        to: SocketAddr,
        /// Whether the flow stands already.
        live: bool,
    },
    /// The guest sends an echo request there.
    Echo {
        /// As the guest wrote it.
        to: IpAddr,
        /// Whether there were some before.
        live: bool,
    },
    /// The guest looks up this name: lower-case, without a trailing dot.
    Name(&'a str),
    /// A resolver answers with this address.
    Answer(IpAddr),
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where that leads which is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The stack answers itself: DNS, DHCP or echo at the gateway's address, or a name that may be looked up.
    Stack,
    /// A host socket to this address: the guest's own, canonical, or the host's loopback for the guest's name of it. Of an echo
    /// the port means nothing.
    Socket(SocketAddr),
}

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denied {
    /// No rule opens it.
    Never(Never),
    /// The gateway has DNS, DHCP and echo, and nothing else.
    Gateway,
    /// A resolver of the guest's own choice, while names are judged: its answers would go unseen.
    OtherResolver,
    /// Port 0.
    NoPort,
    /// The rule in this place, counted from 0.
    Rule(u16),
    /// No rule opens this group, which is closed unless one does.
    Group(Group),
    /// No rule opens this name.
    Name,
}

impl Denied {
    /// How many kinds of reasons there are.
    pub const KINDS: usize = Self::NAMES.len();
    /// The names of the kinds, for counters and logs.
    pub const NAMES: [&str; 17] = [
        "loopback",
        "unspecified",
        "never_multicast",
        "broadcast",
        "unassigned",
        "gateway",
        "other_resolver",
        "no_port",
        "rule",
        "name",
        "public",
        "private",
        "link_local",
        "metadata",
        "host",
        "multicast",
        "special",
    ];

    /// The kind of reason: a place in [`Self::NAMES`]. Rules are of one kind.
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::Never(Never::Loopback) => 0,
            Self::Never(Never::Unspecified) => 1,
            Self::Never(Never::Multicast) => 2,
            Self::Never(Never::Broadcast) => 3,
            Self::Never(Never::Unassigned) => 4,
            Self::Gateway => 5,
            Self::OtherResolver => 6,
            Self::NoPort => 7,
            Self::Rule(_) => 8,
            Self::Name => 9,
            Self::Group(Group::Public) => 10,
            Self::Group(Group::Private) => 11,
            Self::Group(Group::LinkLocal) => 12,
            Self::Group(Group::Metadata) => 13,
            Self::Group(Group::Host) => 14,
            Self::Group(Group::Multicast) => 15,
            Self::Group(Group::Special) => 16,
        }
    }

    /// The name of its kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.kind()]
    }
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(index) => write!(f, "rule {}", u32::from(*index) + 1),
            _ => f.write_str(self.name()),
        }
    }
}

impl Policy {
    /// The most rules.
    pub const MAX_RULES: usize = 256;

    /// A policy of `rules` in this order.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn new(rules: Vec<Rule>, fallback: Fallback) -> Result<Self, PolicyError> {
        if rules.len() > Self::MAX_RULES {
            return Err(PolicyError::TooMany { count: rules.len() });
        }
        for (index, rule) in rules.iter().enumerate() {
            if let Some(earlier) = rules[..index].iter().find(|earlier| earlier.covers(rule)) {
                let (rule, earlier) = (Box::new(rule.clone()), Box::new(earlier.clone()));
                return Err(PolicyError::Unreachable { index, rule, earlier });
            }
        }
        let by_name = rules.iter().any(|rule| matches!(rule.target, Target::Name(_)));
        Ok(Self { rules, fallback, refuse_by: RefuseBy::default(), by_name })
    }

    /// The same, refusing in this way.
    #[must_use]
    pub fn refusing(self, refuse_by: RefuseBy) -> Self {
        Self { refuse_by, ..self }
    }

    /// How it refuses.
    #[must_use]
    pub const fn refuses_by(&self) -> RefuseBy {
        self.refuse_by
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What becomes of the rest.
    #[must_use]
    pub const fn fallback(&self) -> Fallback {
        self.fallback
    }

    /// The one decision. It depends on nothing but its arguments.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(
        &self,
        scene: &Scene,
        pins: &Pins,
        now: Instant,
        request: &Request<'_>,
    ) -> Result<Route, Denied> {
        match *request {
            Request::Name(name) => {
                let ruled = self.first(|rule| rule.matches_name(name));
                ruled.unwrap_or(match self.fallback {
                    Fallback::Public => Ok(()),
                    Fallback::Nothing => Err(Denied::Name),
                })?;
                Ok(Route::Stack)
            }
            Request::Answer(address) => {
                let address = address.to_canonical();
                let kind = kind(address, scene).map_err(Denied::Never)?;
                // What a name leads to is judged when it is dialled; to know a public address gives nothing away.
                if kind.group != Group::Public {
                    let ruled = self.first(|rule| rule.matches_answer(address, kind));
                    ruled.unwrap_or(Err(Denied::Group(kind.group)))?;
                }
                Ok(Route::Stack)
            }
            Request::Flow { transport, to, live } => {
                if to.port() == 0 {
                    return Err(Denied::NoPort);
                }
                let protocol = match transport {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                };
                self.flow(scene, protocol, to.ip(), Some(to.port()), |address, pattern| {
                    pins.is_pinned(now, address, live, |name| pattern.matches(name))
                })
            }
            Request::Echo { to, live } => {
                self.flow(scene, Protocol::Icmp, to, None, |address, pattern| {
                    pins.is_pinned(now, address, live, |name| pattern.matches(name))
                })
            }
        }
    }

    fn flow(
        &self,
        scene: &Scene,
        protocol: Protocol,
        address: IpAddr,
        port: Option<u16>,
        pinned: impl Fn(IpAddr, &NamePattern) -> bool,
    ) -> Result<Route, Denied> {
        let address = address.to_canonical();
        if scene.is_gateway(address) {
            let served = matches!(
                (protocol, port),
                (Protocol::Icmp, _) | (Protocol::Udp, Some(53 | 67)) | (Protocol::Tcp, Some(53))
            );
            return if served { Ok(Route::Stack) } else { Err(Denied::Gateway) };
        }
        let kind = kind(address, scene).map_err(Denied::Never)?;
        let to = Destination { protocol, address, port, kind };
        let decisive = self
            .rules
            .iter()
            .position(|rule| rule.matches_flow(&to, |pattern| pinned(address, pattern)));
        let rule = decisive.map(|index| &self.rules[index]);
        if rule.is_some_and(|rule| rule.action == Action::Deny) {
            return Err(Denied::Rule(number(decisive)));
        }
        // Of a resolver the rule must speak by port; to allow an address is not to allow what escapes the names.
        let meant = rule.is_some_and(|rule| {
            !rule.ports.is_all() && !matches!(rule.target, Target::Name(_) | Target::Any)
        });
        if self.by_name && !meant && port.is_some_and(is_name_port) {
            return Err(Denied::OtherResolver);
        }
        let open = self.fallback == Fallback::Public && kind.group == Group::Public;
        if rule.is_none() && !open {
            return Err(Denied::Group(kind.group));
        }
        let address = match (scene.is_host_alias(address), address) {
            (false, _) => address,
            (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        };
        Ok(Route::Socket(SocketAddr::new(address, port.unwrap_or(0))))
    }

    fn first(&self, matches: impl Fn(&Rule) -> bool) -> Option<Result<(), Denied>> {
        let index = self.rules.iter().position(matches)?;
        Some(match self.rules[index].action {
            Action::Allow => Ok(()),
            Action::Deny => Err(Denied::Rule(number(Some(index)))),
        })
    }
}

/// DNS, DNS over TLS or QUIC, multicast DNS, LLMNR.
const fn is_name_port(port: u16) -> bool {
    matches!(port, 53 | 853 | 5353 | 5355)
}

/// Rules are at most [`Policy::MAX_RULES`].
fn number(index: Option<usize>) -> u16 {
    index.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
