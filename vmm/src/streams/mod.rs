//! The main process's standard streams: between its guest, its machine's log, this process and whoever attaches.
//!
//! The guest brings them on a connection of its own, with the protocol of [`crate::agent`]; whoever attaches speaks it as well, and this
//! side is the guest to them. A thread of its own, under a filter of its own, carries them. Invariant: of each stream at most a window is
//! held for each who reads it, and the guest gets credit for what all of them have: who is slow holds the process back. One
//! at most gives the input. docs/machines.md has what users see, docs/agent.md the protocol.

mod client;
mod outputs;
mod queue;
mod server;
#[cfg(test)]
mod tests;

use std::io::{self, PipeWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::config::plan::StreamsPlan;
use crate::jail::{Jail, Role};
use crate::sys::signal::EndingSignals;

/// The event loop's end.
#[derive(Debug)]
pub struct Link {
    /// There has been a main process.
    started: Arc<AtomicBool>,
    /// Closed when the machine has come to its end.
    running: PipeWriter,
    thread: JoinHandle<()>,
    paths: [PathBuf; 2],
}

impl Link {
    /// Starts the thread, confined. `resizes` are those of this process's terminal.
    ///
    /// # Errors
    /// What the host said.
    pub fn start(
        plan: StreamsPlan,
        resizes: Option<EndingSignals>,
        jail: Jail,
    ) -> io::Result<Self> {
        let started = Arc::new(AtomicBool::new(false));
        let (ended, running) = io::pipe()?;
        let paths = plan.paths.clone();
        let server = server::Server::new(plan, resizes, Arc::clone(&started), ended)?;
        let thread = jail.spawn(Role::Streams, "streams", move || server.run())?;
        Ok(Self { started, running, thread, paths })
    }

    /// Says that the machine has come to its end, and waits until everybody has what the process wrote. One that ended in good
    /// order has its output read as slowly as its reader likes. Whether there has been a main process.
    #[must_use]
    pub fn finish(self) -> bool {
        drop(self.running);
        drop(self.thread.join());
        for path in self.paths {
            drop(std::fs::remove_file(path));
        }
        self.started.load(Ordering::SeqCst)
    }
}
