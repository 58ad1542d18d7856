//! DNS over TCP (RFC 7766): messages with their length before them, several at a time on one stream.
//!
//! Invariant: a stream keeps at most one unfinished query, [`Stream::MAX_IN_FLIGHT`] unanswered ones, and the answers to these; it
//! takes no byte that it has no room for, so that the guest is pushed back. Pure.

use std::collections::VecDeque;

use super::query::Query;
use crate::Instant;

/// The stack's end of a connection to port 53.
#[derive(Debug)]
pub(super) struct Stream {
    input: Vec<u8>,
    output: VecDeque<u8>,
    in_flight: usize,
    /// The guest has ended its side.
    finished: bool,
    /// It does not speak DNS; nothing more is read.
    broken: bool,
    pub(super) idle_since: Instant,
}

impl Stream {
    /// Queries that wait for an answer; more are not read.
    pub(super) const MAX_IN_FLIGHT: usize = 16;
    /// Answers that wait for the guest to read them; with more, no query is read.
    const MAX_OUTPUT: usize = 128 << 10;

    pub(super) const fn new(now: Instant) -> Self {
        Self {
            input: Vec::new(),
            output: VecDeque::new(),
            in_flight: 0,
            finished: false,
            broken: false,
            idle_since: now,
        }
    }

    /// How many of `bytes` are taken up to the end of one query, and that query if it is complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Vec<u8>>) {
        if self.broken {
            return (bytes.len(), None);
        }
        if self.in_flight >= Self::MAX_IN_FLIGHT || self.is_full() {
            return (0, None);
        }
        let mut taken = 0;
        loop {
            let wanted = match self.input.first_chunk() {
                None => 2 - self.input.len(),
                Some(len) => {
                    let len = usize::from(u16::from_be_bytes(*len));
                    if len > Query::MAX_LEN {
                        self.broken = true;
                        return (bytes.len(), None);
                    }
                    if self.input.len() == 2 + len {
                        self.in_flight += 1;
                        return (taken, Some(self.input.drain(..).skip(2).collect()));
                    }
                    2 + len - self.input.len()
                }
            };
            let rest = bytes.get(taken..).unwrap_or_default();
            let piece = rest.get(..wanted.min(rest.len())).unwrap_or_default();
            if piece.is_empty() {
                return (taken, None);
            }
            self.input.extend_from_slice(piece);
            taken += piece.len();
        }
    }

    /// A query was answered, or will not be.
    pub(super) fn answer(&mut self, message: Option<&[u8]>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(message) = message else { return };
        let Ok(len) = u16::try_from(message.len()) else { return };
        self.output.extend(len.to_be_bytes());
        self.output.extend(message);
    }

    /// Moves bytes for the guest into `into`; how many.
    pub(super) fn pull(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.output.len());
        for (to, byte) in into.iter_mut().zip(self.output.drain(..count)) {
            *to = byte;
        }
        count
    }

    /// Whether so much waits for the guest that nothing is read from it.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() > Self::MAX_OUTPUT
    }

    /// How many bytes wait for the guest.
    pub(super) fn readable(&self) -> usize {
        self.output.len()
    }

    pub(super) const fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether nothing more will come: our side may end.
    pub(super) fn is_done(&self) -> bool {
        (self.finished || self.broken) && self.in_flight == 0 && self.output.is_empty()
    }

    /// Whether it waits for a query.
    pub(super) const fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.finished && !self.broken
    }
}
