//! Other processes: a signal that reaches the one that was meant, and the start of a session.
//!
//! Invariant: a signal goes through a descriptor of the process, so that its number cannot have become another's meanwhile.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// A process, held so that its number stays its own.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
}

impl Process {
    /// The process `pid` as it is now.
    ///
    /// # Errors
    /// What the host said; `NotFound` (ESRCH) when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// What the host said.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        let fd = self.fd.as_raw_fd();
        // SAFETY: the descriptor is open, and no information is given with the signal.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the process has ended, for `patience` at most; whether it has.
    #[must_use]
    pub fn ended_within(&self, patience: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid pollfd and is written.
        unsafe { libc::poll(&raw mut poll, 1, ms) > 0 }
    }
}

/// Makes the process that `command` starts the leader of a session of its own: no terminal's signal reaches it.
pub fn own_session(command: &mut Command) {
    let lead = || {
        // SAFETY: the call takes nothing and is async-signal-safe.
        if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only setsid(2) is called, and an error is a plain number.
    unsafe { command.pre_exec(lead) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_signalled_and_its_end_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.ended_within(Duration::ZERO));
        process.signal(libc::SIGTERM).unwrap();
        assert!(process.ended_within(Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(process.signal(libc::SIGTERM).is_err(), "reaped");
        assert_eq!(
            Process::open(child.id()).err().map(|e| e.raw_os_error()),
            Some(Some(libc::ESRCH))
        );
    }

    #[test]
    fn a_session_of_its_own_has_another_number() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/stat");
        own_session(&mut command);
        let output = command.output().unwrap();
        let stat = String::from_utf8(output.stdout).unwrap();
        let fields: Vec<_> = stat.split(' ').collect();
        assert_eq!(fields[0], fields[5], "{stat}");
    }
}
