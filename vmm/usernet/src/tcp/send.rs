//! Bytes to the guest: from the host's socket into the ring, and from there in frames as large as the guest takes.
//!
//! Invariant: nothing is read that the guest's window has no room for; what was sent stays in the ring until the guest has it.

use super::conn::{Conn, Pace};
use super::emit;
use super::flow::{GuestFin, HostEnd, NEVER, State};
use super::seq::Seq;
use crate::link::{LinkFull, Payload};
use crate::ring::CHUNK;
use crate::sockets::Received;
use crate::wire::{TcpFlags, TcpHeader};

/// What came of serving a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// It waits for the guest, its socket or the clock.
    Waits,
    /// It has used up its turn.
    More,
    /// There is no memory for its bytes.
    Hungry,
}

impl<P: Payload> Conn<'_, '_, P> {
    /// What a segment says about what was sent.
    pub(super) fn acknowledged(&mut self, header: &TcpHeader, brings_nothing: bool) {
        let (sequence, ack) = (Seq(header.sequence), Seq(header.acknowledgment));
        if ack.before(self.flow.una) {
            return;
        }
        let news = ack.ahead_of(self.flow.una);
        let flow = &mut *self.flow;
        let window = u32::from(header.window) << flow.guest_scale;
        let is_newer = flow.window_sequence.before(sequence)
            || (flow.window_sequence == sequence && !ack.before(flow.window_ack));
        let changed = is_newer && window != flow.window;
        if is_newer {
            (flow.window, flow.window_sequence, flow.window_ack) = (window, sequence, ack);
        }
        if window == 0 {
            // It is there, and says so.
            flow.tries = 0;
        }
        if news > 0 {
            self.advance(ack, news);
        } else if brings_nothing && !changed && flow.is_outstanding() {
            flow.duplicates = flow.duplicates.saturating_add(1);
            if flow.duplicates == 3 && flow.recover.is_none() {
                flow.recover = Some(flow.max);
                self.send_first_again();
            }
        }
        if (news > 0 || changed) && (self.flow.readable || self.flow.has_unsent()) {
            self.mark_ready();
        }
        self.close_when_done();
    }

    /// The guest has everything before `ack`, `news` more than before.
    fn advance(&mut self, ack: Seq, news: u32) {
        let flow = &mut *self.flow;
        flow.ring.consume(news as usize, &mut self.shared.pool);
        flow.una = ack;
        flow.next = flow.next.max(ack);
        flow.burst = flow.burst.saturating_add(news);
        (flow.tries, flow.duplicates) = (0, 0);
        flow.deadline = NEVER;
        match flow.recover {
            Some(end) if ack.before(end) => self.send_first_again(),
            _ => self.flow.recover = None,
        }
        self.watch();
    }

    /// Reads and sends until its quantum is used up or it has to wait.
    pub(super) fn serve(&mut self) -> Served {
        if self.flow.state != State::Established {
            return Served::Waits;
        }
        let served = self.read();
        if self.flow.state == State::Established {
            // Without room it is tried again when there is some.
            self.send_frames(false).ok();
        }
        if self.flow.state == State::Established {
            self.watch();
        }
        served
    }

    fn read(&mut self) -> Served {
        let mut budget = self.shared.bounds.quantum;
        while self.flow.readable && self.flow.host_end == HostEnd::None {
            let most = self.shared.bounds.ring_bytes_per_flow.min(self.flow.allowance());
            let room = most.saturating_sub(self.flow.ring.len());
            // No crumbs: with a little patience the guest acknowledges a whole segment.
            if room == 0 || (room < usize::from(self.flow.mss) && !self.flow.ring.is_empty()) {
                break;
            }
            if budget == 0 {
                return Served::More;
            }
            let received = self.host_receive(room.min(budget));
            if let Ok(Some(Received::Bytes(count))) = received {
                self.flow.ring.commit(count);
                budget = budget.saturating_sub(count);
            }
            self.flow.ring.trim(&mut self.shared.pool);
            self.flow.last_used = self.turn.now;
            match received {
                Ok(Some(Received::Bytes(_))) => {}
                Ok(Some(Received::Nothing)) => self.flow.readable = false,
                Ok(Some(Received::End)) => {
                    self.flow.readable = false;
                    self.flow.host_end = HostEnd::Ended;
                }
                Ok(None) => return Served::Hungry,
                Err(_) => self.host_lost(),
            }
        }
        Served::Waits
    }

    /// Sends what the guest's window takes. `push` sends one segment whatever the window is.
    pub(super) fn send_frames(&mut self, mut push: bool) -> Result<(), LinkFull> {
        let most = emit::frame_payload(self.turn, &self.key, self.flow.mss).min(CHUNK);
        loop {
            let sent = self.flow.in_flight();
            let left = self.flow.ring.len() - sent;
            if left == 0 {
                break;
            }
            let mut open = self.flow.allowance().saturating_sub(sent);
            let mss = usize::from(self.flow.mss);
            if std::mem::take(&mut push) {
                open = open.max(mss);
            }
            let mut count = left.min(open).min(most);
            if count == 0 || (count < left && count < mss && sent > 0) {
                return Ok(());
            }
            if count < left && count > mss {
                count -= count % mss;
            }
            self.send_range(sent, count)?;
        }
        match self.flow.host_end {
            HostEnd::None => {}
            HostEnd::Ended => {
                if self.flow.has_unsent() {
                    self.send_range(self.flow.ring.len(), 0)?;
                }
            }
            HostEnd::Lost => self.reset_both(),
        }
        Ok(())
    }

    /// Sends `count` bytes from `offset` on, with the FIN where they are the last.
    fn send_range(&mut self, offset: usize, count: usize) -> Result<(), LinkFull> {
        let start = self.flow.una + u32::try_from(offset).unwrap_or(u32::MAX);
        let is_last = offset + count == self.flow.ring.len();
        let fin = is_last && self.flow.host_end == HostEnd::Ended;
        let mut flags = TcpFlags::ACK;
        if is_last {
            flags = flags | TcpFlags::PSH;
        }
        if fin {
            flags = flags | TcpFlags::FIN;
        }
        let window = self.tell_window();
        let header = self.header(start, flags, window);
        let body = self.flow.ring.range(offset, count);
        emit::emit(self.turn, self.shared.macs, &self.key, &header, self.flow.mss, body)?;
        let flow = &mut *self.flow;
        flow.ack_due = false;
        if start.before(flow.max) {
            self.turn.counters.tcp_retransmitted += 1;
        }
        if fin && !flow.fin_sent {
            flow.fin_sent = true;
            flow.closed_first = flow.guest_fin == GuestFin::None;
        }
        let end = start + u32::try_from(count).unwrap_or(u32::MAX) + u32::from(fin);
        flow.next = flow.next.max(end);
        flow.max = flow.max.max(end);
        Ok(())
    }

    /// Sends the oldest frame again.
    fn send_first_again(&mut self) {
        let most = emit::frame_payload(self.turn, &self.key, self.flow.mss).min(CHUNK);
        let outstanding = self.flow.max.ahead_of(self.flow.una) as usize;
        let count = self.flow.ring.len().min(most).min(outstanding);
        // Without room the clock sees to it.
        self.send_range(0, count).ok();
    }

    /// Sets the clock for what is outstanding, or for a window that is closed.
    pub(super) fn watch(&mut self) {
        let flow = &mut *self.flow;
        let now = self.turn.now;
        if flow.is_outstanding() {
            let patience = Pace::RETRANSMIT * (1 << flow.tries.min(Pace::MOST_RETRANSMITS));
            flow.deadline = flow.deadline.min(now + patience);
        } else if flow.allowance() == 0 && (flow.readable || flow.has_unsent()) {
            flow.deadline = flow.deadline.min(now + Pace::PERSIST);
        } else {
            flow.deadline = NEVER;
        }
        self.arm();
    }

    /// The guest has kept silent for too long.
    pub(super) fn overdue(&mut self) {
        if !self.flow.is_outstanding() {
            if self.flow.allowance() == 0 && (self.flow.readable || self.flow.has_unsent()) {
                // It has this byte already and will say what it takes (RFC 9293 section 3.8.6.1 asks for no more).
                self.send(self.flow.una - 1, TcpFlags::ACK, [&[], &[]]).ok();
                self.flow.deadline = self.turn.now + Pace::PERSIST;
            }
            return;
        }
        if self.flow.tries >= Pace::MOST_RETRANSMITS {
            return self.reset_both();
        }
        self.flow.tries += 1;
        self.flow.next = self.flow.una;
        self.flow.burst = u32::from(self.flow.mss);
        self.flow.recover = None;
        self.flow.duplicates = 0;
        self.send_frames(true).ok();
        if self.flow.state == State::Established {
            self.watch();
        }
    }
}
