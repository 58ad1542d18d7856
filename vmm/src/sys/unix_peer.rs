//! Who is at the other end of a Unix socket.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process that listens at, or made, the other end, when it is visible from here.
#[must_use]
pub fn pid(stream: &UnixStream) -> Option<u32> {
    let mut peer = MaybeUninit::<libc::ucred>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    // SAFETY: `peer` and `len` describe a buffer of the option's size, and outlive the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            peer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: a ucred is three integers, for which all zeroes is a value too.
    let peer = unsafe { peer.assume_init() };
    u32::try_from(peer.pid).ok().filter(|&pid| result == 0 && pid != 0)
}
