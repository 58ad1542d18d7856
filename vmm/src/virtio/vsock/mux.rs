//! All streams of one device: which stream a packet belongs to, whose turn it is, and what a stranger is answered.
//!
//! Invariants: at most [`MAX_STREAMS`] streams and [`MAX_STRAY_RESETS`] answers to strangers exist; each stream stands in the line for the
//! guest's buffers at most once. No I/O and no clock: time is an argument, the duration since any fixed moment.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::stream::{Action, GuestSide, HostSide, Key, Outgoing, Stream, StreamId};

/// Streams at one time, in all states together.
pub(super) const MAX_STREAMS: usize = 256;

/// Answers to packets of no stream that wait for the guest's buffers; more are dropped.
pub(super) const MAX_STRAY_RESETS: usize = 256;

/// The longest first line of a host client, newline included.
pub(super) const MAX_GREETING_BYTES: usize = 32;

/// How long a host client may take to name its port.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// When a connection to a host listener with a full backlog is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Host ports given to host clients lie from here to the end of the 32-bit range below the wildcard.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What a packet of the guest asks of the worker, actions apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing.
    Done,
    /// The payload is to be taken whole: sent to the socket when `direct`, and buffered where it is not taken.
    Payload {
        /// The stream.
        id: StreamId,
        /// Nothing waits before it and the socket may have room.
        direct: bool,
    },
}

/// How reading the host for the guest went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostRead {
    /// More may be there.
    More,
    /// Nothing more for now.
    Drained,
    /// The end of the stream.
    Ended,
    /// The socket failed.
    Failed,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    stream: Option<Box<Stream>>,
    line: Vec<u8>,
}

/// The streams of one device.
#[derive(Debug)]
pub(super) struct Mux {
    guest_cid: u64,
    slots: Vec<Slot>,
    free: Vec<u16>,
    by_key: HashMap<Key, StreamId>,
    line: VecDeque<StreamId>,
    stray_resets: VecDeque<Header>,
    next_host_port: u32,
    wake_at: Option<Duration>,
    actions: VecDeque<Action>,
}

impl Mux {
    /// No streams; the guest's context id is `guest_cid`.
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            line: VecDeque::new(),
            stray_resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            wake_at: None,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do with a host socket. To be asked after every other call until there is none.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Streams that exist.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A packet came. `header` is our own copy, and its `len` was checked against the bytes that followed it.
    pub(super) fn on_packet(&mut self, header: &Header, now: Duration) -> Input {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return Input::Done;
        }
        let op = Op::from_raw(header.op);
        let key = Key { guest_port: header.src_port, host_port: header.dst_port };
        let Some(&id) = self.by_key.get(&key).filter(|_| header.kind == TYPE_STREAM) else {
            self.on_stranger(op, key, header, now);
            return Input::Done;
        };
        let mut input = Input::Done;
        self.with(id, |stream, actions| {
            if op != Some(Op::ReadWrite) {
                stream.on_control(op, header, actions);
            } else if stream.on_payload(header, actions) {
                input = Input::Payload { id, direct: stream.sends_directly() };
            }
        });
        input
    }

    /// A packet came whose length fields contradict each other: its stream can't be trusted to be complete any more.
    pub(super) fn on_malformed(&mut self, header: &Header, now: Duration) {
        let no_op = Header { op: 0, len: 0, ..*header };
        self.on_packet(&no_op, now);
    }

    /// A host client was accepted; `None` when there is no place for it.
    pub(super) fn accepted(&mut self, now: Duration) -> Option<StreamId> {
        self.insert(|id| Stream::greeting(id, now + GREETING_TIMEOUT))
    }

    /// Whether the first line of this host client is still to be read.
    pub(super) fn expects_greeting(&self, id: StreamId) -> bool {
        self.stream(id).is_some_and(|stream| stream.host == HostSide::Greeting)
    }

    /// A host client's first bytes; returns how many of them are the first line and to be taken from the socket.
    pub(super) fn on_greeting(&mut self, id: StreamId, bytes: &[u8], now: Duration) -> usize {
        if !self.expects_greeting(id) {
            return 0;
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(bytes.len(), |at| at + 1);
        let mut line = std::mem::take(&mut self.slots[usize::from(id.index)].line);
        line.extend(bytes.iter().take(taken));
        if end.is_none() && line.len() < MAX_GREETING_BYTES {
            self.slots[usize::from(id.index)].line = line;
            return taken;
        }
        match parse_greeting(&line) {
            Some(guest_port) => self.ask_guest(id, guest_port, now),
            None => self.with(id, Stream::abort),
        }
        taken
    }

    /// The host listener took the connection that [`Action::Connect`] asked for.
    pub(super) fn connected(&mut self, id: StreamId) {
        self.with(id, |stream, _| stream.connected());
    }

    /// The host listener's backlog is full: try again soon.
    pub(super) fn connect_later(&mut self, id: StreamId, now: Duration) {
        self.with(id, |stream, _| stream.retry_at = Some(now + RETRY_DELAY));
    }

    /// The host socket is lost, or never came to be.
    pub(super) fn host_failed(&mut self, id: StreamId) {
        self.with(id, Stream::abort);
    }

    /// The socket took `bytes` of a payload directly.
    pub(super) fn forwarded(&mut self, id: StreamId, bytes: u32) {
        self.with(id, |stream, _| stream.forwarded(bytes));
    }

    /// `bytes` of a payload could not be sent at once.
    pub(super) fn buffer(&mut self, id: StreamId, bytes: &[u8]) {
        self.with(id, |stream, _| stream.buffer(bytes));
    }

    /// What waits for the host and may be sent now.
    pub(super) fn backlog(&self, id: StreamId) -> (&[u8], &[u8]) {
        self.stream(id).map_or((&[], &[]), Stream::backlog)
    }

    /// The socket took `bytes` of the backlog.
    pub(super) fn flushed(&mut self, id: StreamId, bytes: usize) {
        self.with(id, |stream, actions| stream.flushed(bytes, actions));
    }

    /// The socket takes bytes again, or no longer.
    pub(super) fn set_writable(&mut self, id: StreamId, writable: bool) {
        self.with(id, |stream, _| stream.set_writable(writable));
    }

    /// The socket has something to read.
    pub(super) fn set_readable(&mut self, id: StreamId) {
        self.with(id, |stream, _| stream.set_readable(true));
    }

    /// The host takes no more bytes.
    pub(super) fn host_refused(&mut self, id: StreamId, now: Duration) {
        self.with(id, |stream, actions| stream.host_refused(now, actions));
    }

    /// The host side is closed both ways.
    pub(super) fn host_hung_up(&mut self, id: StreamId, now: Duration) {
        self.with(id, |stream, actions| stream.host_hung_up(now, actions));
    }

    /// Whether a buffer of the guest would be used now.
    pub(super) fn wants_buffer(&self) -> bool {
        !self.stray_resets.is_empty() || !self.line.is_empty()
    }

    /// What goes into the guest's next buffer: answers to strangers first, then the streams in turn. After
    /// [`Outgoing::Payload`], [`Self::host_read`] must be called.
    pub(super) fn next_outgoing(&mut self) -> Option<Outgoing> {
        if let Some(header) = self.stray_resets.pop_front() {
            return Some(Outgoing::Control(header));
        }
        while let Some(id) = self.line.pop_front() {
            let guest_cid = self.guest_cid;
            let mut outgoing = None;
            self.with(id, |stream, _| {
                stream.queued = false;
                outgoing = stream.next_outgoing(guest_cid);
                // Its next turn comes after what the worker reports about this one.
                stream.queued = matches!(outgoing, Some(Outgoing::Payload { .. }));
            });
            if outgoing.is_some() {
                return outgoing;
            }
        }
        None
    }

    /// The header for `len` bytes that were read from the host into a buffer of the guest.
    pub(super) fn payload_header(&mut self, id: StreamId, len: u32) -> Option<Header> {
        let guest_cid = self.guest_cid;
        let mut header = None;
        self.with(id, |stream, _| header = Some(stream.payload_header(len, guest_cid)));
        header
    }

    /// Reading that [`Outgoing::Payload`] asked for has ended this way.
    pub(super) fn host_read(&mut self, id: StreamId, end: HostRead, now: Duration) {
        self.with(id, |stream, actions| {
            stream.queued = false;
            match end {
                HostRead::More => {}
                HostRead::Drained => stream.set_readable(false),
                HostRead::Ended => stream.host_ended(now),
                HostRead::Failed => stream.abort(actions),
            }
        });
    }

    /// The earliest time at which [`Self::on_tick`] may have something to do.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        self.wake_at
    }

    /// Time has passed.
    pub(super) fn on_tick(&mut self, now: Duration) {
        if self.wake_at.is_none_or(|at| now < at) {
            return;
        }
        self.wake_at = None;
        let ids: Vec<StreamId> =
            self.slots.iter().filter_map(|slot| slot.stream.as_ref().map(|s| s.id)).collect();
        for id in ids {
            self.with(id, |stream, actions| stream.on_tick(now, actions));
        }
    }

    fn on_stranger(&mut self, op: Option<Op>, key: Key, header: &Header, now: Duration) {
        if op == Some(Op::Reset) {
            return;
        }
        if op == Some(Op::Request) && header.kind == TYPE_STREAM {
            let asked = self.insert(|id| Stream::asked_by_guest(id, key, header, now));
            if let Some(id) = asked {
                self.by_key.insert(key, id);
                self.actions.push_back(Action::Connect(id, key.host_port));
                return;
            }
        }
        if self.stray_resets.len() < MAX_STRAY_RESETS {
            self.stray_resets.push_back(header.reset_reply());
        }
    }

    fn ask_guest(&mut self, id: StreamId, guest_port: u32, now: Duration) {
        let mut key = Key { guest_port, host_port: self.next_host_port };
        while self.by_key.contains_key(&key) {
            key.host_port = port_after(key.host_port);
        }
        self.next_host_port = port_after(key.host_port);
        self.by_key.insert(key, id);
        self.with(id, |stream, _| stream.ask_guest(key, now));
    }

    fn insert(&mut self, make: impl FnOnce(StreamId) -> Stream) -> Option<StreamId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_STREAMS => {
                self.slots.push(Slot { generation: 0, stream: None, line: Vec::new() });
                u16::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        let id = StreamId { index, generation: slot.generation };
        slot.line = Vec::new();
        slot.stream = Some(Box::new(make(id)));
        self.with(id, |_, _| {});
        Some(id)
    }

    fn stream(&self, id: StreamId) -> Option<&Stream> {
        let slot = self.slots.get(usize::from(id.index))?;
        slot.stream.as_deref().filter(|stream| stream.id == id)
    }

    /// Changes a stream and draws the consequences: its turn, its times, its end. A stream that has ended is left alone.
    fn with(&mut self, id: StreamId, change: impl FnOnce(&mut Stream, &mut VecDeque<Action>)) {
        let Some(slot) = self.slots.get_mut(usize::from(id.index)) else {
            return;
        };
        let Some(stream) = slot.stream.as_deref_mut().filter(|stream| stream.id == id) else {
            return;
        };
        change(stream, &mut self.actions);
        stream.watch_credit();
        if stream.wants_buffer() && !stream.queued {
            stream.queued = true;
            self.line.push_back(id);
        }
        for at in [stream.deadline, stream.retry_at].into_iter().flatten() {
            self.wake_at = Some(self.wake_at.map_or(at, |wake| wake.min(at)));
        }
        if stream.guest == GuestSide::Gone {
            if self.by_key.get(&stream.key) == Some(&id) {
                self.by_key.remove(&stream.key);
            }
            if stream.host == HostSide::Closed {
                if stream.queued {
                    self.line.retain(|&queued| queued != id);
                }
                slot.stream = None;
                self.free.push(id.index);
            }
        }
    }
}

/// The port that `CONNECT <port>\n` names.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let port = port.parse().ok().filter(|&port| port != u32::MAX)?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

fn port_after(port: u32) -> u32 {
    if port >= u32::MAX - 1 { FIRST_HOST_PORT } else { port + 1 }
}
