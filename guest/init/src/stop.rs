//! The host's request to stop: one line on a vsock connection.
//!
//! Invariant: a peer is heard for at most [`PATIENCE`] and [`LINE_MAX`] bytes; whatever else it sends is no request.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::sys::vsock;

/// Where requests come; below 1024, so that only root of the guest could have taken it.
const PORT: u32 = 1023;
const PATIENCE: Duration = Duration::from_secs(2);
const LINE_MAX: usize = 32;
const SECONDS_MAX: u64 = 3600;

/// Listens for requests; nothing on a machine without vsock.
#[must_use]
pub fn listen() -> Option<OwnedFd> {
    vsock::listen_on(PORT).ok()
}

/// Hears the peer that waits at `listener`: how long the main process may take, if it asked to stop.
#[must_use]
pub fn hear(listener: &OwnedFd) -> Option<Duration> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let peer = accept_with(listener, flags).ok()?;
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
    let time = parse(&line)?;
    // Who asked may be gone; the request stands.
    _ = send(&peer, b"OK\n", SendFlags::NOSIGNAL);
    Some(time)
}

fn parse(line: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let digits = text.strip_prefix("STOP ").filter(|text| !text.starts_with('+'))?;
    digits.parse().ok().filter(|seconds| *seconds <= SECONDS_MAX).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_one_exact_line() {
        for (line, expected) in [
            ("STOP 10\n", Some(10)),
            ("STOP 0\n", Some(0)),
            ("STOP 3600\n", Some(3600)),
            ("STOP 3601\n", None),
            ("STOP\n", None),
            ("STOP 1", None),
            ("STOP -1\n", None),
            ("STOP +1\n", None),
            ("stop 1\n", None),
            ("STOP 1\nSTOP 2\n", None),
        ] {
            assert_eq!(parse(line.as_bytes()), expected.map(Duration::from_secs), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_judged(line in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(time) = parse(&line) {
                prop_assert!(time.as_secs() <= SECONDS_MAX);
            }
        }
    }
}
