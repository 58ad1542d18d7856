//! The host's requests, to stop or to signal the main process: one line on a vsock connection.
//!
//! Invariant: a peer is heard for at most [`PATIENCE`] and [`LINE_MAX`] bytes; whatever else it sends is no request.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sys::vsock;

/// Where requests come; below 1024, so that only root of the guest could have taken it.
const PORT: u32 = 1023;
const PATIENCE: Duration = Duration::from_secs(2);
const LINE_MAX: usize = 32;
const SECONDS_MAX: u64 = 3600;
const SIGTERM: u64 = 15;
const SIGNAL_MAX: i32 = 64;

/// Listens for requests; nothing on a machine without vsock.
#[must_use]
pub fn listen() -> Option<OwnedFd> {
    vsock::listen_on(PORT).ok()
}

/// What the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The main process shall end: it gets this signal, and SIGKILL after the time.
    Stop(Duration, i32),
    /// The main process gets this signal.
    Signal(i32),
}

/// Hears the peer that waits at `listener`.
#[must_use]
pub fn hear(listener: &OwnedFd) -> Option<Request> {
    let (peer, _) = vsock::accept(listener).ok()?;
    let ends = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        let left = ends.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok()?;
        if poll(&mut [PollFd::new(&peer, PollFlags::IN)], Some(&left)).ok()? == 0 {
            return None;
        }
        let mut bytes = [0_u8; LINE_MAX];
        match recv(&peer, &mut bytes[..], RecvFlags::empty()) {
            Ok((0, _)) => return None,
            Ok((len, _)) => line.extend(bytes.get(..len)?),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
        if line.len() > LINE_MAX {
            return None;
        }
    }
    let request = parse(&line)?;
    // Who asked may be gone; the request stands.
    _ = send(&peer, b"OK\n", SendFlags::NOSIGNAL);
    Some(request)
}

fn parse(line: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = text.split(' ');
    let verb = words.next()?;
    let numbers: Vec<u64> = words.map(number).collect::<Option<_>>()?;
    match (verb, &numbers[..]) {
        ("STOP", &[seconds]) => stop(seconds, SIGTERM),
        ("STOP", &[seconds, signal]) => stop(seconds, signal),
        ("SIGNAL", &[signal]) => Some(Request::Signal(signal_number(signal)?)),
        _ => None,
    }
}

fn stop(seconds: u64, signal: u64) -> Option<Request> {
    let time = Some(seconds).filter(|seconds| *seconds <= SECONDS_MAX)?;
    Some(Request::Stop(Duration::from_secs(time), signal_number(signal)?))
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()))
}

fn signal_number(number: u64) -> Option<i32> {
    i32::try_from(number).ok().filter(|number| (1..=SIGNAL_MAX).contains(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_one_exact_line() {
        let stop = |seconds, signal| Some(Request::Stop(Duration::from_secs(seconds), signal));
        for (line, expected) in [
            ("STOP 10\n", stop(10, 15)),
            ("STOP 0\n", stop(0, 15)),
            ("STOP 3600\n", stop(3600, 15)),
            ("STOP 5 2\n", stop(5, 2)),
            ("STOP 5 64\n", stop(5, 64)),
            ("SIGNAL 10\n", Some(Request::Signal(10))),
            ("STOP 3601\n", None),
            ("STOP\n", None),
            ("STOP 1", None),
            ("STOP -1\n", None),
            ("STOP +1\n", None),
            ("STOP 1 0\n", None),
            ("STOP 1 65\n", None),
            ("STOP 1 2 3\n", None),
            ("STOP  1\n", None),
            ("stop 1\n", None),
            ("STOP 1\nSTOP 2\n", None),
            ("SIGNAL\n", None),
            ("SIGNAL 0\n", None),
            ("SIGNAL 9 9\n", None),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_judged(line in proptest::collection::vec(any::<u8>(), 0..40)) {
            match parse(&line) {
                Some(Request::Stop(time, signal)) => {
                    prop_assert!(time.as_secs() <= SECONDS_MAX && (1..=64).contains(&signal));
                }
                Some(Request::Signal(signal)) => prop_assert!((1..=64).contains(&signal)),
                None => {}
            }
        }
    }
}
