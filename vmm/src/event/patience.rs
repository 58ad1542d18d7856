//! Whether a thread that has nothing to do looks for work for a moment before it sleeps.
//!
//! To sleep and be woken costs microseconds on bare metal and tens of them in a virtual machine, where each of the two is an exit; a
//! driver that waits for one answer before it asks again pays that for every request. Invariant: a driver whose requests come too far
//! apart to be caught costs at most one vain look in [`MAX_PENALTY`] sleeps. Pure: the caller looks and reads the clock.

use std::time::Duration;

use crate::sys::processors;

/// Longest look, about the price of a sleep in a virtual machine: to look longer could not pay.
const LOOK: Duration = Duration::from_micros(32);
/// Sleeps without a look after looks that were in vain one after another.
const MAX_PENALTY: u32 = 64;

/// See the module header.
#[derive(Debug, Clone)]
pub struct Patience {
    look: Duration,
    /// Sleeps that are due before the next look.
    sleeps: u32,
    /// What the next vain look costs.
    penalty: u32,
}

impl Patience {
    /// For threads of a host with more than one processor at hand; elsewhere none, because who looks keeps out who would be seen.
    #[must_use]
    pub fn of_this_host() -> Self {
        Self::new(if processors::several() { LOOK } else { Duration::ZERO })
    }

    /// Looks last `look`; with zero there are none.
    #[must_use]
    pub fn new(look: Duration) -> Self {
        Self { look, sleeps: 0, penalty: 1 }
    }

    /// How long to look now, or `None` to sleep at once, which is then taken for done.
    pub fn next_look(&mut self) -> Option<Duration> {
        if self.look.is_zero() {
            return None;
        }
        if self.sleeps > 0 {
            self.sleeps -= 1;
            return None;
        }
        Some(self.look)
    }

    /// What the look saw: whether work came.
    pub fn looked(&mut self, found: bool) {
        if found {
            self.penalty = 1;
        } else {
            self.sleeps = self.penalty;
            self.penalty = self.penalty.saturating_mul(2).min(MAX_PENALTY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `idles` times with nothing to do, how many were looks, when work comes in time whenever `found` says so.
    fn looks(patience: &mut Patience, idles: usize, mut found: impl FnMut() -> bool) -> usize {
        let mut looks = 0;
        for _ in 0..idles {
            if patience.next_look().is_some() {
                looks += 1;
                patience.looked(found());
            }
        }
        looks
    }

    #[test]
    fn looks_every_time_while_that_pays() {
        assert_eq!(looks(&mut Patience::new(LOOK), 1000, || true), 1000);
    }

    #[test]
    fn hopeless_looks_become_rare() {
        let mut patience = Patience::new(LOOK);
        assert_eq!(looks(&mut patience, 127, || false), 7, "after 1, 2, 4, ... sleeps");
        assert_eq!(looks(&mut patience, 65 * 10, || false), 10);
    }

    #[test]
    fn a_look_that_pays_ends_the_penalty() {
        let mut patience = Patience::new(LOOK);
        looks(&mut patience, 1000, || false);
        assert!(looks(&mut patience, 65, || true) >= 1);
        assert_eq!(looks(&mut patience, 100, || true), 100);
    }

    #[test]
    fn a_single_processor_is_left_to_the_guest() {
        assert_eq!(looks(&mut Patience::new(Duration::ZERO), 100, || true), 0);
    }
}
