//! Programs that a supervisor calls and images often lack, as far as one calls them: chosen by the name of this program.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use serde::Deserialize;

mod ip;
mod nsenter;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Links, addresses, routes and network namespaces.
    Ip,
    /// A program in a network namespace.
    Nsenter,
}

impl Tool {
    /// Its name, and the directory where images have it.
    #[must_use]
    pub fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Ip => ("ip", "/usr/sbin"),
            Self::Nsenter => ("nsenter", "/usr/bin"),
        }
    }
}

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
