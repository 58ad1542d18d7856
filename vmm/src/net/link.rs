//! What the engine asks of a link, beyond what the stack does.

use std::io;
use std::os::fd::RawFd;

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, Payload};

use crate::memory::Gather;

/// Payload that one system call can send from where it lies.
pub trait Iovecs: Payload {
    /// Adds the pieces that are left of it, in their order.
    fn gather<'a>(&'a self, into: &mut Gather<'a>);
}

/// A descriptor that a link waits for; the engine waits for it to become readable or writable, edge-triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The link's own number for it.
    pub number: u8,
    /// The descriptor, which stays open as long as the link lives.
    pub fd: RawFd,
}

/// What a source told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkEvent {
    /// There may be frames.
    #[default]
    Frames,
    /// There may be frames, and a frame that found no room may find it now.
    Room,
    /// The guest has reset its network card: every payload must be dropped, then [`PacketLink::finish_reset`].
    Reset,
    /// There is no way to the guest any more: the engine ends.
    Ended,
}

/// A way to the guest, as the engine drives it. A turn is: [`Self::on_ready`] for every source that became ready, frames until there is
/// none or the turn is long enough, what the stack sends, [`Self::end_turn`].
pub trait PacketLink: Link<Payload: Iovecs> {
    /// What to wait for. Asked once.
    fn sources(&self) -> Vec<Source>;

    /// The source `number` became ready.
    ///
    /// # Errors
    /// What ended the link, where that is news.
    fn on_ready(&mut self, number: u8, writable: bool) -> io::Result<LinkEvent>;

    /// The next frame from the guest, its head copied into `head`; `None` when none waits.
    fn next_frame<'a>(&mut self, head: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, Self::Payload>>;

    /// The turn is over: what was put off is done now. True when there are more frames to take at once.
    fn end_turn(&mut self) -> bool;

    /// Whether there is no way to the guest any more; asked at the end of a turn.
    fn has_ended(&self) -> bool {
        false
    }

    /// No payload of the link is held any more, after a [`LinkEvent::Reset`].
    fn finish_reset(&mut self) {}
}
