//! Queries on their way to the host's resolvers.
//!
//! A query goes out raw with an identifier and a port of its own for every try; it goes to the next resolver when one is silent
//! or cannot be reached, never because of what one answered. Invariant: at most [`Forwarder::MAX_IN_FLIGHT`] queries are kept, each
//! for at most [`Forwarder::TIME`], and every query kept is answered exactly once. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::answer::{MAX_LEN, admit, belongs};
use super::message::{Rcode, flag};
use super::query::Query;
use super::{DnsCounters, StreamId};
use crate::policy::Egress;
use crate::siphash::SipKey;
use crate::sockets::{Close, Connect, HostError, Readiness, Received};
use crate::{FlowId, Instant, Sockets};

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A datagram.
    Udp {
        /// From where.
        guest: SocketAddr,
        /// To where.
        at: SocketAddr,
    },
    /// A stream.
    Tcp(StreamId),
}

/// An answer on its way to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// To whom.
    pub asker: Asker,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A resolver of the host.
#[derive(Debug, Clone, Copy)]
struct Server {
    address: SocketAddr,
    /// It was silent; others are asked first until then.
    slow_until: Instant,
}

#[derive(Debug)]
struct Pending {
    asker: Asker,
    query: Query,
    flow: FlowId,
    id: u16,
    server: SocketAddr,
    tries: u8,
    way: Way,
    /// Of this try.
    deadline: Instant,
    /// Of all of them.
    until: Instant,
}

/// How a query is asked.
#[derive(Debug)]
enum Way {
    Udp,
    Tcp {
        /// How much was sent of the query with its length before it.
        sent: usize,
        received: Vec<u8>,
    },
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

/// All queries in flight.
#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Vec<Server>,
    slots: Vec<Slot>,
    base: u32,
    key: SipKey,
    drawn: u64,
    wants_servers: bool,
    max_udp_len: u16,
    scratch: Vec<u8>,
    /// The first of all deadlines; it is asked for in every turn of the stack.
    due: Option<Instant>,
    pub(super) counters: DnsCounters,
}

/// What one try of a query came to.
enum Outcome {
    Waits,
    Failed,
    Answered(Vec<u8>),
}

impl Forwarder {
    /// Queries in flight.
    pub(super) const MAX_IN_FLIGHT: u32 = 256;
    /// The most resolvers that are used.
    pub(super) const MAX_SERVERS: usize = 8;
    /// Further tries of one query.
    pub(super) const RETRIES: u8 = 2;
    /// How long a query is kept.
    pub(super) const TIME: Duration = Duration::from_secs(5);
    /// For one try: all of them fit, so that the guest hears from us before it asks again.
    const TRY_TIME: Duration = Duration::from_millis(1_666);
    /// For how long another is asked first after one was silent.
    const SLOW_TIME: Duration = Duration::from_secs(30);
    /// After so many datagrams at once that answer something else, another socket is tried.
    const MAX_MISMATCHED: usize = 256;

    pub(super) fn new(base: u32, key: SipKey, max_udp_len: u16) -> Self {
        Self {
            servers: Vec::new(),
            slots: Vec::new(),
            base,
            key,
            drawn: 0,
            wants_servers: false,
            max_udp_len,
            scratch: Vec::new(),
            due: None,
            counters: DnsCounters::default(),
        }
    }

    pub(super) fn replace_servers(&mut self, servers: &[SocketAddr]) {
        let kept = |address| {
            let old = self.servers.iter().find(|server| server.address == address);
            old.map_or(Instant::from_nanos(0), |server| server.slow_until)
        };
        let servers = servers.iter().take(Self::MAX_SERVERS);
        self.servers =
            servers.map(|&address| Server { address, slow_until: kept(address) }).collect();
        self.wants_servers = false;
    }

    pub(super) const fn take_wants_servers(&mut self) -> bool {
        std::mem::replace(&mut self.wants_servers, false)
    }

    pub(super) const fn owns(&self, flow: FlowId) -> bool {
        flow.index() >= self.base && flow.index() - self.base < Self::MAX_IN_FLIGHT
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.pending.is_some()).count()
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn find_due(&mut self) {
        let pending = self.slots.iter().filter_map(|slot| slot.pending.as_ref());
        self.due = pending.map(|pending| pending.deadline.min(pending.until)).min();
    }

    /// Passes `query` on; the answer, where it is known at once that there will be none.
    pub(super) fn ask<P>(
        &mut self,
        now: Instant,
        asker: Asker,
        query: Query,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Reply> {
        let mut pending = self.slots.iter().filter_map(|slot| slot.pending.as_ref());
        let again = |pending: &Pending| {
            matches!(asker, Asker::Udp { .. })
                && pending.asker == asker
                && pending.query.bytes == query.bytes
        };
        if pending.any(again) {
            self.counters.repeated += 1;
            return None;
        }
        let fail = |bytes| Some(Reply { asker, bytes });
        let Some(server) = self.first_server(now) else {
            self.wants_servers = true;
            self.counters.no_resolver += 1;
            return fail(query.reply(Rcode::ServFail));
        };
        let Some(place) = self.vacant_place() else {
            self.counters.full += 1;
            return fail(query.reply(Rcode::ServFail));
        };
        self.counters.forwarded += 1;
        self.slots[place].pending = Some(Pending {
            asker,
            query,
            flow: FlowId::new(0, 0),
            id: 0,
            server,
            tries: 0,
            way: Way::Udp,
            deadline: now,
            until: now + Self::TIME,
        });
        let outcome = self.begin_try(now, place, sockets);
        self.settle(now, place, outcome, sockets)
    }

    /// Something has become possible on the socket of `flow`.
    pub(super) fn ready<P>(
        &mut self,
        now: Instant,
        flow: FlowId,
        readiness: Readiness,
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Reply> {
        let place = flow.index().checked_sub(self.base)? as usize;
        let pending = self.slots.get(place)?.pending.as_ref().filter(|of| of.flow == flow)?;
        let outcome = match pending.way {
            Way::Udp => self.receive_udp(now, place, egress, sockets),
            Way::Tcp { .. } => self.advance_tcp(now, place, readiness, egress, sockets),
        };
        self.settle(now, place, outcome, sockets)
    }

    /// Gives up a try whose time has come; one at a call.
    pub(super) fn expire<P>(
        &mut self,
        now: Instant,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Option<Reply>> {
        self.due.filter(|due| *due <= now)?;
        let due =
            |slot: &Slot| slot.pending.as_ref().is_some_and(|of| of.deadline.min(of.until) <= now);
        let place = self.slots.iter().position(due)?;
        self.counters.timed_out += 1;
        if let Some(server) = self.slots[place].pending.as_ref().map(|pending| pending.server) {
            self.server_was_slow(now, server);
        }
        Some(self.settle(now, place, Outcome::Failed, sockets))
    }

    /// The askers of a stream are gone.
    pub(super) fn forget_stream<P>(
        &mut self,
        stream: StreamId,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) {
        for slot in &mut self.slots {
            if let Some(pending) = slot.pending.take_if(|of| of.asker == Asker::Tcp(stream)) {
                sockets.close(pending.flow, Close::Reset);
            }
        }
        self.find_due();
    }

    fn first_server(&self, now: Instant) -> Option<SocketAddr> {
        let good = self.servers.iter().find(|server| server.slow_until <= now);
        good.or(self.servers.first()).map(|server| server.address)
    }

    fn server_was_slow(&mut self, now: Instant, address: SocketAddr) {
        if let Some(server) = self.servers.iter_mut().find(|server| server.address == address) {
            server.slow_until = now + Self::SLOW_TIME;
        }
    }

    fn vacant_place(&mut self) -> Option<usize> {
        let vacant = self.slots.iter().position(|slot| slot.pending.is_none());
        vacant.or_else(|| {
            (self.slots.len() < Self::MAX_IN_FLIGHT as usize).then(|| {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            })
        })
    }

    /// Does what follows from `outcome`; the reply, when that was all.
    fn settle<P>(
        &mut self,
        now: Instant,
        place: usize,
        outcome: Outcome,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Reply> {
        let reply = self.follow(now, place, outcome, sockets);
        self.find_due();
        reply
    }

    fn follow<P>(
        &mut self,
        now: Instant,
        place: usize,
        mut outcome: Outcome,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Option<Reply> {
        loop {
            let pending = self.slots[place].pending.as_mut()?;
            match outcome {
                Outcome::Waits => return None,
                Outcome::Answered(bytes) => {
                    sockets.close(pending.flow, Close::Orderly);
                    let pending = self.slots[place].pending.take()?;
                    return Some(Reply { asker: pending.asker, bytes: self.fit(&pending, bytes) });
                }
                Outcome::Failed => {
                    sockets.close(pending.flow, Close::Reset);
                    if pending.tries > Self::RETRIES || pending.until <= now {
                        return self.give_up(place);
                    }
                    let last = pending.server;
                    let at = self.servers.iter().position(|server| server.address == last);
                    let next = at.map_or(0, |at| (at + 1) % self.servers.len());
                    let Some(server) = self.servers.get(next) else { return self.give_up(place) };
                    (pending.server, pending.way) = (server.address, Way::Udp);
                    self.counters.retried += 1;
                    outcome = self.begin_try(now, place, sockets);
                }
            }
        }
    }

    fn give_up(&mut self, place: usize) -> Option<Reply> {
        let pending = self.slots[place].pending.take()?;
        self.counters.unanswered += 1;
        self.wants_servers = true;
        Some(Reply { asker: pending.asker, bytes: pending.query.reply(Rcode::ServFail) })
    }

    /// What of an answer fits to who asked.
    fn fit(&self, pending: &Pending, bytes: Vec<u8>) -> Vec<u8> {
        let most = match pending.asker {
            Asker::Udp { .. } => pending.query.max_udp_len(self.max_udp_len),
            Asker::Tcp(_) => MAX_LEN,
        };
        if bytes.len() <= most {
            return bytes;
        }
        let flags = bytes.get(2..).and_then(<[u8]>::first_chunk).copied();
        pending.query.truncated(flags.map_or(0, u16::from_be_bytes))
    }

    /// Asks the server of the moment, on a new socket and with a new identifier.
    fn begin_try<P>(
        &mut self,
        now: Instant,
        place: usize,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Outcome {
        let slot = &mut self.slots[place];
        slot.generation = slot.generation.wrapping_add(1);
        let Some(pending) = slot.pending.as_mut() else { return Outcome::Waits };
        self.drawn += 1;
        let [low, high, ..] = self.key.hash(&[self.drawn, now.as_nanos()]).to_le_bytes();
        pending.id = u16::from_le_bytes([low, high]);
        // The place is one of 256.
        let index = u32::try_from(place).unwrap_or(0);
        pending.flow = FlowId::new(self.base + index, slot.generation);
        pending.deadline = now + Self::TRY_TIME;
        match pending.way {
            Way::Udp => {
                pending.tries += 1;
                let mut bytes = pending.query.bytes.clone();
                bytes.splice(..2, pending.id.to_be_bytes());
                let asked = sockets
                    .udp_open(pending.flow, pending.server)
                    .and_then(|()| sockets.udp_send_bytes(pending.flow, &bytes));
                if asked.is_ok() { Outcome::Waits } else { Outcome::Failed }
            }
            Way::Tcp { .. } => match sockets.tcp_connect(pending.flow, pending.server) {
                Ok(Connect::Done) => self.send_tcp(place, sockets),
                Ok(Connect::UnderWay) => Outcome::Waits,
                Err(_) => Outcome::Failed,
            },
        }
    }

    fn receive_udp<P>(
        &mut self,
        now: Instant,
        place: usize,
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Outcome {
        let mut buffer = std::mem::take(&mut self.scratch);
        buffer.resize(MAX_LEN + 1, 0);
        let mut outcome = Outcome::Failed;
        // An event tells of a socket that was empty: it is read until it is empty again.
        for _ in 0..Self::MAX_MISMATCHED {
            outcome = Outcome::Waits;
            let asked = self.slots[place].pending.as_ref();
            let Some(pending) = asked.filter(|of| matches!(of.way, Way::Udp)) else { break };
            match sockets.udp_receive(pending.flow, &mut buffer) {
                Ok(None) => break,
                Ok(Some(datagrams)) => {
                    let bytes = buffer.get(..datagrams.len).unwrap_or_default();
                    for bytes in bytes.chunks(datagrams.segment.max(1)) {
                        outcome = self.udp_answer(now, place, bytes, egress, sockets);
                        if !matches!(outcome, Outcome::Waits) {
                            break;
                        }
                    }
                }
                Err(HostError::TooLarge { .. }) => {}
                // Nobody listens there, or there is no way: no reason to wait for the time to run out.
                Err(_) => outcome = Outcome::Failed,
            }
            if !matches!(outcome, Outcome::Waits) {
                break;
            }
            outcome = Outcome::Failed;
        }
        self.scratch = buffer;
        outcome
    }

    /// One datagram of a resolver, or of somebody who would like to be it.
    fn udp_answer<P>(
        &mut self,
        now: Instant,
        place: usize,
        bytes: &[u8],
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Outcome {
        let Some(pending) = self.slots[place].pending.as_mut() else { return Outcome::Waits };
        let Ok(header) = belongs(&pending.query, pending.id, bytes) else {
            self.counters.mismatched += 1;
            return Outcome::Waits;
        };
        let server = pending.server;
        if let Some(server) = self.servers.iter_mut().find(|of| of.address == server) {
            server.slow_until = Instant::from_nanos(0);
        }
        if header.flags & flag::TRUNCATED != 0 {
            self.counters.by_tcp += 1;
            sockets.close(pending.flow, Close::Orderly);
            pending.way = Way::Tcp { sent: 0, received: Vec::new() };
            return self.begin_try(now, place, sockets);
        }
        self.judged(now, place, bytes, egress)
    }

    fn judged(&mut self, now: Instant, place: usize, bytes: &[u8], egress: &mut Egress) -> Outcome {
        let Some(pending) = self.slots[place].pending.as_ref() else { return Outcome::Waits };
        match admit(now, &pending.query, bytes, egress) {
            Ok((answer, refused)) => {
                self.counters.answered += 1;
                self.counters.addresses_removed += refused as u64;
                Outcome::Answered(answer)
            }
            Err(_) => {
                self.counters.malformed_answers += 1;
                Outcome::Answered(pending.query.reply(Rcode::ServFail))
            }
        }
    }

    fn advance_tcp<P>(
        &mut self,
        now: Instant,
        place: usize,
        readiness: Readiness,
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Outcome {
        let Some(pending) = self.slots[place].pending.as_ref() else { return Outcome::Waits };
        if readiness.failed && sockets.take_error(pending.flow).is_some() {
            return Outcome::Failed;
        }
        if readiness.writable && matches!(self.send_tcp(place, sockets), Outcome::Failed) {
            return Outcome::Failed;
        }
        if readiness.readable {
            self.receive_tcp(now, place, egress, sockets)
        } else {
            Outcome::Waits
        }
    }

    fn send_tcp<P>(&mut self, place: usize, sockets: &mut (impl Sockets<P> + ?Sized)) -> Outcome {
        let Some(pending) = self.slots[place].pending.as_mut() else { return Outcome::Waits };
        let Way::Tcp { sent, .. } = &mut pending.way else { return Outcome::Waits };
        let Ok(len) = u16::try_from(pending.query.bytes.len()) else { return Outcome::Failed };
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(&pending.id.to_be_bytes());
        bytes.extend_from_slice(pending.query.bytes.get(2..).unwrap_or_default());
        while let Some(rest) = bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
            match sockets.tcp_send_bytes(pending.flow, rest) {
                Ok(0) => break,
                Ok(taken) => *sent += taken,
                Err(_) => return Outcome::Failed,
            }
        }
        Outcome::Waits
    }

    fn receive_tcp<P>(
        &mut self,
        now: Instant,
        place: usize,
        egress: &mut Egress,
        sockets: &mut (impl Sockets<P> + ?Sized),
    ) -> Outcome {
        let Some(pending) = self.slots[place].pending.as_mut() else { return Outcome::Waits };
        let Way::Tcp { received, .. } = &mut pending.way else { return Outcome::Waits };
        let mut buffer = [0; 4096];
        loop {
            match sockets.tcp_receive(pending.flow, &mut [&mut buffer]) {
                Ok(Received::Bytes(count)) => {
                    received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                }
                Ok(Received::Nothing) => return Outcome::Waits,
                Ok(Received::End) | Err(_) => return Outcome::Failed,
            }
            let Some((len, rest)) = received.split_first_chunk() else { continue };
            let len = usize::from(u16::from_be_bytes(*len));
            let Some(message) = rest.get(..len) else { continue };
            let message = message.to_vec();
            if belongs(&pending.query, pending.id, &message).is_err() {
                self.counters.mismatched += 1;
                return Outcome::Failed;
            }
            return self.judged(now, place, &message, egress);
        }
    }
}
