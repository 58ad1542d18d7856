//! A connection to the agent, greeted, and one request on it.
//!
//! Invariant: the socket does not block; every wait ends with bytes, with the guest's end or with a deadline.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use openshell_agent_proto::{Decoder, FromGuest, FromHost, PORT, VERSIONS};

use super::error::AgentError;
use crate::sys::poll::{self, Wanted};
use crate::sys::unix;

/// How long a guest may take to answer. Generous: it may be one of a hundred on two processors.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a guest may still be on its way up: its machine runs, and its agent does not listen yet.
const BOOT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// The longest answer of the machine to a connection.
const ANSWER_MAX: usize = 32;
/// What may wait to be sent before more is read.
const FULL: usize = 128 << 10;

/// A session that was greeted and asked for.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    pub(crate) decoder: Decoder,
    waiting: Vec<u8>,
    sent: usize,
}

impl Connection {
    /// Connects to the machine whose vsock socket is at `path` and makes `request`.
    ///
    /// # Errors
    /// [`AgentError`]: nobody listens, nobody answers in the guest, or it refuses.
    pub fn open(path: &Path, request: &FromHost<'_>) -> Result<Self, AgentError> {
        let ends = Instant::now() + BOOT;
        loop {
            match Self::open_once(path, request) {
                Err(AgentError::NoAgent { .. }) if Instant::now() < ends => thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    fn open_once(path: &Path, request: &FromHost<'_>) -> Result<Self, AgentError> {
        let ends = Instant::now() + PATIENCE;
        let connect = |source| AgentError::Connect { path: path.to_owned(), source };
        let socket = unix::connect(path).map_err(connect)?;
        let mut connection = Self::of(socket);
        connection.waiting.extend_from_slice(format!("CONNECT {PORT}\n").as_bytes());
        connection.flush_all(ends)?;
        connection.answer(ends).map_err(|error| match error {
            AgentError::Broken => AgentError::NoAgent { path: path.to_owned() },
            error => error,
        })?;
        connection.ask(request, ends)
    }

    /// Connects to the machine's own process, which listens at `path` for who wants its streams.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn attach(path: &Path, request: &FromHost<'_>) -> Result<Self, AgentError> {
        let connect = |source| AgentError::Connect { path: path.to_owned(), source };
        let socket = unix::connect(path).map_err(connect)?;
        Self::of(socket).ask(request, Instant::now() + PATIENCE)
    }

    /// One over a socket that does not block.
    pub(crate) fn of(socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::new(), waiting: Vec::new(), sent: 0 }
    }

    /// Greets, and asks.
    fn ask(mut self, request: &FromHost<'_>, ends: Instant) -> Result<Self, AgentError> {
        self.request(request);
        self.flush_all(ends)?;
        let (lowest, highest) = VERSIONS;
        match self.expect(ends)? {
            Answer::Welcome(version) if (lowest..=highest).contains(&version) => Ok(self),
            Answer::Welcome(_) => Err(AgentError::Unexpected { what: "version" }),
            Answer::Other => Err(AgentError::Unexpected { what: "greeting" }),
        }
    }

    /// Sends greeting and request as soon as the guest takes them.
    pub(crate) fn request(&mut self, request: &FromHost<'_>) {
        let (lowest, highest) = VERSIONS;
        self.send(&FromHost::Hello { lowest, highest });
        self.send(request);
    }

    /// Where frames of the other direction are put, for the end that is asked.
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }

    /// Reads the machine's own answer, `OK PORT`.
    fn answer(&mut self, ends: Instant) -> Result<(), AgentError> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            match self.socket.read(&mut byte) {
                Ok(1) if line.len() < ANSWER_MAX => line.push(byte[0]),
                Ok(_) => return Err(AgentError::Broken),
                Err(error) => self.not_yet(&error, ends)?,
            }
        }
        if line.starts_with(b"OK ") { Ok(()) } else { Err(AgentError::Broken) }
    }

    fn expect(&mut self, ends: Instant) -> Result<Answer, AgentError> {
        loop {
            match self.decoder.next::<FromGuest<'_>>()? {
                Some(FromGuest::Welcome(version)) => return Ok(Answer::Welcome(version)),
                Some(FromGuest::Failed(failure)) => return Err(AgentError::Guest(failure)),
                Some(_) => return Ok(Answer::Other),
                None => {}
            }
            if !self.receive()? {
                self.wait(Some(ends))?;
            }
        }
    }

    /// Sends a frame as soon as the guest takes it.
    pub(crate) fn send(&mut self, frame: &FromHost<'_>) {
        frame.encode(&mut self.waiting);
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_waiting(&self) -> bool {
        self.sent < self.waiting.len()
    }

    /// Whether nothing should be added.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() - self.sent > FULL
    }

    /// Sends what the guest takes now.
    pub(crate) fn flush(&mut self) -> Result<(), AgentError> {
        while self.is_waiting() {
            match (&self.socket).write(&self.waiting[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // What the guest said last may still be there to be read: its end tells.
                Err(_) => break,
            }
        }
        self.waiting.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends everything.
    fn flush_all(&mut self, ends: Instant) -> Result<(), AgentError> {
        loop {
            self.flush()?;
            if !self.is_waiting() {
                return Ok(());
            }
            self.wait(Some(ends))?;
        }
    }

    /// Reads what has arrived; whether anything has.
    pub(crate) fn receive(&mut self) -> Result<bool, AgentError> {
        match (&self.socket).read(self.decoder.space()) {
            Ok(0) => Err(AgentError::Broken),
            Ok(len) => {
                self.decoder.filled(len);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(_) => Err(AgentError::Broken),
        }
    }

    /// Waits until the guest can be read from, or written to if anything waits.
    pub(super) fn wait(&self, ends: Option<Instant>) -> Result<(), AgentError> {
        if ends.is_some_and(|ends| ends <= Instant::now()) {
            return Err(AgentError::Silent { seconds: PATIENCE.as_secs() });
        }
        poll::wait(&[self.wanted()], ends).map_err(AgentError::host("wait for the guest"))?;
        Ok(())
    }

    /// The next frame, waited for.
    pub(super) fn next_within(&mut self, patience: Option<Duration>) -> Result<Owned, AgentError> {
        let ends = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(frame) = self.decoder.next::<FromGuest<'_>>()? {
                return Owned::of(&frame);
            }
            if !self.receive()? {
                self.wait(ends)?;
                self.flush()?;
            }
        }
    }

    /// What [`poll`] is to wait for.
    pub(crate) fn wanted(&self) -> Wanted<'_> {
        Wanted { fd: self.as_fd(), read: true, write: self.is_waiting() }
    }

    fn not_yet(&self, error: &io::Error, ends: Instant) -> Result<(), AgentError> {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.wait(Some(ends)),
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(AgentError::Broken),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Answer {
    Welcome(u16),
    Other,
}

/// The last frame of a session that carries no streams.
#[derive(Debug)]
pub(super) enum Owned {
    Stats(openshell_agent_proto::Stats),
    Done,
}

impl Owned {
    fn of(frame: &FromGuest<'_>) -> Result<Self, AgentError> {
        match frame {
            FromGuest::Stats(stats) => Ok(Self::Stats(*stats)),
            FromGuest::Done { .. } => Ok(Self::Done),
            FromGuest::Failed(failure) => Err(AgentError::Guest(failure.clone())),
            _ => Err(AgentError::Unexpected { what: "frame" }),
        }
    }
}
