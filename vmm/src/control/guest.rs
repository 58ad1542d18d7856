//! Asks the guest's first process something, over the machine's own vsock device: one line each way, as docs/guest.md has it.
//!
//! Invariant: nothing here waits. What the guest says is at most [`LINE_MAX`] bytes, and only two answers mean anything. Runs on the
//! control thread.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Ask;
use crate::sys::unix;

/// Where `openshell-init` takes requests.
const PORT: u32 = 1023;
const LINE_MAX: usize = 32;
/// How long a guest that boots, or does not listen yet, is tried again.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(2);
/// The most seconds that a guest is given.
const SECONDS_MAX: u64 = 3600;

/// A question on its way.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) ask: Ask,
    ends: Instant,
    talk: Option<Talk>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Wait for more.
    Pending,
    /// Try again later.
    Retry,
    /// The guest does it.
    Agreed,
    /// It was tried long enough.
    GaveUp,
}

#[derive(Debug)]
struct Talk {
    stream: UnixStream,
    line: Vec<u8>,
    connected: bool,
}

impl Question {
    pub(super) fn new(ask: Ask, now: Instant) -> Self {
        let patience = match ask {
            Ask::Stop { grace, .. } => grace.max(SIGNAL_PATIENCE),
            Ask::Signal(_) => SIGNAL_PATIENCE,
        };
        Self { ask, ends: now + patience, talk: None }
    }

    /// The connection, to be waited for.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.talk.as_ref().map(|talk| talk.stream.as_raw_fd())
    }

    /// Begins to talk, if nobody does.
    pub(super) fn try_now(&mut self, socket: &Path, now: Instant) -> Answer {
        if self.talk.is_some() {
            return Answer::Pending;
        }
        if now >= self.ends {
            return Answer::GaveUp;
        }
        let begun = || -> io::Result<Talk> {
            let mut stream = unix::connect(socket)?;
            stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
            Ok(Talk { stream, line: Vec::new(), connected: false })
        };
        self.talk = begun().ok();
        if self.talk.is_some() { Answer::Pending } else { Answer::Retry }
    }

    /// The guest has said something, or closed.
    pub(super) fn hear(&mut self) -> Answer {
        let Some(talk) = &mut self.talk else { return Answer::Retry };
        let answer = talk.hear(self.ask);
        if answer != Answer::Pending {
            self.talk = None;
        }
        answer
    }
}

impl Talk {
    fn hear(&mut self, ask: Ask) -> Answer {
        let mut chunk = [0; LINE_MAX];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Answer::Retry,
            Ok(len) => self.line.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Answer::Pending,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Answer::Pending,
            Err(_) => return Answer::Retry,
        }
        if self.line.len() > LINE_MAX {
            return Answer::Retry;
        }
        let Some(end) = self.line.iter().position(|&byte| byte == b'\n') else {
            return Answer::Pending;
        };
        let line: Vec<u8> = self.line.drain(..=end).collect();
        match (self.connected, line.starts_with(b"OK")) {
            (_, false) => Answer::Retry,
            (true, true) => Answer::Agreed,
            (false, true) => {
                self.connected = true;
                match self.stream.write_all(request(ask).as_bytes()) {
                    Ok(()) => Answer::Pending,
                    Err(_) => Answer::Retry,
                }
            }
        }
    }
}

fn request(ask: Ask) -> String {
    match ask {
        Ask::Stop { signal, grace } => {
            let seconds = grace.as_millis().div_ceil(1000).min(u128::from(SECONDS_MAX));
            if signal == libc::SIGTERM {
                format!("STOP {seconds}\n")
            } else {
                format!("STOP {seconds} {signal}\n")
            }
        }
        Ask::Signal(signal) => format!("SIGNAL {signal}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn stop() -> Ask {
        Ask::Stop { signal: libc::SIGTERM, grace: Duration::from_millis(2500) }
    }

    fn read(peer: &mut UnixStream) -> String {
        let mut bytes = [0; 64];
        let len = peer.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// Hears until something comes of it.
    fn until(question: &mut Question) -> Answer {
        let begin = Instant::now();
        loop {
            match question.hear() {
                Answer::Pending if begin.elapsed() < Duration::from_secs(5) => {
                    std::thread::yield_now();
                }
                answer => return answer,
            }
        }
    }

    #[test]
    fn a_guest_is_asked_by_its_protocol() {
        for (ask, want) in [
            (stop(), "STOP 3\n"),
            (Ask::Stop { signal: 2, grace: Duration::ZERO }, "STOP 0 2\n"),
            (Ask::Stop { signal: 15, grace: Duration::from_secs(90_000) }, "STOP 3600\n"),
            (Ask::Signal(10), "SIGNAL 10\n"),
        ] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("vsock");
            let listener = UnixListener::bind(&path).unwrap();
            let mut question = Question::new(ask, Instant::now());
            assert_eq!(question.try_now(&path, Instant::now()), Answer::Pending);
            let (mut peer, _) = listener.accept().unwrap();
            assert_eq!(read(&mut peer), "CONNECT 1023\n");
            peer.write_all(b"OK 10").unwrap();
            while question.talk.as_ref().is_some_and(|talk| talk.line.is_empty()) {
                assert_eq!(question.hear(), Answer::Pending);
            }
            peer.write_all(b"73\n").unwrap();
            while question.talk.as_ref().is_some_and(|talk| !talk.connected) {
                assert_eq!(question.hear(), Answer::Pending);
            }
            assert_eq!(read(&mut peer), want);
            peer.write_all(b"OK\n").unwrap();
            assert_eq!(until(&mut question), Answer::Agreed);
        }
    }

    #[test]
    fn refusals_are_tried_again_until_the_time_is_over() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("vsock");
        let now = Instant::now();
        let mut question = Question::new(stop(), now);
        assert_eq!(question.try_now(&path, now), Answer::Retry, "nobody listens yet");
        let listener = UnixListener::bind(&path).unwrap();
        for said in [&b""[..], b"NO\n", &[b'x'; 40]] {
            assert_eq!(question.try_now(&path, now), Answer::Pending);
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(said).unwrap();
            drop(peer);
            assert_eq!(until(&mut question), Answer::Retry, "{said:?}");
        }
        assert_eq!(question.try_now(&path, now + Duration::from_secs(3)), Answer::GaveUp);
    }
}
