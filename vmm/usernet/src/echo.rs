//! Echo requests of the guest to others, through echo sockets of the host.
//!
//! Invariant: a reply that the guest gets was sent by whom it names: nothing is made up. There are never more identifiers or
//! requests than [`EchoBounds`] says. RFC 792, 4443 section 4.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::FlowId;
use crate::delivery::{Delivery, Header};
use crate::icmp::{Fault, Quote};
use crate::limits::TokenBucket;
use crate::link::Payload;
use crate::siphash::SipKey;
use crate::sockets::{Close, HostError};
use crate::table::{FlowKey, Table};
use crate::time::Instant;
use crate::timers::{TimerId, Timers};
use crate::turn::Turn;
use crate::wire::{Icmp, IcmpHeader};

/// Replies and errors read from one socket before another has its turn.
const READS_PER_TURN: usize = 32;
/// Errors in a row, without a reply in between, after which a socket is closed.
const MAX_ERRORS: u8 = 64;
/// The longest data of a reply.
const MAX_READ: usize = 65_535;

/// What is kept at most, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoBounds {
    /// Pairs of an identifier and a destination.
    pub identifiers: u32,
    /// One that was not used for so long is forgotten.
    pub idle: Duration,
    /// Requests a second, and in a row.
    pub per_second: u32,
}

impl Default for EchoBounds {
    /// 64, 60 s, 50 a second.
    fn default() -> Self {
        Self { identifiers: 64, idle: Duration::from_secs(60), per_second: 50 }
    }
}

#[derive(Debug)]
struct Flow {
    timer: Option<TimerId>,
    ends_at: Instant,
    /// The sequence number of the request sent last, for errors that come later.
    last_sequence: u16,
    errors: u8,
    ready: bool,
}

/// Echo requests under way. The ports of a [`FlowKey`] are the guest's identifier and 0.
#[derive(Debug)]
pub struct Echo {
    bounds: EchoBounds,
    flows: Table<FlowKey, Flow>,
    timers: Timers<FlowId>,
    pace: TokenBucket,
    ready: Vec<FlowId>,
    buffer: Vec<u8>,
}

impl Echo {
    /// How many names flows take at most. There is a spare place: what gives way does so only once the other one stands.
    #[must_use]
    pub const fn names_needed(bounds: &EchoBounds) -> u32 {
        bounds.identifiers + 1
    }

    /// None yet. Their names have the indices from `base` on, [`Self::names_needed`] of them.
    #[must_use]
    pub fn new(bounds: EchoBounds, base: u32, secret: SipKey) -> Self {
        let pace = u64::from(bounds.per_second);
        Self {
            bounds,
            flows: Table::new(secret, base, bounds.identifiers + 1),
            timers: Timers::new(),
            pace: TokenBucket::new(pace, pace),
            ready: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Whether names like this are those of echo sockets.
    #[must_use]
    pub const fn names(&self, id: FlowId) -> bool {
        self.flows.names(id)
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Whether another request keeps to the pace; one that does not is counted and to be dropped. To be asked before everything
    /// else, so that requests cost little.
    pub fn admit<P: Payload>(&mut self, turn: &mut Turn<'_, P>) -> bool {
        let admitted = self.pace.take(turn.now, 1);
        turn.counters.echo_limited += u64::from(!admitted);
        admitted
    }

    /// Sends a request of the guest's to `peer`, whose port means nothing. To be asked only after the policy. Where the host sends
    /// none, nothing answers.
    ///
    /// # Errors
    /// What the guest is to be told.
    pub fn request<P: Payload>(
        &mut self,
        ends: FlowKey,
        peer: SocketAddr,
        sequence: u16,
        data: &[u8],
        turn: &mut Turn<'_, P>,
    ) -> Result<(), Fault> {
        let known = self.flows.find(&ends).map_or_else(|| self.open(ends, peer, turn), Ok);
        let sent = known.and_then(|id| {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.last_sequence = sequence;
                flow.ends_at = turn.now + self.bounds.idle;
            }
            self.flows.touch(id);
            turn.sockets.echo_send(id, sequence, data)
        });
        match sent {
            Ok(()) => {
                turn.counters.echo_sent += 1;
                Ok(())
            }
            Err(error) => {
                turn.counters.echo_failed += 1;
                told(error).map_or(Ok(()), Err)
            }
        }
    }

    fn open<P: Payload>(
        &mut self,
        ends: FlowKey,
        peer: SocketAddr,
        turn: &mut Turn<'_, P>,
    ) -> Result<FlowId, HostError> {
        let id = self.flows.next_id().ok_or(HostError::NoRoom)?;
        turn.sockets.echo_open(id, peer)?;
        let ends_at = turn.now + self.bounds.idle;
        let flow = Flow { timer: None, ends_at, last_sequence: 0, errors: 0, ready: false };
        if self.flows.insert(ends, flow) != Some(id) {
            turn.sockets.close(id, Close::Orderly);
            return Err(HostError::NoRoom);
        }
        self.arm(id);
        if self.flows.len() > self.bounds.identifiers as usize
            && let Some(oldest) = self.flows.oldest()
        {
            turn.counters.echo_evicted += 1;
            self.close(oldest, turn);
        }
        Ok(id)
    }

    /// Something has become possible on a socket; it is read at the next flush.
    pub fn socket_ready(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !flow.ready
        {
            flow.ready = true;
            self.ready.push(id);
        }
    }

    /// Reads what sockets have, a bounded amount. Whether something may be left for another flush at once.
    pub fn flush<P: Payload>(&mut self, delivery: &mut Delivery, turn: &mut Turn<'_, P>) -> bool {
        if self.ready.is_empty() {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_READ, 0);
        for id in std::mem::take(&mut self.ready) {
            if self.read(id, &mut buffer, delivery, turn) {
                self.ready.push(id);
            } else if let Some(flow) = self.flows.get_mut(id) {
                flow.ready = false;
            }
        }
        self.buffer = buffer;
        !self.ready.is_empty()
    }

    /// Forgets what was not used for its time.
    pub fn run_timers<P: Payload>(&mut self, turn: &mut Turn<'_, P>) {
        while let Some(id) = self.timers.expire(turn.now) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            flow.timer = None;
            if flow.ends_at > turn.now {
                self.arm(id);
            } else {
                self.close(id, turn);
            }
        }
    }

    /// When [`Self::run_timers`] has something to do, or [`Self::flush`] has at once.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ready.is_empty() { self.timers.next() } else { Some(Instant::from_nanos(0)) }
    }

    /// Ends what goes to an address that `stays` refuses.
    pub fn sweep<P: Payload>(
        &mut self,
        mut stays: impl FnMut(IpAddr) -> bool,
        turn: &mut Turn<'_, P>,
    ) {
        for id in self.flows.ids().collect::<Vec<_>>() {
            if self.flows.key(id).is_some_and(|key| !stays(key.remote.ip())) {
                turn.counters.policy_swept += 1;
                self.close(id, turn);
            }
        }
    }

    fn read<P: Payload>(
        &mut self,
        id: FlowId,
        buffer: &mut [u8],
        delivery: &mut Delivery,
        turn: &mut Turn<'_, P>,
    ) -> bool {
        let Some(key) = self.flows.key(id) else { return false };
        for _ in 0..READS_PER_TURN {
            let Some(flow) = self.flows.get_mut(id) else { return false };
            let failed = match turn.sockets.echo_receive(id, buffer) {
                Ok(Some((sequence, len))) => {
                    flow.errors = 0;
                    turn.counters.echo_received += 1;
                    let data = buffer.get(..len).unwrap_or(buffer);
                    reply(
                        key.remote.ip(),
                        key.guest.ip(),
                        key.guest.port,
                        sequence,
                        data,
                        delivery,
                        turn,
                    );
                    continue;
                }
                Ok(None) => return false,
                Err(error) => error,
            };
            flow.errors = flow.errors.saturating_add(1);
            let (errors, sequence) = (flow.errors, flow.last_sequence);
            if let Some(fault) = told(failed) {
                delivery.report(fault, Quote::echo(&key, sequence), turn);
            }
            if errors >= MAX_ERRORS {
                self.close(id, turn);
                return false;
            }
        }
        true
    }

    fn close<P: Payload>(&mut self, id: FlowId, turn: &mut Turn<'_, P>) {
        if let Some((_, mut flow)) = self.flows.remove(id) {
            self.timers.cancel(&mut flow.timer);
            self.ready.retain(|ready| *ready != id);
            turn.sockets.close(id, Close::Orderly);
        }
    }

    fn arm(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            self.timers.arm_lazily(&mut flow.timer, flow.ends_at, id);
        }
    }
}

/// What the guest is told when the host said this. That the host sends no echo requests at all is its own affair: nothing answers
/// then.
const fn told(error: HostError) -> Option<Fault> {
    match error {
        HostError::Prohibited | HostError::Refused => None,
        error => Fault::of(error),
    }
}

/// Sends an echo reply to the guest.
pub fn reply<P: Payload>(
    source: IpAddr,
    guest: IpAddr,
    identifier: u16,
    sequence: u16,
    data: &[u8],
    delivery: &mut Delivery,
    turn: &mut Turn<'_, P>,
) {
    let icmp = if source.is_ipv4() { Icmp::V4 } else { Icmp::V6 };
    let header = IcmpHeader::echo(icmp.echo_reply(), identifier, sequence);
    let header = Header::Icmp { source, destination: guest, header };
    delivery.send(header, data, turn);
}
