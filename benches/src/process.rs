//! A process from start to end: time by the wall and by its processors.
//!
//! Invariant: figures are the kernel's own for exactly this process (wait4); nothing is sampled.

#![expect(
    unsafe_code,
    reason = "wait4 has no safe wrapper that gives resource usage, a process's descriptor none at all"
)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What a process took from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Exit code; 128 + N after signal N.
    pub code: i32,
    /// From before the start until its end was seen.
    pub wall: Duration,
    /// Processor time, user and system, of all its threads.
    pub cpu: Duration,
    /// Largest resident set in KiB, of it or of a child that it waited for. Never less than what this process itself had in memory
    /// when it started the other: who measures stays small.
    pub peak_kib: u64,
}

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    begin: Instant,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let begin = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, begin })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and ends it after `limit`; none when it has not come to its end by itself.
    ///
    /// # Errors
    /// What the host said.
    pub fn wait_within(self, limit: Duration) -> io::Result<Option<Spent>> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        // SAFETY: takes two numbers; the child is ours and was not waited for, so that the number is its own.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it, and nobody else has it.
        let end = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut polled = libc::pollfd { fd: end.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = i32::try_from(limit.as_millis()).map_err(io::Error::other)?;
        // SAFETY: one entry, which lives across the call.
        match unsafe { libc::poll(&raw mut polled, 1, limit) } {
            0 => self.end().map(|()| None),
            1 => self.wait().map(Some),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the host said.
    pub fn wait(self) -> io::Result<Spent> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which zeroes are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: both pointers are to live values of the right types. The child is ours and nobody else waits for it: `self` is
            // consumed and `Child` does not wait when dropped.
            let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
            if waited == pid {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let wall = self.begin.elapsed();
        let signalled = libc::WIFSIGNALED(status);
        let code = if signalled { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
        Ok(Spent { code, wall, cpu, peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0) })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the host said.
    pub fn end(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_accounted() {
        let spent = Process::start(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        let spent = spent.wait().unwrap();
        assert_eq!(spent.code, 3);
        assert!(spent.wall >= spent.cpu / 4 && spent.wall > Duration::ZERO);
        assert!(spent.peak_kib > 0);
    }

    #[test]
    fn a_process_that_takes_too_long_is_ended() {
        let limit = Duration::from_millis(50);
        let sleeps = Process::start(Command::new("sleep").arg("1000")).unwrap();
        assert_eq!(sleeps.wait_within(limit).unwrap(), None);
        let ends = Process::start(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        assert_eq!(ends.wait_within(Duration::from_secs(60)).unwrap().unwrap().code, 3);
    }
}
