//! What a new process does to itself between fork and exec.
//!
//! Invariant: between fork and exec only system calls are made, on memory that existed before; PID 1 has one thread, so
//! that no lock is held by another one.

#![expect(unsafe_code, reason = "code between fork and exec is unsafe to register")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Gid, Uid, ioctl_tiocsctty, setsid};
use rustix::thread::{UnshareFlags, set_thread_gid, set_thread_groups, set_thread_uid};

use super::signals;

/// Puts this process, which has one thread, into a network namespace of its own.
///
/// # Errors
/// What the kernel says.
pub fn enter_new_network_namespace() -> Result<(), Errno> {
    // SAFETY: what the process shares with nobody can be unshared without anybody noticing; descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Who and where a new process is.
#[derive(Debug)]
pub struct Place {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// A terminal to be the controlling one.
    pub terminal: Option<OwnedFd>,
}

/// Makes `command` start in a session of its own as `place` says, with no signal blocked or ignored.
pub fn settle(command: &mut Command, place: Place) {
    let groups: Vec<Gid> = place.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(place.uid), Gid::from_raw(place.gid));
    let hook = move || -> io::Result<()> {
        // PID 1 leads a session already when it becomes the main process itself.
        _ = setsid();
        if let Some(terminal) = &place.terminal {
            ioctl_tiocsctty(terminal)?;
        }
        set_thread_groups(&groups)?;
        set_thread_gid(gid)?;
        set_thread_uid(uid)?;
        signals::restore()?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(hook) };
}
