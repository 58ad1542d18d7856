//! What stands for the bytes of an image: the SHA-256 of the SHA-256 digests of each 4 MiB of it, the last of which may have less.
//!
//! Pieces do not depend on each other, so that all processors can derive it, and those that are written early are hashed while they
//! are. Invariant: it is the same whoever hashed which piece.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::digest::{Algorithm, Digest, Hasher};

/// Bytes that are hashed together.
const PIECE: u64 = 4 << 20;

/// Digests of the whole pieces of a file that is written from one place on, in order.
#[derive(Debug, Clone)]
pub struct PieceSums {
    /// The first piece that is known.
    first: usize,
    digests: Vec<[u8; 32]>,
    /// The piece that is being written, from its beginning; none before the first one.
    open: Option<Hasher>,
    /// The byte of the file that comes next.
    at: u64,
}

impl PieceSums {
    /// Of a file that is written from byte `at` on. The piece in which that lies is not known.
    pub(crate) fn behind(at: u64) -> Self {
        let first = usize::try_from(at.div_ceil(PIECE)).unwrap_or(usize::MAX);
        Self { first, digests: Vec::new(), open: None, at }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let inside = self.at % PIECE;
            if inside == 0 {
                self.open = Some(Hasher::new(Algorithm::Sha256));
            }
            let room = usize::try_from(PIECE - inside).unwrap_or(usize::MAX);
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            if let Some(hasher) = &mut self.open {
                hasher.update(head);
            }
            self.at += head.len() as u64;
            if self.at.is_multiple_of(PIECE)
                && let Some(hasher) = self.open.take()
            {
                self.digests.push(hasher.finish().bytes32());
            }
            bytes = rest;
        }
    }

    /// Leaves a hole up to byte `at`.
    pub(crate) fn skip_to(&mut self, at: u64) {
        const ZEROS: &[u8] = &[0; 64 << 10];
        while self.at < at {
            let count = usize::try_from(at - self.at).unwrap_or(usize::MAX).min(ZEROS.len());
            self.feed(&ZEROS[..count]);
        }
    }

    fn find(&self, piece: usize) -> Option<[u8; 32]> {
        self.digests.get(piece.checked_sub(self.first)?).copied()
    }
}

/// What stands for the first `length` bytes of a file, some pieces of which may be known.
///
/// # Errors
///
/// When the file ends before or cannot be read.
pub fn sum(file: &File, length: u64, known: Option<&PieceSums>) -> io::Result<Digest> {
    let count = usize::try_from(length.div_ceil(PIECE)).map_err(io::Error::other)?;
    let digests = Mutex::new(vec![[0; 32]; count]);
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= count {
                return Ok(());
            }
            let start = piece as u64 * PIECE;
            let end = length.min(start + PIECE);
            let found = known.filter(|_| end - start == PIECE).and_then(|known| known.find(piece));
            let digest = match found {
                Some(digest) => digest,
                None => one(file, start..end, &mut buffer)?,
            };
            digests.lock().expect("nobody panics with the digests")[piece] = digest;
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).clamp(1, 8);
        let others: Vec<_> = (1..threads.min(count.max(1)))
            .filter_map(|_| {
                let thread = thread::Builder::new().name("hash".to_owned());
                // With fewer threads it only takes longer.
                thread.spawn_scoped(scope, work).ok()
            })
            .collect();
        let here = work();
        let there = others.into_iter().map(|it| it.join().expect("hashing does not panic"));
        there.fold(here, Result::and)
    })?;
    let digests = digests.into_inner().expect("nobody panics with the digests");
    Ok(Digest::sha256(digests.as_flattened()))
}

fn one(file: &File, bytes: Range<u64>, buffer: &mut [u8]) -> io::Result<[u8; 32]> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut at = bytes.start;
    while at < bytes.end {
        let wanted = buffer.len().min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hasher.finish().bytes32())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn it_is_the_same_whoever_hashed_which_piece() {
        let start = 256 << 10;
        let bytes: Vec<u8> = (0..13_000_000_u32).map(|at| at.to_le_bytes()[1] ^ 0x5a).collect();
        let mut sums = PieceSums::behind(start as u64);
        let mut image = vec![0; start];
        for part in bytes.chunks(777_777) {
            sums.feed(part);
            image.extend_from_slice(part);
        }
        let hole = image.len().next_multiple_of(6 << 20);
        sums.skip_to(hole as u64);
        image.resize(hole, 0);
        assert_eq!(sums.digests.len(), hole / (4 << 20) - 1);
        image.extend_from_slice(b"written behind");
        image[7] = 1;
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&image).expect("written");
        let length = image.len() as u64;
        let read = sum(&file, length, None).expect("read");
        assert_eq!(sum(&file, length, Some(&sums)).expect("read"), read);
        let digests: Vec<u8> =
            image.chunks(4 << 20).flat_map(|piece| Digest::sha256(piece).bytes32()).collect();
        assert_eq!(read, Digest::sha256(&digests));
        file.write_all_at(b"else", 5 << 20).expect("written");
        assert_ne!(sum(&file, length, None).expect("read"), read);
        sum(&file, length + 1, None).expect_err("the file ends before");
    }
}
