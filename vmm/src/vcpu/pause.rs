//! Where processors are held while a machine is paused.
//!
//! Invariant: a processor that is held executes nothing of the guest until [`Pause::release`]. Every vCPU thread looks before each entry of
//! the guest; the event loop holds and releases.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The gate.
#[derive(Debug, Default)]
pub struct Pause {
    wanted: AtomicBool,
    held: Mutex<usize>,
    changed: Condvar,
}

impl Pause {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Asks processors to stay out of the guest. The caller kicks them afterwards.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Waits until `count` processors are held, for `patience` at most; whether they are.
    #[must_use]
    pub fn holds(&self, count: usize, patience: Duration) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(held, patience, |held| *held < count);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out().eq(&false)
    }

    /// Lets processors go on.
    pub fn release(&self) {
        // Under the lock, so that nobody who has just looked sleeps through it.
        let _held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Holds the calling processor for as long as that is wanted; whether it was.
    pub(super) fn hold(&self) -> bool {
        if !self.wanted.load(Ordering::SeqCst) {
            return false;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::SeqCst) {
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_held_until_they_are_released() {
        let pause = Pause::new();
        assert!(!pause.hold());
        pause.want();
        assert!(!pause.holds(1, Duration::from_millis(20)), "nobody is there");
        std::thread::scope(|scope| {
            let held: Vec<_> = (0..3).map(|_| scope.spawn(|| pause.hold())).collect();
            assert!(pause.holds(3, Duration::from_secs(5)));
            assert!(held.iter().all(|thread| !thread.is_finished()));
            pause.release();
            assert!(held.into_iter().all(|thread| thread.join().unwrap()));
        });
        assert!(!pause.hold());
    }
}
