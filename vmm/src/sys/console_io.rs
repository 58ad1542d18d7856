//! Reads and writes of the console's descriptors that never block the event loop for long.

#![expect(
    unsafe_code,
    reason = "poll, read and write on descriptors that this process did not open"
)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Whether `fd` takes bytes within `timeout`. An error on it counts as ready: the write will tell.
#[must_use]
pub fn writable_within(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid pollfd and is written.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

/// Writes what `fd` takes of `bytes`.
///
/// # Errors
/// What the host said.
pub fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is read, all of its length.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Reads what `fd` has into `buffer`; 0 at its end.
///
/// # Errors
/// What the host said.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is written, at most its length.
    let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
