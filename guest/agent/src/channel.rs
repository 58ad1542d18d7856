//! The connection of a session: frames in, frames out, neither blocking unless asked to.
//!
//! Invariant: what waits to be sent is bounded by whoever sends looking at [`Wire::is_full`] first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use openshell_agent_proto::{Decoder, FromGuest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What may wait to be sent before streams are not read any more, in bytes.
const FULL: usize = 128 << 10;

/// The sending half.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    waiting: Vec<u8>,
    sent: usize,
}

impl Wire {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, waiting: Vec::new(), sent: 0 })
    }

    /// Sends a frame as soon as the peer takes it.
    pub fn send(&mut self, frame: &FromGuest<'_>) {
        frame.encode(&mut self.waiting);
    }

    /// Whether anything waits to be sent.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.sent < self.waiting.len()
    }

    /// Whether nothing should be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() - self.sent > FULL
    }

    /// Sends what the peer takes now.
    ///
    /// # Errors
    /// When the peer has gone.
    pub fn flush(&mut self) -> Result<(), Errno> {
        while self.is_waiting() {
            match rustix::io::write(&self.socket, &self.waiting[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        self.waiting.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what has arrived into `decoder`; false when nothing has. An end is an error.
    ///
    /// # Errors
    /// When the peer has gone.
    pub fn receive(&self, decoder: &mut Decoder) -> Result<bool, Errno> {
        match rustix::io::read(&self.socket, decoder.space()) {
            Ok(0) => Err(Errno::CONNRESET),
            Ok(len) => {
                decoder.filled(len);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Waits until the peer can be read from, or written to if anything waits, at the latest until `ends`.
    ///
    /// # Errors
    /// `ETIMEDOUT` when it is that late.
    pub fn wait(&self, ends: Option<Instant>) -> Result<(), Errno> {
        let writing = if self.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN | writing)];
        match poll(&mut polled, until(ends).as_ref()) {
            Ok(0) => Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Sends everything, and waits until the peer has taken it and closed its side.
    pub fn finish(mut self, patience: Duration) {
        let ends = Instant::now() + patience;
        while self.is_waiting() {
            if self.flush().is_err() || (self.is_waiting() && self.wait(Some(ends)).is_err()) {
                return;
            }
        }
        if rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let mut ignored = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.socket, &mut ignored[..]) {
                Ok(0) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.wait(Some(ends)).is_ok() => {}
                Err(_) => return,
            }
            if ends <= Instant::now() {
                return;
            }
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What is left until `ends`, as poll wants it.
#[must_use]
pub fn until(ends: Option<Instant>) -> Option<Timespec> {
    let left = ends?.saturating_duration_since(Instant::now());
    Timespec::try_from(left).ok()
}
