//! The calls about a process that the standard library lacks: a signal of any number, its end without reaping it, what it took, a
//! terminal.
//!
//! Invariant: a process id is used only while its owner has not reaped it, so that it can't have become another process's.

#![expect(unsafe_code, reason = "kill, waitid, getrusage and openpty are system calls")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

/// Sends `signal` to the process, which its owner has not reaped.
///
/// # Errors
/// What the host said.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: plain integers; no memory of ours is involved.
    succeeded(unsafe { libc::kill(pid, signal) })
}

/// Blocks until the process, a child of ours, has ended, and leaves it to be reaped.
pub(crate) fn wait_for_end(pid: u32) -> io::Result<()> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOWAIT;
    loop {
        // SAFETY: `info` has room for the one structure that the kernel writes.
        match succeeded(unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), flags) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The most memory in KiB that any child of this process had in RAM, of those that were reaped.
///
/// # Errors
/// What the host said.
pub fn peak_of_children_kib() -> io::Result<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` has room for the one structure that the kernel writes.
    succeeded(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) })?;
    // SAFETY: the kernel has written it, and zeros would be one, too.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_maxrss).map_err(io::Error::other)
}

/// A new pseudo-terminal: the side of the user, and the side of the program.
///
/// # Errors
/// What the host said.
pub fn terminal() -> io::Result<(File, File)> {
    let (mut user, mut program) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors have room, and a name, settings and a size are not asked for.
    succeeded(unsafe {
        libc::openpty(&raw mut user, &raw mut program, none, none.cast(), none.cast())
    })?;
    // SAFETY: the descriptor is new and belongs to nobody else.
    let user = unsafe { File::from_raw_fd(user) };
    // SAFETY: as above.
    let program = unsafe { File::from_raw_fd(program) };
    for side in [&user, &program] {
        // SAFETY: the descriptor is open, and the argument is an integer.
        succeeded(unsafe { libc::fcntl(side.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok((user, program))
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
