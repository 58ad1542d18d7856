//! Waiting for several descriptors, of any kind, on this thread only.
//!
//! An epoll set refuses regular files, which standard input and output may be.

#![expect(unsafe_code, reason = "poll is a system call")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// On this descriptor.
    pub fd: BorrowedFd<'a>,
    /// That it can be read from, or has ended.
    pub read: bool,
    /// That it can be written to, or takes nothing any more.
    pub write: bool,
}

/// Waits until one of `wanted` is so, at the latest until `ends`; for each whether it is. All are not when the time is up or a signal
/// came.
///
/// # Errors
/// What the host said.
pub fn wait(wanted: &[Wanted<'_>], ends: Option<Instant>) -> io::Result<Vec<bool>> {
    let events = |one: &Wanted<'_>| {
        let read = if one.read { libc::POLLIN } else { 0 };
        read | if one.write { libc::POLLOUT } else { 0 }
    };
    let mut polled: Vec<_> = wanted
        .iter()
        .map(|one| libc::pollfd { fd: one.fd.as_raw_fd(), events: events(one), revents: 0 })
        .collect();
    let timeout_ms = ends.map_or(-1, |ends| {
        // Rounded up: who wakes early would poll in a circle.
        let left = ends.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        i32::try_from(left).unwrap_or(i32::MAX)
    });
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    // SAFETY: `polled` has that many elements, which are read and written.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), count, timeout_ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok(vec![false; wanted.len()]);
    }
    Ok(polled.iter().map(|one| one.revents != 0).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_waits_for_each_direction_and_for_time() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let read = |fd| Wanted { fd, read: true, write: false };
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(wait(&[read(near.as_fd())], Some(soon)).unwrap(), [false]);
        assert!(soon <= Instant::now());
        far.write_all(b"x").unwrap();
        let wanted =
            [read(near.as_fd()), Wanted { read: false, write: true, ..read(file.as_fd()) }];
        assert_eq!(wait(&wanted, None).unwrap(), [true, true]);
    }
}
