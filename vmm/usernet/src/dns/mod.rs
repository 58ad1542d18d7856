//! Names: the resolver at the gateway's address, port 53, UDP and TCP.
//!
//! It forwards: a query goes raw to the host's resolvers and the answer comes back as it is, with its result, times to live and
//! EDNS. The stack knows four names itself, refuses what the policy refuses, and takes addresses out of answers that the guest may
//! not reach. Invariant: whatever guest and resolvers send, what is kept is bounded, and an answer is given only for a question
//! that was asked. Runs on the stack's thread; time, sockets and the policy are arguments.
//!
//! The stack calls it so: a datagram to port 53 goes to [`Dns::ask`]; a connection to port 53 is opened with [`Dns::open`], its
//! bytes go through [`Dns::push`] and [`Dns::pull`]; events of sockets that [`Dns::owns`] go to [`Dns::ready`]; at
//! [`Dns::deadline`] it calls [`Dns::tick`]; and after any of these it takes what is for the guest with [`Dns::take_reply`] and
//! [`Dns::take_ready`].

mod answer;
mod forward;
pub mod message;
mod name;
mod query;
mod stream;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use forward::Forwarder;
pub use forward::{Asker, Reply};
use message::Rcode;
pub use name::Name;
pub use query::{Query, Refused};
use stream::Stream;

use crate::policy::Egress;
use crate::siphash::SipKey;
use crate::sockets::Readiness;
use crate::{FlowId, Instant, Sockets};

/// The port of DNS.
pub const PORT: u16 = 53;

/// Where a fixed name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixed {
    /// The guest's name for the host's loopback.
    Host,
    /// The stack itself.
    Gateway,
}

/// The names that mean the host and the stack, whatever the host's resolvers say.
pub const FIXED_NAMES: [(&str, Fixed); 4] = [
    ("host.openshell.internal", Fixed::Host),
    ("host.containers.internal", Fixed::Host),
    ("host.docker.internal", Fixed::Host),
    ("gateway.containers.internal", Fixed::Gateway),
];

/// A connection to port 53. The number is not used again before 2^32 others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DnsCounters {
    /// Queries that came from the guest, readable or not.
    pub queries: u64,
    /// Of these, not a query of one question.
    pub malformed_queries: u64,
    /// Answered without a resolver, from what the stack knows.
    pub local: u64,
    /// Names that the policy refused.
    pub refused: u64,
    /// The same query again while the first was in flight.
    pub repeated: u64,
    /// Queries passed on.
    pub forwarded: u64,
    /// Tries after the first.
    pub retried: u64,
    /// Tries whose time ran out.
    pub timed_out: u64,
    /// Truncated answers that were asked for again by TCP.
    pub by_tcp: u64,
    /// Answers passed back.
    pub answered: u64,
    /// Queries given up.
    pub unanswered: u64,
    /// Queries without a resolver to pass them to.
    pub no_resolver: u64,
    /// Queries refused because too many were in flight.
    pub full: u64,
    /// Datagrams that answered something else.
    pub mismatched: u64,
    /// Answers that could not be read.
    pub malformed_answers: u64,
    /// Addresses taken out of answers.
    pub addresses_removed: u64,
}

impl DnsCounters {
    /// Each of them with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("queries", self.queries),
            ("malformed_queries", self.malformed_queries),
            ("local", self.local),
            ("refused", self.refused),
            ("repeated", self.repeated),
            ("forwarded", self.forwarded),
            ("retried", self.retried),
            ("timed_out", self.timed_out),
            ("by_tcp", self.by_tcp),
            ("answered", self.answered),
            ("unanswered", self.unanswered),
            ("no_resolver", self.no_resolver),
            ("full", self.full),
            ("mismatched", self.mismatched),
            ("malformed_answers", self.malformed_answers),
            ("addresses_removed", self.addresses_removed),
        ]
        .into_iter()
    }
}

/// The resolver of one guest.
#[derive(Debug)]
pub struct Dns {
    forwarder: Forwarder,
    streams: Vec<(StreamId, Stream)>,
    opened: u32,
    replies: VecDeque<Reply>,
    ready: BTreeSet<StreamId>,
}

impl Dns {
    /// The most queries in flight; their sockets' names are as many, from the base on.
    pub const MAX_IN_FLIGHT: usize = Forwarder::MAX_IN_FLIGHT as usize;
    /// The most connections to port 53.
    pub const MAX_STREAMS: usize = 64;
    /// How long a connection may stay without a query.
    const IDLE_TIME: Duration = Duration::from_secs(30);
    /// Datagrams for the guest that wait to be taken.
    const MAX_REPLIES: usize = 2 * Self::MAX_IN_FLIGHT;

    /// A resolver whose sockets have names from `base` on, and whose identifiers depend on `key`. Answers by UDP have at most
    /// `max_udp_len` bytes. It knows no resolvers of the host yet.
    #[must_use]
    pub fn new(base: u32, key: SipKey, max_udp_len: u16) -> Self {
        Self {
            forwarder: Forwarder::new(base, key, max_udp_len),
            streams: Vec::new(),
            opened: 0,
            replies: VecDeque::new(),
            ready: BTreeSet::new(),
        }
    }

    /// The host's resolvers, in the order in which they are asked. Queries in flight stay with theirs.
    pub fn replace_servers(&mut self, servers: &[SocketAddr]) {
        self.forwarder.replace_servers(servers);
    }

    /// Whether a query failed for want of a resolver since the last call: the host's may have changed.
    pub const fn take_wants_servers(&mut self) -> bool {
        self.forwarder.take_wants_servers()
    }

    /// A query arrived in a datagram from `guest` to `at`.
    pub fn ask<P>(
        &mut self,
        now: Instant,
        guest: SocketAddr,
        at: SocketAddr,
        query: &[u8],
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) {
        let asker = Asker::Udp { guest, at };
        if let Some(bytes) = self.answer_or_forward(now, asker, query, egress, sockets) {
            self.deliver(Reply { asker, bytes });
        }
    }

    /// A connection to port 53 was opened. `None`: there are [`Self::MAX_STREAMS`].
    pub fn open(&mut self, now: Instant) -> Option<StreamId> {
        if self.streams.len() == Self::MAX_STREAMS {
            return None;
        }
        let id = StreamId(self.opened);
        self.opened = self.opened.wrapping_add(1);
        self.streams.push((id, Stream::new(now)));
        Some(id)
    }

    /// Bytes arrived on a connection. How many of them were taken; for the rest there is room when [`Self::take_ready`] says so.
    pub fn push<P>(
        &mut self,
        now: Instant,
        stream: StreamId,
        bytes: &[u8],
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> usize {
        let mut taken = 0;
        while let Some(of) = self.stream(stream) {
            of.idle_since = now;
            let (count, query) = of.take(bytes.get(taken..).unwrap_or_default());
            taken += count;
            let Some(query) = query else { break };
            let asker = Asker::Tcp(stream);
            if let Some(bytes) = self.answer_or_forward(now, asker, &query, egress, sockets) {
                self.deliver(Reply { asker, bytes });
            }
        }
        taken
    }

    /// Moves bytes of a connection for the guest into `into`; how many.
    pub fn pull(&mut self, stream: StreamId, into: &mut [u8]) -> usize {
        let Some(of) = self.stream(stream) else { return 0 };
        let was_full = of.is_full();
        let count = of.pull(into);
        if was_full && !of.is_full() {
            self.ready.insert(stream);
        }
        count
    }

    /// How many bytes of a connection wait for the guest.
    #[must_use]
    pub fn readable(&self, stream: StreamId) -> usize {
        self.streams.iter().find(|(id, _)| *id == stream).map_or(0, |(_, of)| of.readable())
    }

    /// The guest has ended its side of a connection; what it asked is still answered.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(of) = self.stream(stream) {
            of.finish();
            self.ready.insert(stream);
        }
    }

    /// Whether nothing more comes on a connection: after the bytes that wait, our side ends.
    #[must_use]
    pub fn is_done(&self, stream: StreamId) -> bool {
        self.streams.iter().find(|(id, _)| *id == stream).is_none_or(|(_, of)| of.is_done())
    }

    /// A connection is gone, with what was asked on it.
    pub fn close<P>(&mut self, stream: StreamId, sockets: &mut (impl Sockets<P> + ?Sized)) {
        self.streams.retain(|(id, _)| *id != stream);
        self.ready.remove(&stream);
        self.forwarder.forget_stream(stream, sockets);
    }

    /// Whether a socket of this name is one of the resolver's.
    #[must_use]
    pub const fn owns(&self, flow: FlowId) -> bool {
        self.forwarder.owns(flow)
    }

    /// Something has become possible on a socket that [`Self::owns`] names.
    pub fn ready<P>(
        &mut self,
        now: Instant,
        flow: FlowId,
        readiness: Readiness,
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) {
        if let Some(reply) = self.forwarder.ready(now, flow, readiness, egress, sockets) {
            self.deliver(reply);
        }
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let idle = self.streams.iter().filter(|(_, of)| of.is_idle());
        let idle = idle.map(|(_, of)| of.idle_since + Self::IDLE_TIME).min();
        self.forwarder.deadline().into_iter().chain(idle).min()
    }

    /// Does what is due.
    pub fn tick<P>(&mut self, now: Instant, sockets: &mut (impl Sockets<P> + ?Sized)) {
        while let Some(reply) = self.forwarder.expire(now, sockets) {
            if let Some(reply) = reply {
                self.deliver(reply);
            }
        }
        for (id, of) in &mut self.streams {
            if of.is_idle() && of.idle_since + Self::IDLE_TIME <= now {
                of.finish();
                self.ready.insert(*id);
            }
        }
    }

    /// The next datagram for the guest.
    pub fn take_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    /// The next connection that has bytes for the guest, room for more of its bytes, or is done.
    pub fn take_ready(&mut self) -> Option<StreamId> {
        self.ready.pop_first()
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &DnsCounters {
        &self.forwarder.counters
    }

    /// How many queries are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.forwarder.in_flight()
    }

    /// The answer that is known at once; otherwise a resolver is asked, or nobody answers.
    fn answer_or_forward<P>(
        &mut self,
        now: Instant,
        asker: Asker,
        bytes: &[u8],
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Vec<u8>> {
        self.forwarder.counters.queries += 1;
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(refused) => {
                self.forwarder.counters.malformed_queries += 1;
                return match refused {
                    Refused::Answered(bytes) => Some(bytes),
                    Refused::Ignored => {
                        self.unanswered(asker);
                        None
                    }
                };
            }
        };
        if let Some(answer) = query.local(egress.scene()) {
            self.forwarder.counters.local += 1;
            return Some(answer);
        }
        if egress.name(now, &query.question.name.text()).is_err() {
            self.forwarder.counters.refused += 1;
            return Some(query.reply(Rcode::NxDomain));
        }
        self.forwarder.ask(now, asker, query, sockets).map(|reply| reply.bytes)
    }

    fn deliver(&mut self, reply: Reply) {
        match reply.asker {
            Asker::Udp { .. } => {
                // The guest does not take them: it asks again.
                if self.replies.len() == Self::MAX_REPLIES {
                    self.replies.pop_front();
                }
                self.replies.push_back(reply);
            }
            Asker::Tcp(stream) => {
                if let Some(of) = self.stream(stream) {
                    of.answer(Some(&reply.bytes));
                    self.ready.insert(stream);
                }
            }
        }
    }

    fn unanswered(&mut self, asker: Asker) {
        if let Asker::Tcp(stream) = asker
            && let Some(of) = self.stream(stream)
        {
            of.answer(None);
            self.ready.insert(stream);
        }
    }

    fn stream(&mut self, stream: StreamId) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|(id, _)| *id == stream).map(|(_, of)| of)
    }
}

#[cfg(test)]
mod tests;
