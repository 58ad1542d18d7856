//! What a new process does to itself between fork and exec, beside what [`openshell_init::sys::spawn`] has for all.
//!
//! Invariant: between fork and exec only system calls are made, on memory that existed before the fork: other threads may have held
//! any lock.

#![expect(unsafe_code, reason = "code between fork and exec is unsafe to register")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

/// Makes `command` start as one that may be ended when memory runs out, as the agent itself is not. For who still has the right to say so:
/// before the process becomes another user's.
pub fn spare_no_longer(command: &mut Command) {
    let hook = || -> io::Result<()> {
        // Where that cannot be said it was not spared either.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            _ = rustix::io::write(&file, b"0");
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(hook) };
}
