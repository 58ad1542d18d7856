//! Timers: a wheel of four levels of 64 slots, each slot of the lowest one 8 ms long.
//!
//! To arm, to move and to cancel one takes the same short time however many there are. Invariant: a timer fires once, never before
//! its time, and at most one slot of the lowest level after it. Time may stand still or jump: a jump costs as much as there are
//! timers in it. Pure.

use std::time::Duration;

use crate::Instant;

/// The length of a slot of the lowest level.
pub const TICK: Duration = Duration::from_nanos(TICK_NANOS);

const TICK_NANOS: u64 = 8_000_000;

const LEVELS: u32 = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Timers further ahead than this many ticks are looked at again on the way.
const HORIZON: u64 = (1 << (SLOT_BITS * LEVELS)) - 1;
/// No place.
const NONE: u32 = u32::MAX;

/// Names a timer that was armed. After it has fired or was cancelled it names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerId {
    place: u32,
    generation: u32,
}

/// Timers, each with a value that is handed over when it fires.
#[derive(Debug)]
pub struct Timers<T> {
    nodes: Vec<Node<T>>,
    free: u32,
    /// The tick up to which everything has fired.
    now: u64,
    levels: [Level; LEVELS as usize],
    /// Fired, but not handed over yet.
    due: u32,
}

#[derive(Debug)]
struct Node<T> {
    generation: u32,
    /// Which list it is in; [`Self::FREE`] for none.
    list: u16,
    previous: u32,
    next: u32,
    /// The tick at which it fires.
    at: u64,
    what: Option<T>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    occupied: u64,
    heads: [u32; SLOTS],
}

/// The list of those that are due; lists of slots have lower numbers.
const DUE: u16 = 256;
const FREE: u16 = 257;

impl<T: Copy> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> Timers<T> {
    /// None yet, at the caller's zero.
    #[must_use]
    pub const fn new() -> Self {
        let level = Level { occupied: 0, heads: [NONE; SLOTS] };
        Self { nodes: Vec::new(), free: NONE, now: 0, levels: [level; 4], due: NONE }
    }

    /// Arms `timer` to fire at `at` with `what`; one that was armed is moved.
    pub fn arm(&mut self, timer: &mut Option<TimerId>, at: Instant, what: T) {
        let tick = tick_after(at);
        if let Some(place) = self.place(*timer) {
            self.unlink(place);
            if let Some(node) = self.nodes.get_mut(place as usize) {
                (node.at, node.what) = (tick, Some(what));
            }
            self.link(place, tick);
            return;
        }
        let place = self.free;
        if let Some(node) = self.nodes.get_mut(place as usize) {
            self.free = node.next;
            (node.at, node.what) = (tick, Some(what));
            *timer = Some(TimerId { place, generation: node.generation });
            self.link(place, tick);
        } else {
            let place = u32::try_from(self.nodes.len()).unwrap_or(NONE);
            let (list, previous, next) = (FREE, NONE, NONE);
            let what = Some(what);
            self.nodes.push(Node { generation: 0, list, previous, next, at: tick, what });
            *timer = Some(TimerId { place, generation: 0 });
            self.link(place, tick);
        }
    }

    /// As [`Self::arm`], where the timer fires no earlier than asked: cheaper where a time is put off again and again, for it then
    /// fires at its old time and the caller has to look whether the new one has come.
    pub fn arm_lazily(&mut self, timer: &mut Option<TimerId>, at: Instant, what: T) {
        let armed = self.place(*timer).and_then(|place| self.nodes.get(place as usize));
        if armed.is_none_or(|node| node.at > tick_after(at)) {
            self.arm(timer, at, what);
        }
    }

    /// Cancels `timer`, if it is armed.
    pub fn cancel(&mut self, timer: &mut Option<TimerId>) {
        if let Some(place) = self.place(timer.take()) {
            self.unlink(place);
            self.release(place);
        }
    }

    /// One timer whose time has come; to be called until there is none.
    pub fn expire(&mut self, now: Instant) -> Option<T> {
        self.advance(now.as_nanos() / TICK_NANOS);
        let place = self.due;
        let what = self.nodes.get_mut(place as usize)?.what.take();
        self.unlink(place);
        self.release(place);
        what
    }

    /// When [`Self::expire`] has something to do next; that may be only to look again.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        if self.due != NONE {
            return Some(Instant::from_nanos(0));
        }
        self.next_tick().map(|tick| Instant::from_nanos(tick.saturating_mul(TICK_NANOS)))
    }

    /// Moves everything up to the tick `to` to the list of those that are due.
    fn advance(&mut self, to: u64) {
        while let Some(tick) = self.next_tick().filter(|tick| *tick <= to) {
            self.now = tick;
            // From the highest level down, since each may hand on to the ones below it.
            for level in (0..LEVELS).rev() {
                let shift = level * SLOT_BITS;
                if tick & ((1 << shift) - 1) == 0 {
                    self.empty_slot(level as usize, slot_of(tick, shift));
                }
            }
        }
        self.now = self.now.max(to);
    }

    fn empty_slot(&mut self, level: usize, slot: usize) {
        let mut place = self.levels[level].heads[slot];
        while let Some(node) = self.nodes.get(place as usize) {
            let (next, at) = (node.next, node.at);
            self.unlink(place);
            self.link(place, at);
            place = next;
        }
    }

    /// The next tick at which a slot is emptied.
    fn next_tick(&self) -> Option<u64> {
        (0..LEVELS)
            .filter_map(|level| {
                let shift = level * SLOT_BITS;
                let occupied = self.levels[level as usize].occupied;
                // The slot of this very moment holds what comes a whole turn later.
                let from = slot_of(self.now, shift) + 1;
                let ahead = occupied.rotate_right(u32::try_from(from).unwrap_or(0) & 63);
                (ahead != 0).then(|| {
                    let slots = u64::from(ahead.trailing_zeros()) + 1;
                    ((self.now >> shift) + slots) << shift
                })
            })
            .min()
    }

    fn place(&self, timer: Option<TimerId>) -> Option<u32> {
        let timer = timer?;
        let node = self.nodes.get(timer.place as usize)?;
        (node.generation == timer.generation && node.list != FREE).then_some(timer.place)
    }

    fn link(&mut self, place: u32, at: u64) {
        let list = if at <= self.now {
            DUE
        } else {
            let ahead = at.min(self.now + HORIZON);
            // The level of the highest digit in which it differs from now.
            let level = (63 - (ahead ^ self.now).leading_zeros()) / SLOT_BITS;
            let (level, shift) = if level < LEVELS {
                (level, level * SLOT_BITS)
            } else {
                (LEVELS - 1, (LEVELS - 1) * SLOT_BITS)
            };
            let slot = slot_of(ahead, shift);
            u16::try_from(level as usize * SLOTS + slot).unwrap_or(DUE)
        };
        let head = std::mem::replace(self.head(list), place);
        if let Some(node) = self.nodes.get_mut(head as usize) {
            node.previous = place;
        }
        if let Some(node) = self.nodes.get_mut(place as usize) {
            (node.list, node.previous, node.next) = (list, NONE, head);
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(node) = self.nodes.get(place as usize) else { return };
        let (list, previous, next) = (node.list, node.previous, node.next);
        if let Some(node) = self.nodes.get_mut(next as usize) {
            node.previous = previous;
        }
        match self.nodes.get_mut(previous as usize) {
            Some(node) => node.next = next,
            None => *self.head(list) = next,
        }
        let (level, slot) = (usize::from(list) / SLOTS, usize::from(list) % SLOTS);
        if let Some(level) = self.levels.get_mut(level)
            && level.heads[slot] == NONE
        {
            level.occupied &= !(1 << slot);
        }
    }

    /// The head of a list that is about to change.
    fn head(&mut self, list: u16) -> &mut u32 {
        let (level, slot) = (usize::from(list) / SLOTS, usize::from(list) % SLOTS);
        match self.levels.get_mut(level) {
            Some(level) => {
                level.occupied |= 1 << slot;
                &mut level.heads[slot]
            }
            None => &mut self.due,
        }
    }

    fn release(&mut self, place: u32) {
        if let Some(node) = self.nodes.get_mut(place as usize) {
            node.generation = node.generation.wrapping_add(1);
            (node.list, node.what, node.next) = (FREE, None, self.free);
            self.free = place;
        }
    }
}

const fn tick_after(at: Instant) -> u64 {
    at.as_nanos().div_ceil(TICK_NANOS)
}

#[expect(clippy::cast_possible_truncation, reason = "six bits")]
const fn slot_of(tick: u64, shift: u32) -> usize {
    (tick >> shift) as usize & (SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn fired(timers: &mut Timers<u32>, now: Instant) -> Vec<u32> {
        let mut fired: Vec<u32> = std::iter::from_fn(|| timers.expire(now)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn one_fires_when_its_time_has_come() {
        for millis in [1, 8, 9, 200, 511, 512, 513, 5_000, 30_000, 3_600_000, 400_000_000] {
            let mut timers = Timers::new();
            let mut timer = None;
            timers.arm(&mut timer, at(millis), 7);
            assert_eq!(fired(&mut timers, at(millis - 1)), [0; 0], "{millis} ms");
            assert!(timers.next().unwrap() <= at(millis.next_multiple_of(8)), "{millis} ms");
            assert_eq!(fired(&mut timers, at(millis.next_multiple_of(8))), [7], "{millis} ms");
            assert_eq!(timers.next(), None);
        }
    }

    #[test]
    fn a_name_of_one_that_fired_cancels_nothing() {
        let mut timers = Timers::new();
        let (mut first, mut second) = (None, None);
        timers.arm(&mut first, at(8), 1);
        assert_eq!(fired(&mut timers, at(8)), [1]);
        timers.arm(&mut second, at(16), 2);
        timers.cancel(&mut first);
        assert_eq!(fired(&mut timers, at(16)), [2]);
    }

    #[test]
    fn waiting_for_the_next_moment_reaches_every_timer() {
        let mut timers = Timers::new();
        let mut timer = None;
        timers.arm(&mut timer, at(123_456_789), 1);
        let mut looks = 0;
        while let Some(next) = timers.next() {
            looks += 1;
            assert!(looks < 10, "it takes a look at each level and no more");
            if !fired(&mut timers, next).is_empty() {
                assert!(next >= at(123_456_789));
            }
        }
        assert!(looks > 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arm(usize, u64),
        Lazily(usize, u64),
        Cancel(usize),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let span = prop_oneof![0_u64..20, 0_u64..1_000, 0_u64..100_000, 0_u64..200_000_000];
        let step = (0..4, 0_usize..12, span).prop_map(|(kind, timer, span)| match kind {
            0 => Step::Arm(timer, span),
            1 => Step::Lazily(timer, span),
            2 => Step::Cancel(timer),
            _ => Step::Pass(span),
        });
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn each_fires_once_in_its_slot(steps in steps()) {
            let mut timers = Timers::new();
            let mut names = [None; 12];
            let mut armed: [Option<u64>; 12] = [None; 12];
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Arm(timer, span) => {
                        timers.arm(&mut names[timer], at(now + span), timer);
                        armed[timer] = Some(now + span);
                    }
                    Step::Lazily(timer, span) => {
                        timers.arm_lazily(&mut names[timer], at(now + span), timer);
                        armed[timer] = Some(armed[timer].map_or(now + span, |of| of.min(now + span)));
                    }
                    Step::Cancel(timer) => {
                        timers.cancel(&mut names[timer]);
                        armed[timer] = None;
                    }
                    Step::Pass(span) => now += span,
                }
                while let Some(timer) = timers.expire(at(now)) {
                    let time = armed[timer].take();
                    prop_assert!(time.is_some_and(|time| time <= now), "{timer}: {time:?}, {now}");
                }
                for time in armed.iter().flatten() {
                    prop_assert!(now < time.next_multiple_of(8), "{time} is late at {now}");
                    prop_assert!(timers.next().is_some_and(|next| next <= at(time.next_multiple_of(8))));
                }
            }
        }
    }
}
