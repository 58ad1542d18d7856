//! The command `openshell-vmm`.
//!
//! Invariant: standard output carries guest bytes and data that was asked for; everything else goes to standard error.

mod cli;

use std::process::ExitCode;

use openshell_vmm::config::plan::Plan;
use openshell_vmm::explain::Explain;
use openshell_vmm::report::{BootTrace, Outcome};

fn main() -> ExitCode {
    cli::main(machine)
}

/// Until `machine` is in the tree.
#[derive(Debug, thiserror::Error)]
#[error("this build cannot run machines yet")]
struct NoMachine;

impl Explain for NoMachine {}

fn machine(_: Plan, _: BootTrace) -> Result<Outcome, NoMachine> {
    Err(NoMachine)
}
