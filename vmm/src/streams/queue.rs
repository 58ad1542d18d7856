//! Bytes on their way, first in, first out. Pure.

/// Room that an empty queue keeps.
const KEPT: usize = 64 << 10;

/// Bytes on their way.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    done: usize,
}

impl Queue {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What has not gone on.
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.done..]
    }

    pub(super) fn len(&self) -> usize {
        self.left().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left().is_empty()
    }

    /// The first `len` bytes have gone on.
    pub(super) fn advance(&mut self, len: usize) {
        self.done += len;
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.done = 0;
    }
}
