//! Datagrams that the guest cut: put together from its fragments (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! Invariant: what is kept never exceeds [`Limits`], and a datagram that comes out is made of fragments that touch each other and
//! nowhere overlap (RFC 5722). A datagram whose fragments do is forgotten, and the fragments of it that follow too.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::link::Payload;
use crate::time::Instant;
use crate::wire::{FragmentPlace, protocol};

/// The longest payload of a datagram: what an IPv4 header without options leaves.
const MAX_LEN: usize = 65_535 - 20;

/// A datagram in more separate stretches than this is given up: fragments come nearly in order.
const MAX_STRETCHES: usize = 64;

/// What is kept at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams that are not complete.
    pub datagrams: usize,
    /// Bytes of them, gaps included.
    pub bytes: usize,
    /// How long after its first fragment a datagram is given up.
    pub age: Duration,
}

impl Default for Limits {
    /// 64 datagrams, 1 MiB, 5 s.
    fn default() -> Self {
        Self { datagrams: 64, bytes: 1 << 20, age: Duration::from_secs(5) }
    }
}

/// What names a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramKey {
    /// Who sends it.
    pub source: IpAddr,
    /// Who is to receive it.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: u8,
    /// The sender's number for it.
    pub identification: u32,
}

/// Why a fragment was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// TCP cuts its own segments; fragments of them are dropped unseen.
    #[error("fragment of a TCP segment")]
    Tcp,
    /// It is empty, does not end where the next one could begin, or ends beyond what a datagram can hold.
    #[error("fragment of an impossible length")]
    Length,
    /// It overlaps another one, contradicts the datagram's end, or the datagram has been given up for that.
    #[error("overlapping fragments")]
    Overlap,
    /// The datagram has come in too many stretches that do not touch.
    #[error("scattered fragments")]
    Scattered,
    /// The datagram alone exceeds what may be kept.
    #[error("no room for the fragment")]
    NoRoom,
}

/// A datagram that is not complete.
#[derive(Debug)]
struct Partial {
    key: DatagramKey,
    since: Instant,
    bytes: Vec<u8>,
    /// Bytes that have come. There are no overlaps, so that they are all when they are as many as the datagram has.
    filled: usize,
    /// What has come, as stretches from one byte to another, in order and apart.
    stretches: Vec<(usize, usize)>,
    /// Its length, once its last fragment has come.
    len: Option<usize>,
    /// It was given up; what comes of it is dropped until it is forgotten.
    given_up: bool,
}

/// Datagrams that are not complete, the oldest first.
#[derive(Debug)]
pub struct Fragments {
    limits: Limits,
    partials: VecDeque<Partial>,
    bytes: usize,
    expired: u64,
    evicted: u64,
}

impl Fragments {
    /// None yet.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, partials: VecDeque::new(), bytes: 0, expired: 0, evicted: 0 }
    }

    /// Adds `payload`, what a packet carries behind its IP header and nothing else: the payload of the whole datagram when it was
    /// the last that was missing.
    ///
    /// # Errors
    /// The fragment was dropped.
    pub fn add<P: Payload>(
        &mut self,
        now: Instant,
        key: DatagramKey,
        place: FragmentPlace,
        payload: &P,
    ) -> Result<Option<Vec<u8>>, FragmentError> {
        self.expire(now);
        if key.protocol == protocol::TCP {
            return Err(FragmentError::Tcp);
        }
        let (start, len) = (place.offset as usize, payload.len());
        let end = start.checked_add(len).filter(|end| *end <= MAX_LEN);
        let end = end.ok_or(FragmentError::Length)?;
        if len == 0 || (place.more && !len.is_multiple_of(8)) {
            return Err(FragmentError::Length);
        }
        let at = match self.partials.iter().position(|partial| partial.key == key) {
            Some(at) => at,
            None => self.begin(now, key),
        };
        let at = self.make_room(at, end)?;
        let Some(partial) = self.partials.get_mut(at) else { return Err(FragmentError::NoRoom) };
        let before = partial.bytes.len();
        let added = partial.add(start, end, place.more, payload);
        self.bytes = self.bytes + partial.bytes.len() - before;
        added?;
        if partial.len != Some(partial.filled) {
            return Ok(None);
        }
        Ok(self.remove(at).map(|partial| partial.bytes))
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Instant) {
        while let Some(first) = self.partials.front() {
            if now.since(first.since) < self.limits.age {
                return;
            }
            self.expired += 1;
            self.remove(0);
        }
    }

    /// When something will be too old, if anything is kept.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.partials.front().map(|first| first.since + self.limits.age)
    }

    /// Datagrams that are not complete, and bytes kept of them.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        (self.partials.len(), self.bytes)
    }

    /// How many datagrams never became complete because of their age, and how many for want of room.
    #[must_use]
    pub const fn lost(&self) -> (u64, u64) {
        (self.expired, self.evicted)
    }

    /// A place for a datagram, the oldest giving way where there are too many.
    fn begin(&mut self, now: Instant, key: DatagramKey) -> usize {
        while !self.partials.is_empty() && self.partials.len() >= self.limits.datagrams {
            self.evicted += 1;
            self.remove(0);
        }
        self.partials.push_back(Partial {
            key,
            since: now,
            bytes: Vec::new(),
            filled: 0,
            stretches: Vec::new(),
            len: None,
            given_up: false,
        });
        self.partials.len() - 1
    }

    /// Makes room for the datagram at `at` to reach to `end`, the oldest of the others giving way; where it is then.
    fn make_room(&mut self, mut at: usize, end: usize) -> Result<usize, FragmentError> {
        let partial = self.partials.get(at).ok_or(FragmentError::NoRoom)?;
        if partial.given_up {
            return Err(FragmentError::Overlap);
        }
        let more = end.saturating_sub(partial.bytes.len());
        while self.bytes + more > self.limits.bytes {
            let victim = usize::from(at == 0);
            self.evicted += 1;
            if self.partials.len() == 1 {
                self.remove(at);
                return Err(FragmentError::NoRoom);
            }
            self.remove(victim);
            at -= usize::from(victim < at);
        }
        Ok(at)
    }

    fn remove(&mut self, at: usize) -> Option<Partial> {
        let partial = self.partials.remove(at)?;
        self.bytes -= partial.bytes.len();
        Some(partial)
    }
}

impl Partial {
    fn add<P: Payload>(
        &mut self,
        start: usize,
        end: usize,
        more: bool,
        payload: &P,
    ) -> Result<(), FragmentError> {
        let at = self.stretches.partition_point(|(_, stretch_end)| *stretch_end <= start);
        let overlaps = self.stretches.get(at).is_some_and(|(next_start, _)| *next_start < end);
        let beyond = match self.len {
            Some(len) => !more || end > len,
            None => !more && self.bytes.len() > end,
        };
        if overlaps || beyond {
            self.give_up();
            return Err(FragmentError::Overlap);
        }
        if self.bytes.len() < end {
            self.bytes.reserve_exact(end - self.bytes.len());
            self.bytes.resize(end, 0);
        }
        // A payload that has become shorter in the meantime leaves zeroes.
        if let Some(into) = self.bytes.get_mut(start..end) {
            payload.copy_to(into);
        }
        self.filled += end - start;
        if !more {
            self.len = Some(end);
        }
        self.join(at, start, end);
        if self.stretches.len() > MAX_STRETCHES {
            self.give_up();
            return Err(FragmentError::Scattered);
        }
        Ok(())
    }

    /// Notes the stretch from `start` to `end`, which belongs in place `at`, as one with those that it touches.
    fn join(&mut self, at: usize, start: usize, end: usize) {
        let before = at.checked_sub(1).and_then(|at| self.stretches.get(at));
        let touches_before = before.is_some_and(|(_, stretch_end)| *stretch_end == start);
        let touches_after = self.stretches.get(at).is_some_and(|(next, _)| *next == end);
        match (touches_before, touches_after) {
            (true, true) => {
                let (_, stretch_end) = self.stretches.remove(at);
                self.stretches[at - 1].1 = stretch_end;
            }
            (true, false) => self.stretches[at - 1].1 = end,
            (false, true) => self.stretches[at].0 = start,
            (false, false) => self.stretches.insert(at, (start, end)),
        }
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.bytes = Vec::new();
        self.stretches = Vec::new();
        self.len = None;
        self.filled = 0;
    }
}
