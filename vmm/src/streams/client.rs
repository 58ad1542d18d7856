//! One who has attached: frames of docs/agent.md, with this process in the place of the guest.
//!
//! Invariant: of each direction at most a window is held. Who does not keep to the protocol is dropped.

use std::os::unix::net::UnixStream;

use openshell_agent_proto::{
    DATA_MAX, Exit, Failure, FailureKind, FromGuest, FromHost, ReceiveWindow, SendWindow, Signal,
    Size, Stream, VERSIONS,
};

use super::queue::Queue;
use crate::agent::{AgentError, Connection};

#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    greeted: bool,
    /// It gets the outputs.
    pub(super) reads: bool,
    /// It gives the input.
    pub(super) gives: bool,
    /// What it gave, and has not gone on.
    pub(super) input: Queue,
    pub(super) input_ended: bool,
    input_window: ReceiveWindow,
    outputs: [Queue; 2],
    windows: [SendWindow; 2],
    /// It was told how everything ended; nothing follows.
    told: bool,
    pub(super) gone: bool,
}

/// What one wants of the main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Resize(Size),
    Signal(Signal),
}

impl Client {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            connection: Connection::of(socket),
            greeted: false,
            reads: false,
            gives: false,
            input: Queue::default(),
            input_ended: false,
            input_window: ReceiveWindow::default(),
            outputs: [Queue::default(), Queue::default()],
            windows: [SendWindow::default(), SendWindow::default()],
            told: false,
            gone: false,
        }
    }

    /// Takes frames that have arrived, up to a wish for the process. `taken`: the input is given by somebody already.
    pub(super) fn hear(&mut self, taken: bool) -> Result<Option<Wish>, AgentError> {
        while let Some(frame) = self.connection.decoder.next::<FromHost<'_>>()? {
            match frame {
                FromHost::Hello { lowest, highest } if !self.greeted => {
                    self.greeted = true;
                    let version = highest.min(VERSIONS.1);
                    if version < lowest.max(VERSIONS.0) {
                        self.refuse(FailureKind::Version, "this machine speaks another version");
                    } else {
                        FromGuest::Welcome(version).encode(self.connection.outgoing());
                    }
                }
                FromHost::Attach { input: true } if taken => {
                    self.refuse(FailureKind::Busy, "another has the input of this machine");
                }
                FromHost::Attach { input } if self.greeted && !self.reads => {
                    (self.reads, self.gives) = (true, input);
                }
                FromHost::Data(Stream::Input, bytes) if self.gives && !self.input_ended => {
                    self.input_window.received(bytes.len())?;
                    self.input.push(bytes);
                }
                FromHost::End(Stream::Input) if self.gives => self.input_ended = true,
                FromHost::Credit(Stream::Output, bytes) => self.windows[0].credit(bytes)?,
                FromHost::Credit(Stream::Error, bytes) => self.windows[1].credit(bytes)?,
                FromHost::Resize(size) if self.reads => return Ok(Some(Wish::Resize(size))),
                FromHost::Signal(signal) if self.reads => return Ok(Some(Wish::Signal(signal))),
                _ => return Err(AgentError::Unexpected { what: "frame of who attaches" }),
            }
        }
        Ok(None)
    }

    fn refuse(&mut self, kind: FailureKind, text: &str) {
        FromGuest::Failed(Failure::new(kind, text)).encode(self.connection.outgoing());
        self.told = true;
    }

    /// `len` bytes of its input have gone on.
    pub(super) fn input_used(&mut self, len: usize) {
        self.input.advance(len);
        if let Some(bytes) = self.input_window.used(len) {
            FromGuest::Credit(Stream::Input, bytes).encode(self.connection.outgoing());
        }
    }

    /// Something for it to read.
    pub(super) fn take(&mut self, at: usize, bytes: &[u8]) {
        if self.reads {
            self.outputs[at].push(bytes);
        }
    }

    /// What it has not got of an output.
    pub(super) fn behind(&self, at: usize) -> usize {
        self.outputs[at].len()
    }

    /// Sends what it takes, and when that is `over`, how the process ended, if that is known.
    pub(super) fn pass_on(&mut self, over: bool, exit: Option<Exit>) {
        for (at, stream) in [Stream::Output, Stream::Error].into_iter().enumerate() {
            let (queue, window) = (&mut self.outputs[at], &mut self.windows[at]);
            while !queue.is_empty() && window.left() > 0 && !self.connection.is_full() {
                let len = queue.len().min(window.left()).min(DATA_MAX);
                let piece = FromGuest::Data(stream, &queue.left()[..len]);
                piece.encode(self.connection.outgoing());
                queue.advance(len);
                window.sent(len);
            }
        }
        if over && !self.told && self.outputs.iter().all(Queue::is_empty) {
            if let Some(exit) = exit {
                FromGuest::Exited(exit).encode(self.connection.outgoing());
            }
            self.told = true;
        }
        self.gone |= self.connection.flush().is_err();
        self.gone |= self.told && !self.connection.is_waiting();
    }
}
