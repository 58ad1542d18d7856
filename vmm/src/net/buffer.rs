//! Frames in buffers of ours, for links that have no memory of a guest to leave them in.
//!
//! Invariant: a buffer is in the pool or in one [`FrameBytes`], never in both; the pool keeps a bounded number.

use std::sync::{Arc, Mutex, PoisonError};

use openshell_usernet::Payload;

use crate::memory::Gather;

use super::link::Iovecs;

/// Bytes of the first buffer of a frame: all of an ordinary one.
pub(super) const SMALL_BYTES: usize = 2048;
/// Bytes of the second: with the first, all of the largest frame.
pub(super) const LARGE_BYTES: usize = 64 << 10;
const KEPT_SMALL: usize = 512;
const KEPT_LARGE: usize = 64;

/// Buffers that wait to be used again.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Buffers>>);

#[derive(Debug, Default)]
struct Buffers {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
}

impl Pool {
    /// A buffer of [`SMALL_BYTES`], with any contents.
    pub(super) fn small(&self) -> Box<[u8]> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).small.pop();
        found.unwrap_or_else(|| vec![0; SMALL_BYTES].into_boxed_slice())
    }

    /// A buffer of [`LARGE_BYTES`], with any contents.
    pub(super) fn large(&self) -> Box<[u8]> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).large.pop();
        found.unwrap_or_else(|| vec![0; LARGE_BYTES].into_boxed_slice())
    }

    fn give_back(&self, small: Box<[u8]>, large: Option<Box<[u8]>>) {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.small.len() < KEPT_SMALL {
            buffers.small.push(small);
        }
        if let Some(large) = large.filter(|_| buffers.large.len() < KEPT_LARGE) {
            buffers.large.push(large);
        }
    }
}

/// A frame, or what is left of it.
#[derive(Debug)]
pub struct FrameBytes {
    pool: Pool,
    small: Box<[u8]>,
    large: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl FrameBytes {
    /// The first `len` bytes of `small` and `large`, one behind the other.
    pub(super) fn new(pool: &Pool, small: Box<[u8]>, large: Option<Box<[u8]>>, len: usize) -> Self {
        Self { pool: pool.clone(), small, large, start: 0, end: len }
    }

    /// A copy of `bytes`, of which there are at most [`SMALL_BYTES`] and [`LARGE_BYTES`].
    pub(super) fn copy_of(pool: &Pool, bytes: &[u8]) -> Self {
        let mut small = pool.small();
        let (first, rest) = bytes.split_at(bytes.len().min(small.len()));
        small[..first.len()].copy_from_slice(first);
        let mut large = None;
        if !rest.is_empty() {
            let mut buffer = pool.large();
            buffer[..rest.len()].copy_from_slice(rest);
            large = Some(buffer);
        }
        Self::new(pool, small, large, bytes.len())
    }

    /// What is left, in two pieces.
    pub(super) fn pieces(&self) -> [&[u8]; 2] {
        let split = self.small.len();
        let first = &self.small[self.start.min(split)..self.end.min(split)];
        let second = self.large.as_deref().map_or(&[][..], |large| {
            &large[self.start.saturating_sub(split)..self.end.saturating_sub(split)]
        });
        [first, second]
    }
}

impl Drop for FrameBytes {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.small), self.large.take());
    }
}

impl Payload for FrameBytes {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn skip(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    fn truncate(&mut self, count: usize) {
        self.end = self.end.min(self.start.saturating_add(count));
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let mut copied = 0;
        for piece in self.pieces() {
            let count = piece.len().min(out.len() - copied);
            out[copied..copied + count].copy_from_slice(&piece[..count]);
            copied += count;
        }
        copied
    }
}

impl Iovecs for FrameBytes {
    fn gather<'a>(&'a self, into: &mut Gather<'a>) {
        for piece in self.pieces() {
            into.bytes(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buffers_come_back() {
        let pool = Pool::default();
        drop(FrameBytes::copy_of(&pool, &[1; SMALL_BYTES + 1]));
        drop(FrameBytes::copy_of(&pool, &[2; 3]));
        let buffers = pool.0.lock().unwrap();
        assert_eq!((buffers.small.len(), buffers.large.len()), (1, 1));
        assert!(buffers.small[0].len() == SMALL_BYTES && buffers.large[0].len() == LARGE_BYTES);
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_a_slice_would_have(
            len in 0..SMALL_BYTES + 3000,
            steps in prop::collection::vec((any::<bool>(), 0..4000_usize), 0..4),
        ) {
            let bytes: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
            let mut frame = FrameBytes::copy_of(&Pool::default(), &bytes);
            let mut want = &bytes[..];
            for (skip, count) in steps {
                let count_in = count.min(want.len());
                if skip {
                    frame.skip(count);
                    want = &want[count_in..];
                } else {
                    frame.truncate(count);
                    want = &want[..count_in];
                }
            }
            prop_assert_eq!(frame.len(), want.len());
            let mut out = vec![0; 3000];
            let copied = frame.copy_to(&mut out);
            prop_assert_eq!(&out[..copied], &want[..want.len().min(3000)]);
            let mut gather = Gather::new();
            frame.gather(&mut gather);
            prop_assert_eq!(gather.len_bytes(), want.len());
        }
    }
}
