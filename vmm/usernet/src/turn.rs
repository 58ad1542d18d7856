//! What every part of the stack has at hand while one call into it lasts.

use std::fmt;

use crate::Instant;
use crate::counters::Counters;
use crate::link::{Link, LinkFull, Offload, Payload};
use crate::sockets::Sockets;

/// One call into the stack.
pub struct Turn<'t, P> {
    /// The moment of the call.
    pub now: Instant,
    /// The way to the guest.
    pub link: &'t mut dyn Link<Payload = P>,
    /// The host's sockets.
    pub sockets: &'t mut dyn Sockets<P>,
    /// What happened.
    pub counters: &'t mut Counters,
    /// Whether the link refused a frame and has not said since that there is room again.
    pub link_full: &'t mut bool,
}

impl<P> fmt::Debug for Turn<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("now", &self.now).finish_non_exhaustive()
    }
}

impl<P: Payload> Turn<'_, P> {
    /// Sends a frame to the guest.
    ///
    /// # Errors
    /// [`LinkFull`]; the link is not tried again before it says that there is room.
    pub fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        if *self.link_full {
            return Err(LinkFull);
        }
        if self.link.send(offload, head, body).is_err() {
            *self.link_full = true;
            self.counters.link_full += 1;
            return Err(LinkFull);
        }
        let len = body.iter().fold(head.len(), |len, piece| len + piece.len());
        self.counters.host_frames += 1;
        self.counters.host_bytes += len as u64;
        Ok(())
    }
}
