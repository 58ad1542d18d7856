//! A host end that is not a socket: a stream that the stack itself serves.

use std::collections::VecDeque;

use crate::link::Payload;
use crate::sockets::Received;

/// So much of the guest's bytes waits at most: one message of DNS with its length, and the beginning of the next.
const MAX_INBOUND: usize = (64 << 10) + 2 + 512;
/// So much of the answers waits at most before no more of the guest's bytes are taken.
const MAX_OUTBOUND: usize = 128 << 10;

/// The stack's end of a connection.
#[derive(Debug, Default)]
pub(crate) struct Service {
    /// What the guest sent and nobody has taken.
    pub(crate) inbound: Vec<u8>,
    /// What the guest is to get.
    pub(crate) outbound: VecDeque<u8>,
    /// The guest has ended its side.
    pub(crate) guest_ended: bool,
    /// Whoever serves it knows of that.
    pub(crate) finished: bool,
    /// Nothing will be added to [`Self::outbound`].
    pub(crate) ended: bool,
}

impl Service {
    /// As a socket's `send`.
    pub(super) fn send<P: Payload>(&mut self, parts: &[P]) -> usize {
        let mut taken = 0;
        for part in parts {
            let count = part.len().min(self.send_space());
            let at = self.inbound.len();
            self.inbound.resize(at + count, 0);
            let copied = part.copy_to(&mut self.inbound[at..]);
            self.inbound.truncate(at + copied);
            taken += copied;
            if copied < part.len() {
                break;
            }
        }
        taken
    }

    /// As a socket's free space.
    pub(super) fn send_space(&self) -> usize {
        if self.outbound.len() >= MAX_OUTBOUND {
            return 0;
        }
        MAX_INBOUND.saturating_sub(self.inbound.len())
    }

    /// As a socket's `receive`.
    pub(super) fn receive(&mut self, into: &mut [&mut [u8]]) -> Received {
        let mut count = 0;
        for piece in into {
            let taken = piece.len().min(self.outbound.len());
            for (to, from) in piece.iter_mut().zip(self.outbound.drain(..taken)) {
                *to = from;
            }
            count += taken;
        }
        match (count, self.ended) {
            (0, true) => Received::End,
            (0, false) => Received::Nothing,
            _ => Received::Bytes(count),
        }
    }
}
