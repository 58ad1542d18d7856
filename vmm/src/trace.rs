//! The phases of a boot.
//!
//! Invariant: phases follow each other without gaps, so that they sum to the time between the first and the last mark. A
//! phase that was not seen has no duration; its time belongs to the next one that was. [`BootTrace`] is kept by the main
//! thread; any thread stamps [`Marks`].

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::sys::clock::process_cpu_time;

/// A stretch of a run, named by what it achieves; a mark is made when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the start of the process until arguments are read and files open.
    ProcessStart,
    /// Until KVM is open and has what a machine needs.
    KvmOpen,
    /// Until guest memory is mapped and the virtual machine made.
    Memory,
    /// Until kernel, initial RAM disk and boot data are in guest memory.
    KernelLoad,
    /// Until devices and vCPUs are ready and the first one is about to run.
    FirstRun,
    /// Until the guest kernel gave its first sign of life.
    KernelEntry,
    /// Until the guest's init ran.
    Init,
    /// Until the process ends: the guest's own work, and tear-down.
    Exit,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::ProcessStart,
        Self::KvmOpen,
        Self::Memory,
        Self::KernelLoad,
        Self::FirstRun,
        Self::KernelEntry,
        Self::Init,
        Self::Exit,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ProcessStart => "process start",
            Self::KvmOpen => "KVM open",
            Self::Memory => "memory",
            Self::KernelLoad => "kernel load",
            Self::FirstRun => "first run",
            Self::KernelEntry => "kernel entry",
            Self::Init => "init",
            Self::Exit => "exit",
        }
    }

    /// For programs.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::ProcessStart => "process_start",
            Self::KvmOpen => "kvm_open",
            Self::Memory => "memory",
            Self::KernelLoad => "kernel_load",
            Self::FirstRun => "first_run",
            Self::KernelEntry => "kernel_entry",
            Self::Init => "init",
            Self::Exit => "exit",
        }
    }
}

/// When each phase was over.
#[derive(Debug, Clone)]
pub struct BootTrace {
    start: Instant,
    marks: [Option<Instant>; Phase::ALL.len()],
}

impl BootTrace {
    /// Starts at the start of this process.
    ///
    /// The host keeps that time in clock ticks of 10 ms, which is more than a whole start takes. The processor time used
    /// so far is exact, and up to `main` a process does not wait unless its file must be read from a disk first: so the
    /// start is now minus that time.
    #[must_use]
    pub fn of_process() -> Self {
        let now = Instant::now();
        Self::from(now.checked_sub(process_cpu_time()).unwrap_or(now))
    }

    /// Starts at `start`.
    #[must_use]
    pub fn from(start: Instant) -> Self {
        Self { start, marks: [None; Phase::ALL.len()] }
    }

    /// `phase` is over now. Only the first mark of a phase counts.
    pub fn mark(&mut self, phase: Phase) {
        self.mark_at(phase, Instant::now());
    }

    /// `phase` was over at `at`. Only the first mark of a phase counts.
    pub fn mark_at(&mut self, phase: Phase, at: Instant) {
        self.marks[phase as usize].get_or_insert(at);
    }

    /// The last phase that was completed.
    #[must_use]
    pub fn reached(&self) -> Option<Phase> {
        Phase::ALL.into_iter().rfind(|&phase| phase != Phase::Exit && self.saw(phase))
    }

    /// Whether `phase` was completed.
    #[must_use]
    pub fn saw(&self, phase: Phase) -> bool {
        self.marks[phase as usize].is_some()
    }

    /// From the start to the end of `phase`, when it was seen.
    #[must_use]
    pub fn until(&self, phase: Phase) -> Option<Duration> {
        self.marks[phase as usize].map(|at| at.saturating_duration_since(self.start))
    }

    /// Each phase that was seen and how long it took. A mark made out of order counts as made when its predecessor was.
    pub fn durations(&self) -> impl Iterator<Item = (Phase, Duration)> {
        let mut previous = self.start;
        Phase::ALL.into_iter().filter_map(move |phase| {
            let at = self.marks[phase as usize]?.max(previous);
            let took = at - std::mem::replace(&mut previous, at);
            Some((phase, took))
        })
    }

    /// The sum of all phases.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.durations().map(|(_, took)| took).sum()
    }
}

impl BootTrace {
    /// Takes over what was stamped on `marks`.
    pub fn take(&mut self, marks: &Marks) {
        for phase in Phase::ALL {
            if let Some(at) = marks.at(phase) {
                self.mark_at(phase, at);
            }
        }
    }
}

/// Marks that any thread makes while the machine runs.
#[derive(Debug, Default)]
pub struct Marks([OnceLock<Instant>; Phase::ALL.len()]);

impl Marks {
    /// `phase` is over now. Only the first stamp of a phase counts.
    pub fn stamp(&self, phase: Phase) {
        self.0[phase as usize].get_or_init(Instant::now);
    }

    /// When `phase` was over, if it is.
    #[must_use]
    pub fn at(&self, phase: Phase) -> Option<Instant> {
        self.0[phase as usize].get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stamp_wins() {
        let marks = Marks::default();
        assert_eq!(marks.at(Phase::Init), None);
        marks.stamp(Phase::Init);
        let first = marks.at(Phase::Init).unwrap();
        marks.stamp(Phase::Init);
        assert_eq!(marks.at(Phase::Init), Some(first));
        let mut trace = BootTrace::from(first);
        trace.take(&marks);
        assert_eq!(trace.until(Phase::Init), Some(Duration::ZERO));
        assert_eq!(trace.reached(), Some(Phase::Init));
    }
}
