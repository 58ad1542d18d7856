//! How connections begin: the guest hears of success when the host's connect has succeeded, and of failure as it happened.

use super::conn::{Conn, Pace};
use super::flow::{NEVER, State};
use super::seq::Seq;
use crate::icmp::Fault;
use crate::link::{LinkFull, Payload};
use crate::policy::{Denied, RefuseBy, Route};
use crate::sockets::{Close, Connect, HostError, Readiness};
use crate::wire::{TcpFlags, TcpHeader};

/// Our windows are told in units of 256 bytes.
const SCALE: u8 = 8;
/// A segment of less would be all header.
const LEAST_MSS: u16 = 64;
/// What a guest takes that does not say (RFC 9293 section 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// What the guest is told of a connection that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Somebody is there and does not want it.
    Reset,
    /// The way there is closed.
    Unreachable(Fault),
    /// Nothing: it may try again.
    Silence,
}

impl Told {
    /// What a policy that refuses `by` this says of something it denies.
    pub(crate) const fn of_denied(denied: Denied, by: RefuseBy) -> Self {
        match (denied, by) {
            (Denied::Gateway, _) | (_, RefuseBy::Reset) => Self::Reset,
            (_, RefuseBy::Icmp) => Self::Unreachable(Fault::Prohibited),
            (_, RefuseBy::Silence) => Self::Silence,
        }
    }

    const fn of(error: HostError) -> Self {
        match error {
            HostError::Refused
            | HostError::Reset
            | HostError::TooLarge { .. }
            | HostError::Other(_) => Self::Reset,
            HostError::NetworkUnreachable => Self::Unreachable(Fault::Network),
            HostError::HostUnreachable => Self::Unreachable(Fault::Host),
            HostError::Prohibited => Self::Unreachable(Fault::Prohibited),
            HostError::TimedOut | HostError::NoRoom => Self::Silence,
        }
    }
}

impl<P: Payload> Conn<'_, '_, P> {
    /// The guest asks for this connection, and may have it.
    pub(super) fn begin(&mut self, header: &TcpHeader, route: Route) {
        self.adopt(header);
        let peer = match route {
            Route::Stack => {
                self.flow.service = Some(Box::default());
                self.shared.services += 1;
                return self.connected();
            }
            Route::Socket(peer) => peer,
        };
        let destination = self.key.remote.address;
        self.flow.pending = Some(self.shared.pending.add(destination, self.id));
        self.flow.deadline = self.turn.now + self.shared.bounds.pending_time;
        self.arm();
        match self.turn.sockets.tcp_connect(self.id, peer) {
            Ok(Connect::Done) => self.connected(),
            Ok(Connect::UnderWay) => {}
            Err(error) => self.connect_failed(error),
        }
    }

    /// The policy no longer allows what is asked.
    pub(super) fn deny(&mut self) {
        let header = self.header(Seq(0), TcpFlags::RST | TcpFlags::ACK, 0);
        self.shared.reset(self.turn, &self.key, header);
        self.finish(Close::Reset);
    }

    /// Somebody at the host asks the guest for this connection.
    pub(super) fn begin_inbound(&mut self) {
        self.flow.inbound = true;
        self.flow.syn_due = true;
        self.flow.our_scale = SCALE;
        self.flow.readable = true;
        self.flow.max = self.flow.una + 1;
        self.flow.deadline = self.turn.now + Pace::SYN;
        self.arm();
        self.mark_dirty();
    }

    /// Takes over what a SYN of the guest says.
    fn adopt(&mut self, header: &TcpHeader) {
        let most = self.shared.our_mss(&self.key);
        let flow = &mut *self.flow;
        flow.mss = header.mss.unwrap_or(DEFAULT_MSS).clamp(LEAST_MSS.min(most), most);
        (flow.guest_scale, flow.our_scale) = match header.window_scale {
            Some(scale) => (scale, SCALE),
            None => (0, 0),
        };
        let first = Seq(header.sequence) + 1;
        (flow.expected, flow.ackable, flow.told) = (first, first, first);
        (flow.edge, flow.goal_edge, flow.goal) = (first, first, 0);
        flow.window = u32::from(header.window);
        (flow.window_sequence, flow.window_ack) = (Seq(header.sequence), flow.una);
    }

    /// A segment while the host's connect is under way.
    pub(super) fn while_connecting(&mut self, header: &TcpHeader) {
        let sequence = Seq(header.sequence);
        if header.flags.has(TcpFlags::RST) {
            if sequence.within(self.flow.expected - 1, self.flow.expected) {
                self.turn.counters.tcp_resets_received += 1;
                self.finish(Close::Reset);
            }
        } else if header.flags.has(TcpFlags::SYN) && !header.flags.has(TcpFlags::ACK) {
            // The same again changes nothing; another one has begun anew from the same port.
            self.adopt(header);
        }
    }

    /// What has become possible at the host's socket.
    pub(super) fn host_ready(&mut self, readiness: Readiness) {
        match self.flow.state {
            State::Connecting => {
                if readiness.writable || readiness.failed {
                    match self.turn.sockets.take_error(self.id) {
                        Some(error) => self.connect_failed(error),
                        None if readiness.writable => self.connected(),
                        None => {}
                    }
                }
                self.flow.readable |= readiness.readable;
            }
            State::SynSent | State::SynReceived | State::Established => {
                if readiness.writable {
                    if self.flow.host_full {
                        self.flow.host_full = false;
                        self.flow.poll_at = self.flow.poll_at.min(self.turn.now);
                    } else {
                        self.flow.look = true;
                    }
                    self.mark_dirty();
                }
                if readiness.readable || readiness.failed {
                    // A lost connection may have left something to read; reading finds the loss behind it.
                    self.flow.readable = true;
                    self.mark_ready();
                }
            }
            State::TimeWait | State::Gone => {}
        }
    }

    /// The host's side stands: the guest's may.
    fn connected(&mut self) {
        if let Some(age) = self.flow.pending.take() {
            self.shared.pending.remove(age);
        }
        self.flow.state = State::SynReceived;
        self.flow.max = self.flow.una + 1;
        self.flow.syn_due = true;
        self.flow.tries = 0;
        self.flow.deadline = self.turn.now + Pace::SYN;
        self.arm();
        self.mark_dirty();
    }

    fn connect_failed(&mut self, error: HostError) {
        self.turn.counters.tcp_failed += 1;
        match Told::of(error) {
            Told::Reset => return self.deny(),
            Told::Unreachable(why) => {
                let isn = self.flow.expected - 1;
                self.shared.unreachable(&self.key, isn, why);
            }
            Told::Silence => {}
        }
        self.finish(Close::Reset);
    }

    /// Sends our SYN.
    pub(super) fn send_syn(&mut self) -> Result<(), LinkFull> {
        let space = u32::try_from(self.host_send_space()).unwrap_or(u32::MAX);
        let window = u16::try_from(space.min(self.shared.bounds.max_window)).unwrap_or(u16::MAX);
        let answers = self.flow.state == State::SynReceived;
        let flags = if answers { TcpFlags::SYN | TcpFlags::ACK } else { TcpFlags::SYN };
        let mut header = self.header(self.flow.una, flags, window);
        header.mss = Some(self.shared.our_mss(&self.key));
        header.window_scale = (self.flow.our_scale > 0).then_some(self.flow.our_scale);
        if answers {
            let edge = self.flow.ackable + u32::from(window);
            self.flow.edge = self.flow.edge.max(edge);
            self.flow.goal_edge = self.flow.goal_edge.max(edge);
            self.flow.goal = self.flow.goal.max(u32::from(window));
        } else {
            header.acknowledgment = 0;
        }
        let mss = self.flow.mss;
        super::emit::emit(self.turn, self.shared.macs, &self.key, &header, mss, [&[], &[]])?;
        self.flow.next = self.flow.max;
        self.flow.syn_due = false;
        self.flow.ack_due = false;
        Ok(())
    }

    /// The guest has acknowledged our SYN.
    pub(super) fn established(&mut self, header: &TcpHeader) {
        let flow = &mut *self.flow;
        (flow.una, flow.next) = (flow.max, flow.max);
        let shift = if header.flags.has(TcpFlags::SYN) { 0 } else { flow.guest_scale };
        flow.window = u32::from(header.window) << shift;
        (flow.window_sequence, flow.window_ack) = (Seq(header.sequence), flow.una);
        (flow.state, flow.tries, flow.deadline) = (State::Established, 0, NEVER);
        flow.syn_due = false;
        self.turn.counters.tcp_established += 1;
        // What came before the guest was ready is there still.
        self.flow.readable = true;
        self.mark_ready();
        self.mark_dirty();
    }

    /// A segment while the guest is asked for a connection.
    pub(super) fn while_syn_sent(&mut self, header: &TcpHeader) {
        let flags = header.flags;
        let answers = flags.has(TcpFlags::ACK) && Seq(header.acknowledgment) == self.flow.max;
        if flags.has(TcpFlags::RST) {
            if answers {
                self.turn.counters.tcp_resets_received += 1;
                self.finish(Close::Reset);
            }
        } else if flags.has(TcpFlags::ACK) && !answers {
            self.refuse(Seq(header.acknowledgment));
        } else if flags.has(TcpFlags::SYN) && answers {
            self.adopt(header);
            self.established(header);
            self.owe_ack();
        }
    }
}
