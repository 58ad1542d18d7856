//! The stack: its entry points, and the turn that each of them is.
//!
//! A turn of the caller's event loop is: frames from the guest, events of sockets, timers, in any order and number, then
//! [`Stack::flush`]. Invariant: after `flush`, whatever the stack still has to do waits for an event, for room at the link, or for
//! the moment that [`Stack::next_deadline`] names. Runs on the caller's thread.

mod core;
mod resolver;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use self::core::Core;
use crate::config::Config;
use crate::counters::Counters;
use crate::dns::DnsCounters;
use crate::policy::{Denied, Policy, Refusal};
use crate::sockets::{ForwardId, Readiness};
use crate::turn::Turn;
use crate::{FlowId, Frame, Instant, Link, Payload, Sockets};

/// The two sides of a stack, as long as one call lasts.
#[derive(Debug)]
pub struct Io<'a, L, S> {
    /// The way to the guest.
    pub link: &'a mut L,
    /// The host's sockets.
    pub sockets: &'a mut S,
}

/// The network of one guest. `P` is what payload from the guest consists of.
#[derive(Debug)]
pub struct Stack<P> {
    core: Core<P>,
    counters: Counters,
    link_full: bool,
}

impl<P: Payload> Stack<P> {
    /// A stack. `key` is random and never used again: sequence numbers and places in tables depend on it.
    #[must_use]
    pub fn new(config: Config, key: [u8; 16]) -> Self {
        Self { core: Core::new(config, key), counters: Counters::default(), link_full: false }
    }

    fn turn<L, S>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, L, S>,
        action: impl FnOnce(&mut Core<P>, &mut Turn<'_, P>),
    ) where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let mut turn = Turn {
            now,
            link: &mut *io.link,
            sockets: &mut *io.sockets,
            counters: &mut self.counters,
            link_full: &mut self.link_full,
        };
        action(&mut self.core, &mut turn);
    }

    /// A frame arrived from the guest. Its payload may be kept for a while: dropping it is what gives it back.
    pub fn guest_frame<L, S>(&mut self, now: Instant, frame: Frame<'_, P>, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, |core, turn| core.guest_frame(frame, turn));
    }

    /// Something has become possible on the socket of `flow`. One that was closed since is ignored.
    pub fn socket_ready<L, S>(
        &mut self,
        now: Instant,
        flow: FlowId,
        readiness: Readiness,
        io: &mut Io<'_, L, S>,
    ) where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, |core, turn| core.socket_ready(flow, readiness, turn));
    }

    /// Somebody waits at a published port.
    pub fn forward_ready<L, S>(&mut self, now: Instant, forward: ForwardId, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, |core, turn| core.forward_ready(forward, turn));
    }

    /// The link has room again after a [`crate::LinkFull`].
    pub fn link_ready<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.link_full = false;
        self.turn(now, io, Core::link_ready);
    }

    /// Does what is due by `now`; to be called when [`Self::next_deadline`] has come.
    pub fn run_timers<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, Core::run_timers);
    }

    /// Ends a turn: sends to the sockets what frames brought, to the guest what sockets brought, and acknowledgments. It does a
    /// bounded amount of work; where more is left, [`Self::next_deadline`] has passed already.
    pub fn flush<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, Core::flush);
    }

    /// When to call [`Self::run_timers`] and [`Self::flush`] though nothing else happens. `None`: when something happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.core.next_deadline(self.link_full)
    }

    /// Replaces what the guest may reach. Flows that stand and are not allowed any more end.
    pub fn set_policy<L, S>(&mut self, now: Instant, policy: Arc<Policy>, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, |core, turn| core.set_policy(policy, turn));
    }

    /// The addresses that interfaces of the host have. Flows that stand are judged again.
    pub fn set_host_addresses<L, S>(
        &mut self,
        now: Instant,
        addresses: Vec<IpAddr>,
        io: &mut Io<'_, L, S>,
    ) where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, |core, turn| core.set_host_addresses(addresses, turn));
    }

    /// The host's resolvers, in the order in which they are asked.
    pub fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.core.set_resolvers(resolvers);
    }

    /// The guest has reset its network card: payloads that are held back are dropped at once. Flows whose bytes were promised to
    /// arrive end; of the others the guest's own protocols tell.
    pub fn link_reset<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        self.turn(now, io, Core::link_reset);
    }

    /// The domains in which the guest looks up unqualified names; it hears of them with its next lease.
    pub fn set_search(&mut self, search: Vec<String>) {
        self.core.set_search(search);
    }

    /// Whether a query failed for want of a resolver since the last call: the host's may have changed.
    pub const fn take_wants_resolvers(&mut self) -> bool {
        self.core.resolver().take_wants_servers()
    }

    /// The next refusal that is worth a line in a log, oldest first.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.core.take_refusal()
    }

    /// How many refusals there were of each kind; the index is that of [`crate::policy::Denied::kind`].
    #[must_use]
    pub const fn refusals(&self) -> &[u64; Denied::KINDS] {
        self.core.egress().counts()
    }

    /// What happened to names so far.
    #[must_use]
    pub const fn dns_counters(&mut self) -> &DnsCounters {
        self.core.resolver().counters()
    }

    /// UDP flows, and pairs of an echo identifier and a destination, that there are.
    #[must_use]
    pub const fn datagram_flows(&self) -> (usize, usize) {
        self.core.datagram_flows()
    }

    /// How many TCP connections there are.
    #[must_use]
    pub const fn tcp_flows(&self) -> usize {
        self.core.tcp_flows()
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }
}
