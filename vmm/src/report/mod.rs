//! How a run ended, and how that is told: as an exit code, as text, as JSON.
//!
//! Invariant: an end that nobody asked for is never success, and everything that is told comes from one [`Verdict`]. Pure
//! but for [`json::ResultFile`].

pub mod json;
pub mod panic;
pub mod text;
mod verdict;

pub use verdict::{CODE_TIMEOUT, CODE_VMM, Source, Verdict};

use crate::bus::GuestExit;
use crate::console_tail::ConsoleTail;
pub use crate::kvm::Registers;
pub use crate::trace::{BootTrace, Phase};

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
    /// What happened on its network, by name; nothing where the guest did not use one.
    pub network: Vec<(String, u64)>,
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

#[cfg(test)]
mod tests;
