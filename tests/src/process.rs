//! The calls about a process that the standard library lacks: a signal of any number, its end without reaping it, what it took, a
//! terminal.
//!
//! Invariant: a process id is used only while its owner has not reaped it, so that it can't have become another process's.

#![expect(unsafe_code, reason = "kill, waitid, wait4 and openpty are system calls")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::process::Child;
use std::time::Duration;

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

/// What a process took from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its exit code; 128 + N after signal N.
    pub code: i32,
    /// Processor time of all its threads, user and system.
    pub processor: Duration,
    /// The most memory in KiB that it had in RAM, or one of the children that it waited for.
    pub peak_kib: u64,
}

/// Waits for the end of a process, whose output somebody else has to read.
///
/// # Errors
/// What the host said.
pub fn taken(child: Child) -> io::Result<Taken> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both have room for what the kernel writes. The child is ours and not reaped: it is consumed with this call, and does
        // not wait when it is dropped.
        match succeeded(unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => break done?,
        }
    }
    drop(child);
    // SAFETY: the kernel has written it, and zeros would be one, too.
    let usage = unsafe { usage.assume_init() };
    let signalled = libc::WIFSIGNALED(status);
    let code = if signalled { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    let processor = duration(usage.ru_utime)? + duration(usage.ru_stime)?;
    let peak_kib = u64::try_from(usage.ru_maxrss).map_err(io::Error::other)?;
    Ok(Taken { code, processor, peak_kib })
}

fn duration(time: libc::timeval) -> io::Result<Duration> {
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let microseconds = u64::try_from(time.tv_usec).map_err(io::Error::other)?;
    Ok(Duration::from_secs(seconds) + Duration::from_micros(microseconds))
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
