//! Unix stream sockets without blocking: what the standard library offers only in blocking form.
//!
//! Invariant: no call here waits, and none raises SIGPIPE. Any thread.

#![expect(unsafe_code, reason = "socket calls that the standard library does not offer")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The longest path a Unix socket address holds, without its final zero byte.
pub const MAX_PATH_BYTES: usize = 107;

/// Connects to the listener at `path` at once or not at all; the socket does not block.
///
/// # Errors
/// `WouldBlock` when the listener's backlog is full, `InvalidInput` for a path that is too long or holds a zero byte, and what
/// the host says otherwise.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, len) = address(path)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `address` outlives the call and `len` is at most its size.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

/// Copies what waits in `socket` without taking it; returns the bytes copied, 0 at the end of the stream.
///
/// # Errors
/// `WouldBlock` when nothing is there; what the socket says otherwise.
pub fn peek(socket: BorrowedFd<'_>, out: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most `out.len()` bytes, into `out`.
    let got =
        unsafe { libc::recv(socket.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Sends `slices`, in order, and returns the bytes taken.
///
/// # Errors
/// `WouldBlock` when the socket is full, `BrokenPipe` when the other side takes no more.
pub fn send(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: `msghdr` is a plain C structure for which all zero bytes mean "nothing".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` is guaranteed to have the layout of an iovec; sendmsg only reads what it names.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message names slices that the caller's borrow keeps alive for the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PATH_BYTES || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: `sockaddr_un` is a plain C structure for which all zero bytes are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    for (slot, &byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let len = libc::socklen_t::try_from(len)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok((address, len))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn connect_reaches_a_listener_or_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let near = connect(&path).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"hello").unwrap();
        let mut bytes = [0; 3];
        assert_eq!(peek(near.as_fd(), &mut bytes).unwrap(), 3);
        assert_eq!(&bytes, b"hel");
        let slices = [IoSlice::new(b"a"), IoSlice::new(b"bc")];
        assert_eq!(send(near.as_fd(), &slices).unwrap(), 3);
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        drop((far, listener));
        assert_eq!(send(near.as_fd(), &slices).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_path_that_no_address_holds_is_refused() {
        for path in ["", "a\0b", &"p".repeat(MAX_PATH_BYTES + 1)] {
            let kind = connect(Path::new(path)).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{path:?}");
        }
    }
}
