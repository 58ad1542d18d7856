//! A process whose streams are carried, and how its end is heard of.
//!
//! Invariant: a child of ours is reaped here and nowhere else; the main process is the first process's, which tells how it ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use openshell_agent_proto::{Exit, Failure, FailureKind, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal as Named, kill_process, kill_process_group, pidfd_open,
};

use crate::channel::until;

/// The process.
#[derive(Debug)]
pub enum Watched {
    /// One that was started here, at the head of a session of its own.
    Child {
        /// It.
        child: Child,
        /// Its number.
        pid: Pid,
        /// Readable when it has ended.
        ended: OwnedFd,
    },
    /// The machine's main process.
    Main {
        /// Its number.
        pid: Pid,
        /// Brings how it ended, as kind and number of EXITED; does not block.
        status: OwnedFd,
    },
}

impl Watched {
    /// Watches a process that was just started.
    ///
    /// # Errors
    /// When it cannot be watched; it is ended then.
    pub fn child(mut child: Child) -> Result<Self, Failure> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a process has a number");
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(ended) => Ok(Self::Child { child, pid, ended }),
            Err(errno) => {
                // It was to run watched or not at all.
                drop(child.kill().and_then(|()| child.wait()));
                Err(Failure::new(FailureKind::System, format!("pidfd: {errno}")))
            }
        }
    }

    /// Watches the main process, by its number and by `status`, which does not block; none when the number is not one.
    #[must_use]
    pub fn main(pid: i32, status: OwnedFd) -> Option<Self> {
        Some(Self::Main { pid: Pid::from_raw(pid)?, status })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        match self {
            Self::Child { pid, .. } | Self::Main { pid, .. } => *pid,
        }
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn exit(&mut self) -> Option<Exit> {
        match self {
            Self::Child { child, .. } => match child.try_wait() {
                Ok(status) => status.map(exit_of),
                // Nobody else waits for it.
                Err(_) => Some(Exit::Code(u8::MAX)),
            },
            Self::Main { status, .. } => {
                let mut told = [0_u8; 2];
                match rustix::io::read(&*status, &mut told[..]) {
                    Err(Errno::AGAIN | Errno::INTR) => None,
                    Ok(2) if told[0] == 0 => Some(Exit::Code(told[1])),
                    Ok(2) => Signal::new(i32::from(told[1])).map(Exit::Signal),
                    _ => Some(Exit::Code(u8::MAX)),
                }
            }
        }
    }

    /// Sends it a signal: a child with its group, as from a terminal, the main process alone, as the first process does.
    pub fn signal(&self, signal: Named) {
        // It may have gone on its own.
        _ = match self {
            Self::Child { pid, .. } => kill_process_group(*pid, signal),
            Self::Main { pid, .. } => kill_process(*pid, signal),
        };
    }

    /// Waits for its end for so long at most, or for as long as it takes.
    pub fn wait_for_end(&self, patience: Option<Duration>) {
        let ends = patience.map(|patience| Instant::now() + patience);
        let mut polled = [PollFd::new(self, PollFlags::IN)];
        while matches!(poll(&mut polled, until(ends).as_ref()), Err(Errno::INTR)) {}
    }
}

/// Readable when it has ended.
impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Child { ended, .. } => ended.as_fd(),
            Self::Main { status, .. } => status.as_fd(),
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal().and_then(Signal::new)) {
        (Some(code), _) => Exit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(u8::MAX),
    }
}
