//! A policy at work: the rules of the moment, what the names led to, and what was refused.
//!
//! Invariant: whatever a guest tries, the account of it is a few counters and a bounded list. Pure; time is an argument.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Denied, Pins, Policy, Protocol, Request, Route, Scene, Transport};
use crate::Instant;
use crate::limits::TokenBucket;

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When.
    pub at: Instant,
    /// What was tried.
    pub protocol: Protocol,
    /// Where it should have gone; of an echo the port is 0, of a lookup there is no address.
    pub to: Option<SocketAddr>,
    /// The name that was looked up, or one that led to the address.
    pub name: Option<Box<str>>,
    /// Why not.
    pub why: Denied,
    /// How many refusals before this one, and after the last that was told, went untold.
    pub untold: u64,
}

/// What the stack asks before it translates.
#[derive(Debug)]
pub struct Egress {
    policy: Arc<Policy>,
    scene: Scene,
    pins: Pins,
    generation: u64,
    counts: [u64; Denied::KINDS],
    told: VecDeque<Refusal>,
    untold: u64,
    pace: TokenBucket,
}

impl Egress {
    /// The most refusals that wait to be told.
    pub const MAX_TOLD: usize = 64;
    /// So many refusals are told in a row, and so many a second after that.
    const BURST: u64 = 32;
    const PER_SECOND: u64 = 8;

    /// `policy` in `scene`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, scene: Scene) -> Self {
        Self {
            policy,
            scene,
            pins: Pins::default(),
            generation: 0,
            counts: [0; Denied::KINDS],
            told: VecDeque::new(),
            untold: 0,
            pace: TokenBucket::new(Self::PER_SECOND, Self::BURST),
        }
    }

    /// Judges a TCP connection or UDP flow that the guest begins.
    ///
    /// # Errors
    /// Why it is refused, which is counted.
    pub fn flow(
        &mut self,
        now: Instant,
        transport: Transport,
        to: SocketAddr,
    ) -> Result<Route, Denied> {
        let request = Request::Flow { transport, to, live: false };
        let verdict = self.policy.judge(&self.scene, &self.pins, now, &request);
        match verdict {
            Ok(_) => self.pins.touch(to.ip()),
            Err(why) => {
                let protocol = match transport {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                };
                self.refused(now, protocol, Some(to), None, why);
            }
        }
        verdict
    }

    /// Judges an echo request.
    ///
    /// # Errors
    /// Why it is refused, which is counted.
    pub fn echo(&mut self, now: Instant, to: IpAddr) -> Result<Route, Denied> {
        let request = Request::Echo { to, live: false };
        let verdict = self.policy.judge(&self.scene, &self.pins, now, &request);
        if let Err(why) = verdict {
            self.refused(now, Protocol::Icmp, Some(SocketAddr::new(to, 0)), None, why);
        }
        verdict
    }

    /// Judges a flow that stands, after the policy or the host's addresses have changed; see [`Self::generation`].
    ///
    /// # Errors
    /// Why it ends, which is counted.
    pub fn live_flow(
        &mut self,
        now: Instant,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<Route, Denied> {
        let request = match protocol {
            Protocol::Tcp => Request::Flow { transport: Transport::Tcp, to, live: true },
            Protocol::Udp | Protocol::Dns => {
                Request::Flow { transport: Transport::Udp, to, live: true }
            }
            Protocol::Icmp => Request::Echo { to: to.ip(), live: true },
        };
        let verdict = self.policy.judge(&self.scene, &self.pins, now, &request);
        if let Err(why) = verdict {
            self.refused(now, protocol, Some(to), None, why);
        }
        verdict
    }

    /// Judges the lookup of a name: lower-case, without a trailing dot.
    ///
    /// # Errors
    /// Why it is refused, which is counted.
    pub fn name(&mut self, now: Instant, name: &str) -> Result<(), Denied> {
        let verdict = self.policy.judge(&self.scene, &self.pins, now, &Request::Name(name));
        if let Err(why) = verdict {
            self.refused(now, Protocol::Dns, None, Some(name), why);
        }
        verdict.map(drop)
    }

    /// Judges an address in the answer to `name`. If the name leads to it for `ttl`, it is pinned when it may be given.
    ///
    /// # Errors
    /// Why the guest must not see it, which is counted.
    pub fn answer(
        &mut self,
        now: Instant,
        name: &str,
        address: IpAddr,
        ttl: Option<Duration>,
    ) -> Result<(), Denied> {
        let verdict = self.policy.judge(&self.scene, &self.pins, now, &Request::Answer(address));
        match verdict {
            Ok(_) => {
                if let Some(ttl) = ttl {
                    self.pins.pin(now, name, address, ttl);
                }
            }
            Err(why) => {
                self.refused(
                    now,
                    Protocol::Dns,
                    Some(SocketAddr::new(address, 0)),
                    Some(name),
                    why,
                );
            }
        }
        verdict.map(drop)
    }

    /// Replaces the rules. Flows that stand are to be judged again by [`Self::live_flow`].
    pub fn replace_policy(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
        self.generation += 1;
    }

    /// The host has other addresses now. Flows that stand are to be judged again.
    pub fn replace_owned(&mut self, owned: impl IntoIterator<Item = IpAddr>) {
        self.scene.replace_owned(owned);
        self.generation += 1;
    }

    /// How often rules or addresses were replaced.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The rules of the moment.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The addresses of the moment.
    #[must_use]
    pub const fn scene(&self) -> &Scene {
        &self.scene
    }

    /// How many refusals there were of each kind; the index is that of [`Denied::kind`].
    #[must_use]
    pub const fn counts(&self) -> &[u64; Denied::KINDS] {
        &self.counts
    }

    /// The next refusal to be told, oldest first.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.told.pop_front()
    }

    fn refused(
        &mut self,
        at: Instant,
        protocol: Protocol,
        to: Option<SocketAddr>,
        name: Option<&str>,
        why: Denied,
    ) {
        self.counts[why.kind()] += 1;
        if self.told.len() == Self::MAX_TOLD || !self.pace.take(at, 1) {
            self.untold += 1;
            return;
        }
        let led = || to.and_then(|to| self.pins.names(to.ip()).next());
        let name = name.or_else(led).map(Into::into);
        let untold = std::mem::take(&mut self.untold);
        self.told.push_back(Refusal { at, protocol, to, name, why, untold });
    }
}
