//! Segments from the guest: what they bring goes to the host's socket, in order and without a copy.
//!
//! Invariant: what is acknowledged was taken by the socket or is kept until it is; the window
//! never goes past the socket's free space, and its right edge moves back by rounding at most.

use super::conn::{Conn, Pace};
use super::flow::{GuestFin, HostEnd, NEVER, State};
use super::seq::Seq;
use crate::link::Payload;
use crate::sockets::Close;
use crate::wire::{TcpFlags, TcpHeader};

/// So many payloads are gathered before they are handed to the socket within a turn.
const BATCH: usize = 64;
/// A window that was closed is told again when it is open by so much, or by half of what it was.
const WORTH_TELLING: u32 = 2 * 1_460;

impl<P: Payload> Conn<'_, '_, P> {
    /// A segment of this connection.
    pub(super) fn segment(&mut self, header: &TcpHeader, payload: P) {
        self.flow.last_used = self.turn.now;
        match self.flow.state {
            State::Connecting => self.while_connecting(header),
            State::SynSent => self.while_syn_sent(header),
            State::SynReceived | State::Established => self.while_open(header, payload),
            State::TimeWait => {
                // The guest did not hear our last acknowledgment (RFC 9293 section 3.10.7.4).
                if !header.flags.has(TcpFlags::RST) {
                    self.owe_ack();
                }
            }
            State::Gone => {}
        }
    }

    fn while_open(&mut self, header: &TcpHeader, payload: P) {
        let (flags, sequence) = (header.flags, Seq(header.sequence));
        if flags.has(TcpFlags::RST) {
            // A byte past the edge: a FIN, or a probe of a closed window, is not bound by it.
            if sequence.within(self.flow.told, self.flow.edge.max(self.flow.expected) + 1) {
                self.turn.counters.tcp_resets_received += 1;
                self.finish(Close::Reset);
            }
            return;
        }
        if flags.has(TcpFlags::SYN) {
            let again = self.flow.state == State::SynReceived && sequence + 1 == self.flow.expected;
            self.flow.syn_due |= again;
            return self.owe_ack();
        }
        if !flags.has(TcpFlags::ACK) {
            return;
        }
        let acknowledged = Seq(header.acknowledgment);
        if self.flow.state == State::SynReceived {
            if acknowledged != self.flow.max {
                return self.refuse(acknowledged);
            }
            self.established(header);
        }
        if acknowledged.after(self.flow.max) {
            return self.owe_ack();
        }
        let brings_nothing = payload.is_empty() && !flags.has(TcpFlags::FIN);
        if brings_nothing && sequence.within(self.flow.told, self.flow.edge.max(self.flow.expected))
        {
            return self.acknowledged(header, true);
        }
        self.acknowledged(header, brings_nothing);
        if self.flow.state == State::Gone {
            return;
        }
        if brings_nothing {
            // A keep-alive, or one that the guest sent before it heard of more.
            return self.owe_ack();
        }
        self.bytes(sequence, flags.has(TcpFlags::FIN), payload);
    }

    /// What a segment brings, wherever it begins.
    fn bytes(&mut self, mut sequence: Seq, mut fin: bool, mut payload: P) {
        let expected = self.flow.expected;
        let len = length(&payload);
        if !(sequence + len + u32::from(fin)).after(expected)
            || self.flow.guest_fin != GuestFin::None
        {
            return self.owe_ack();
        }
        if sequence.before(expected) {
            let known = expected.ahead_of(sequence).min(len);
            payload.skip(known as usize);
            sequence = expected;
        }
        let room = self.flow.edge.ahead_of(sequence);
        if length(&payload) > room || sequence.after(self.flow.edge) {
            self.turn.counters.tcp_dropped += 1;
            self.owe_ack();
            // A probe of a closed window asks whether it is open by now.
            self.flow.poll_at = self.flow.poll_at.min(self.turn.now);
            payload.truncate(room as usize);
            fin = false;
            if payload.is_empty() {
                return;
            }
        }
        if sequence != expected {
            self.turn.counters.tcp_out_of_order += 1;
            self.shared.out_of_order.keep(self.id, sequence, fin, payload);
            // The guest counts these, so each is sent at once, and says all that can be said.
            self.offer();
            self.flow.ack_due = true;
            if self.tell().is_err() {
                self.mark_dirty();
            }
            return;
        }
        self.take(fin, payload);
        while self.shared.out_of_order.len() > 0
            && let Some(early) = self.shared.out_of_order.take(self.id, self.flow.expected)
        {
            let mut payload = early.payload;
            let known = self.flow.expected.ahead_of(early.sequence);
            if known <= length(&payload) && self.flow.guest_fin == GuestFin::None {
                payload.skip(known as usize);
                self.take(early.fin, payload);
            }
        }
    }

    /// Takes what comes next.
    fn take(&mut self, fin: bool, payload: P) {
        self.mark_dirty();
        if self.flow.host_end == HostEnd::Lost && !payload.is_empty() {
            // Nobody will read it.
            return self.reset_both();
        }
        if self.flow.host_full && self.flow.queue.len() >= self.may_park() {
            self.turn.counters.tcp_dropped += 1;
            return self.owe_ack();
        }
        if !payload.is_empty() {
            let len = length(&payload);
            if self.flow.queue.capacity() == 0 {
                self.flow.queue = self.shared.spare.pop().unwrap_or_default();
            }
            self.flow.queue.push(payload);
            self.flow.queue_bytes += len;
            self.flow.expected = self.flow.expected + len;
        }
        if fin {
            self.flow.guest_fin = GuestFin::Waiting;
        }
        if self.flow.queue.len() >= BATCH {
            self.offer();
        }
    }

    /// Hands the host's socket what there is, and decides what may be acknowledged.
    pub(super) fn offer(&mut self) {
        if !matches!(self.flow.state, State::Established) {
            return;
        }
        while !self.flow.queue.is_empty() && !self.flow.host_full {
            match self.host_send() {
                Ok(0) => self.flow.host_full = true,
                Ok(count) => self.sent_to_host(count),
                Err(_) => return self.reset_both(),
            }
        }
        self.park();
        if self.flow.queue.is_empty() && self.flow.guest_fin == GuestFin::Waiting {
            self.host_shutdown();
            self.flow.guest_fin = GuestFin::Taken;
            self.flow.expected = self.flow.expected + 1;
            self.owe_ack();
        }
        if !self.flow.queue.is_empty() {
            // What was told stands; more is offered when the socket has been looked at again.
            self.flow.goal_edge = self.flow.edge;
            self.flow.goal = u32::MAX;
        }
        self.flow.ackable = self.flow.expected;
        self.measure();
        if self.flow.guest_fin == GuestFin::Taken {
            self.close_when_done();
        }
    }

    /// The socket took `count` bytes of the queue.
    fn sent_to_host(&mut self, count: usize) {
        let mut left = count;
        let whole = self.flow.queue.iter().take_while(|part| {
            let all = part.len() <= left;
            left -= if all { part.len() } else { 0 };
            all
        });
        let whole = whole.count();
        self.flow.queue.drain(..whole);
        if let Some(part) = self.flow.queue.first_mut() {
            part.skip(left);
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.flow.queue_bytes = self.flow.queue_bytes.saturating_sub(count);
    }

    /// How many payloads this connection may hold back.
    fn may_park(&self) -> usize {
        let bounds = &self.shared.bounds;
        let others = self.shared.parked - usize::from(self.flow.parked);
        bounds.parked.saturating_sub(others).min(bounds.parked_per_flow)
    }

    /// Accounts for what is held back; what is too much is dropped as if it had never come.
    fn park(&mut self) {
        let most = self.may_park();
        while self.flow.queue.len() > most
            && let Some(part) = self.flow.queue.pop()
        {
            let len = length(&part);
            self.flow.expected = self.flow.expected - len;
            self.flow.queue_bytes -= len;
            self.flow.guest_fin = GuestFin::None;
            self.turn.counters.tcp_dropped += 1;
            self.flow.ack_due = true;
        }
        let parked = u16::try_from(self.flow.queue.len()).unwrap_or(u16::MAX);
        self.shared.parked -= usize::from(self.flow.parked);
        self.shared.parked += usize::from(parked);
        self.turn.counters.tcp_parked += u64::from(parked.saturating_sub(self.flow.parked));
        self.flow.parked = parked;
        if parked == 0 && self.flow.queue.capacity() > 0 {
            let queue = std::mem::take(&mut self.flow.queue);
            self.shared.spare(queue);
        }
    }

    /// Looks at the socket's free space where half of the window is used up, and moves the edge that could be told.
    pub(super) fn measure(&mut self) {
        let flow = &mut *self.flow;
        let room = flow.goal_edge.ahead_of(flow.expected);
        let due = flow.poll_at <= self.turn.now;
        if flow.host_full || flow.guest_fin != GuestFin::None {
            flow.poll_at = NEVER;
            return;
        }
        if room > flow.goal / 2 && !due {
            return;
        }
        let space = u32::try_from(self.host_send_space()).unwrap_or(u32::MAX);
        let flow = &mut *self.flow;
        flow.goal = space.min(self.shared.bounds.max_window).saturating_sub(flow.queue_bytes);
        flow.goal_edge = flow.goal_edge.max(flow.expected + flow.goal);
        let room = flow.goal_edge.ahead_of(flow.expected);
        if room < self.worth_telling() {
            let flow = &mut *self.flow;
            // A full socket announces space; one that is merely short of it may not.
            flow.poll_at = self.turn.now + Pace::POLL * (1 << flow.polls);
            flow.polls = (flow.polls + 1).min(Pace::MOST_POLLS);
            self.arm();
        } else {
            (self.flow.poll_at, self.flow.polls) = (NEVER, 0);
        }
        self.mark_dirty();
    }

    /// Whether the guest thinks that it may send nothing to speak of, and may.
    pub(super) fn window_has_opened(&self) -> bool {
        let told = self.flow.edge.ahead_of(self.flow.expected);
        let open = self.flow.goal_edge.ahead_of(self.flow.expected);
        let worth = self.worth_telling();
        told < worth && open >= worth && self.flow.guest_fin == GuestFin::None
    }

    /// The least window, in bytes, that a guest does something with: one that sends large packets waits until there is room for one,
    /// and what it is told is rounded down.
    fn worth_telling(&self) -> u32 {
        let unit = 1 << self.flow.our_scale;
        let packet = u32::from(self.shared.our_mss(&self.key)) + unit;
        WORTH_TELLING.max(packet.min(self.shared.bounds.max_window))
    }

    /// The window field of the next segment; what it says becomes the edge.
    pub(super) fn tell_window(&mut self) -> u16 {
        let flow = &mut *self.flow;
        let (base, scale) = (flow.ackable, flow.our_scale);
        // No window that is too small for a segment: the guest would fill it with crumbs (RFC 9293 section 3.8.6.2.2).
        let mss = u32::from(self.shared.our_mss(&self.key)).min(self.shared.bounds.max_window);
        let goal = if flow.goal_edge.ahead_of(base) >= mss { flow.goal_edge } else { flow.edge };
        let target = goal.max(flow.edge);
        // Rounded down, the edge may seem to move back by less than one unit, which RFC 7323 section 2.4 allows for; what the guest
        // sent by the word of an earlier one is taken.
        let window = u16::try_from(target.ahead_of(base) >> scale).unwrap_or(u16::MAX);
        let edge = base + (u32::from(window) << scale);
        flow.edge = flow.edge.max(edge);
        flow.told = base;
        window
    }
}

/// No payload is longer than an IP packet.
fn length<P: Payload>(payload: &P) -> u32 {
    u32::try_from(payload.len()).unwrap_or(u32::MAX)
}
