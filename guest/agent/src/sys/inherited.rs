//! Descriptors that the process was started with.
//!
//! Invariant: each is taken once, before anything else is opened.

#![expect(unsafe_code, reason = "only their number says whose they are")]

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Takes the descriptor of this number, which no program started later inherits; none when there is no such one.
///
/// To be called once for each number, at the start of the process.
#[must_use]
pub fn take(number: RawFd) -> Option<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return None;
    }
    // SAFETY: the number is not -1, and whether it is open the call itself finds out; it is borrowed for the call only.
    fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and was left to this process by who started it, for this one owner.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
