//! What a new process does to itself between fork and exec.
//!
//! Invariant: between fork and exec only system calls are made, on memory that existed before the fork: other threads may have held
//! any lock.

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

/// Whom a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Owner {
    /// The superuser, in no group but its own.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new() };
}

/// Makes `command` start in a session of its own: as `owner` unless that is nobody, with `terminal` as its controlling one, and with no
/// signal blocked or ignored: what this program ignores, or was started with, is not for what it starts, and a shell cannot trap it.
pub fn settle(command: &mut Command, owner: Option<&Owner>, terminal: Option<OwnedFd>) {
    let owner = owner.map(|owner| {
        let groups: Vec<Gid> = owner.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        (groups, Gid::from_raw(owner.gid), Uid::from_raw(owner.uid))
    });
    let hook = move || -> io::Result<()> {
        // It fails only for who leads one already, as PID 1 does when it becomes the main process itself; a child never does.
        _ = setsid();
        if let Some(terminal) = &terminal {
            ioctl_tiocsctty(terminal)?;
        }
        if let Some((groups, gid, uid)) = &owner {
            set_thread_groups(groups)?;
            set_thread_gid(*gid)?;
            set_thread_uid(*uid)?;
        }
        signals::restore()?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(hook) };
}
