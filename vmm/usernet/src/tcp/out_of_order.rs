//! Segments that came before others were there, of all connections.
//!
//! Invariant: there are never more than the bound; any of them may give way, for none was acknowledged.

use super::seq::Seq;
use crate::FlowId;

/// A segment that waits.
#[derive(Debug)]
pub(super) struct Early<P> {
    id: FlowId,
    pub(super) sequence: Seq,
    pub(super) fin: bool,
    pub(super) payload: P,
}

/// Segments that wait.
#[derive(Debug)]
pub(super) struct OutOfOrder<P> {
    most: usize,
    waiting: Vec<Early<P>>,
}

impl<P> OutOfOrder<P> {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, waiting: Vec::new() }
    }

    pub(super) const fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps a segment of `id`, unless one with this beginning is there.
    pub(super) fn keep(&mut self, id: FlowId, sequence: Seq, fin: bool, payload: P) {
        if self.most == 0 || self.waiting.iter().any(|of| of.id == id && of.sequence == sequence) {
            return;
        }
        if self.waiting.len() >= self.most {
            let Some(place) = self.least_useful(id, sequence) else { return };
            self.waiting.remove(place);
        }
        self.waiting.push(Early { id, sequence, fin, payload });
    }

    /// What gives way to the segment of `id` at `sequence`: the one of its own that will wait longest, else the oldest of another.
    fn least_useful(&self, id: FlowId, sequence: Seq) -> Option<usize> {
        let later = |of: &Early<P>| of.id == id && of.sequence.after(sequence);
        let ahead = |place: &usize| self.waiting[*place].sequence.ahead_of(sequence);
        let own = (0..self.waiting.len()).filter(|place| later(&self.waiting[*place]));
        own.max_by_key(ahead).or_else(|| self.waiting.iter().position(|of| of.id != id))
    }

    /// Takes a segment of `id` that does not begin after `expected`.
    pub(super) fn take(&mut self, id: FlowId, expected: Seq) -> Option<Early<P>> {
        let due = |of: &Early<P>| of.id == id && !of.sequence.after(expected);
        let at = self.waiting.iter().position(due)?;
        Some(self.waiting.remove(at))
    }

    /// Drops all of `id`.
    pub(super) fn forget(&mut self, id: FlowId) {
        self.waiting.retain(|of| of.id != id);
    }

    /// Drops all.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}
