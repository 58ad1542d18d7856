//! The event loop's wait: descriptors under tokens, and what became ready. [`Patience`]: how long a thread looks before it sleeps.
//!
//! Invariant: the loop's owner names every descriptor with a token of its own enum, so that a `match` without a wildcard serves
//! them all. Level-triggered: a descriptor is left in only while somebody makes progress on it.

mod patience;

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use patience::Patience;

const BATCH: usize = 16;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Waiter {
    epoll: Epoll,
}

impl Waiter {
    /// An empty set.
    ///
    /// # Errors
    /// What the host said.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Waits for `fd` to become readable (or to end).
    ///
    /// # Errors
    /// What the host said; EPERM for a regular file, which is always ready.
    pub fn add_readable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
    }

    /// Waits for `fd` to become writable (or to end).
    ///
    /// # Errors
    /// As [`Self::add_readable`].
    pub fn add_writable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::OUT, token))
    }

    /// Stops waiting for `fd`; one that is not in the set is left alone.
    pub fn remove(&self, fd: RawFd) {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()).ok();
    }

    /// Waits without limit and appends the tokens of what is ready to `ready`.
    ///
    /// # Errors
    /// What the host said; a signal is not an error.
    pub fn wait(&self, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [EpollEvent::default(); BATCH];
        match self.epoll.wait(-1, &mut events) {
            Ok(count) => {
                ready.extend(events.iter().take(count).map(EpollEvent::data));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
