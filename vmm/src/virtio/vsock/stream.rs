//! One stream: a connection of the guest and the host socket behind it, as a state machine of plain data.
//!
//! Invariants: bytes of the guest that wait for the host never exceed [`BUF_ALLOC`], which is what the guest was told; bytes sent to
//! the guest never exceed the credit it gave; what must be sent to the guest is a set of flags, never a list. No I/O and no
//! clock: the worker does what an [`Action`] says and reports back. VIRTIO 1.2 section 5.10.6.

use std::collections::VecDeque;
use std::time::Duration;

use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Receive buffer of one stream, as told to the guest, in bytes.
pub(super) const BUF_ALLOC: u32 = 256 << 10;

/// The guest hears of freed buffer space in steps of this many bytes.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// How long a guest may take to answer REQUEST, and a host listener with a full backlog to take a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a guest may take to end a stream that the host side has left.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// `OK 4294967295` and a newline.
const MAX_ANSWER_BYTES: usize = 14;

const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A stream's place in the table; the generation tells a place's streams apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamId {
    /// Place in the table.
    pub(super) index: u16,
    /// Counts the streams that had the place.
    pub(super) generation: u32,
}

/// What the guest knows a stream by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Port on the guest's side.
    pub(super) guest_port: u32,
    /// Port on the host's side.
    pub(super) host_port: u32,
}

/// What the worker has to do with a stream's host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Connect to the listener of this port.
    Connect(StreamId, u32),
    /// Send what waits for the host.
    Flush(StreamId),
    /// The host will be sent no more.
    ShutdownWrite(StreamId),
    /// The host will be read no more.
    ShutdownRead(StreamId),
    /// Close the socket.
    Close(StreamId),
}

/// What a stream has for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A packet without payload.
    Control(Header),
    /// The host socket is to be read, at most `max_bytes` of it.
    Payload {
        /// The stream.
        id: StreamId,
        /// The guest's credit, not 0.
        max_bytes: u32,
    },
}

/// The stream as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestSide {
    /// A host client that has not named its port: the guest knows nothing yet.
    Unknown,
    /// The guest asked, and waits for the host to accept.
    Asking,
    /// The guest was asked, or will be, and has not accepted yet.
    Asked,
    /// Connected.
    Open,
    /// It ends: RST waits to be sent.
    Resetting,
    /// It has ended.
    Gone,
}

/// The stream as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostSide {
    /// A client that has not named its port.
    Greeting,
    /// Being connected to a listener.
    Connecting,
    /// Connected.
    Open,
    /// The guest has left; what it sent is still on its way.
    Lingering,
    /// Closed.
    Closed,
}

/// Packets that wait for a buffer of the guest, one bit each.
mod pending {
    pub(super) const RESET: u8 = 1 << 0;
    pub(super) const REQUEST: u8 = 1 << 1;
    pub(super) const RESPONSE: u8 = 1 << 2;
    pub(super) const SHUTDOWN: u8 = 1 << 3;
    pub(super) const CREDIT_UPDATE: u8 = 1 << 4;
    pub(super) const CREDIT_REQUEST: u8 = 1 << 5;
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) key: Key,
    pub(super) guest: GuestSide,
    pub(super) host: HostSide,
    /// It stands in the line of streams that have something for the guest.
    pub(super) queued: bool,
    /// The state it is in ends at this time.
    pub(super) deadline: Option<Duration>,
    /// The connection to the host listener is tried again at this time.
    pub(super) retry_at: Option<Duration>,
    pending: u8,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    sent_cnt: u32,
    received_cnt: u32,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    asked_for_credit: bool,
    /// SHUTDOWN flags that came from the guest.
    guest_shutdown: u32,
    /// SHUTDOWN flags that were or will be sent to the guest.
    told_shutdown: u32,
    readable: bool,
    writable: bool,
    backlog: VecDeque<u8>,
    /// Bytes at the front of the backlog that are ours, not the guest's.
    greeting_bytes: usize,
}

impl Stream {
    fn new(id: StreamId, key: Key, guest: GuestSide, host: HostSide) -> Self {
        Self {
            id,
            key,
            guest,
            host,
            queued: false,
            deadline: None,
            retry_at: None,
            pending: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            sent_cnt: 0,
            received_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            asked_for_credit: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            readable: true,
            writable: true,
            backlog: VecDeque::new(),
            greeting_bytes: 0,
        }
    }

    /// A host client that was accepted; it has until `deadline` to name its port.
    pub(super) fn greeting(id: StreamId, deadline: Duration) -> Self {
        let key = Key { guest_port: u32::MAX, host_port: u32::MAX };
        let deadline = Some(deadline);
        Self { deadline, ..Self::new(id, key, GuestSide::Unknown, HostSide::Greeting) }
    }

    /// The guest asked for a connection.
    pub(super) fn asked_by_guest(id: StreamId, key: Key, header: &Header, now: Duration) -> Self {
        let mut stream = Self::new(id, key, GuestSide::Asking, HostSide::Connecting);
        stream.deadline = Some(now + CONNECT_TIMEOUT);
        stream.note_credit(header);
        stream
    }

    /// The host client named a port: ask the guest.
    pub(super) fn ask_guest(&mut self, key: Key, now: Duration) {
        self.key = key;
        self.guest = GuestSide::Asked;
        self.host = HostSide::Open;
        self.pending = pending::REQUEST;
        self.deadline = Some(now + CONNECT_TIMEOUT);
    }

    /// The host listener took the connection.
    pub(super) fn connected(&mut self) {
        self.guest = GuestSide::Open;
        self.host = HostSide::Open;
        self.pending |= pending::RESPONSE;
        self.deadline = None;
        self.retry_at = None;
    }

    /// A packet of this stream came, other than payload.
    pub(super) fn on_control(
        &mut self,
        op: Option<Op>,
        header: &Header,
        actions: &mut VecDeque<Action>,
    ) {
        self.note_credit(header);
        match (self.guest, op) {
            (_, Some(Op::Reset)) => self.reset_by_guest(actions),
            (GuestSide::Resetting, _) => {}
            (GuestSide::Asked, Some(Op::Response)) => self.accepted_by_guest(actions),
            (GuestSide::Open, Some(Op::Shutdown)) => {
                self.shut_down_by_guest(header.flags, actions);
            }
            (GuestSide::Open | GuestSide::Asking, Some(Op::CreditUpdate)) => {}
            (GuestSide::Open, Some(Op::CreditRequest)) => self.pending |= pending::CREDIT_UPDATE,
            _ => self.abort(actions),
        }
    }

    /// Payload of `len` bytes came. True when it must be taken: the caller sends or buffers every byte of it.
    pub(super) fn on_payload(&mut self, header: &Header, actions: &mut VecDeque<Action>) -> bool {
        self.note_credit(header);
        if self.guest == GuestSide::Resetting {
            return false;
        }
        let in_buffer = self.received_cnt.wrapping_sub(self.fwd_cnt);
        let fits = in_buffer.checked_add(header.len).is_some_and(|sum| sum <= BUF_ALLOC);
        if self.guest != GuestSide::Open || self.guest_shutdown & SHUTDOWN_SEND != 0 || !fits {
            self.abort(actions);
            return false;
        }
        self.received_cnt = self.received_cnt.wrapping_add(header.len);
        if self.host_takes() {
            return true;
        }
        self.forwarded(header.len);
        false
    }

    /// Whether payload may go to the socket without passing the backlog.
    pub(super) fn sends_directly(&self) -> bool {
        self.writable && self.backlog.is_empty()
    }

    /// `bytes` of an accepted payload could not be sent at once.
    pub(super) fn buffer(&mut self, bytes: &[u8]) {
        if self.host_takes() {
            self.make_room(bytes.len());
            self.backlog.extend(bytes);
        } else {
            self.forwarded(count(bytes.len()));
        }
    }

    /// The socket took `bytes` of an accepted payload directly, or nobody wants them any more.
    pub(super) fn forwarded(&mut self, bytes: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes);
        if self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= CREDIT_STEP
            && self.guest == GuestSide::Open
        {
            self.pending |= pending::CREDIT_UPDATE;
        }
    }

    /// What waits for the host; empty while the socket is full.
    pub(super) fn backlog(&self) -> (&[u8], &[u8]) {
        if self.writable { self.backlog.as_slices() } else { (&[], &[]) }
    }

    /// Bytes that wait for the host.
    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog.len()
    }

    /// The socket took `bytes` of the backlog.
    pub(super) fn flushed(&mut self, bytes: usize, actions: &mut VecDeque<Action>) {
        let bytes = bytes.min(self.backlog.len());
        self.backlog.drain(..bytes);
        let ours = bytes.min(self.greeting_bytes);
        self.greeting_bytes -= ours;
        self.forwarded(count(bytes - ours));
        if !self.backlog.is_empty() {
            return;
        }
        self.backlog = VecDeque::new();
        if self.host == HostSide::Lingering {
            self.close_host(actions);
        } else if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            actions.push_back(Action::ShutdownWrite(self.id));
        }
    }

    /// The socket takes bytes again, or no longer.
    pub(super) fn set_writable(&mut self, writable: bool) {
        self.writable = writable;
    }

    /// The socket has bytes, its end or an error to read, or nothing more for now.
    pub(super) fn set_readable(&mut self, readable: bool) {
        self.readable = readable;
    }

    /// The host will send no more.
    pub(super) fn host_ended(&mut self, now: Duration) {
        self.readable = false;
        self.tell_shutdown(SHUTDOWN_SEND, now);
    }

    /// The host will take no more: what waits for it is dropped.
    pub(super) fn host_refused(&mut self, now: Duration, actions: &mut VecDeque<Action>) {
        let dropped = self.backlog.len() - self.greeting_bytes;
        self.backlog = VecDeque::new();
        self.greeting_bytes = 0;
        self.forwarded(count(dropped));
        if self.host == HostSide::Lingering {
            self.close_host(actions);
        } else {
            self.tell_shutdown(SHUTDOWN_RECEIVE, now);
        }
    }

    /// The host side is closed both ways; bytes it sent before may still wait to be read.
    pub(super) fn host_hung_up(&mut self, now: Duration, actions: &mut VecDeque<Action>) {
        match (self.host, self.guest) {
            (HostSide::Closed | HostSide::Connecting, _) => {}
            (HostSide::Greeting, _) | (_, GuestSide::Asked) => self.abort(actions),
            _ => {
                self.host_refused(now, actions);
                if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
                    self.host_ended(now);
                }
            }
        }
    }

    /// A time that was set has come.
    pub(super) fn on_tick(&mut self, now: Duration, actions: &mut VecDeque<Action>) {
        if self.deadline.is_some_and(|at| at <= now) {
            self.abort(actions);
        } else if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            actions.push_back(Action::Connect(self.id, self.key.host_port));
        }
    }

    /// The stream ends here and now for both sides.
    pub(super) fn abort(&mut self, actions: &mut VecDeque<Action>) {
        self.close_host(actions);
        self.forget_times();
        (self.guest, self.pending) = match self.guest {
            GuestSide::Unknown | GuestSide::Gone => (GuestSide::Gone, 0),
            // A guest that has not seen REQUEST knows of nothing to reset.
            GuestSide::Asked if self.pending & pending::REQUEST != 0 => (GuestSide::Gone, 0),
            _ => (GuestSide::Resetting, pending::RESET),
        };
    }

    /// Whether a buffer of the guest would be used now.
    pub(super) fn wants_buffer(&self) -> bool {
        self.pending != 0 || (self.reads_host() && self.credit() > 0)
    }

    /// Asks for credit, once, when the host has bytes and the guest takes none.
    pub(super) fn watch_credit(&mut self) {
        if self.credit() > 0 {
            self.asked_for_credit = false;
        } else if self.reads_host() && !self.asked_for_credit {
            self.asked_for_credit = true;
            self.pending |= pending::CREDIT_REQUEST;
        }
    }

    /// What goes into the guest's next buffer.
    pub(super) fn next_outgoing(&mut self, guest_cid: u64) -> Option<Outgoing> {
        let next = [
            (pending::RESET, Op::Reset),
            (pending::REQUEST, Op::Request),
            (pending::RESPONSE, Op::Response),
            (pending::SHUTDOWN, Op::Shutdown),
            (pending::CREDIT_REQUEST, Op::CreditRequest),
            (pending::CREDIT_UPDATE, Op::CreditUpdate),
        ];
        for (bit, op) in next {
            if self.pending & bit != 0 {
                self.pending &= !bit;
                if op == Op::Reset {
                    self.guest = GuestSide::Gone;
                }
                return Some(Outgoing::Control(self.header(op, 0, guest_cid)));
            }
        }
        let max_bytes = self.credit();
        (self.reads_host() && max_bytes > 0).then_some(Outgoing::Payload { id: self.id, max_bytes })
    }

    /// The header of `len` bytes that were read from the host for the guest.
    pub(super) fn payload_header(&mut self, len: u32, guest_cid: u64) -> Header {
        self.sent_cnt = self.sent_cnt.wrapping_add(len);
        self.header(Op::ReadWrite, len, guest_cid)
    }

    fn header(&mut self, op: Op, len: u32, guest_cid: u64) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        self.pending &= !pending::CREDIT_UPDATE;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: if op == Op::Shutdown { self.told_shutdown } else { 0 },
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Bytes the guest takes now. A guest that reports nonsense gets nothing.
    fn credit(&self) -> u32 {
        let in_flight = self.sent_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn note_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
    }

    fn reads_host(&self) -> bool {
        self.readable
            && self.guest == GuestSide::Open
            && self.host == HostSide::Open
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    fn host_takes(&self) -> bool {
        self.host == HostSide::Open && self.told_shutdown & SHUTDOWN_RECEIVE == 0
    }

    fn accepted_by_guest(&mut self, actions: &mut VecDeque<Action>) {
        self.guest = GuestSide::Open;
        self.pending &= !pending::REQUEST;
        self.deadline = None;
        let line = format!("OK {}\n", self.key.host_port);
        self.greeting_bytes = line.len();
        self.backlog.extend(line.as_bytes());
        actions.push_back(Action::Flush(self.id));
    }

    fn shut_down_by_guest(&mut self, flags: u32, actions: &mut VecDeque<Action>) {
        let news = flags & SHUTDOWN_BOTH & !self.guest_shutdown;
        self.guest_shutdown |= news;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            self.guest = GuestSide::Resetting;
            self.pending = pending::RESET;
            self.leave_host(actions);
            return;
        }
        if news & SHUTDOWN_RECEIVE != 0 {
            actions.push_back(Action::ShutdownRead(self.id));
        }
        if news & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            actions.push_back(Action::ShutdownWrite(self.id));
        }
    }

    /// A guest that said before that it will send no more has not taken back what it sent.
    fn reset_by_guest(&mut self, actions: &mut VecDeque<Action>) {
        let finished = self.guest_shutdown & SHUTDOWN_SEND != 0;
        self.guest = GuestSide::Gone;
        self.pending = 0;
        if finished {
            self.leave_host(actions);
        } else {
            self.close_host(actions);
            self.forget_times();
        }
    }

    /// Closes the host socket as soon as it has what the guest sent.
    fn leave_host(&mut self, actions: &mut VecDeque<Action>) {
        self.forget_times();
        if self.backlog.is_empty() {
            self.close_host(actions);
        } else if self.host == HostSide::Open {
            self.host = HostSide::Lingering;
        }
    }

    fn close_host(&mut self, actions: &mut VecDeque<Action>) {
        self.backlog = VecDeque::new();
        self.greeting_bytes = 0;
        if self.host != HostSide::Closed {
            self.host = HostSide::Closed;
            actions.push_back(Action::Close(self.id));
        }
    }

    /// Grows the backlog in two steps and never past what the guest's credit can fill.
    fn make_room(&mut self, bytes: usize) {
        const SMALL: usize = BUF_ALLOC as usize / 8;
        const FULL: usize = BUF_ALLOC as usize + MAX_ANSWER_BYTES;
        let needed = self.backlog.len() + bytes;
        if needed > self.backlog.capacity() {
            let target = if needed <= SMALL { SMALL } else { FULL };
            self.backlog.reserve_exact(target.saturating_sub(self.backlog.len()));
        }
    }

    fn tell_shutdown(&mut self, flags: u32, now: Duration) {
        let news = flags & !self.told_shutdown;
        if self.guest != GuestSide::Open || news == 0 {
            return;
        }
        self.told_shutdown |= news;
        self.pending |= pending::SHUTDOWN;
        if self.told_shutdown == SHUTDOWN_BOTH {
            self.deadline = Some(now + CLOSE_TIMEOUT);
        }
    }

    fn forget_times(&mut self) {
        self.deadline = None;
        self.retry_at = None;
    }
}

/// Buffers are far below 4 GiB; a count that were not would only be too small.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
