//! PID 1 of a sandbox's guest, and by other names the host's agent and the few programs that images often lack.
//!
//! One file holds them all: what PID 1 has read of it is in the guest's memory when the agent starts.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use openshell_init::failure::{BOOT_FAILED, Failure, Step};
use openshell_init::machine::{Machine, Outcome, Storage};
use openshell_init::{agent, boot, tools};
use rustix::process::{Pid, getpid};

const USAGE: &str = "openshell-init runs as the first process of a guest";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    if name == agent::NAME {
        return openshell_agent::program::run(&args);
    }
    if let Some(code) = tools::run(name, &args) {
        return code;
    }
    if getpid() != Pid::INIT {
        Machine::say(&USAGE);
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        Machine::say(&Failure::new(Step::Bug, info.to_string()).path(place.unwrap_or_default()));
        Machine::find().end(Outcome::Code(BOOT_FAILED), &Storage::Kept(None));
    }));
    match exit_code(&args) {
        Some(code) => boot::exit(code),
        None => boot::run(),
    }
}

/// The code of `exit CODE`.
fn exit_code(args: &[OsString]) -> Option<u8> {
    let [verb, code] = args else { return None };
    code.to_str().filter(|_| verb == "exit")?.parse().ok()
}
