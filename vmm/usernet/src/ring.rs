//! Copies of what the guest has not acknowledged yet, so that it can be sent again.
//!
//! A [`Ring`] is the stretch of one connection; its memory comes in steps of 64 KiB from a [`Pool`] for all of them and goes back as the
//! guest acknowledges. Invariant: rings together never hold more than the pool's limit, and an empty ring holds nothing. Pure.

use std::collections::VecDeque;

/// Bytes of a step.
pub const CHUNK: usize = 64 << 10;

/// So many pieces are filled by one read at most.
pub const PIECES: usize = 4;

/// Steps that are kept for the next ring when none needs them: 1 MiB.
const KEPT: usize = 16;

/// Memory for rings.
#[derive(Debug)]
pub struct Pool {
    spare: Vec<Box<[u8]>>,
    /// Of rings that are empty now.
    #[expect(clippy::vec_box, reason = "they go back to where a ring has its pointer")]
    stretches: Vec<Box<Stretch>>,
    taken: usize,
    limit: usize,
}

impl Pool {
    /// At most `limit_bytes`, rounded down to whole steps.
    #[must_use]
    pub const fn new(limit_bytes: usize) -> Self {
        Self { spare: Vec::new(), stretches: Vec::new(), taken: 0, limit: limit_bytes / CHUNK }
    }

    /// Bytes that rings hold.
    #[must_use]
    pub const fn taken_bytes(&self) -> usize {
        self.taken * CHUNK
    }

    /// Whether a ring could grow.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.taken < self.limit
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if !self.has_room() {
            return None;
        }
        self.taken += 1;
        Some(self.spare.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    fn give(&mut self, chunk: Box<[u8]>) {
        self.taken -= 1;
        if self.spare.len() < KEPT {
            self.spare.push(chunk);
        }
    }
}

/// A stretch of bytes that grows at its end and shrinks at its beginning. An empty one is as small as a pointer: most connections
/// have nothing to say most of the time.
#[derive(Debug, Default)]
pub struct Ring(Option<Box<Stretch>>);

#[derive(Debug, Default)]
struct Stretch {
    chunks: VecDeque<Box<[u8]>>,
    /// Bytes of the first step that are gone already.
    start: usize,
    len: usize,
}

impl Ring {
    /// Its length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        match &self.0 {
            Some(stretch) => stretch.len,
            None => 0,
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for up to `want` bytes behind its end, in pieces, the first ones filled first; less when the pool or [`PIECES`] says so.
    /// What [`Self::commit`] does not take is to be given back by [`Self::trim`].
    pub fn room(&mut self, want: usize, pool: &mut Pool) -> [&mut [u8]; PIECES] {
        let stretch = self.0.get_or_insert_with(|| pool.stretches.pop().unwrap_or_default());
        let end = stretch.start + stretch.len;
        while stretch.chunks.len() * CHUNK < end + want {
            let Some(chunk) = pool.take() else { break };
            stretch.chunks.push_back(chunk);
        }
        let mut left = want;
        let mut offset = end % CHUNK;
        let mut chunks = stretch.chunks.iter_mut().skip(end / CHUNK);
        std::array::from_fn(|_| {
            let chunk = chunks.next().map_or(&mut [][..], |chunk| &mut chunk[..]);
            let piece = chunk.get_mut(std::mem::take(&mut offset)..).unwrap_or_default();
            let taken = piece.len().min(left);
            left -= taken;
            &mut piece[..taken]
        })
    }

    /// The first `count` bytes of the room belong to it now.
    pub fn commit(&mut self, count: usize) {
        if let Some(stretch) = &mut self.0 {
            let room = stretch.chunks.len() * CHUNK - stretch.start - stretch.len;
            stretch.len += count.min(room);
        }
    }

    /// Gives back what it does not need.
    pub fn trim(&mut self, pool: &mut Pool) {
        let Some(stretch) = &mut self.0 else { return };
        let end = stretch.start + stretch.len;
        let needed = if stretch.len == 0 { 0 } else { end.div_ceil(CHUNK) };
        for chunk in stretch.chunks.drain(needed..) {
            pool.give(chunk);
        }
        if stretch.len == 0 {
            stretch.start = 0;
            pool.stretches.extend(self.0.take().filter(|_| pool.stretches.len() < KEPT));
        }
    }

    /// Lets the first `count` bytes go, or all when there are fewer.
    pub fn consume(&mut self, count: usize, pool: &mut Pool) {
        let Some(stretch) = &mut self.0 else { return };
        let count = count.min(stretch.len);
        stretch.start += count;
        stretch.len -= count;
        while stretch.start >= CHUNK
            && let Some(chunk) = stretch.chunks.pop_front()
        {
            pool.give(chunk);
            stretch.start -= CHUNK;
        }
        if stretch.len == 0 {
            self.trim(pool);
        }
    }

    /// `count` bytes from `offset` on, at most [`CHUNK`] of them, in two pieces; fewer where it ends.
    #[must_use]
    pub fn range(&self, offset: usize, count: usize) -> [&[u8]; 2] {
        let Some(stretch) = &self.0 else { return [&[]; 2] };
        let count = count.min(stretch.len.saturating_sub(offset)).min(CHUNK);
        let at = stretch.start + offset;
        let piece = |index: usize, from: usize, count: usize| {
            let chunk = stretch.chunks.get(index).map_or(&[][..], |chunk| &chunk[..]);
            let rest = chunk.get(from..).unwrap_or_default();
            rest.get(..count).unwrap_or(rest)
        };
        let first = piece(at / CHUNK, at % CHUNK, count);
        [first, piece(at / CHUNK + 1, 0, count - first.len())]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn append(ring: &mut Ring, pool: &mut Pool, bytes: &[u8]) -> usize {
        let mut written = 0;
        for piece in ring.room(bytes.len(), pool) {
            let rest = &bytes[written..];
            let count = rest.len().min(piece.len());
            piece[..count].copy_from_slice(&rest[..count]);
            written += count;
        }
        ring.commit(written);
        ring.trim(pool);
        written
    }

    #[test]
    fn a_full_pool_gives_less() {
        let mut pool = Pool::new(2 * CHUNK + 1);
        let (mut first, mut second) = (Ring::default(), Ring::default());
        assert_eq!(append(&mut first, &mut pool, &vec![1; 3 * CHUNK]), 2 * CHUNK);
        assert_eq!(append(&mut second, &mut pool, &[2]), 0);
        first.consume(CHUNK, &mut pool);
        assert_eq!(append(&mut second, &mut pool, &[2]), 1);
        assert_eq!(pool.taken_bytes(), 2 * CHUNK);
        second.consume(1, &mut pool);
        assert_eq!(pool.taken_bytes(), CHUNK, "an empty ring holds nothing");
    }

    proptest! {
        #[test]
        fn it_keeps_what_was_put_in(
            steps in prop::collection::vec((any::<bool>(), 0_usize..200_000), 1..20),
            offsets in prop::collection::vec((0_usize..300_000, 0_usize..70_000), 3),
        ) {
            let source: Vec<u8> = (0_u8..251).cycle().take(8 * CHUNK).collect();
            let mut pool = Pool::new(8 * CHUNK);
            let mut ring = Ring::default();
            let mut model: Vec<u8> = Vec::new();
            for (grow, count) in steps {
                if grow {
                    // Each stretch begins elsewhere, so that one in the wrong place shows.
                    let bytes = &source[model.len() % 7..][..count];
                    let written = append(&mut ring, &mut pool, bytes);
                    model.extend_from_slice(&bytes[..written]);
                } else {
                    ring.consume(count, &mut pool);
                    model.drain(..count.min(model.len()));
                }
                prop_assert_eq!(ring.len(), model.len());
                prop_assert!(pool.taken_bytes() <= 8 * CHUNK);
                prop_assert!(pool.taken_bytes() <= ring.len() + 2 * CHUNK);
                for (offset, count) in &offsets {
                    let rest = model.get(*offset..).unwrap_or_default();
                    let want = &rest[..rest.len().min(*count).min(CHUNK)];
                    prop_assert!(ring.range(*offset, *count).concat() == want);
                }
            }
            ring.consume(usize::MAX, &mut pool);
            prop_assert_eq!(pool.taken_bytes(), 0);
        }
    }
}
