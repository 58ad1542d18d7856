//! A command in a guest, or the main process of a machine, with the streams and signals of this process.
//!
//! Runs on the calling thread, which sleeps in poll only. Invariant: of each stream at most a window is held; a descriptor that is not
//! ours is never made non-blocking, so that it is written to in pieces that a pipe which is ready takes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use openshell_agent_proto::{
    DATA_MAX, Exec, Exit, FromGuest, FromHost, ReceiveWindow, Room, SendWindow, Signal, Size,
    Stdio, Stream,
};

use super::connection::Connection;
use super::error::AgentError;
use super::keys::DetachKeys;
use crate::sys::poll::{self, Wanted};
use crate::sys::signal::EndingSignals;
use crate::sys::{console_io, tty};

/// A pipe that is reported writable takes at least this much without blocking (POSIX PIPE_BUF).
const SAFE_WRITE_BYTES: usize = 4096;
/// How long a command may take to end when its time is up, before it is made to.
const AFTER_TERM: Duration = Duration::from_secs(5);
/// Ending signals that a user may send before this process ends instead of passing them on.
const INSISTENCE: u32 = 3;

/// What the command's streams are connected to.
#[derive(Debug)]
pub struct Streams<'a> {
    /// What it reads; nothing when there is none.
    pub input: Option<BorrowedFd<'a>>,
    /// Where its output goes, or what its terminal shows.
    pub output: BorrowedFd<'a>,
    /// Where its standard error goes.
    pub error: BorrowedFd<'a>,
    /// Signals that are passed on, and changes of the terminal's size.
    pub signals: Option<&'a EndingSignals>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// Runs `exec` in the guest of the machine whose vsock socket is at `path`, to its end.
///
/// # Errors
/// [`AgentError`]; the guest ends a command whose session has ended.
pub fn exec(path: &Path, exec: &Exec, streams: &Streams<'_>) -> Result<Exit, AgentError> {
    let connection = Connection::open(path, &FromHost::Exec(exec.clone()))?;
    let mut session = Session::new(connection, streams);
    session.detached = exec.stdio() == Stdio::Detached;
    if session.input.is_none() {
        session.connection.send(&FromHost::End(Stream::Input));
    }
    session.run(streams)
}

/// Takes part in the streams of the main process of the machine whose own process listens at `path`, until that ends or, with `keys`,
/// Ctrl-P and Ctrl-Q were pressed. A terminal gets this `size`.
///
/// # Errors
/// [`AgentError`]; the main process runs on.
pub fn attach(
    path: &Path,
    size: Option<Size>,
    keys: bool,
    streams: &Streams<'_>,
) -> Result<Exit, AgentError> {
    let request = FromHost::Attach { input: streams.input.is_some() };
    let mut session = Session::new(Connection::attach(path, &request)?, streams);
    session.keys = keys.then(DetachKeys::default);
    if let Some(size) = size {
        session.connection.send(&FromHost::Resize(size));
    }
    session.run(streams)
}

struct Session<'a> {
    connection: Connection,
    input: Option<BorrowedFd<'a>>,
    input_room: Room,
    input_window: SendWindow,
    sinks: [Sink<'a>; 2],
    exit: Option<Exit>,
    detached: bool,
    keys: Option<DetachKeys>,
    insisted: u32,
    /// When something is to be done about a command that takes too long.
    ends: Option<Instant>,
    /// It has been told to end.
    overdue: Option<Duration>,
}

struct Sink<'a> {
    stream: Stream,
    fd: BorrowedFd<'a>,
    held: Vec<u8>,
    written: usize,
    window: ReceiveWindow,
}

impl<'a> Session<'a> {
    fn new(connection: Connection, streams: &Streams<'a>) -> Self {
        Self {
            connection,
            input: streams.input,
            input_room: Room::default(),
            input_window: SendWindow::default(),
            sinks: [
                Sink::new(Stream::Output, streams.output),
                Sink::new(Stream::Error, streams.error),
            ],
            exit: None,
            detached: false,
            keys: None,
            insisted: 0,
            ends: streams.timeout.map(|timeout| Instant::now() + timeout),
            overdue: None,
        }
    }

    fn run(mut self, streams: &Streams<'_>) -> Result<Exit, AgentError> {
        loop {
            while self.take_frame()? {}
            self.connection.flush()?;
            if let Some(exit) = self.exit
                && self.sinks.iter().all(|sink| !sink.is_holding())
            {
                return match self.overdue {
                    Some(timeout) => Err(AgentError::Timeout { seconds: timeout.as_secs() }),
                    None => Ok(exit),
                };
            }
            self.wait(streams)?;
        }
    }

    fn wait(&mut self, streams: &Streams<'_>) -> Result<(), AgentError> {
        let reads =
            self.input_window.left() > 1 && !self.connection.is_full() && self.exit.is_none();
        let input = self.input.filter(|_| reads);
        let signals = streams.signals.map(AsFd::as_fd);
        let mut wanted = Vec::with_capacity(5);
        if self.exit.is_none() {
            wanted.push((Event::Guest, self.connection.wanted()));
        }
        wanted.extend(input.map(|fd| (Event::Input, Wanted { fd, read: true, write: false })));
        wanted.extend(signals.map(|fd| (Event::Signal, Wanted { fd, read: true, write: false })));
        for (at, sink) in self.sinks.iter().enumerate().filter(|(_, sink)| sink.is_holding()) {
            wanted.push((Event::Sink(at), Wanted { fd: sink.fd, read: false, write: true }));
        }
        let polled: Vec<_> = wanted.iter().map(|(_, wanted)| *wanted).collect();
        let ready = poll::wait(&polled, self.ends).map_err(AgentError::host("wait"))?;
        let events: Vec<_> = wanted
            .iter()
            .zip(ready)
            .filter(|(_, ready)| *ready)
            .map(|((event, _), _)| *event)
            .collect();
        for event in events {
            match event {
                Event::Guest => _ = self.connection.receive()?,
                Event::Input => self.read_input()?,
                Event::Signal => self.pass_on_signals(streams)?,
                Event::Sink(at) => self.write_sink(at)?,
            }
        }
        self.look_at_the_time(streams)
    }

    fn take_frame(&mut self) -> Result<bool, AgentError> {
        // After its last frame a guest has nothing to say.
        if self.exit.is_some() {
            return Ok(false);
        }
        let Some(frame) = self.connection.decoder.next::<FromGuest<'_>>()? else {
            return Ok(false);
        };
        match frame {
            FromGuest::Started(_) if self.detached => self.exit = Some(Exit::Code(0)),
            FromGuest::Started(_) | FromGuest::End(_) => {}
            FromGuest::Data(Stream::Output, bytes) => self.sinks[0].take(bytes)?,
            FromGuest::Data(Stream::Error, bytes) => self.sinks[1].take(bytes)?,
            FromGuest::Credit(Stream::Input, bytes) => self.input_window.credit(bytes)?,
            FromGuest::Exited(exit) => self.exit = Some(exit),
            FromGuest::Failed(failure) => return Err(AgentError::Guest(failure)),
            _ => return Err(AgentError::Unexpected { what: "frame of a command" }),
        }
        Ok(true)
    }

    fn read_input(&mut self) -> Result<(), AgentError> {
        let Some(fd) = self.input else { return Ok(()) };
        // A key that was held back may come on top.
        let limit = DATA_MAX.min(self.input_window.left()) - 1;
        match self.input_room.read(limit, |bytes| console_io::read(fd.as_raw_fd(), bytes)) {
            Ok([]) => {
                self.connection.send(&FromHost::End(Stream::Input));
                self.input = None;
            }
            Ok(typed) => {
                let (passed, leaves) = match &mut self.keys {
                    Some(keys) => keys.pass(typed),
                    None => (typed.to_vec(), false),
                };
                if !passed.is_empty() {
                    self.connection.send(&FromHost::Data(Stream::Input, &passed));
                    self.input_window.sent(passed.len());
                }
                if leaves {
                    // What does not fit was typed faster than anybody types.
                    self.connection.flush()?;
                    return Err(AgentError::Detached);
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(source) => return Err(AgentError::Host { what: "read standard input", source }),
        }
        Ok(())
    }

    fn write_sink(&mut self, at: usize) -> Result<(), AgentError> {
        let sink = &mut self.sinks[at];
        let (written, stream) = (sink.write()?, sink.stream);
        if let Some(credit) = sink.window.used(written).filter(|_| self.exit.is_none()) {
            self.connection.send(&FromHost::Credit(stream, credit));
        }
        Ok(())
    }

    fn pass_on_signals(&mut self, streams: &Streams<'_>) -> Result<(), AgentError> {
        while let Some(signal) = streams.signals.and_then(EndingSignals::take) {
            if signal == libc::SIGWINCH {
                if let Some((columns, rows)) = tty::size(streams.output.as_raw_fd()) {
                    self.connection.send(&FromHost::Resize(Size { columns, rows }));
                }
                continue;
            }
            self.insisted +=
                u32::from(matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP));
            if self.insisted >= INSISTENCE || self.exit.is_some() {
                return Err(AgentError::Interrupted(signal));
            }
            if let Some(signal) = Signal::new(signal) {
                self.connection.send(&FromHost::Signal(signal));
            }
        }
        Ok(())
    }

    fn look_at_the_time(&mut self, streams: &Streams<'_>) -> Result<(), AgentError> {
        if self.ends.is_none_or(|ends| Instant::now() < ends) {
            return Ok(());
        }
        let signal = match self.overdue {
            None => {
                self.overdue = streams.timeout;
                libc::SIGTERM
            }
            Some(timeout) => {
                // The guest ends a command whose session has ended.
                return Err(AgentError::Timeout { seconds: timeout.as_secs() });
            }
        };
        self.ends = Some(Instant::now() + AFTER_TERM);
        if let Some(signal) = Signal::new(signal) {
            self.connection.send(&FromHost::Signal(signal));
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Event {
    Guest,
    Input,
    Signal,
    Sink(usize),
}

impl<'a> Sink<'a> {
    fn new(stream: Stream, fd: BorrowedFd<'a>) -> Self {
        Self { stream, fd, held: Vec::new(), written: 0, window: ReceiveWindow::default() }
    }

    fn is_holding(&self) -> bool {
        self.written < self.held.len()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.window.received(bytes.len())?;
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what fits; how much that was. Nobody who reads is the end of the session, as of a command in a pipe.
    fn write(&mut self) -> Result<usize, AgentError> {
        let left = &self.held[self.written..];
        let len =
            match console_io::write(self.fd.as_raw_fd(), &left[..left.len().min(SAFE_WRITE_BYTES)])
            {
                Ok(len) => len,
                Err(error) if is_temporary(&error) => 0,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(AgentError::Interrupted(libc::SIGPIPE));
                }
                Err(source) => {
                    return Err(AgentError::Host { what: "write the command's output", source });
                }
            };
        self.written += len;
        if !self.is_holding() {
            self.held.clear();
            self.written = 0;
        }
        Ok(len)
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
