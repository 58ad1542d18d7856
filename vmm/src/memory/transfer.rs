//! Bytes moved between guest RAM and a socket by the kernel, without a copy in between.
//!
//! Invariant: the kernel is given only ranges that were checked, and only while the caller's borrow keeps them mapped. Calls
//! never block. Any thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::GuestAddress;

use super::region::GuestRam;

/// Ranges that one call moves at most; a longer list is cut, which shows as a shorter transfer.
const MAX_RANGES: usize = 64;

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The ranges of one call, resolved to host addresses.
struct Vectors {
    entries: [libc::iovec; MAX_RANGES],
    len: usize,
}

impl Vectors {
    fn resolve(ram: &GuestRam, ranges: &[(GuestAddress, u32)]) -> io::Result<Self> {
        let mut entries = [EMPTY; MAX_RANGES];
        let mut len = 0;
        for (entry, &(addr, len_bytes)) in entries.iter_mut().zip(ranges) {
            let buf = ram
                .io_buf(addr, len_bytes)
                .map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
            *entry = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len_bytes() };
            len += 1;
        }
        Ok(Self { entries, len })
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: `msghdr` is a plain C structure for which all zero bytes mean "nothing".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.entries.as_mut_ptr();
        message.msg_iovlen = self.len;
        message
    }
}

impl GuestRam {
    /// Receives from `socket` into `ranges`, in order, and returns the bytes received; 0 is the end of the stream when
    /// `ranges` has room.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; EFAULT when a range is not RAM; what the socket says otherwise.
    pub fn receive(
        &self,
        socket: BorrowedFd<'_>,
        ranges: &[(GuestAddress, u32)],
    ) -> io::Result<usize> {
        let mut vectors = Vectors::resolve(self, ranges)?;
        let mut message = vectors.message();
        // SAFETY: `message` names `vectors`, which outlives the call, and every entry of it is a range of RAM that stays mapped
        // while `self` is borrowed; nobody holds references into guest RAM, so that the kernel may write there.
        let got =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Sends `ranges`, in order, to `socket` and returns the bytes it took.
    ///
    /// # Errors
    /// As [`Self::receive`]; a closed socket is `BrokenPipe`, without the signal.
    pub fn send(
        &self,
        socket: BorrowedFd<'_>,
        ranges: &[(GuestAddress, u32)],
    ) -> io::Result<usize> {
        let mut vectors = Vectors::resolve(self, ranges)?;
        let message = vectors.message();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `receive`, except that the kernel only reads.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_move_both_ways_between_ram_and_a_socket() {
        let ram = GuestRam::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"scattered").unwrap();
        let ranges = [(GuestAddress(0x10), 4), (GuestAddress(0x100), 64)];
        assert_eq!(ram.receive(far.as_fd(), &ranges).unwrap(), 9);
        let mut head = [0; 4];
        ram.read(GuestAddress(0x10), &mut head).unwrap();
        assert_eq!(&head, b"scat");
        let ranges = [(GuestAddress(0x100), 5), (GuestAddress(0x10), 4)];
        assert_eq!(ram.send(far.as_fd(), &ranges).unwrap(), 9);
        let mut back = [0; 9];
        near.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"teredscat");
        let empty = ram.receive(far.as_fd(), &ranges).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert_eq!(ram.receive(far.as_fd(), &ranges).unwrap(), 0);
        let broken = ram.send(far.as_fd(), &ranges).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_range_outside_ram_never_reaches_the_kernel() {
        let ram = GuestRam::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let (_near, far) = UnixStream::pair().unwrap();
        let ranges = [(GuestAddress((2 << 20) - 4), 8)];
        let error = ram.receive(far.as_fd(), &ranges).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }
}
