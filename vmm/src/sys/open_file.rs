//! Flags of an open file.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Makes reads and writes of `file` wait again, after it was opened with `O_NONBLOCK` so that opening could not hang.
/// io_uring fails a request on a non-blocking file with EAGAIN where it would otherwise wait.
///
/// # Errors
/// What the host said.
pub fn set_blocking(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and the descriptor is open for as long as `file` is borrowed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes an integer, and changes only status flags of a descriptor that is open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
