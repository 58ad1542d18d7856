//! A net thread of its own for a link that has none: of a tap, of a Unix stream.
//!
//! Invariant: a panic in the stack costs the other side its connections; the second one ends the thread, and nothing else.

use std::io;
use std::thread::JoinHandle;

use crate::jail::{Jail, Role};
use crate::sys::panics;

use super::engine::{Commands, End, Host, Report, Setup};
use super::link::PacketLink;

/// Times that a stack which panicked is followed by another.
const RESTARTS: u32 = 1;

/// How a thread ended.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The stack panicked too often.
    #[error("the network stack failed")]
    Panicked,
    /// The host did not let it wait.
    #[error("the network stack cannot wait for events")]
    Host(#[source] io::Error),
}

/// The thread, as its owner has it. When this is dropped the thread ends.
#[derive(Debug)]
pub struct NetThread {
    thread: Option<JoinHandle<(Result<End, Failed>, Report)>>,
    commands: Commands,
}

impl NetThread {
    /// Starts the thread with the filter of its role on; `ended` is called on it when it has done its work.
    ///
    /// # Errors
    /// What the host said.
    pub fn spawn<L: PacketLink + Send + 'static>(
        jail: Jail,
        setup: Setup,
        mut link: L,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (mut host, commands) = Host::new(setup)?;
        let thread = jail.spawn(Role::Net, "net", move || {
            let end = serve(&mut host, &mut link);
            ended();
            (end, host.report())
        })?;
        Ok(Self { thread: Some(thread), commands })
    }

    /// The way to the thread.
    #[must_use]
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Ends the thread, if it has not ended, and tells how.
    ///
    /// # Errors
    /// [`Failed`] tells why it had ended before.
    pub fn stop(mut self) -> (Result<End, Failed>, Report) {
        self.join().unwrap_or((Err(Failed::Panicked), Report::default()))
    }

    fn join(&mut self) -> Option<(Result<End, Failed>, Report)> {
        self.commands.stop();
        self.thread.take()?.join().ok()
    }
}

impl Drop for NetThread {
    fn drop(&mut self) {
        drop(self.join());
    }
}

fn serve<L: PacketLink>(host: &mut Host, link: &mut L) -> Result<End, Failed> {
    for _ in 0..=RESTARTS {
        if let Ok(end) = panics::contain(|| host.serve(link)) {
            return end.map_err(Failed::Host);
        }
    }
    Err(Failed::Panicked)
}
