//! What an [`Outcome`] comes to.
//!
//! Invariant: the exit code is the guest's own only when the guest reported one, or ended itself in good order.

use super::panic::PanicKind;
use super::{End, Outcome, Phase, Registers};
use crate::bus::GuestExit;

/// Exit code: the time limit was reached.
pub const CODE_TIMEOUT: u8 = 124;
/// Exit code: no guest status could be had.
pub const CODE_VMM: u8 = 125;
const CODE_SIGNAL_BASE: u8 = 128;

/// Who or what decided the exit code. Codes alone are ambiguous, because a guest may use any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The guest.
    Guest,
    /// This program, or the host.
    Vmm,
    /// The time limit.
    Timeout,
    /// A signal to this process.
    Signal,
    /// The guest kernel gave up.
    Panic,
    /// The guest's processor gave up.
    TripleFault,
}

impl Source {
    /// For programs.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Vmm => "vmm",
            Self::Timeout => "timeout",
            Self::Signal => "signal",
            Self::Panic => "panic",
            Self::TripleFault => "triple_fault",
        }
    }
}

/// What is told about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Who decided.
    pub source: Source,
    /// Exit code of the process.
    pub code: u8,
    /// What happened, one line.
    pub what: String,
    /// Why, one line.
    pub why: Option<String>,
    /// What can be done, one line.
    pub fix: Option<String>,
    /// Registers of the vCPU that could not go on.
    pub registers: Option<(u8, Registers)>,
    /// The machine did not end as a machine should: phase, console and registers are worth showing.
    pub failed: bool,
}

impl Verdict {
    /// What is told of a run until it has ended.
    #[must_use]
    pub fn cut_off() -> Self {
        Self {
            why: Some("openshell-vmm was killed, or the host went down".to_owned()),
            ..Self::bad(Source::Vmm, CODE_VMM, "the run was cut off".to_owned())
        }
    }

    /// Reads `outcome`. A panic that the console shows explains a reset, a halt, a triple fault and a time-out: these are
    /// how a kernel that panicked ends, depending on its `panic=` option.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let panic = || outcome.console.panic();
        match &outcome.end {
            End::GuestExit(GuestExit::Code(code)) => {
                Self::good(Source::Guest, *code, format!("the guest exited with status {code}"))
            }
            End::GuestExit(GuestExit::Signal(signal)) => Self::good(
                Source::Guest,
                signal_code(i32::from(*signal)),
                format!("the guest's main process was ended by signal {signal}"),
            ),
            End::Reset | End::Halted | End::TripleFault { .. } if panic().is_some() => {
                Self::panicked(&panic().unwrap_or_default())
            }
            End::Reset => Self::good(Source::Guest, 0, "the guest asked for a reset".to_owned()),
            End::PowerOff => Self::good(Source::Guest, 0, "the guest powered off".to_owned()),
            End::Halted if outcome.console.ended_in_order() => {
                Self::good(Source::Guest, 0, "the guest halted".to_owned())
            }
            End::Halted => {
                Self::bad(Source::Guest, CODE_VMM, "the guest halted every CPU for good".to_owned())
            }
            End::TripleFault { cpu, registers } => Self {
                why: Some(
                    "a fault while handling a fault: the kernel or its boot data are broken".into(),
                ),
                registers: Some((*cpu, *registers)),
                ..Self::bad(
                    Source::TripleFault,
                    CODE_VMM,
                    format!("CPU {cpu} of the guest shut down (triple fault)"),
                )
            },
            End::VcpuFailed { cpu, reason, registers } => Self {
                why: Some(reason.clone()),
                fix: Some(
                    "`openshell-vmm doctor` says whether this host runs an ordinary guest".into(),
                ),
                registers: Some((*cpu, *registers)),
                ..Self::bad(Source::Vmm, CODE_VMM, format!("KVM cannot run CPU {cpu} of the guest"))
            },
            End::TimedOut => Self::timed_out(outcome),
            End::Signal(signal) => Self::good(
                Source::Signal,
                signal_code(*signal),
                format!("stopped by signal {signal}"),
            ),
            End::Failed { what, why, fix } => Self {
                why: why.clone(),
                fix: fix.clone(),
                ..Self::bad(Source::Vmm, CODE_VMM, what.clone())
            },
        }
    }

    fn timed_out(outcome: &Outcome) -> Self {
        let why = if let Some(reason) = outcome.console.panic() {
            format!("the guest kernel panicked: {reason}")
        } else if outcome.trace.saw(Phase::Init) || outcome.console.started_init() {
            "the guest was running".to_owned()
        } else {
            "the guest has not reported that its init runs".to_owned()
        };
        Self {
            why: Some(why),
            ..Self::bad(Source::Timeout, CODE_TIMEOUT, "the time limit was reached".to_owned())
        }
    }

    fn panicked(reason: &str) -> Self {
        let kind = PanicKind::of(reason);
        Self {
            why: kind.why(),
            fix: kind.fix().map(str::to_owned),
            ..Self::bad(Source::Panic, CODE_VMM, format!("the guest kernel panicked: {reason}"))
        }
    }

    fn good(source: Source, code: u8, what: String) -> Self {
        Self { failed: false, ..Self::bad(source, code, what) }
    }

    fn bad(source: Source, code: u8, what: String) -> Self {
        Self { source, code, what, why: None, fix: None, registers: None, failed: true }
    }
}

fn signal_code(signal: i32) -> u8 {
    u8::try_from(signal).map_or(CODE_VMM, |signal| CODE_SIGNAL_BASE.saturating_add(signal))
}
