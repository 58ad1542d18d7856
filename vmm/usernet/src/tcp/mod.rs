//! TCP between the guest's segments and the host's sockets, without a second TCP in the middle (RFC 9293).
//!
//! Towards the guest: sequence numbers are offsets into the byte streams of one socket. What comes from the guest goes to `sendmsg` in
//! place, a turn's worth at once, and is acknowledged when the socket has it or it is held back until then; the window that the
//! guest is offered is the socket's free space. What comes from the socket is read as far as the guest's window goes, kept in a ring
//! until it is acknowledged, and sent again when it gets lost.
//!
//! | event | what happens |
//! |---|---|
//! | SYN from the guest | judged, then a connect at the host; the SYN is answered when that has been decided |
//! | connect fails | reset, ICMP or silence, by the host's error |
//! | FIN from the guest | its bytes first, then `shutdown`, then the acknowledgment; reading goes on |
//! | end at the host | the ring first, then FIN; the guest may go on |
//! | RST from the guest, in the window | the peer sees a reset |
//! | host loses the connection | the ring first, then RST |
//! | segment of no connection | RST, never to an RST |
//!
//! Invariant: tables, rings, queues and lists are bounded by [`Bounds`]; both byte streams arrive whole and in order or the
//! connection is reset.

mod conn;
mod emit;
mod flow;
mod open;
mod out_of_order;
mod pending;
mod receive;
mod send;
mod seq;
mod service;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use conn::Conn;
use flow::{Flow, State};
pub(crate) use open::Told;
use out_of_order::OutOfOrder;
use pending::Pending;
use send::Served;
use seq::Seq;
pub(crate) use service::Service;

use crate::config::{Bounds, Config};
use crate::icmp::Fault;
use crate::link::Payload;
use crate::policy::{Route, Scene};
use crate::ring::Pool;
use crate::siphash::SipKey;
use crate::sockets::{Close, ForwardId, Readiness};
use crate::table::{Endpoint, FlowKey, Key as _, Table};
use crate::timers::Timers;
use crate::turn::Turn;
use crate::wire::{Macs, TcpFlags, TcpHeader};
use crate::{FlowId, Instant};

/// So many resets wait for room at the link at most.
const MAX_RESETS: usize = 256;
/// So many connections are served by the stack itself at most.
const MAX_SERVICES: usize = 64;
/// A turn sends so many bytes to the guest before it looks for what the guest has to say.
const TURN_BYTES: u64 = 512 << 10;
/// So many connections are taken at a published port in one go.
const ACCEPTS: usize = 64;
/// Lists of payloads that are kept for the next connection that needs one.
const SPARE_QUEUES: usize = 64;

/// All TCP connections of one guest.
#[derive(Debug)]
pub(crate) struct Tcp<P> {
    table: Table<FlowKey, Flow<P>>,
    shared: Shared<P>,
    /// Emptied and filled within a turn; kept for its memory.
    scratch: Vec<FlowId>,
}

/// What connections share.
#[derive(Debug)]
struct Shared<P> {
    macs: Macs,
    mtu: u16,
    bounds: Bounds,
    pool: Pool,
    timers: Timers<FlowId>,
    pending: Pending,
    out_of_order: OutOfOrder<P>,
    /// Payloads that are held back.
    parked: usize,
    /// Those that have something for the guest, in the order of their turns.
    ready: VecDeque<FlowId>,
    /// Those that wait for memory.
    hungry: VecDeque<FlowId>,
    /// Those that the end of the turn looks at.
    dirty: Vec<FlowId>,
    spare: Vec<Vec<P>>,
    /// Those that wait for late segments, the first ones first; some are gone.
    time_waits: VecDeque<FlowId>,
    resets: VecDeque<(FlowKey, TcpHeader)>,
    faults: VecDeque<(FlowKey, TcpHeader, Fault)>,
    services: usize,
    /// Services that something has happened to.
    served: VecDeque<FlowId>,
}

impl<P: Payload> Tcp<P> {
    /// No connection yet; their names have the indices from `base` on.
    pub(crate) fn new(config: &Config, secret: SipKey, base: u32) -> Self {
        let bounds = config.bounds.clone();
        let shared = Shared {
            macs: config.macs,
            mtu: config.mtu,
            pool: Pool::new(bounds.ring_bytes),
            timers: Timers::new(),
            pending: Pending::new(bounds.pending, bounds.pending_per_destination),
            out_of_order: OutOfOrder::new(bounds.out_of_order),
            parked: 0,
            ready: VecDeque::new(),
            hungry: VecDeque::new(),
            dirty: Vec::new(),
            spare: Vec::new(),
            time_waits: VecDeque::new(),
            resets: VecDeque::new(),
            faults: VecDeque::new(),
            services: 0,
            served: VecDeque::new(),
            bounds,
        };
        let table = Table::new(secret, base, shared.bounds.tcp_flows);
        Self { table, shared, scratch: Vec::new() }
    }

    /// Whether names like this are those of connections.
    pub(crate) const fn names(&self, id: FlowId) -> bool {
        self.table.names(id)
    }

    /// How many connections there are.
    pub(crate) const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no room for another.
    pub(crate) const fn is_full(&self) -> bool {
        self.table.is_full()
    }

    /// A segment from the guest. `route` is asked where a connection that it begins may go.
    pub(crate) fn segment(
        &mut self,
        key: FlowKey,
        header: &TcpHeader,
        payload: P,
        turn: &mut Turn<'_, P>,
        secret: SipKey,
        route: impl FnOnce() -> Result<Route, Told>,
    ) {
        let flags = header.flags;
        let begins =
            flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST);
        if let Some(id) = self.table.find(&key) {
            let flow = self.table.get(id);
            let over = |flow: &Flow<P>| {
                flow.state == State::TimeWait && Seq(header.sequence).after(flow.expected - 1)
            };
            if !(begins && flow.is_some_and(over)) {
                self.table.touch(id);
                self.with(id, turn, |conn| conn.segment(header, payload));
                return;
            }
            self.with(id, turn, |conn| conn.finish(Close::Orderly));
        }
        if begins {
            turn.counters.tcp_opened += 1;
            match route() {
                Ok(route) => self.open(key, header, route, turn, secret),
                Err(Told::Reset) => self.shared.refuse_segment(turn, &key, header, 1),
                Err(Told::Unreachable(why)) => {
                    self.shared.unreachable(&key, Seq(header.sequence), why);
                }
                Err(Told::Silence) => {}
            }
        } else if !flags.has(TcpFlags::RST) {
            turn.counters.tcp_unknown += 1;
            let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let ends = u32::from(flags.has(TcpFlags::FIN)) + u32::from(flags.has(TcpFlags::SYN));
            self.shared.refuse_segment(turn, &key, header, len.wrapping_add(ends));
        }
    }

    fn open(
        &mut self,
        key: FlowKey,
        header: &TcpHeader,
        route: Route,
        turn: &mut Turn<'_, P>,
        secret: SipKey,
    ) {
        let served_here = route == Route::Stack;
        if served_here && self.shared.services >= MAX_SERVICES || !self.make_room(turn) {
            turn.counters.tcp_full += 1;
            return self.shared.refuse_segment(turn, &key, header, 1);
        }
        while let Some(oldest) = self.shared.pending.in_the_way(key.remote.address)
            && !served_here
        {
            turn.counters.tcp_pending_evicted += 1;
            self.with(oldest, turn, |conn| conn.finish(Close::Reset));
        }
        let first = first_sequence(secret, &key, turn.now);
        let flow = Flow::new(State::Connecting, first, turn.now);
        if let Some(id) = self.table.insert(key, flow) {
            self.with(id, turn, |conn| conn.begin(header, route));
        }
    }

    /// Somebody waits at the published port `forward`, which leads to `guest`. Whether more may wait.
    pub(crate) fn accept(
        &mut self,
        forward: ForwardId,
        guest: Endpoint,
        scene: &Scene,
        turn: &mut Turn<'_, P>,
        secret: SipKey,
    ) -> bool {
        for _ in 0..ACCEPTS {
            if !self.make_room(turn) {
                return true;
            }
            let Some(id) = self.table.next_id() else { return true };
            let peer = match turn.sockets.tcp_accept(forward, id) {
                Ok(Some(peer)) => peer,
                // One that failed is gone; the next may be well.
                Err(_) => continue,
                Ok(None) => return false,
            };
            turn.counters.tcp_accepted += 1;
            let Some(key) = self.inbound_key(peer, guest, scene) else {
                turn.sockets.close(id, Close::Reset);
                continue;
            };
            let first = first_sequence(secret, &key, turn.now);
            if self.table.insert(key, Flow::new(State::SynSent, first, turn.now)) == Some(id) {
                self.with(id, turn, |conn| conn.begin_inbound());
            } else {
                turn.sockets.close(id, Close::Reset);
            }
        }
        true
    }

    /// How the guest sees `peer`: as itself, or as a port of the gateway that no other connection has where the guest could not
    /// answer it, or would take it for another.
    fn inbound_key(&self, peer: SocketAddr, guest: Endpoint, scene: &Scene) -> Option<FlowKey> {
        let ip = peer.ip().to_canonical();
        let near = !ip.is_ipv4() || ip.is_loopback() || scene.in_guest_network(ip);
        let address = if near { scene.v4().gateway } else { ip };
        let free = |port: u16| {
            let key = FlowKey { guest, remote: Endpoint::new(address, port) };
            (port != 0 && self.table.find(&key).is_none()).then_some(key)
        };
        (0..64).find_map(|step| free(peer.port().wrapping_add(step * 251)))
    }

    /// Something has become possible at the socket of `id`.
    pub(crate) fn socket_ready(
        &mut self,
        id: FlowId,
        readiness: Readiness,
        turn: &mut Turn<'_, P>,
    ) {
        self.with(id, turn, |conn| conn.host_ready(readiness));
    }

    /// Does what is due.
    pub(crate) fn run_timers(&mut self, turn: &mut Turn<'_, P>) {
        while let Some(id) = self.shared.timers.expire(turn.now) {
            self.with(id, turn, |conn| conn.timer_fired());
        }
    }

    /// When something is due; a moment long past when there is work left.
    pub(crate) fn next_deadline(&self, link_full: bool) -> Option<Instant> {
        let shared = &self.shared;
        let work =
            !(shared.ready.is_empty() && shared.dirty.is_empty() && shared.resets.is_empty());
        if work && !link_full {
            return Some(Instant::from_nanos(0));
        }
        shared.timers.next()
    }

    /// Ends a turn.
    pub(crate) fn flush(&mut self, turn: &mut Turn<'_, P>) {
        while !*turn.link_full
            && let Some((key, header)) = self.shared.resets.pop_front()
        {
            self.shared.reset(turn, &key, header);
        }
        let mut dirty =
            std::mem::replace(&mut self.shared.dirty, std::mem::take(&mut self.scratch));
        for id in &dirty {
            self.with(*id, turn, |conn| conn.offer());
        }
        self.serve(turn);
        for id in dirty.drain(..) {
            self.with(id, turn, |conn| {
                if conn.flow.look && conn.flow.state == State::Established {
                    conn.flow.look = false;
                    conn.flow.poll_at = conn.flow.poll_at.min(conn.turn.now);
                    conn.measure();
                }
                let owed = conn.tell().is_err();
                conn.flow.dirty = owed;
                if owed {
                    conn.shared.dirty.push(id);
                }
            });
        }
        self.scratch = dirty;
    }

    /// Gives each connection that has something for the guest its turn.
    fn serve(&mut self, turn: &mut Turn<'_, P>) {
        if self.shared.pool.has_room() {
            self.shared.ready.append(&mut self.shared.hungry);
        }
        let before = turn.counters.host_bytes;
        while !*turn.link_full
            && turn.counters.host_bytes - before < TURN_BYTES
            && let Some(id) = self.shared.ready.pop_front()
        {
            self.with(id, turn, |conn| {
                conn.flow.queued = false;
                let served = conn.serve();
                if *conn.turn.link_full && conn.flow.has_unsent() {
                    conn.mark_ready();
                }
                match served {
                    Served::Waits => {}
                    Served::More => conn.mark_ready(),
                    Served::Hungry => {
                        conn.flow.queued = true;
                        conn.shared.hungry.push_back(id);
                    }
                }
            });
        }
    }

    /// Resets every connection that `allowed` does not allow.
    pub(crate) fn sweep(
        &mut self,
        turn: &mut Turn<'_, P>,
        mut allowed: impl FnMut(&FlowKey) -> bool,
    ) {
        let ids: Vec<FlowId> = self.table.ids().collect();
        for id in ids {
            let judged = self.table.get(id).is_some_and(|flow| !flow.inbound);
            if judged && self.table.key(id).is_some_and(|key| !allowed(&key)) {
                self.with(id, turn, |conn| match conn.flow.state {
                    State::Connecting => conn.deny(),
                    _ => conn.reset_both(),
                });
            }
        }
    }

    /// The guest's memory is not to be held any longer: connections whose bytes were promised to arrive are lost.
    pub(crate) fn link_reset(&mut self, turn: &mut Turn<'_, P>) {
        self.shared.out_of_order.clear();
        let holds = |id: &FlowId| self.table.get(*id).is_some_and(|flow| !flow.queue.is_empty());
        let ids: Vec<FlowId> = self.table.ids().filter(holds).collect();
        for id in ids {
            self.with(id, turn, |conn| conn.reset_both());
        }
        self.shared.resets.clear();
    }

    /// What serves the connection `id`, where that is the stack itself.
    pub(crate) fn service(&mut self, id: FlowId) -> Option<&mut Service> {
        self.table.get_mut(id)?.service.as_deref_mut()
    }

    /// What serves `id` has taken or added something.
    pub(crate) fn service_changed(&mut self, id: FlowId, turn: &mut Turn<'_, P>) {
        let both = Readiness { readable: true, writable: true, failed: false };
        self.with(id, turn, |conn| conn.host_ready(both));
    }

    /// The next connection to whose service something has happened; it may be gone.
    pub(crate) fn take_served(&mut self) -> Option<FlowId> {
        self.shared.served.pop_front()
    }

    /// The next connection that the guest must be told of by ICMP, with its SYN.
    pub(crate) fn take_fault(&mut self) -> Option<(FlowKey, TcpHeader, Fault)> {
        self.shared.faults.pop_front()
    }

    /// Makes room for one more connection, if it can.
    fn make_room(&mut self, turn: &mut Turn<'_, P>) -> bool {
        if !self.table.is_full() {
            return true;
        }
        while let Some(id) = self.shared.time_waits.pop_front() {
            if self.table.get(id).is_some_and(|flow| flow.state == State::TimeWait) {
                self.with(id, turn, |conn| conn.finish(Close::Orderly));
                return true;
            }
        }
        let Some(oldest) = self.table.oldest() else { return false };
        let idle = self.table.get(oldest).map(|flow| turn.now.since(flow.last_used));
        if idle.is_none_or(|idle| idle < self.shared.bounds.evict_after) {
            return false;
        }
        turn.counters.tcp_evicted += 1;
        self.with(oldest, turn, |conn| conn.reset_both());
        !self.table.is_full()
    }

    /// Does something about one connection, if it is there, and lets it go when it is done.
    fn with<R>(
        &mut self,
        id: FlowId,
        turn: &mut Turn<'_, P>,
        action: impl FnOnce(&mut Conn<'_, '_, P>) -> R,
    ) -> Option<R> {
        let key = self.table.key(id)?;
        let flow = self.table.get_mut(id)?;
        let shared = &mut self.shared;
        let mut conn = Conn { id, key, flow, shared, turn };
        let result = action(&mut conn);
        if conn.flow.state == State::Gone {
            self.table.remove(id);
        }
        Some(result)
    }
}

impl<P: Payload> Shared<P> {
    /// The largest segment that we take from the guest, and send to it.
    fn our_mss(&self, key: &FlowKey) -> u16 {
        let headers = emit::ip_header_len(key) + TcpHeader::LEN;
        self.mtu.saturating_sub(u16::try_from(headers).unwrap_or(60))
    }

    /// Remembers that `id` waits for late segments and nothing else.
    fn note_time_wait(&mut self, id: FlowId) {
        if self.time_waits.len() >= self.bounds.tcp_flows as usize {
            self.time_waits.pop_front();
        }
        self.time_waits.push_back(id);
    }

    /// Keeps a list of payloads for the next connection that needs one.
    fn spare(&mut self, mut queue: Vec<P>) {
        queue.clear();
        if queue.capacity() > 0 && self.spare.len() < SPARE_QUEUES {
            self.spare.push(queue);
        }
    }

    /// The guest is to hear that there is no way to where its SYN, which began at `first`, should have gone.
    fn unreachable(&mut self, key: &FlowKey, first: Seq, why: Fault) {
        let syn = TcpHeader {
            source: key.guest.port,
            destination: key.remote.port,
            sequence: first.0,
            acknowledgment: 0,
            flags: TcpFlags::SYN,
            window: 0,
            mss: None,
            window_scale: None,
        };
        if self.faults.len() < MAX_RESETS {
            self.faults.push_back((*key, syn, why));
        }
    }

    /// Sends a reset, now or when the link has room.
    fn reset(&mut self, turn: &mut Turn<'_, P>, key: &FlowKey, header: TcpHeader) {
        if emit::emit(turn, self.macs, key, &header, u16::MAX, [&[], &[]]).is_ok() {
            turn.counters.tcp_resets_sent += 1;
        } else if self.resets.len() < MAX_RESETS {
            self.resets.push_back((*key, header));
        }
    }

    /// Answers a segment of `len` sequence numbers that belongs to no connection (RFC 9293 section 3.10.7.1).
    fn refuse_segment(
        &mut self,
        turn: &mut Turn<'_, P>,
        key: &FlowKey,
        header: &TcpHeader,
        len: u32,
    ) {
        let acknowledges = header.flags.has(TcpFlags::ACK);
        let answer = TcpHeader {
            source: key.remote.port,
            destination: key.guest.port,
            sequence: if acknowledges { header.acknowledgment } else { 0 },
            acknowledgment: if acknowledges { 0 } else { header.sequence.wrapping_add(len) },
            flags: if acknowledges { TcpFlags::RST } else { TcpFlags::RST | TcpFlags::ACK },
            window: 0,
            mss: None,
            window_scale: None,
        };
        self.reset(turn, key, answer);
    }
}

/// Where our sequence numbers begin (RFC 6528): a clock of 4 us, and what nobody can guess of this connection.
#[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
fn first_sequence(secret: SipKey, key: &FlowKey, now: Instant) -> Seq {
    let clock = (now.as_nanos() / 4_000) as u32;
    Seq((secret.derive(1).hash(&key.words()) as u32).wrapping_add(clock))
}
