//! The command `openshell-driver-vm`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use openshell_driver_vm::launcher;

fn main() -> ExitCode {
    if let Some(code) = launcher::launch_if_asked() {
        return code;
    }
    ExitCode::FAILURE
}
