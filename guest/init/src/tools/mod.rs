//! Programs that a supervisor calls and images often lack, as far as one calls them: chosen by the name of this program.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

mod ip;
mod nsenter;

/// Runs the tool of this name; nothing when there is none.
#[must_use]
pub fn run(name: &OsStr, args: &[OsString]) -> Option<ExitCode> {
    let result = match name.to_str()? {
        "ip" => ip::run(args),
        "nsenter" => nsenter::run(args),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            crate::machine::Machine::say(&format_args!("{}: {message}", name.to_string_lossy()));
            // What iproute2 says when the kernel refuses.
            ExitCode::from(2)
        }
    })
}
