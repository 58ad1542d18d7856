//! Binding a socket to an interface.

#![expect(unsafe_code, reason = "SO_BINDTODEVICE is a socket option that no crate in use has")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// Lets the socket send and receive through this interface only, also without an address on it.
///
/// # Errors
/// What the kernel says.
pub fn to_interface(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    // SAFETY: the name lives across the call and has the length given; it needs no terminator.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, name.as_ptr().cast(), len) }
    {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
