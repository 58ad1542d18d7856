//! How a run ended, and how that is told: as an exit code, as text, as JSON.
//!
//! Invariant: an end that nobody asked for is never success, and everything that is told comes from one [`Verdict`]. Pure
//! but for [`json::write`].

pub mod json;
pub mod panic;
pub mod text;
pub mod trace;
mod verdict;

pub use trace::{BootTrace, Phase};
pub use verdict::{CODE_TIMEOUT, CODE_VMM, Source, Verdict};

use crate::bus::GuestExit;
use crate::console_tail::ConsoleTail;

/// Everything known about a machine that has stopped.
#[derive(Debug)]
pub struct Outcome {
    /// Why it stopped.
    pub end: End,
    /// When it got how far.
    pub trace: BootTrace,
    /// The last that it printed.
    pub console: ConsoleTail,
    /// The last exit of the vCPU that ended the run, in words.
    pub last_exit: Option<String>,
}

/// Why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest reported how its main process ended.
    GuestExit(GuestExit),
    /// The guest asked for a reset, with no status reported before.
    Reset,
    /// The guest asked for power-off, with no status reported before.
    PowerOff,
    /// Every vCPU halted for good: interrupts off, nothing to wake it.
    Halted,
    /// The guest said that its kernel panicked, by other means than the console.
    Panic {
        /// What it gave as the reason.
        reason: String,
    },
    /// A vCPU shut down.
    TripleFault {
        /// Which one.
        cpu: u8,
        /// Its registers at that point.
        registers: Registers,
    },
    /// The host's KVM could not go on with a vCPU.
    VcpuFailed {
        /// Which one.
        cpu: u8,
        /// What KVM gave as the reason.
        reason: String,
        /// Its registers at that point.
        registers: Registers,
    },
    /// The time limit.
    TimedOut,
    /// This process was asked to stop by a signal.
    Signal(i32),
    /// The user typed the detach key: the machine was stopped as asked.
    Detached,
    /// Something of ours, or of the host's, failed while the machine ran.
    Failed {
        /// What did not happen.
        what: String,
        /// Why.
        why: Option<String>,
        /// What can be done.
        fix: Option<String>,
    },
}

/// Registers of a vCPU that matter when it cannot go on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[expect(missing_docs, reason = "the processor's own names")]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}

#[cfg(test)]
mod tests;
