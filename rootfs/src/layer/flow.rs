//! Between the thread that inflates and the one that reads the archive: a few buffers that go around.
//!
//! Bounded on both sides, so that a fast source cannot fill the memory. Either side notices when the other one is gone.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::digest::Hasher;

const BUFFERS: usize = 4;

/// What crosses the flow: a buffer and which bytes of it count, of which the last one has none, or why there are no more.
type Item = io::Result<(Vec<u8>, Range<usize>)>;

/// The side that is fed.
pub(super) struct Sender {
    full: SyncSender<Item>,
    empty: Receiver<Vec<u8>>,
}

/// The side that is read, and that hashes what it gets.
pub(super) struct Flow {
    full: Receiver<Item>,
    empty: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    left: Range<usize>,
    ended: bool,
    hasher: Hasher,
    pub(super) bytes: u64,
}

/// A flow whose bytes go through `hasher`.
pub(super) fn flow(hasher: Hasher) -> (Sender, Flow) {
    let (full_in, full_out) = sync_channel(BUFFERS);
    let (empty_in, empty_out) = sync_channel(BUFFERS + 1);
    for _ in 0..BUFFERS {
        // Capacity is taken when a buffer is first filled: small layers use one.
        empty_in.try_send(Vec::new()).expect("the channel has room for all buffers");
    }
    let flow = Flow {
        full: full_out,
        empty: empty_in,
        buffer: Vec::new(),
        left: 0..0,
        ended: false,
        hasher,
        bytes: 0,
    };
    (Sender { full: full_in, empty: empty_out }, flow)
}

impl Sender {
    /// Sends all that `fill` puts into buffers, until that is nothing. False when nobody reads any more. The reader learns only that there
    /// was an error, not which.
    pub(super) fn send_all(
        &self,
        mut fill: impl FnMut(&mut Vec<u8>) -> io::Result<Range<usize>>,
    ) -> io::Result<bool> {
        while let Ok(mut buffer) = self.empty.recv() {
            let (item, result) = match fill(&mut buffer) {
                Ok(filled) => (Ok((buffer, filled.clone())), Ok(filled.is_empty())),
                Err(error) => (Err(io::Error::other("decompression failed")), Err(error)),
            };
            let gone = self.full.send(item).is_err();
            if result? {
                return Ok(true);
            }
            if gone {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

impl Flow {
    /// The hash of everything that was read.
    pub(super) fn into_hasher(self) -> Hasher {
        self.hasher
    }
}

impl BufRead for Flow {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left.is_empty() && !self.ended {
            let used = std::mem::take(&mut self.buffer);
            self.left = 0..0;
            // The sender may be gone already, having sent its last buffer.
            drop(self.empty.try_send(used));
            match self.full.recv() {
                Ok(Ok((buffer, filled))) => {
                    self.ended = filled.is_empty();
                    self.hasher.update(&buffer[filled.clone()]);
                    self.bytes += filled.len() as u64;
                    (self.buffer, self.left) = (buffer, filled);
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => return Err(io::Error::other("the decompressing thread is gone")),
            }
        }
        Ok(&self.buffer[self.left.clone()])
    }

    fn consume(&mut self, amount: usize) {
        self.left.start = self.left.end.min(self.left.start + amount);
    }
}

impl Read for Flow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let used = available.len().min(into.len());
        into[..used].copy_from_slice(&available[..used]);
        self.consume(used);
        Ok(used)
    }
}
