//! A listening vsock socket.

#![expect(unsafe_code, reason = "no crate in use has addresses of vsock")]

use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

const BACKLOG: i32 = 4;

/// Listens on `port`; descriptors are closed on exec and do not block.
///
/// # Errors
/// What the kernel says; `EAFNOSUPPORT` without vsock.
pub fn listen_on(port: u32) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = AddressFamily::from_raw(libc::AF_VSOCK.cast_unsigned().try_into().unwrap_or(0));
    let fd = socket_with(family, SocketType::STREAM, flags, None)?;
    let address = libc::sockaddr_vm {
        svm_family: libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0),
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0);
    // SAFETY: the address lives across the call and has the length given.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    listen(&fd, BACKLOG)?;
    Ok(fd)
}
