//! Freezing a file system: everything is written, and its journal is closed as an unmount would.

#![expect(unsafe_code, reason = "FIFREEZE is an ioctl")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

const FIFREEZE: libc::c_ulong = 0xc004_5877;

/// Freezes the file system that the directory lies on. Whoever writes to it from then on waits for ever.
///
/// # Errors
/// What the kernel says.
pub fn freeze(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the request takes no argument.
    match unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
