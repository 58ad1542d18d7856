//! Pieces of memory that one system call sends, wherever they lie: in guest RAM or in buffers of ours.
//!
//! Invariant: every entry names memory that the borrow `'a` keeps mapped, and the kernel only reads it. Calls never block. Any thread.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use smallvec::SmallVec;
use vm_memory::GuestAddress;

use super::region::{GuestRam, MemoryError};

/// What one call takes at most.
const MAX_ENTRIES: usize = 1024;
/// Entries that need no allocation.
const INLINE: usize = 64;
/// Room for one control message with a 16-bit value, aligned as the kernel wants it.
const CONTROL_WORDS: usize = 3;
/// Messages that one call sends at most.
const MAX_MESSAGES: usize = 16;

/// Pieces in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Gather<'a> {
    entries: SmallVec<[Entry; INLINE]>,
    len_bytes: usize,
    cut: bool,
    _borrowed: PhantomData<&'a [u8]>,
}

/// Laid out as an `iovec`, which has no `Debug`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Entry {
    base: *const u8,
    len: usize,
}

impl<'a> Gather<'a> {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes of ours.
    pub fn bytes(&mut self, bytes: &'a [u8]) {
        self.push(bytes.as_ptr(), bytes.len());
    }

    /// Adds a range of guest RAM.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing was added then.
    pub fn ram(
        &mut self,
        ram: &'a GuestRam,
        addr: GuestAddress,
        len_bytes: u32,
    ) -> Result<(), MemoryError> {
        let piece = ram.io_buf(addr, len_bytes)?;
        self.push(piece.as_mut_ptr(), piece.len_bytes());
        Ok(())
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether nothing more can be added: what is added is left out.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    /// The part of it that starts `from` bytes in and has `len` bytes, or fewer where it ends before.
    #[must_use]
    pub fn part(&self, from: usize, len: usize) -> Self {
        let mut part = Self::new();
        let (mut skip, mut left) = (from, len);
        for entry in &self.entries {
            if left == 0 {
                break;
            }
            let skipped = skip.min(entry.len);
            skip -= skipped;
            let take = (entry.len - skipped).min(left);
            left -= take;
            part.push(entry.base.wrapping_add(skipped), take);
        }
        part
    }

    /// Sends it through a connected socket; the bytes that the socket took.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now, and what it says otherwise; no signal is raised.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.message(socket, None)
    }

    /// Sends it through a connected UDP socket as datagrams of `segment` bytes, the last one of what is left.
    ///
    /// # Errors
    /// As [`Self::send`], and what a kernel or a path says that cannot segment.
    pub fn send_segments(&self, socket: BorrowedFd<'_>, segment: u16) -> io::Result<usize> {
        self.message(socket, Some(segment))
    }

    /// Sends each of `messages` through a connected UDP socket, as [`Self::send_segments`] where it says so, as one datagram otherwise;
    /// how many were sent, at least one.
    ///
    /// # Errors
    /// What became of the first one.
    pub fn send_each(
        socket: BorrowedFd<'_>,
        messages: &[(Self, Option<u16>)],
    ) -> io::Result<usize> {
        let mut controls = [[0_u64; CONTROL_WORDS]; MAX_MESSAGES];
        let mut headers: SmallVec<[libc::mmsghdr; MAX_MESSAGES]> = messages
            .iter()
            .zip(&mut controls)
            .map(|((gather, segment), control)| libc::mmsghdr {
                msg_hdr: gather.header(*segment, control),
                msg_len: 0,
            })
            .collect();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
        // SAFETY: the entries name memory that `'a` keeps mapped and that the kernel only reads; `controls` and `headers` outlive the
        // call, and `count` is the number of the latter.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn push(&mut self, base: *const u8, len: usize) {
        if len == 0 {
            return;
        }
        if self.is_full() {
            self.cut = true;
            return;
        }
        self.len_bytes += len;
        self.entries.push(Entry { base, len });
    }

    fn message(&self, socket: BorrowedFd<'_>, segment: Option<u16>) -> io::Result<usize> {
        let mut control = [0_u64; CONTROL_WORDS];
        let message = self.header(segment, &mut control);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the entries name memory that `'a` keeps mapped, `control` outlives the call, and the kernel only reads both.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// What a call is told of it; good as long as it and `control` are.
    fn header(&self, segment: Option<u16>, control: &mut [u64; CONTROL_WORDS]) -> libc::msghdr {
        // SAFETY: `msghdr` is a plain C structure for which all zero bytes mean "nothing".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // An `Entry` has the layout of an iovec, and sendmsg only reads.
        message.msg_iov = self.entries.as_ptr().cast_mut().cast();
        message.msg_iovlen = self.entries.len();
        if let Some(segment) = segment {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(control);
            put_segment(&mut message, segment);
        }
        message
    }

    /// Whether something was left out because there were too many pieces.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

/// Writes the one control message of `message`, which has room for it: cut the payload into datagrams of `segment` bytes.
fn put_segment(message: &mut libc::msghdr, segment: u16) {
    const VALUE_BYTES: libc::c_uint = 2;
    // SAFETY: reads only the two control fields of `message`, which are set.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: computes a length.
    let len = unsafe { libc::CMSG_LEN(VALUE_BYTES) };
    // SAFETY: computes a length.
    let space = unsafe { libc::CMSG_SPACE(VALUE_BYTES) };
    debug_assert!(space as usize <= message.msg_controllen, "the room is a constant");
    message.msg_controllen = space as usize;
    let value = libc::cmsghdr {
        cmsg_len: len as usize,
        cmsg_level: libc::SOL_UDP,
        cmsg_type: libc::UDP_SEGMENT,
    };
    // SAFETY: the control buffer is aligned for a header and longer than one.
    unsafe { header.write(value) };
    // SAFETY: `header` is in a buffer that has room for two bytes of data after it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: as above; the two bytes need no alignment.
    unsafe { data.cast::<u16>().write_unaligned(segment) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn pieces_are_sent_in_their_order_from_both_kinds_of_memory() {
        let ram = GuestRam::anonymous(&[(GuestAddress(0), 2 << 20)]).unwrap();
        ram.write(GuestAddress(0x100), b"guest").unwrap();
        let own = b"own-".to_vec();
        let mut gather = Gather::new();
        gather.bytes(&own);
        gather.ram(&ram, GuestAddress(0x100), 5).unwrap();
        gather.bytes(b"");
        assert!(gather.ram(&ram, GuestAddress((2 << 20) - 1), 2).is_err());
        assert_eq!((gather.len_bytes(), gather.is_cut()), (9, false));
        let (mut near, far) = UnixStream::pair().unwrap();
        assert_eq!(gather.send(far.as_fd()).unwrap(), 9);
        for (from, len, want) in [(0, 9, "own-guest"), (2, 4, "n-gu"), (5, 99, "uest"), (9, 1, "")]
        {
            let part = gather.part(from, len);
            assert_eq!(part.len_bytes(), want.len());
            part.send(far.as_fd()).unwrap();
        }
        drop(far);
        let mut all = String::new();
        near.read_to_string(&mut all).unwrap();
        assert_eq!(all, "own-guestown-guestn-guuest");
    }

    #[test]
    fn one_call_makes_several_datagrams() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let mut gather = Gather::new();
        gather.bytes(b"abcd");
        gather.bytes(b"ef");
        assert_eq!(gather.send_segments(sender.as_fd(), 4).unwrap(), 6);
        let mut bytes = [0; 16];
        assert_eq!(receiver.recv(&mut bytes).unwrap(), 4);
        assert_eq!(receiver.recv(&mut bytes).unwrap(), 2);
        assert_eq!(&bytes[..2], b"ef");
    }

    #[test]
    fn one_call_sends_several_messages() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let messages: Vec<_> = [("abcde", Some(2)), ("", None), ("fgh", None)]
            .into_iter()
            .map(|(text, segment)| {
                let mut gather = Gather::new();
                gather.bytes(text.as_bytes());
                (gather, segment)
            })
            .collect();
        assert_eq!(Gather::send_each(sender.as_fd(), &messages).unwrap(), 3);
        let mut bytes = [0; 16];
        for want in ["ab", "cd", "e", "", "fgh"] {
            let len = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], want.as_bytes());
        }
        let many: Vec<_> = (0..MAX_MESSAGES + 1).map(|_| (Gather::new(), None)).collect();
        assert_eq!(Gather::send_each(sender.as_fd(), &many).unwrap(), MAX_MESSAGES);
    }

    #[test]
    fn more_pieces_than_a_call_takes_are_left_out() {
        let mut gather = Gather::new();
        for _ in 0..=MAX_ENTRIES {
            gather.bytes(b"x");
        }
        assert!(gather.is_cut() && gather.is_full());
        assert_eq!(gather.len_bytes(), MAX_ENTRIES);
    }
}
