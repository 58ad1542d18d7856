//! From bytes as they arrive to frames.
//!
//! Invariant: what is kept is one frame of an allowed length and what one read brought behind it.

use crate::DATA_MAX;
use crate::room::FIRST;
use crate::wire::{HEADER, WireError};

/// Room that a read finds at most, unless a longer frame has begun.
const ROOM: usize = HEADER + DATA_MAX + 64;

/// A frame of one direction.
pub trait Receive<'a>: Sized {
    /// The longest payload of this kind in bytes; none when there is no such kind.
    fn limit(kind: u8) -> Option<usize>;

    /// Reads a payload that is not longer than that.
    ///
    /// # Errors
    /// When it is malformed.
    fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, WireError>;
}

/// Bytes that have arrived and were not taken as frames yet.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the frame that is incomplete, with its header.
    wanted: usize,
}

impl Decoder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for a read, never empty. To be followed by [`Self::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let len = FIRST.max(self.wanted).max(self.end + 1).max(self.buffer.len());
        self.buffer.resize(len, 0);
        &mut self.buffer[self.end..]
    }

    /// The read put `len` bytes at the beginning of the room. One that has filled it is followed by one with more.
    pub fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
        if self.end == self.buffer.len() {
            self.buffer.resize(self.end.max(ROOM.min(2 * self.end)), 0);
        }
    }

    /// Adds bytes, however many.
    pub fn feed(&mut self, mut bytes: &[u8]) -> usize {
        let before = bytes.len();
        let space = self.space();
        let len = space.len().min(bytes.len());
        space[..len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        self.filled(len);
        before - bytes.len()
    }

    /// Whether the stream may end here: nothing of a frame has arrived.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.start == self.end
    }

    /// The next frame; none before all of it has arrived.
    ///
    /// # Errors
    /// When what arrived is no frame of this direction. Nothing can be decoded after an error.
    pub fn next<'a, F: Receive<'a>>(&'a mut self) -> Result<Option<F>, WireError> {
        self.wanted = 0;
        let held = &self.buffer[self.start..self.end];
        let Some((&[a, b, c, kind], rest)) = held.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
        let limit = F::limit(kind).ok_or(WireError::Kind(kind))?;
        if len > limit {
            return Err(WireError::Long { kind, len });
        }
        let Some(payload) = rest.get(..len) else {
            self.wanted = HEADER + len;
            return Ok(None);
        };
        self.start += HEADER + len;
        F::parse(kind, payload).map(Some)
    }
}
