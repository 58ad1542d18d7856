//! What PID 1 tells the host, and how the machine ends.
//!
//! Invariant: [`Machine::end`] does not return; before the host is told, the console has sent everything and what was
//! written is on the disk.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use rustix::system::{RebootCommand, reboot};

use crate::sys::ports::EventDevice;
use crate::sys::storage;

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// The machine, as PID 1 can speak to it.
#[derive(Debug)]
pub struct Machine {
    device: Option<EventDevice>,
}

/// What is done with what the guest wrote.
#[derive(Debug)]
pub enum Storage {
    /// Nobody will look at it.
    Volatile,
    /// It is brought in order: all disks, and the file system of this directory so that it is as if it was unmounted.
    Kept(Option<File>),
}

impl Machine {
    /// Looks for the event device.
    #[must_use]
    pub fn find() -> Self {
        Self { device: EventDevice::find() }
    }

    /// Says that user space runs.
    pub fn mark(&self) {
        if let Some(device) = &self.device {
            device.mark();
        }
    }

    /// Puts a line on the console. On a machine without a console nobody can be told.
    pub fn say(line: &dyn std::fmt::Display) {
        drop(writeln!(std::io::stderr(), "{line}"));
    }

    /// Ends the machine.
    pub fn end(&self, outcome: Outcome, storage: &Storage) -> ! {
        if let Storage::Kept(directory) = storage {
            rustix::fs::sync();
            if let Some(directory) = directory {
                // A disk that cannot be frozen is synced all the same; its journal is replayed at the next start.
                _ = storage::freeze(directory.as_fd());
            }
        }
        for stream in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
            _ = rustix::termios::tcdrain(stream);
        }
        if let Some(device) = &self.device {
            match outcome {
                Outcome::Code(code) => device.exit(code),
                Outcome::Signal(signal) => device.exit_by_signal(signal),
            }
        }
        _ = reboot(RebootCommand::PowerOff);
        _ = reboot(RebootCommand::Restart);
        loop {
            rustix::event::pause();
        }
    }
}
