//! The main process's streams, carried to the host on a connection that the guest's first process has begun.
//!
//! Runs on a thread of its own until the main process has ended and the host has all that it wrote. Invariant: the main process is
//! ended, reaped and signalled by the first process; here it is only carried.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::exec::Started;
use crate::session;
use crate::sys::inherited;
use crate::watched::Watched;

/// What the first process hands over.
#[derive(Debug)]
pub struct MainProcess {
    /// The way to the host, not yet connected.
    pub socket: OwnedFd,
    /// The process and its streams.
    pub started: Started,
}

impl MainProcess {
    /// Takes `PID:SOCKET:STATUS:INPUT:OUTPUT:ERROR`, inherited descriptors by their numbers, 0 for one that there is not. Without an
    /// error stream there is a terminal. To be called once.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<i32> =
            text.split(':').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let &[pid, socket, status, input, output, error] = numbers.as_slice() else { return None };
        let [socket, status, input, output, error] =
            [socket, status, input, output, error].map(inherited::take);
        let process = Watched::main(pid, status?)?;
        let is_terminal = error.is_none();
        let started = Started { process, input, output: Some(output?), error, is_terminal };
        Some(Self { socket: socket?, started })
    }

    /// Carries the streams to their end.
    pub fn serve(self) {
        // Writable is connected. One that the host refuses is readable as well, and found out then.
        while matches!(
            poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], None),
            Err(Errno::INTR)
        ) {}
        session::serve_main(self.socket, self.started);
    }
}
