//! The host's side: the sockets of all streams, the listener, and the epoll instance that watches them.
//!
//! Invariant: nothing here waits. Stream sockets are watched edge-triggered, so that each is read and written until it says
//! `WouldBlock` before an event is expected again. The vsock worker owns it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::sys::unix;

use super::listener::HostSocket;
use super::mux::{MAX_GREETING_BYTES, Mux};
use super::stream::{Action, StreamId};

/// Host clients accepted in one turn.
const ACCEPT_BATCH: usize = 32;

/// How long the listener rests when the host has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The low half of a token: what an event is about. Streams come after these, with their generation in the high half.
pub(super) mod token {
    pub(in super::super) const MAILBOX: u64 = 0;
    pub(in super::super) const RX: u64 = 1;
    pub(in super::super) const TX: u64 = 2;
    pub(in super::super) const LISTENER: u64 = 3;
    pub(super) const FIRST_STREAM: u64 = 16;
}

/// The sockets of one device.
pub(super) struct Host {
    pub(super) mux: Mux,
    epoll: Epoll,
    socket: HostSocket,
    streams: Vec<Option<(StreamId, UnixStream)>>,
    epoch: Instant,
    listening: bool,
    accept_again_at: Option<Duration>,
}

impl Host {
    /// No stream yet, and the listener is not watched.
    pub(super) fn new(socket: HostSocket, guest_cid: u64) -> io::Result<Self> {
        Ok(Self {
            mux: Mux::new(guest_cid),
            epoll: Epoll::new()?,
            socket,
            streams: Vec::new(),
            epoch: Instant::now(),
            listening: false,
            accept_again_at: None,
        })
    }

    /// Watches a descriptor for reading; its events carry `token`.
    pub(super) fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Waits for events, at most until the next time something is due, not at all when `busy`.
    pub(super) fn wait(&self, busy: bool, events: &mut [EpollEvent]) -> io::Result<usize> {
        let due = [self.mux.wake_at(), self.accept_again_at].into_iter().flatten().min();
        let timeout = match due {
            _ if busy => 0,
            None => -1,
            Some(at) => {
                let left = at.saturating_sub(self.now()).as_millis();
                i32::try_from(left.saturating_add(1)).unwrap_or(i32::MAX)
            }
        };
        match self.epoll.wait(timeout, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    /// Time since the device was made.
    pub(super) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Closes everything but the listening socket, which goes back to whoever removes its path.
    pub(super) fn into_socket(self) -> HostSocket {
        self.socket
    }

    /// Accepts host clients from now on, or no longer.
    pub(super) fn listen(&mut self, wanted: bool) {
        self.accept_again_at = None;
        if wanted == self.listening {
            return;
        }
        let fd = self.socket.listener().as_raw_fd();
        let (operation, events) = if wanted {
            (ControlOperation::Add, EventSet::IN)
        } else {
            (ControlOperation::Delete, EventSet::empty())
        };
        let event = EpollEvent::new(events, token::LISTENER);
        if self.epoll.ctl(operation, fd, event).is_ok() {
            self.listening = wanted;
        }
    }

    /// Drops every stream, as if none had been.
    pub(super) fn close_all(&mut self, guest_cid: u64) {
        self.mux = Mux::new(guest_cid);
        self.streams.clear();
    }

    /// Serves one event that is not a doorbell's or the mailbox's.
    pub(super) fn on_event(&mut self, event: EpollEvent) {
        if event.data() == token::LISTENER {
            self.accept();
        } else if let Some(id) = stream_of(event.data()) {
            self.on_stream_event(id, event.event_set());
        }
    }

    /// Does what has become due.
    pub(super) fn on_tick(&mut self) {
        let now = self.now();
        if self.accept_again_at.is_some_and(|at| at <= now) {
            self.listen(true);
        }
        self.mux.on_tick(now);
        self.act();
    }

    /// The socket of a stream.
    pub(super) fn stream(&self, id: StreamId) -> Option<BorrowedFd<'_>> {
        let (owner, stream) = self.streams.get(usize::from(id.index))?.as_ref()?;
        (*owner == id).then(|| stream.as_fd())
    }

    /// Does everything the streams ask for.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.mux.next_action() {
            match action {
                Action::Connect(id, port) => self.connect(id, port),
                Action::Flush(id) => self.flush(id),
                Action::ShutdownWrite(id) => self.shut_down(id, std::net::Shutdown::Write),
                Action::ShutdownRead(id) => self.shut_down(id, std::net::Shutdown::Read),
                Action::Close(id) => {
                    let slot = self.streams.get_mut(usize::from(id.index));
                    if let Some(slot) = slot.filter(|s| s.as_ref().is_some_and(|o| o.0 == id)) {
                        *slot = None;
                    }
                }
            }
        }
    }

    /// Sends what waits for the host until nothing is left or the socket is full.
    pub(super) fn flush(&mut self, id: StreamId) {
        loop {
            let Some(socket) = self.stream(id) else { return };
            let (front, back) = self.mux.backlog(id);
            if front.is_empty() && back.is_empty() {
                return;
            }
            match unix::send(socket, &[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(sent) => self.mux.flushed(id, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.on_send_error(id, &error);
                    return;
                }
            }
        }
    }

    /// A socket did not take bytes.
    pub(super) fn on_send_error(&mut self, id: StreamId, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.mux.set_writable(id, false),
            _ => self.mux.host_refused(id, self.now()),
        }
    }

    fn on_stream_event(&mut self, id: StreamId, events: EventSet) {
        if self.mux.expects_greeting(id) {
            self.greet(id);
            return;
        }
        if events.intersects(EventSet::OUT) {
            self.mux.set_writable(id, true);
            self.flush(id);
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.mux.host_hung_up(id, self.now());
        }
        if events.intersects(
            EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR,
        ) {
            self.mux.set_readable(id);
        }
        self.act();
    }

    /// Reads a host client's first line and nothing of what follows it.
    fn greet(&mut self, id: StreamId) {
        let mut bytes = [0; MAX_GREETING_BYTES];
        while self.mux.expects_greeting(id) {
            let Some(socket) = self.stream(id) else { break };
            let result = unix::peek(socket, &mut bytes).and_then(|got| {
                let line = bytes.get(..got).unwrap_or_default();
                let taken = self.mux.on_greeting(id, line, self.epoch.elapsed());
                let mut line = [0; MAX_GREETING_BYTES];
                let line = line.get_mut(..taken).unwrap_or_default();
                match self.streams.get_mut(usize::from(id.index)) {
                    Some(Some((_, stream))) => io::Read::read(stream, line),
                    _ => Ok(0),
                }
            });
            match result {
                Ok(0) => self.mux.host_failed(id),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.mux.host_failed(id);
                }
                Ok(_) | Err(_) => {}
            }
        }
        self.act();
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            match self.socket.listener().accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // Out of descriptors or memory: the listener stays readable, and would keep the worker spinning.
                    self.listen(false);
                    self.accept_again_at = Some(self.now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// A client for whom there is no place sees its connection close without an answer.
    fn welcome(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let now = self.now();
        if let Some(id) = self.mux.accepted(now) {
            if self.adopt(id, stream).is_err() {
                self.mux.host_failed(id);
            }
            self.greet(id);
        }
    }

    fn connect(&mut self, id: StreamId, port: u32) {
        let mut path = self.socket.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        let connected =
            unix::connect(&PathBuf::from(path)).and_then(|stream| self.adopt(id, stream));
        match connected {
            Ok(()) => self.mux.connected(id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let now = self.now();
                self.mux.connect_later(id, now);
            }
            Err(_) => self.mux.host_failed(id),
        }
    }

    fn adopt(&mut self, id: StreamId, stream: UnixStream) -> io::Result<()> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, token_of(id));
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        let index = usize::from(id.index);
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index] = Some((id, stream));
        Ok(())
    }

    fn shut_down(&self, id: StreamId, how: std::net::Shutdown) {
        if let Some(Some((owner, stream))) = self.streams.get(usize::from(id.index))
            && *owner == id
        {
            // Fails only when the other side has gone, which an event tells as well.
            drop(stream.shutdown(how));
        }
    }
}

fn token_of(id: StreamId) -> u64 {
    u64::from(id.generation) << 32 | (u64::from(id.index) + token::FIRST_STREAM)
}

fn stream_of(token: u64) -> Option<StreamId> {
    let index = (token & u64::from(u32::MAX)).checked_sub(token::FIRST_STREAM)?;
    let generation = u32::try_from(token >> 32).ok()?;
    Some(StreamId { index: u16::try_from(index).ok()?, generation })
}
