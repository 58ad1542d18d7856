//! The other end of the control socket: what the command asks a machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Reply, Request};

/// More than any answer has.
const ANSWER_MAX: u64 = 64 << 10;

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// What the host said: `NotFound` or `ConnectionRefused` when no machine listens.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(path)?) })
    }

    /// Asks, and waits for the answer, for `patience` at most; without one, for as long as it takes.
    ///
    /// # Errors
    /// `UnexpectedEof` when the machine goes away, `WouldBlock` or `TimedOut` when it does not answer in time.
    pub fn ask(&mut self, request: &Request, patience: Option<Duration>) -> io::Result<Reply> {
        self.send(request)?;
        self.hear(patience)
    }

    /// Asks without waiting.
    ///
    /// # Errors
    /// What the host said.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }

    /// Waits for the answer to what was asked.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn hear(&mut self, patience: Option<Duration>) -> io::Result<Reply> {
        self.stream.get_ref().set_read_timeout(patience)?;
        let mut answer = Vec::new();
        (&mut self.stream).take(ANSWER_MAX).read_until(b'\n', &mut answer)?;
        if answer.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}
