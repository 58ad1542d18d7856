//! A second reference to a file, which the kernel drops on a worker thread of its own.
//!
//! The last close of a virtual machine, or of an inotify instance, waits for grace periods of RCU: 9 to 14 ms in which the process
//! that ends does nothing, and its parent waits for it. Files that are registered with an io_uring instance are closed when the
//! instance is freed, and the kernel does that on a work queue. Where io_uring is refused, the file is closed as ever.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::IoUring;

/// Keeps a file open beyond its last descriptor and beyond this value, until a worker of the kernel gets to it.
pub struct Linger {
    _ring: IoUring,
}

impl std::fmt::Debug for Linger {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Linger").finish_non_exhaustive()
    }
}

impl Linger {
    /// `None` where the host refuses io_uring.
    #[must_use]
    pub fn of(file: BorrowedFd<'_>) -> Option<Self> {
        let ring = IoUring::new(1).ok()?;
        ring.submitter().register_files(&[file.as_raw_fd()]).ok()?;
        Some(Self { _ring: ring })
    }
}
