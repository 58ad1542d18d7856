//! The gateway that started the driver: when it is gone, the driver ends, and its machines with it.
//!
//! Invariant: the process that is watched is the one that was there when the driver started; a later process with its number
//! is not taken for it.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::watch;

/// A process that is watched.
#[derive(Debug)]
pub struct Parent {
    gone: watch::Receiver<bool>,
}

impl Parent {
    /// Watches the process with this number, from a thread that ends with it.
    ///
    /// # Errors
    ///
    /// When there is no such process, or no thread.
    pub fn watch(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let (tell, gone) = watch::channel(false);
        let wait = move || {
            wait_for_end(&process);
            tell.send_replace(true);
        };
        thread::Builder::new().name("parent".to_owned()).spawn(wait)?;
        Ok(Self { gone })
    }

    /// Returns when the process has ended.
    pub async fn gone(&self) {
        // An error means that nobody can tell any more, which is no reason to stay.
        drop(self.gone.clone().wait_for(|gone| *gone).await);
    }
}

/// The descriptor of a process is readable from its end on, and never before.
fn wait_for_end(process: &OwnedFd) {
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
        let pid = i32::try_from(child.id()).expect("a process id");
        let parent = Parent::watch(pid).expect("there");
        assert!(timeout(Duration::from_millis(50), parent.gone()).await.is_err(), "it still runs");
        drop(child.stdin.take());
        timeout(Duration::from_secs(10), parent.gone()).await.expect("noticed");
        child.wait().expect("ended");
        assert!(Parent::watch(pid).is_err(), "no process has this number any more");
        assert!(Parent::watch(0).is_err());
    }
}
