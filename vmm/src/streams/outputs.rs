//! Everybody who gets what the main process writes.
//!
//! Invariant: credit is given for what all of them have. A descriptor of this process is not ours alone and never made
//! non-blocking: it is written to in pieces that a pipe which is ready takes.

use std::os::fd::RawFd;
use std::time::Duration;

use openshell_agent_proto::{Exit, ReceiveWindow, WireError};

use super::client::Client;
use super::queue::Queue;
use crate::logbook::{Logbook, Source};
use crate::sys::console_io;

/// A pipe that is reported writable takes at least this much without blocking (POSIX PIPE_BUF).
const SAFE_WRITE_BYTES: usize = 4096;

/// Who gets standard output, number 0, and standard error, number 1.
#[derive(Debug)]
pub(super) struct Outputs {
    log: Logbook,
    own: [Option<Own>; 2],
    pub(super) clients: Vec<Client>,
    windows: [ReceiveWindow; 2],
    /// Bytes that have arrived and that not everybody has.
    unused: [usize; 2],
}

/// A standard stream of this process.
#[derive(Debug)]
struct Own {
    fd: RawFd,
    queue: Queue,
}

impl Outputs {
    pub(super) fn new(log: Logbook, own: bool) -> Self {
        let stream = |fd| own.then(|| Own { fd, queue: Queue::default() });
        Self {
            log,
            own: [stream(libc::STDOUT_FILENO), stream(libc::STDERR_FILENO)],
            clients: Vec::new(),
            windows: [ReceiveWindow::default(), ReceiveWindow::default()],
            unused: [0, 0],
        }
    }

    /// The process has written this.
    pub(super) fn take(&mut self, at: usize, bytes: &[u8]) -> Result<(), WireError> {
        self.windows[at].received(bytes.len())?;
        self.unused[at] += bytes.len();
        self.log.add([Source::Guest, Source::Stderr][at], bytes);
        if let Some(own) = &mut self.own[at] {
            own.queue.push(bytes);
        }
        for client in &mut self.clients {
            client.take(at, bytes);
        }
        Ok(())
    }

    /// Whether a stream of this process is behind.
    pub(super) fn waits(&self, at: usize) -> bool {
        self.own[at].as_ref().is_some_and(|own| !own.queue.is_empty())
    }

    /// Writes what this process's stream takes; false when nobody reads that any more.
    pub(super) fn write_own(&mut self, at: usize) -> bool {
        let Some(own) = &mut self.own[at] else { return true };
        if own.write() {
            return true;
        }
        self.own[at] = None;
        false
    }

    /// Credit to be given now.
    pub(super) fn credit(&mut self, at: usize) -> Option<u32> {
        let own = self.own[at].as_ref().map_or(0, |own| own.queue.len());
        let behind = self.clients.iter().map(|client| client.behind(at)).max().unwrap_or(0);
        let unused = own.max(behind);
        let used = self.unused[at].saturating_sub(unused);
        self.unused[at] = unused;
        self.windows[at].used(used)
    }

    /// Sends to all who have attached what they take, and when that is `over`, how the process ended. Forgets those that have gone.
    pub(super) fn pass_on(&mut self, over: bool, exit: Option<Exit>) {
        for client in &mut self.clients {
            client.pass_on(over, exit);
        }
        self.clients.retain(|client| !client.gone);
    }

    /// Whether this process's streams have everything.
    pub(super) fn own_done(&self) -> bool {
        !self.waits(0) && !self.waits(1)
    }
}

impl Own {
    fn write(&mut self) -> bool {
        while !self.queue.is_empty() && console_io::writable_within(self.fd, Duration::ZERO) {
            let left = self.queue.left();
            match console_io::write(self.fd, &left[..left.len().min(SAFE_WRITE_BYTES)]) {
                Ok(len) => self.queue.advance(len),
                Err(error) if super::server::is_temporary(&error) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}
