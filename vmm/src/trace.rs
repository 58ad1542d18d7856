//! When each phase of a machine's life was reached.
//!
//! Invariant: a mark is stamped once, the first time wins. Any thread may stamp.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of one phase of a machine's life, in the order in which they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// KVM is open and has what is needed.
    KvmOpen,
    /// Guest RAM is mapped and the virtual machine made.
    Memory,
    /// The kernel, its tables and its command line are in place.
    KernelLoad,
    /// The first processor is about to enter the guest.
    FirstRun,
    /// The guest has run and left for the first time.
    KernelEntry,
    /// User space reported that it runs.
    Init,
    /// The machine has ended.
    Exit,
}

impl Mark {
    /// All marks in order.
    pub const ALL: [Self; 7] = [
        Self::KvmOpen,
        Self::Memory,
        Self::KernelLoad,
        Self::FirstRun,
        Self::KernelEntry,
        Self::Init,
        Self::Exit,
    ];

    /// The phase that this mark ends, as users see it.
    #[must_use]
    pub fn phase(self) -> &'static str {
        match self {
            Self::KvmOpen => "KVM open",
            Self::Memory => "memory",
            Self::KernelLoad => "kernel load",
            Self::FirstRun => "first run",
            Self::KernelEntry => "kernel entry",
            Self::Init => "init",
            Self::Exit => "exit",
        }
    }
}

/// The marks of one machine.
#[derive(Debug)]
pub struct Marks {
    start: Instant,
    /// Nanoseconds after `start`, plus one; 0 is "not yet".
    at_ns: [AtomicU64; Mark::ALL.len()],
}

impl Marks {
    /// Marks of a process that started at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, at_ns: [const { AtomicU64::new(0) }; Mark::ALL.len()] }
    }

    /// Stamps `mark` unless it was stamped before.
    pub fn stamp(&self, mark: Mark) {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        // Failure means that the mark has its time already.
        self.at_ns[mark as usize]
            .compare_exchange(0, elapsed + 1, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }

    /// When `mark` was stamped, counted from the start of the process.
    #[must_use]
    pub fn at(&self, mark: Mark) -> Option<Duration> {
        let at_ns = self.at_ns[mark as usize].load(Ordering::Relaxed);
        at_ns.checked_sub(1).map(Duration::from_nanos)
    }

    /// The last mark reached, or `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<Mark> {
        Mark::ALL.into_iter().rev().find(|&mark| self.at(mark).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stamp_wins() {
        let marks = Marks::new(Instant::now());
        assert_eq!((marks.at(Mark::Init), marks.last()), (None, None));
        marks.stamp(Mark::Init);
        let first = marks.at(Mark::Init).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        marks.stamp(Mark::Init);
        assert_eq!(marks.at(Mark::Init), Some(first));
        assert_eq!(marks.last(), Some(Mark::Init));
    }
}
