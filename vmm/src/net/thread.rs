//! A net thread of its own for a link that has none: of a tap, of a Unix stream.
//!
//! Invariant: a panic in the stack costs the other side its connections; the second one ends the thread, and nothing else.

use std::io;
use std::thread::JoinHandle;

use crate::jail::{Jail, Role};
use crate::sys::panics;

use super::engine::{Commands, End, Host, Report, Setup};
use super::link::PacketLink;

/// Times that a stack which panicked is followed by another.
const RESTARTS: u32 = 1;

/// How a thread ended.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The stack panicked too often.
    #[error("the network stack failed")]
    Panicked,
    /// The host did not let it wait.
    #[error("the network stack cannot wait for events")]
    Host(#[source] io::Error),
}

/// The thread, as its owner has it. When this is dropped the thread ends.
#[derive(Debug)]
pub struct NetThread {
    thread: Option<JoinHandle<(Result<End, Failed>, Report)>>,
    commands: Commands,
}

impl NetThread {
    /// Starts the thread with the filter of its role on; `ended` is called on it when it has done its work.
    ///
    /// # Errors
    /// What the host said.
    pub fn spawn<L: PacketLink + Send + 'static>(
        jail: Jail,
        setup: Setup,
        mut link: L,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (mut host, commands) = Host::new(setup)?;
        let thread = jail.spawn(Role::Net, "net", move || {
            let end = serve(&mut host, &mut link);
            ended();
            (end, host.report())
        })?;
        Ok(Self { thread: Some(thread), commands })
    }

    /// The way to the thread.
    #[must_use]
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Ends the thread, if it has not ended, and tells how.
    ///
    /// # Errors
    /// [`Failed`] tells why it had ended before.
    pub fn stop(mut self) -> (Result<End, Failed>, Report) {
        self.join().unwrap_or((Err(Failed::Panicked), Report::default()))
    }

    fn join(&mut self) -> Option<(Result<End, Failed>, Report)> {
        self.commands.stop();
        self.thread.take()?.join().ok()
    }
}

impl Drop for NetThread {
    fn drop(&mut self) {
        drop(self.join());
    }
}

fn serve<L: PacketLink>(host: &mut Host, link: &mut L) -> Result<End, Failed> {
    for _ in 0..=RESTARTS {
        if let Ok(end) = panics::contain(|| host.serve(link)) {
            return end.map_err(Failed::Host);
        }
    }
    Err(Failed::Panicked)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use openshell_usernet::link::HEAD_LEN;
    use openshell_usernet::{Config, Frame, Link, LinkFull, Offload, Offloads};

    use super::*;
    use crate::net::buffer::FrameBytes;
    use crate::net::link::{LinkEvent, Source};
    use crate::net::port::Limits;

    /// A link in which frames are fatal, so many times.
    struct Fatal {
        left: Arc<AtomicU32>,
        bell: OwnedFd,
    }

    impl Link for Fatal {
        type Payload = FrameBytes;

        fn offloads(&self) -> Offloads {
            Offloads::default()
        }

        fn send(&mut self, _: Offload, _: &[u8], _: &[&[u8]]) -> Result<(), LinkFull> {
            Ok(())
        }
    }

    impl PacketLink for Fatal {
        fn sources(&self) -> Vec<Source> {
            vec![Source { number: 0, fd: self.bell.as_raw_fd() }]
        }

        fn on_ready(&mut self, _: u8, _: bool) -> io::Result<LinkEvent> {
            Ok(LinkEvent::Frames)
        }

        fn next_frame<'a>(&mut self, _: &'a mut [u8; HEAD_LEN]) -> Option<Frame<'a, FrameBytes>> {
            let left = self.left.load(Ordering::SeqCst);
            if left > 0 {
                self.left.store(left - 1, Ordering::SeqCst);
                std::panic::panic_any("on purpose");
            }
            None
        }

        fn end_turn(&mut self) -> bool {
            false
        }
    }

    fn start(fatal: u32) -> (NetThread, Arc<AtomicU32>, std::sync::mpsc::Receiver<()>) {
        let left = Arc::new(AtomicU32::new(fatal));
        let (bell, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let link = Fatal { left: Arc::clone(&left), bell: bell.into() };
        let setup = Setup {
            config: Config::default(),
            ports: Vec::new(),
            sockets: 16,
            log: None,
            capture: None,
            limits: Limits::default(),
            resolvers: Vec::new(),
        };
        let (sender, ended) = channel();
        let jail = Jail { seccomp: false };
        let tell = move || {
            sender.send(()).ok();
        };
        let thread = NetThread::spawn(jail, setup, link, tell).unwrap();
        (thread, left, ended)
    }

    #[test]
    fn a_stack_that_panics_is_followed_by_one_more() {
        let (thread, left, _ended) = start(1);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while left.load(Ordering::SeqCst) > 0 {
            assert!(std::time::Instant::now() < deadline, "no frame was asked for");
            std::thread::yield_now();
        }
        assert!(thread.commands().report().is_some(), "the second stack answers");
        assert!(matches!(thread.stop().0, Ok(End::Stopped)));
        let (thread, _, ended) = start(9);
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(thread.commands().report().is_none());
        assert!(matches!(thread.stop().0, Err(Failed::Panicked)));
    }
}
