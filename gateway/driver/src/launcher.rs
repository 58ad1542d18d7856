//! The moment between fork and exec of every program that the driver starts.
//!
//! Invariant: a program that the driver started never outlives it. The driver starts itself in this mode; it asks the kernel
//! to be killed with its parent, makes sure that the parent is still there, and becomes the program. The kernel keeps that
//! promise across exec. It counts the *thread* that forked as the parent: the driver starts programs from threads of its
//! runtime only, which live as long as it does.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// The argument that selects this mode; the parent's process id, the program and its arguments follow.
pub const FLAG: &str = "--internal-launch";

/// How the process ends when it could not become the program.
const FAILED: u8 = 125;

/// Becomes the program that the arguments name, if they select this mode. Returns only when they do not, or on failure.
pub fn launch_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != FLAG {
        return None;
    }
    let error = launch(arguments);
    // There is nobody left to tell when this fails.
    drop(writeln!(io::stderr(), "{}: {error}", env!("CARGO_PKG_NAME")));
    Some(ExitCode::from(FAILED))
}

fn launch(mut arguments: impl Iterator<Item = OsString>) -> String {
    let parent = arguments.next().and_then(|text| text.into_string().ok()?.parse::<i32>().ok());
    let (Some(parent), Some(program)) = (parent, arguments.next()) else {
        return format!("{FLAG} takes a process id and a program");
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("cannot ask to end with the driver: {error}");
    }
    // It may have ended before the kernel was asked.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return "the driver is gone".to_owned();
    }
    let error = Command::new(&program).args(arguments).exec();
    format!("cannot run {}: {error}", program.display())
}
