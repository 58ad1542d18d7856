//! Confinement: every thread starts through [`Jail::spawn`], which puts the filter of its role on before the body runs, or through
//! [`Jail::spawn_waiting`], where the thread sleeps before that; the event loop's thread calls [`Jail::confine`] once everything is open.
//!
//! Invariant: no thread runs guest-driven code before its filter is on. A system call outside the filter ends the process, with the
//! terminal given back.

mod assemble;
mod filters;
mod seccomp;

#[cfg(test)]
mod calls;
#[cfg(test)]
mod tests;

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
    /// The user-mode network stack: the queues of the network card and all sockets of flows.
    Net,
    /// The control socket: clients of this user, and questions to the guest's first process.
    Control,
    /// The main process's streams: the guest's connection, standard streams, the log, and who attaches.
    Streams,
    /// Files of the host that are read again when they change. It has nothing from a guest.
    Watch,
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
    /// Should the host refuse the filter inside the new thread, which takes a shortage of memory, the process ends: `body` never runs
    /// unconfined.
    ///
    /// # Errors
    /// What the host said when the thread could not start, or when it knows no filters.
    pub fn spawn<T: Send + 'static>(
        self,
        role: Role,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        // Here rather than in the thread, so that what can fail is reported and threads of a role share one program.
        self.prepare(role)?;
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if self.confine(role).is_err() {
                seccomp::end_unconfined();
            }
            body()
        })
    }

    /// As [`Self::spawn`], for a thread that is needed later or never: `wait` sleeps without the filter until there is something to do, and
    /// gets ready for it from what the user said alone; then the filter is put on, and `body` runs. `None` ends the thread.
    ///
    /// # Errors
    /// What the host said when the thread could not start.
    pub fn spawn_waiting<W>(
        self,
        role: Role,
        name: &str,
        wait: impl FnOnce() -> Option<W> + Send + 'static,
        body: impl FnOnce(W) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // A host without it has no filters either, and says so when other threads start.
            seccomp::forbid_new_privileges().ok();
            let Some(found) = wait() else { return };
            if self.confine(role).is_err() {
                seccomp::end_unconfined();
            }
            body(found);
        })
    }

    /// Puts the filter of `role` on the calling thread, for good. Threads that it starts later inherit the filter, so it starts none.
    ///
    /// # Errors
    /// What the host said; the thread is then not confined.
    pub fn confine(self, role: Role) -> io::Result<()> {
        self.prepare(role)?;
        seccomp::forbid_new_privileges()?;
        if self.seccomp { seccomp::install(seccomp::program(role)?) } else { Ok(()) }
    }

    fn prepare(self, role: Role) -> io::Result<()> {
        if self.seccomp {
            seccomp::prepare_process()?;
            seccomp::program(role)?;
        }
        Ok(())
    }
}
