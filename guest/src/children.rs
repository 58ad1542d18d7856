//! Child processes: started here, reaped here, orphans too when this is PID 1.
//!
//! Invariant: a process is reaped only while the table is locked, so that its number
//! cannot have become another's when its owner is told.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// As a shell says it: 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX),
        }
    }
}

/// A running process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    ended: oneshot::Receiver<Exit>,
}

impl Child {
    /// Waits for its end. May be dropped and called again.
    pub async fn wait(&mut self) -> Exit {
        // The table never drops a sender.
        (&mut self.ended).await.unwrap_or(Exit::Signal(libc::SIGKILL))
    }

    /// Something to send signals with.
    #[must_use]
    pub fn group(&self) -> Group {
        Group(self.pid)
    }
}

/// The process group that a child leads.
#[derive(Debug, Clone, Copy)]
pub struct Group(Pid);

impl Group {
    /// Sends a signal to whoever is left of it. To be called while the child is not known to have ended.
    pub fn signal(self, signal: Signal) {
        _ = kill_process_group(self.0, signal);
    }
}

type Waiting = HashMap<Pid, oneshot::Sender<Exit>>;

/// All children.
#[derive(Debug, Clone, Default)]
pub struct Children {
    waiting: Arc<Mutex<Waiting>>,
}

impl Children {
    /// A table whose processes are reaped by a task of the current runtime.
    ///
    /// # Errors
    /// When the signal of ended children cannot be listened to.
    pub fn watch() -> io::Result<Self> {
        let children = Self::default();
        let mut ended = signal(SignalKind::child())?;
        let reaped = children.clone();
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                reaped.reap();
            }
        });
        Ok(children)
    }

    /// Starts a process, which has to lead a session of its own.
    ///
    /// # Errors
    /// As the standard library says it.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut waiting = self.lock();
        let started = command.spawn()?;
        let number = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
        let pid = number.ok_or(io::ErrorKind::Other)?;
        let (tell, ended) = oneshot::channel();
        waiting.insert(pid, tell);
        Ok(Child { pid, ended })
    }

    /// Reaps whoever has ended: our own, and as PID 1 also orphans.
    fn reap(&self) {
        let mut waiting = self.lock();
        let own: Vec<Pid> = waiting.keys().copied().collect();
        for pid in own {
            if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                tell(&mut waiting, pid, status);
            }
        }
        while std::process::id() == 1 {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => tell(&mut waiting, pid, status),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(waiting: &mut Waiting, pid: Pid, status: WaitStatus) {
    if let Some(tell) = waiting.remove(&pid) {
        // Whoever waited may have given up.
        _ = tell.send(exit(status));
    }
}

fn exit(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => Exit::Signal(signal),
        (code, None) => {
            Exit::Code(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openshell_init::sys::spawn::settle;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        settle(&mut command, None, None);
        command
    }

    #[tokio::test]
    async fn every_child_is_told_apart() {
        let children = Children::watch().unwrap();
        let mut started = Vec::new();
        for code in 0..40_u8 {
            started.push((code, children.spawn(&mut shell(&format!("exit {code}"))).unwrap()));
        }
        for (code, mut child) in started {
            assert_eq!(child.wait().await, Exit::Code(code));
        }
        assert!(children.lock().is_empty());
    }

    #[tokio::test]
    async fn a_signal_reaches_the_whole_group() {
        let children = Children::watch().unwrap();
        let mut child = children.spawn(&mut shell("sleep 100 & wait")).unwrap();
        child.group().signal(Signal::KILL);
        let exit = child.wait().await;
        assert_eq!((exit, exit.code()), (Exit::Signal(9), 137));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error_and_no_child() {
        let children = Children::watch().unwrap();
        let mut command = Command::new("/none");
        settle(&mut command, None, None);
        let error = children.spawn(&mut command).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(children.lock().is_empty());
    }
}
