//! The command `openshell-vmm`.
//!
//! Invariant: standard output carries guest bytes and data that was asked for; everything else goes to standard error.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    openshell_vmm::sys::panics::end_the_process();
    cli::main(openshell_vmm::machine::run)
}
