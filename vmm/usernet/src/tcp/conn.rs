//! One connection while something is done about it: what it owes the guest, its timer, and its end.
//!
//! Invariant: a connection that is done has given back its socket, its ring, its payloads and its timer before it leaves the table.

use std::time::Duration;

use super::Shared;
use super::emit;
use super::flow::{Flow, GuestFin, HostEnd, NEVER, State};
use super::seq::Seq;
use crate::FlowId;
use crate::link::{LinkFull, Payload};
use crate::sockets::{Close, HostError, Received};
use crate::table::FlowKey;
use crate::turn::Turn;
use crate::wire::{TcpFlags, TcpHeader};

/// The times of a connection.
pub(super) struct Pace;

impl Pace {
    /// Before the oldest byte is sent again; doubled each time.
    pub(super) const RETRANSMIT: Duration = Duration::from_millis(200);
    pub(super) const MOST_RETRANSMITS: u8 = 8;
    /// Before a SYN is sent again; doubled each time.
    pub(super) const SYN: Duration = Duration::from_secs(1);
    pub(super) const MOST_SYNS: u8 = 3;
    /// Between two probes of the guest's closed window.
    pub(super) const PERSIST: Duration = Duration::from_secs(5);
    /// How long the last acknowledgment may be asked for again.
    pub(super) const TIME_WAIT: Duration = Duration::from_secs(2);
    /// Before a socket without space is looked at again; doubled each time.
    pub(super) const POLL: Duration = Duration::from_millis(10);
    pub(super) const MOST_POLLS: u8 = 7;
}

/// A connection, and what all of them share.
pub(super) struct Conn<'c, 't, P> {
    pub(super) id: FlowId,
    pub(super) key: FlowKey,
    pub(super) flow: &'c mut Flow<P>,
    pub(super) shared: &'c mut Shared<P>,
    pub(super) turn: &'c mut Turn<'t, P>,
}

impl<P: Payload> Conn<'_, '_, P> {
    /// The end of a turn looks at it.
    pub(super) fn mark_dirty(&mut self) {
        if !self.flow.dirty {
            self.flow.dirty = true;
            self.shared.dirty.push(self.id);
        }
    }

    /// An acknowledgment is owed by the end of the turn.
    pub(super) fn owe_ack(&mut self) {
        self.flow.ack_due = true;
        self.mark_dirty();
    }

    /// It wants to send something to the guest.
    pub(super) fn mark_ready(&mut self) {
        if !self.flow.queued && self.flow.state == State::Established {
            self.flow.queued = true;
            self.shared.ready.push_back(self.id);
        }
    }

    /// Sends what is owed, if nothing else carried it.
    pub(super) fn tell(&mut self) -> Result<(), LinkFull> {
        let flow = &*self.flow;
        match flow.state {
            State::SynSent | State::SynReceived if flow.syn_due => self.send_syn(),
            State::Established | State::TimeWait
                if flow.ack_due || flow.ackable != flow.told || self.window_has_opened() =>
            {
                self.send(self.flow.next, TcpFlags::ACK, [&[], &[]])
            }
            _ => Ok(()),
        }
    }

    /// Sends one segment. All but a SYN go out by this.
    pub(super) fn send(
        &mut self,
        sequence: Seq,
        flags: TcpFlags,
        body: [&[u8]; 2],
    ) -> Result<(), LinkFull> {
        let window = self.tell_window();
        let header = self.header(sequence, flags, window);
        emit::emit(self.turn, self.shared.macs, &self.key, &header, self.flow.mss, body)?;
        self.flow.ack_due = false;
        Ok(())
    }

    pub(super) fn header(&self, sequence: Seq, flags: TcpFlags, window: u16) -> TcpHeader {
        TcpHeader {
            source: self.key.remote.port,
            destination: self.key.guest.port,
            sequence: sequence.0,
            acknowledgment: self.flow.ackable.0,
            flags,
            window,
            mss: None,
            window_scale: None,
        }
    }

    /// The host's side is lost: the guest hears of it after the last byte that came from there.
    pub(super) fn host_lost(&mut self) {
        self.flow.host_end = HostEnd::Lost;
        self.flow.readable = false;
        if self.flow.state == State::Established && !self.flow.ring.is_empty() {
            self.mark_ready();
        } else {
            self.reset_both();
        }
    }

    /// Ends it at once on both sides.
    pub(super) fn reset_both(&mut self) {
        if !matches!(self.flow.state, State::Connecting | State::Gone | State::TimeWait) {
            let header = self.header(self.flow.max, TcpFlags::RST | TcpFlags::ACK, 0);
            self.shared.reset(self.turn, &self.key, header);
        }
        self.finish(Close::Reset);
    }

    /// Refuses a segment that acknowledges what was never sent.
    pub(super) fn refuse(&mut self, acknowledged: Seq) {
        let header = self.header(acknowledged, TcpFlags::RST, 0);
        self.shared.reset(self.turn, &self.key, header);
    }

    /// Closes it in good order once both directions have ended.
    pub(super) fn close_when_done(&mut self) {
        let flow = &mut *self.flow;
        if flow.guest_fin != GuestFin::Taken
            || !flow.fin_is_acknowledged()
            || flow.state != State::Established
        {
            return;
        }
        if !flow.closed_first {
            // The guest waits for late segments itself, and it has heard everything.
            self.tell().ok();
            return self.finish(Close::Orderly);
        }
        self.give_back(Close::Orderly);
        self.flow.state = State::TimeWait;
        self.shared.note_time_wait(self.id);
        self.flow.deadline = self.turn.now + Pace::TIME_WAIT;
        self.flow.poll_at = NEVER;
        self.arm();
        self.owe_ack();
    }

    /// It is over.
    pub(super) fn finish(&mut self, how: Close) {
        if self.flow.state == State::Gone {
            return;
        }
        if self.flow.state != State::TimeWait {
            self.give_back(how);
        }
        self.shared.timers.cancel(&mut self.flow.timer);
        self.flow.state = State::Gone;
    }

    /// Gives back what it holds, all but its place in the table and its timer.
    fn give_back(&mut self, how: Close) {
        if self.flow.service.take().is_some() {
            self.shared.services -= 1;
            self.shared.served.push_back(self.id);
        } else {
            self.turn.sockets.close(self.id, how);
        }
        self.flow.ring.consume(usize::MAX, &mut self.shared.pool);
        self.flow.ring.trim(&mut self.shared.pool);
        self.shared.parked -= usize::from(std::mem::take(&mut self.flow.parked));
        let queue = std::mem::take(&mut self.flow.queue);
        self.shared.spare(queue);
        self.flow.queue_bytes = 0;
        self.shared.out_of_order.forget(self.id);
        if let Some(age) = self.flow.pending.take() {
            self.shared.pending.remove(age);
        }
    }

    /// Arms the timer for whatever is due first.
    pub(super) fn arm(&mut self) {
        let first = self.flow.deadline.min(self.flow.poll_at);
        if first != NEVER {
            self.shared.timers.arm_lazily(&mut self.flow.timer, first, self.id);
        }
    }

    /// Its timer fired.
    pub(super) fn timer_fired(&mut self) {
        self.flow.timer = None;
        let now = self.turn.now;
        if self.flow.poll_at <= now {
            self.measure();
        }
        if self.flow.deadline <= now {
            self.flow.deadline = NEVER;
            match self.flow.state {
                State::Connecting => {
                    self.turn.counters.tcp_pending_evicted += 1;
                    self.finish(Close::Reset);
                }
                State::SynSent | State::SynReceived => self.syn_again(),
                State::Established => self.overdue(),
                State::TimeWait | State::Gone => self.finish(Close::Orderly),
            }
        }
        if self.flow.state != State::Gone {
            self.arm();
        }
    }

    fn syn_again(&mut self) {
        if self.flow.tries >= Pace::MOST_SYNS {
            return self.reset_both();
        }
        self.flow.tries += 1;
        self.flow.syn_due = true;
        self.flow.deadline = self.turn.now + Pace::SYN * (1 << self.flow.tries);
        self.mark_dirty();
    }

    pub(super) fn host_send(&mut self) -> Result<usize, HostError> {
        match &mut self.flow.service {
            Some(service) => {
                self.shared.served.push_back(self.id);
                Ok(service.send(&self.flow.queue))
            }
            None => self.turn.sockets.tcp_send(self.id, &self.flow.queue),
        }
    }

    pub(super) fn host_send_space(&mut self) -> usize {
        match &mut self.flow.service {
            Some(service) => service.send_space(),
            None => self.turn.sockets.tcp_send_space(self.id),
        }
    }

    pub(super) fn host_shutdown(&mut self) {
        match &mut self.flow.service {
            Some(service) => {
                self.shared.served.push_back(self.id);
                service.guest_ended = true;
            }
            None => self.turn.sockets.tcp_shutdown_write(self.id),
        }
    }

    /// Reads up to `want` bytes into the ring; `Ok(None)` when there is no memory for it.
    pub(super) fn host_receive(&mut self, want: usize) -> Result<Option<Received>, HostError> {
        let mut room = self.flow.ring.room(want, &mut self.shared.pool);
        if room.iter().all(|piece| piece.is_empty()) {
            return Ok(None);
        }
        match &mut self.flow.service {
            Some(service) => {
                let received = service.receive(&mut room);
                if matches!(received, Received::Bytes(_)) {
                    self.shared.served.push_back(self.id);
                }
                Ok(Some(received))
            }
            None => self.turn.sockets.tcp_receive(self.id, &mut room).map(Some),
        }
    }
}
