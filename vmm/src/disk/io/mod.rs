//! Engines that carry out disk operations for one worker thread, and wake it: io_uring, or plain system calls where that is refused.
//!
//! Invariant: from `submit` until its completion is handed out, everything an operation names (buffers, vectors, the caller's
//! payload, guest RAM) belongs to the engine; dropping an engine waits for the kernel first.

#![expect(unsafe_code, reason = "the kernel is handed addresses of guest memory only here")]

mod sync;
mod transfer;
mod uring;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::{GuestRam, IoBuf};

pub use sync::{Blocking, perform};
pub use transfer::Op;
pub use uring::Uring;

/// The two events that wake a worker besides completions. Neither descriptor may be in non-blocking mode.
#[derive(Debug)]
pub struct Signals {
    /// The driver's notification.
    pub doorbell: EventFd,
    /// A command waits in the worker's mailbox.
    pub mailbox: EventFd,
}

/// Which signals arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wake {
    /// The doorbell rang since the last wait.
    pub doorbell: bool,
    /// The mailbox rang since the last wait.
    pub mailbox: bool,
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Done<T> {
    /// What was given with the operation.
    pub payload: T,
    /// How it ended.
    pub result: io::Result<()>,
}

/// Operations in flight at once in a ring.
const DEPTH: usize = 256;
const BLOCKING_DEPTH: usize = 16;

/// What one worker does its I/O with.
#[derive(Debug)]
pub enum Engine<T> {
    /// io_uring on a raw file.
    Uring(Box<Uring<T>>),
    /// System calls that wait, on any disk.
    Blocking(Blocking<T>),
}

impl<T> Engine<T> {
    /// The event that rings for the mailbox.
    #[must_use]
    pub fn mailbox(&self) -> &EventFd {
        match self {
            Self::Uring(ring) => ring.mailbox(),
            Self::Blocking(engine) => engine.mailbox(),
        }
    }

    /// To be called once by the thread that will use the engine, before anything else.
    ///
    /// # Errors
    /// What the host said when it refused to start a ring.
    pub fn start(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(ring) => ring.start(),
            Self::Blocking(_) => Ok(()),
        }
    }

    /// Keeps `ram` mapped until [`Self::release`]: buffers of operations come from it.
    pub fn hold(&mut self, ram: Arc<GuestRam>) {
        match self {
            Self::Uring(ring) => ring.hold(ram),
            Self::Blocking(engine) => engine.hold(ram),
        }
    }

    /// Lets go of guest RAM.
    ///
    /// # Panics
    /// When operations are in flight.
    pub fn release(&mut self) {
        assert_eq!(self.in_flight(), 0, "operations end before their memory goes");
        match self {
            Self::Uring(ring) => ring.release(),
            Self::Blocking(engine) => engine.release(),
        }
    }

    /// Operations that were submitted and not handed out yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Uring(ring) => ring.in_flight(),
            Self::Blocking(engine) => engine.in_flight(),
        }
    }

    /// Operations to have in flight at most. Few where each runs to its end at submission, so that the first is not answered late.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::Uring(_) => DEPTH,
            Self::Blocking(_) => BLOCKING_DEPTH,
        }
    }

    /// Starts an operation on `bufs`, which come from the RAM held or stay valid until it ends.
    ///
    /// # Panics
    /// When [`Self::depth`] operations are in flight.
    pub fn submit(&mut self, op: Op, offset: u64, bufs: &[IoBuf], payload: T) {
        assert!(self.in_flight() < self.depth(), "the caller keeps to the engine's depth");
        match self {
            Self::Uring(ring) => ring.submit(op, offset, bufs, payload),
            Self::Blocking(engine) => engine.submit(op, offset, bufs, payload),
        }
    }

    /// Waits until an operation has ended, a signal came or `timeout` passed (`None`: without limit); appends what ended to `done`.
    ///
    /// It may return early with nothing.
    ///
    /// # Errors
    /// What the host said when it can't wait: the engine is of no use any more.
    pub fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done<T>>) -> io::Result<Wake> {
        match self {
            Self::Uring(ring) => ring.wait(timeout, done),
            Self::Blocking(engine) => engine.wait(timeout, done),
        }
    }
}

#[cfg(test)]
mod tests;
