//! UDP: one connected host socket for each pair of ends.
//!
//! Invariant: there are never more flows than [`UdpBounds`] says, and each ends when nothing was heard for its time; whatever a
//! socket says, one turn reads a bounded amount from it, and one that does nothing but fail is closed. RFC 768, 4787 (the mapping
//! is address- and port-dependent).

mod outbox;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

pub use outbox::Outbox;

use crate::FlowId;
use crate::delivery::{Delivery, Header};
use crate::icmp::{Fault, Quote};
use crate::link::Payload;
use crate::siphash::SipKey;
use crate::sockets::{Close, Datagrams, ForwardId, HostError, Readiness, Unsendable, Unsent};
use crate::table::{Endpoint, FlowKey, Key, Table};
use crate::time::Instant;
use crate::timers::{TimerId, Timers};
use crate::turn::Turn;

/// The port of DNS, whose flows are short.
pub const DNS_PORT: u16 = 53;
/// Reads from one socket before another has its turn.
const READS_PER_TURN: usize = 8;
/// Sockets read from in one flush, and bytes read after which it ends.
const FLOWS_PER_FLUSH: usize = 64;
const BYTES_PER_FLUSH: usize = 512 << 10;
/// Errors in a row, without a datagram in between, after which a socket is closed.
const MAX_ERRORS: u8 = 64;
/// While more than this waits for the link, sockets keep what they have.
const MAX_WAITING: usize = crate::delivery::MAX_WAITING / 2;
/// The longest that one read brings: a datagram, or several equal ones.
const MAX_READ: usize = 65_535;

/// What is kept at most, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpBounds {
    /// Flows to other ports than that of DNS, published ones included.
    pub flows: u32,
    /// Flows to the port of DNS.
    pub dns_flows: u32,
    /// A flow on which nothing came back ends so long after the guest sent last.
    pub unanswered: Duration,
    /// A flow on which something came back ends so long after either side sent last.
    pub answered: Duration,
    /// The same of a flow to the port of DNS.
    pub dns_answered: Duration,
}

impl Default for UdpBounds {
    /// 4,096 flows, 512 of them to the port of DNS; 30 s, 180 s, 10 s.
    fn default() -> Self {
        Self {
            flows: 4_096 - 512,
            dns_flows: 512,
            unanswered: Duration::from_secs(30),
            answered: Duration::from_secs(180),
            dns_answered: Duration::from_secs(10),
        }
    }
}

/// What a flow is found by. The guest may have a flow of its own to somebody who also reached it at a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UdpKey {
    ends: FlowKey,
    published: bool,
}

impl Key for UdpKey {
    fn words(&self) -> [u64; 5] {
        let mut words = self.ends.words();
        words[4] |= u64::from(self.published) << 32;
        words
    }
}

#[derive(Debug)]
struct Flow {
    timer: Option<TimerId>,
    ends_at: Instant,
    answered: bool,
    /// Its socket may have something to read, and it waits for its turn.
    ready: bool,
    /// Its socket has an error beside what can be read.
    failed: bool,
    /// Errors since the last datagram.
    errors: u8,
    /// Bytes of the datagram that the guest sent last, for errors that come later.
    last_len: u16,
}

/// UDP flows.
#[derive(Debug)]
pub struct Udp {
    bounds: UdpBounds,
    flows: Table<UdpKey, Flow>,
    dns: Table<UdpKey, Flow>,
    timers: Timers<FlowId>,
    /// Flows whose sockets may have something to read.
    ready: VecDeque<FlowId>,
    /// They wait until the link has taken what waits for it.
    paused: bool,
    buffer: Vec<u8>,
}

impl Udp {
    /// How many names flows take at most. Each table has a spare place: the flow that gives way does so only once the other one
    /// stands.
    #[must_use]
    pub const fn names_needed(bounds: &UdpBounds) -> u32 {
        bounds.flows + bounds.dns_flows + 2
    }

    /// No flows yet. Their names have the indices from `base` on, [`Self::names_needed`] of them.
    #[must_use]
    pub fn new(bounds: UdpBounds, base: u32, secret: SipKey) -> Self {
        Self {
            bounds,
            flows: Table::new(secret, base, bounds.flows + 1),
            dns: Table::new(secret, base + bounds.flows + 1, bounds.dns_flows + 1),
            timers: Timers::new(),
            ready: VecDeque::new(),
            paused: false,
            buffer: Vec::new(),
        }
    }

    /// Whether names like this are those of UDP flows.
    #[must_use]
    pub const fn names(&self, id: FlowId) -> bool {
        self.flows.names(id) || self.dns.names(id)
    }

    /// How many flows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.flows.len() + self.dns.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flow that a datagram of the guest belongs to. Somebody who reached the guest at a published port is answered from there.
    #[must_use]
    pub fn find(&self, ends: &FlowKey) -> Option<FlowId> {
        let own = UdpKey { ends: *ends, published: false };
        let table = if ends.remote.port == DNS_PORT { &self.dns } else { &self.flows };
        self.flows.find(&UdpKey { published: true, ..own }).or_else(|| table.find(&own))
    }

    /// Begins a flow of the guest's to `peer`; the one not used for longest gives way where there are too many. To be asked only
    /// after the policy.
    ///
    /// # Errors
    /// What the host said; there is no flow then.
    pub fn open<P: Payload>(
        &mut self,
        ends: FlowKey,
        peer: SocketAddr,
        turn: &mut Turn<'_, P>,
    ) -> Result<FlowId, HostError> {
        let dns = ends.remote.port == DNS_PORT;
        let ends_at = turn.now + self.bounds.unanswered;
        let table = if dns { &mut self.dns } else { &mut self.flows };
        let opened = match table.next_id() {
            Some(id) => turn.sockets.udp_open(id, peer).map(|()| id),
            None => Err(HostError::NoRoom),
        };
        let flow = Flow::new(ends_at);
        let inserted = opened.and_then(|id| {
            let inserted = table.insert(UdpKey { ends, published: false }, flow);
            if inserted != Some(id) {
                turn.sockets.close(id, Close::Orderly);
            }
            inserted.filter(|inserted| *inserted == id).ok_or(HostError::NoRoom)
        });
        match inserted {
            Ok(id) => {
                turn.counters.udp_opened += 1;
                self.arm(id);
                self.make_room(turn);
            }
            Err(_) => turn.counters.udp_failed += 1,
        }
        inserted
    }

    /// Sends payloads of the guest's on a flow, in their order; the guest is told of what the host refuses.
    pub fn send<P: Payload>(
        &mut self,
        id: FlowId,
        batch: &[Unsent<P>],
        delivery: &mut Delivery,
        turn: &mut Turn<'_, P>,
    ) {
        let (Some(key), Some(last)) = (self.key(id), batch.last()) else { return };
        self.guest_sent(id, datagram_len(last), turn.now);
        let mut rest = batch;
        while let Err(Unsendable { index, error }) = turn.sockets.udp_send(id, rest) {
            turn.counters.udp_send_errors += 1;
            let Some((failed, behind)) = rest.get(index..).and_then(<[_]>::split_first) else {
                return;
            };
            if let Some(fault) = Fault::of(error) {
                let len = u16::try_from(datagram_len(failed)).unwrap_or(u16::MAX);
                delivery.report(fault, Quote::udp(&key.ends, len), turn);
            }
            rest = behind;
        }
    }

    /// Sends a datagram that was put together here.
    ///
    /// # Errors
    /// What the host said, of this datagram or of one before it; the flow stays.
    pub fn send_bytes<P: Payload>(
        &mut self,
        id: FlowId,
        bytes: &[u8],
        turn: &mut Turn<'_, P>,
    ) -> Result<(), HostError> {
        self.guest_sent(id, bytes.len(), turn.now);
        let sent = turn.sockets.udp_send_bytes(id, bytes);
        turn.counters.udp_send_errors += u64::from(sent.is_err());
        sent
    }

    /// Somebody waits at the published port `forward`, which leads to the guest's end `guest`; `seen_as` says under which address
    /// the guest sees somebody. What arrived is read at the next flush. Whether more may wait there; where the host only says
    /// that it cannot, the next arrival will tell.
    pub fn forward_ready<P: Payload>(
        &mut self,
        forward: ForwardId,
        guest: Endpoint,
        seen_as: impl Fn(SocketAddr) -> SocketAddr,
        turn: &mut Turn<'_, P>,
    ) -> bool {
        let mut failed = false;
        for _ in 0..FLOWS_PER_FLUSH {
            let Some(id) = self.flows.next_id() else { return false };
            let peer = match turn.sockets.udp_accept(forward, id) {
                Ok(Some(peer)) => seen_as(peer),
                Ok(None) => return false,
                Err(_) => {
                    turn.counters.udp_failed += 1;
                    failed = true;
                    continue;
                }
            };
            let ends = FlowKey { guest, remote: Endpoint::new(peer.ip(), peer.port()) };
            let flow = Flow::new(turn.now + self.bounds.unanswered);
            if self.flows.insert(UdpKey { ends, published: true }, flow) == Some(id) {
                turn.counters.udp_accepted += 1;
                self.arm(id);
                self.make_ready(id);
                self.make_room(turn);
            } else {
                turn.counters.udp_failed += 1;
                turn.sockets.close(id, Close::Orderly);
            }
        }
        !failed
    }

    /// Something has become possible on a flow's socket; it is read at the next flush.
    pub fn socket_ready(&mut self, id: FlowId, readiness: Readiness) {
        if let Some(flow) = self.flow_mut(id) {
            flow.failed |= readiness.failed;
        }
        if readiness.readable || readiness.failed {
            self.make_ready(id);
        }
    }

    /// Reads what sockets have, a bounded amount. Whether something may be left for another flush at once.
    pub fn flush<P: Payload>(&mut self, delivery: &mut Delivery, turn: &mut Turn<'_, P>) -> bool {
        self.paused = delivery.waiting_bytes() > MAX_WAITING;
        if self.ready.is_empty() || self.paused {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_READ, 0);
        let mut budget = BYTES_PER_FLUSH;
        for _ in 0..self.ready.len().min(FLOWS_PER_FLUSH) {
            if budget == 0 || delivery.waiting_bytes() > MAX_WAITING {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            if self.read(id, &mut buffer, &mut budget, delivery, turn) {
                self.ready.push_back(id);
            } else if let Some(flow) = self.flow_mut(id) {
                flow.ready = false;
            }
        }
        self.buffer = buffer;
        self.paused = delivery.waiting_bytes() > MAX_WAITING;
        !self.ready.is_empty() && !self.paused
    }

    /// Ends flows on which nothing was heard for their time.
    pub fn run_timers<P: Payload>(&mut self, turn: &mut Turn<'_, P>) {
        while let Some(id) = self.timers.expire(turn.now) {
            let Some(flow) = self.flow_mut(id) else { continue };
            flow.timer = None;
            if flow.ends_at > turn.now {
                self.arm(id);
            } else {
                turn.counters.udp_expired += 1;
                self.close(id, turn);
            }
        }
    }

    /// When [`Self::run_timers`] has something to do, or [`Self::flush`] has at once.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ready.is_empty() || self.paused {
            self.timers.next()
        } else {
            Some(Instant::from_nanos(0))
        }
    }

    /// Ends the flows of the guest's own whose other end `stays` refuses; published ones stay.
    pub fn sweep<P: Payload>(
        &mut self,
        mut stays: impl FnMut(SocketAddr) -> bool,
        turn: &mut Turn<'_, P>,
    ) {
        let own = |key: Option<UdpKey>| key.is_some_and(|key| !key.published);
        let ids: Vec<FlowId> =
            self.flows.ids().filter(|id| own(self.flows.key(*id))).chain(self.dns.ids()).collect();
        for id in ids {
            if self.key(id).is_some_and(|key| !stays(key.ends.remote.socket_addr())) {
                turn.counters.policy_swept += 1;
                self.close(id, turn);
            }
        }
    }

    /// Reads from one socket until its turn is over; whether there may be more.
    fn read<P: Payload>(
        &mut self,
        id: FlowId,
        buffer: &mut [u8],
        budget: &mut usize,
        delivery: &mut Delivery,
        turn: &mut Turn<'_, P>,
    ) -> bool {
        let Some(key) = self.key(id) else { return false };
        for _ in 0..READS_PER_TURN {
            let failed = match turn.sockets.udp_receive(id, buffer) {
                Ok(Some(datagrams)) => {
                    *budget = budget.saturating_sub(datagrams.len);
                    self.deliver(id, &key, datagrams, buffer, delivery, turn);
                    if *budget == 0 || delivery.waiting_bytes() > MAX_WAITING {
                        return true;
                    }
                    continue;
                }
                Ok(None) => match self.take_error(id, turn) {
                    Some(error) => error,
                    None => return false,
                },
                Err(error) => error,
            };
            turn.counters.udp_send_errors += 1;
            let Some(flow) = self.flow_mut(id) else { return false };
            flow.errors = flow.errors.saturating_add(1);
            let (errors, last_len) = (flow.errors, flow.last_len);
            if let Some(fault) = Fault::of(failed) {
                delivery.report(fault, Quote::udp(&key.ends, last_len), turn);
            }
            if errors >= MAX_ERRORS {
                turn.counters.udp_failed += 1;
                self.close(id, turn);
                return false;
            }
        }
        true
    }

    /// The error that a socket was said to have.
    fn take_error<P: Payload>(&mut self, id: FlowId, turn: &mut Turn<'_, P>) -> Option<HostError> {
        let flow = self.flow_mut(id)?;
        std::mem::take(&mut flow.failed).then(|| turn.sockets.take_error(id))?
    }

    fn deliver<P: Payload>(
        &mut self,
        id: FlowId,
        key: &UdpKey,
        datagrams: Datagrams,
        buffer: &[u8],
        delivery: &mut Delivery,
        turn: &mut Turn<'_, P>,
    ) {
        let answered =
            if self.dns.names(id) { self.bounds.dns_answered } else { self.bounds.answered };
        if let Some(flow) = self.flow_mut(id) {
            flow.errors = 0;
            // What a published port brought first is no answer.
            if !key.published {
                flow.answered = true;
            }
            let span = if flow.answered { answered } else { self.bounds.unanswered };
            if let Some(flow) = self.flow_mut(id) {
                flow.ends_at = turn.now + span;
            }
            // It may end sooner than was planned.
            self.arm(id);
            self.touch(id);
        }
        let bytes = buffer.get(..datagrams.len).unwrap_or(buffer);
        let segment = if datagrams.segment < bytes.len() { datagrams.segment } else { 0 };
        let (source, destination) = (key.ends.remote.socket_addr(), key.ends.guest.socket_addr());
        let header = Header::Udp { source, destination, segment };
        delivery.send(header, bytes, turn);
    }

    fn guest_sent(&mut self, id: FlowId, len: usize, now: Instant) {
        let Some(key) = self.key(id) else { return };
        let bounds = self.bounds;
        let dns = self.dns.names(id);
        let Some(flow) = self.flow_mut(id) else { return };
        // To answer is to answer, whoever began.
        flow.answered |= key.published;
        let span = match (flow.answered, dns) {
            (false, _) => bounds.unanswered,
            (true, false) => bounds.answered,
            (true, true) => bounds.dns_answered,
        };
        flow.ends_at = now + span;
        flow.last_len = u16::try_from(len).unwrap_or(u16::MAX);
        self.touch(id);
    }

    /// Ends the flows not used for longest, where a table holds more than its bound.
    fn make_room<P: Payload>(&mut self, turn: &mut Turn<'_, P>) {
        for dns in [false, true] {
            let (table, bound) = if dns {
                (&self.dns, self.bounds.dns_flows)
            } else {
                (&self.flows, self.bounds.flows)
            };
            if table.len() > bound as usize
                && let Some(oldest) = table.oldest()
            {
                turn.counters.udp_evicted += 1;
                self.close(oldest, turn);
            }
        }
    }

    fn close<P: Payload>(&mut self, id: FlowId, turn: &mut Turn<'_, P>) {
        let removed = if self.dns.names(id) { self.dns.remove(id) } else { self.flows.remove(id) };
        if let Some((_, mut flow)) = removed {
            self.timers.cancel(&mut flow.timer);
            if flow.ready {
                self.ready.retain(|ready| *ready != id);
            }
            turn.sockets.close(id, Close::Orderly);
        }
    }

    fn make_ready(&mut self, id: FlowId) {
        if let Some(flow) = self.flow_mut(id)
            && !flow.ready
        {
            flow.ready = true;
            self.ready.push_back(id);
        }
    }

    fn arm(&mut self, id: FlowId) {
        let table = if self.dns.names(id) { &mut self.dns } else { &mut self.flows };
        if let Some(flow) = table.get_mut(id) {
            self.timers.arm_lazily(&mut flow.timer, flow.ends_at, id);
        }
    }

    fn touch(&mut self, id: FlowId) {
        if self.dns.names(id) { self.dns.touch(id) } else { self.flows.touch(id) }
    }

    fn key(&self, id: FlowId) -> Option<UdpKey> {
        if self.dns.names(id) { self.dns.key(id) } else { self.flows.key(id) }
    }

    fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        if self.dns.names(id) { self.dns.get_mut(id) } else { self.flows.get_mut(id) }
    }
}

/// Bytes of one datagram of a payload.
fn datagram_len<P: Payload>(unsent: &Unsent<P>) -> usize {
    unsent.segment.map_or(unsent.payload.len(), usize::from)
}

impl Flow {
    const fn new(ends_at: Instant) -> Self {
        Self {
            timer: None,
            ends_at,
            answered: false,
            ready: false,
            failed: false,
            errors: 0,
            last_len: 0,
        }
    }
}
