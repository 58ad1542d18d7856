//! Internet sockets without blocking, with the options that the standard library does not set.
//!
//! Invariant: every socket made here is non-blocking and closed on exec; no call waits, and none raises SIGPIPE. Any thread.

#![expect(unsafe_code, reason = "socket calls that the standard library does not offer")]

use std::ffi::{c_int, c_uint};
use std::io;
use std::mem::{size_of, size_of_val};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use smallvec::SmallVec;

/// linux/icmp.h; a filter of raw sockets: a set bit keeps that type out.
const ICMP_FILTER: c_int = 1;
/// linux/icmpv6.h.
const ICMP6_FILTER: c_int = 1;
const ICMP_ECHO_REPLY: u32 = 0;
const ICMP6_ECHO_REPLY: usize = 129;
/// linux/sockios.h.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;
/// linux/sock_diag.h: what `SO_MEMINFO` tells, and which of it is used.
const MEMORY_VALUES: usize = 9;
const MEMORY_LIMIT: usize = 3;
const MEMORY_QUEUED: usize = 5;
/// Room for the control messages of one datagram: its destination, the size of its segments, or an error with the sender of it.
const CONTROL_WORDS: usize = 16;

/// A kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
    /// ICMP echo: the kernel keeps identifier and checksum.
    Ping,
    /// All of ICMP, with `CAP_NET_RAW`.
    RawIcmp,
}

/// Opens a socket for the family of `address`.
///
/// # Errors
/// What the host said.
pub fn open(address: IpAddr, kind: Kind) -> io::Result<OwnedFd> {
    let (domain, icmp) = match address {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    let (kind, protocol) = match kind {
        Kind::Stream => (libc::SOCK_STREAM, 0),
        Kind::Datagram => (libc::SOCK_DGRAM, 0),
        Kind::Ping => (libc::SOCK_DGRAM, icmp),
        Kind::RawIcmp => (libc::SOCK_RAW, icmp),
    };
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(domain, kind | flags, protocol) };
    owned(fd)
}

/// Begins to connect. `Ok(false)`: it is under way.
///
/// # Errors
/// What the host said at once.
pub fn connect(socket: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<bool> {
    let address = Address::of(peer);
    let (pointer, len) = address.parts();
    // SAFETY: `address` outlives the call and `len` is its size.
    match done(unsafe { libc::connect(socket.as_raw_fd(), pointer, len) }) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a socket its local address.
///
/// # Errors
/// What the host said.
pub fn bind(socket: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    let address = Address::of(local);
    let (pointer, len) = address.parts();
    // SAFETY: as in `connect`.
    done(unsafe { libc::bind(socket.as_raw_fd(), pointer, len) })
}

/// Lets a bound stream socket take connections.
///
/// # Errors
/// What the host said.
pub fn listen(socket: BorrowedFd<'_>, backlog: u16) -> io::Result<()> {
    // SAFETY: takes numbers only.
    done(unsafe { libc::listen(socket.as_raw_fd(), c_int::from(backlog)) })
}

/// Takes a connection that waits, with its peer.
///
/// # Errors
/// `WouldBlock` when none waits; what the host said otherwise.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut storage = zeroed_storage();
    let mut len = socklen(size_of_val(&storage));
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `storage` has `len` bytes and both outlive the call.
    let fd = unsafe {
        libc::accept4(listener.as_raw_fd(), (&raw mut storage).cast(), &raw mut len, flags)
    };
    let socket = owned(fd)?;
    let peer = address_of(&storage).ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket, peer))
}

/// Ends the sending side.
///
/// # Errors
/// What the host said.
pub fn shutdown_write(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only.
    done(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) })
}

/// The address that a socket is bound to.
///
/// # Errors
/// What the host said.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut storage = zeroed_storage();
    let mut len = socklen(size_of_val(&storage));
    // SAFETY: `storage` has `len` bytes and both outlive the call.
    done(unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut storage).cast(), &raw mut len)
    })?;
    Ok(address_of(&storage).ok_or(io::ErrorKind::InvalidData)?)
}

/// An option of a socket that is a number, as `setsockopt` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberOption(c_int, c_int);

impl NumberOption {
    /// Segments leave at once.
    pub const NO_DELAY: Self = Self(libc::IPPROTO_TCP, libc::TCP_NODELAY);
    /// Bytes that wait unsent before the socket takes no more.
    pub const UNSENT_LOW_WATER: Self = Self(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    /// Bytes of the send buffer, as the kernel counts them.
    pub const SEND_BUFFER: Self = Self(libc::SOL_SOCKET, libc::SO_SNDBUF);
    /// Bytes of the receive buffer.
    pub const RECEIVE_BUFFER: Self = Self(libc::SOL_SOCKET, libc::SO_RCVBUF);
    /// Its pending error, which reading clears.
    pub const ERROR: Self = Self(libc::SOL_SOCKET, libc::SO_ERROR);
    /// Several sockets of one user at one address.
    pub const REUSE_PORT: Self = Self(libc::SOL_SOCKET, libc::SO_REUSEPORT);
    /// An address is free again at once after its connections ended.
    pub const REUSE_ADDRESS: Self = Self(libc::SOL_SOCKET, libc::SO_REUSEADDR);
    /// An IPv6 socket takes no IPv4.
    pub const IPV6_ONLY: Self = Self(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    /// Equal datagrams of one sender arrive as one.
    pub const UDP_GRO: Self = Self(libc::SOL_UDP, libc::UDP_GRO);
    /// Datagrams are cut into segments of so many bytes.
    pub const UDP_SEGMENT: Self = Self(libc::SOL_UDP, libc::UDP_SEGMENT);

    /// What ICMP says about datagrams is kept, for the family of `address`.
    #[must_use]
    pub const fn keep_errors(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self(libc::IPPROTO_IP, libc::IP_RECVERR),
            IpAddr::V6(_) => Self(libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        }
    }

    /// Datagrams tell where they were sent to, for the family of `address`.
    #[must_use]
    pub const fn tell_destination(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self(libc::IPPROTO_IP, libc::IP_PKTINFO),
            IpAddr::V6(_) => Self(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        }
    }

    /// Sets it.
    ///
    /// # Errors
    /// What the host said.
    pub fn set(self, socket: BorrowedFd<'_>, value: c_int) -> io::Result<()> {
        set(socket, (self.0, self.1), &value)
    }

    /// Reads it.
    ///
    /// # Errors
    /// What the host said.
    pub fn of(self, socket: BorrowedFd<'_>) -> io::Result<c_int> {
        let mut value: c_int = 0;
        let mut len = socklen(size_of::<c_int>());
        // SAFETY: `value` has `len` bytes, for which every content is valid, and both outlive the call.
        done(unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.0,
                self.1,
                (&raw mut value).cast(),
                &raw mut len,
            )
        })?;
        Ok(value)
    }
}

/// Makes the closing of a stream socket a reset.
///
/// # Errors
/// What the host said.
pub fn reset_on_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set(socket, (libc::SOL_SOCKET, libc::SO_LINGER), &linger)
}

/// Keeps everything but echo replies from a raw ICMP socket.
///
/// # Errors
/// What the host said.
pub fn echo_replies_only(socket: BorrowedFd<'_>, family: IpAddr) -> io::Result<()> {
    match family {
        IpAddr::V4(_) => {
            let kept_out: u32 = !(1 << ICMP_ECHO_REPLY);
            set(socket, (libc::SOL_RAW, ICMP_FILTER), &kept_out)
        }
        IpAddr::V6(_) => {
            let mut kept_out = [u32::MAX; 8];
            kept_out[ICMP6_ECHO_REPLY / 32] &= !(1 << (ICMP6_ECHO_REPLY % 32));
            set(socket, (libc::IPPROTO_ICMPV6, ICMP6_FILTER), &kept_out)
        }
    }
}

/// Memory of a socket's sending side in bytes, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendMemory {
    /// What the kernel gives it now; it grows with the connection.
    pub limit: u32,
    /// What is in it: bytes that wait and bytes that are not confirmed, each with its overhead.
    pub queued: u32,
}

/// Reads the memory of the sending side.
///
/// # Errors
/// What the host said.
pub fn send_memory(socket: BorrowedFd<'_>) -> io::Result<SendMemory> {
    let mut values = [0_u32; MEMORY_VALUES];
    let mut len = socklen(size_of_val(&values));
    let fd = socket.as_raw_fd();
    // SAFETY: `values` has `len` bytes, for which every content is valid, and both outlive the call.
    done(unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(SendMemory { limit: values[MEMORY_LIMIT], queued: values[MEMORY_QUEUED] })
}

/// Bytes that a stream socket was given and has not sent for the first time.
///
/// # Errors
/// What the host said.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut count: c_int = 0;
    // SAFETY: SIOCOUTQNSD writes one int.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCOUTQNSD, &raw mut count) })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Whether a stream socket is writable. One that is not tells everybody who waits for it when it is again, which a socket that
/// nobody asked does not.
#[must_use]
pub fn ask_writable(socket: BorrowedFd<'_>) -> bool {
    let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `asked` is one entry, which the kernel reads and writes during the call; it does not wait.
    unsafe { libc::poll(&raw mut asked, 1, 0) != 0 }
}

/// Sends `bytes`; how many of them the socket took.
///
/// # Errors
/// `WouldBlock` when it takes none now; what the socket says otherwise.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Reads into `into`, one piece after the other; 0 is the end of a stream.
///
/// # Errors
/// `WouldBlock` when nothing is there; what the socket says otherwise.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [&mut [u8]]) -> io::Result<usize> {
    let mut vectors = vectors_of(into);
    let mut message = zeroed_message();
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    // SAFETY: the vectors name the pieces of `into`, which are borrowed for writing during the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// One datagram, or several that arrived as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes written.
    pub len: usize,
    /// It was longer than what there was room for.
    pub cut: bool,
    /// Bytes of each of several datagrams, where it is several.
    pub segment: Option<usize>,
    /// Its sender, where the kernel tells.
    pub from: Option<SocketAddr>,
    /// The host's address that it was sent to, where that was asked for.
    pub to: Option<IpAddr>,
}

/// Reads a datagram.
///
/// # Errors
/// `WouldBlock` when none waits; what the socket says of earlier ones.
pub fn receive_datagram(socket: BorrowedFd<'_>, into: &mut [&mut [u8]]) -> io::Result<Datagram> {
    let mut vectors = vectors_of(into);
    let mut beside = Beside::new();
    let mut message = beside.message(&mut vectors);
    // SAFETY: name, vectors and control have the lengths given and outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok(beside.datagram(&message, len))
}

/// Datagrams that one [`receive_datagrams`] reads at most.
pub const MAX_DATAGRAMS: usize = 16;

/// Reads as many datagrams as wait, each into two pieces of its own, the first one filled first.
///
/// # Errors
/// `WouldBlock` when none waits; what the socket says of earlier ones.
pub fn receive_datagrams(
    socket: BorrowedFd<'_>,
    places: &mut [[&mut [u8]; 2]],
) -> io::Result<SmallVec<[Datagram; MAX_DATAGRAMS]>> {
    let mut beside = [const { Beside::new() }; MAX_DATAGRAMS];
    let mut vectors: SmallVec<[[libc::iovec; 2]; MAX_DATAGRAMS]> = places
        .iter_mut()
        .map(|place| {
            place.each_mut().map(|piece| libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: piece.len(),
            })
        })
        .collect();
    let mut headers: SmallVec<[libc::mmsghdr; MAX_DATAGRAMS]> = vectors
        .iter_mut()
        .zip(&mut beside)
        .map(|(vectors, beside)| libc::mmsghdr { msg_hdr: beside.message(vectors), msg_len: 0 })
        .collect();
    let (fd, count) = (socket.as_raw_fd(), c_uint::try_from(headers.len()).unwrap_or(0));
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: names, vectors and controls have the lengths given and outlive the call; the vectors name pieces that are borrowed for
    // writing; there are `count` headers, and no time is waited.
    let got =
        unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, flags, std::ptr::null_mut()) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let filled = headers.iter().zip(&beside).take(got);
    Ok(filled
        .map(|(header, beside)| beside.datagram(&header.msg_hdr, header.msg_len as usize))
        .collect())
}

/// What the kernel tells of a datagram beside its bytes.
struct Beside {
    from: libc::sockaddr_storage,
    control: [u64; CONTROL_WORDS],
}

impl Beside {
    const fn new() -> Self {
        Self { from: zeroed_storage(), control: [0; CONTROL_WORDS] }
    }

    /// What a call is told to write to; good as long as this and `vectors` are.
    fn message(&mut self, vectors: &mut [libc::iovec]) -> libc::msghdr {
        let mut message = zeroed_message();
        message.msg_name = (&raw mut self.from).cast();
        message.msg_namelen = socklen(size_of_val(&self.from));
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len();
        message.msg_control = self.control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&self.control);
        message
    }

    /// What `message` tells of `len` bytes, after a call.
    fn datagram(&self, message: &libc::msghdr, len: usize) -> Datagram {
        let (mut segment, mut to) = (None, None);
        each_control(message, |level, kind, data| match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => segment = word(data, 0).map(|size| size as usize),
            // struct in_pktinfo: interface, local address, destination.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => to = array::<4>(data, 8).map(IpAddr::from),
            // struct in6_pktinfo: destination, interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                to = array::<16>(data, 0).map(IpAddr::from);
            }
            _ => {}
        });
        Datagram {
            len,
            cut: message.msg_flags & libc::MSG_TRUNC != 0,
            segment: segment.filter(|&size| size > 0 && size < len),
            from: address_of(&self.from),
            to,
        }
    }
}

/// What ICMP, or the host itself, said about a datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendError {
    /// An error number.
    pub errno: i32,
    /// With `EMSGSIZE`: the path's MTU.
    pub mtu: u32,
}

/// Takes the oldest error of a socket with [`NumberOption::keep_errors`].
#[must_use]
pub fn take_send_error(socket: BorrowedFd<'_>) -> Option<SendError> {
    let mut control = [0_u64; CONTROL_WORDS * 2];
    let mut message = zeroed_message();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the control buffer has the length given and outlives the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        return None;
    }
    let mut found = None;
    each_control(&message, |level, kind, data| {
        let error = matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        // struct sock_extended_err: errno, four bytes of origin, info.
        if let (true, Some(errno), Some(mtu)) = (error, word(data, 0), word(data, 8)) {
            found = Some(SendError { errno: errno.cast_signed(), mtu });
        }
    });
    found
}

/// Calls `each` with level, type and data of every control message that was received.
fn each_control(message: &libc::msghdr, mut each: impl FnMut(c_int, c_int, &[u8])) {
    // SAFETY: reads the control fields of `message`, as the kernel left them.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !at.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR gave lies inside the control buffer, which the kernel filled.
        let header = unsafe { at.read() };
        // SAFETY: computes an address inside the same buffer.
        let data = unsafe { libc::CMSG_DATA(at) };
        let len = header.cmsg_len.saturating_sub(data.addr() - at.addr());
        // SAFETY: the kernel wrote `cmsg_len` bytes, header included, and nothing writes them while the slice lives.
        let data = unsafe { std::slice::from_raw_parts(data, len) };
        each(header.cmsg_level, header.cmsg_type, data);
        // SAFETY: as for the first one.
        at = unsafe { libc::CMSG_NXTHDR(message, at) };
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    array(data, at).map(ne_word)
}

#[expect(clippy::host_endian_bytes, reason = "the kernel's own structures")]
fn ne_word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

/// An address in the kernel's form.
enum Address {
    Four(libc::sockaddr_in),
    Six(libc::sockaddr_in6),
}

impl Address {
    fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(four) => Self::Four(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: four.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*four.ip()).to_be() },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(six) => Self::Six(libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: six.port().to_be(),
                sin6_flowinfo: six.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: six.ip().octets() },
                sin6_scope_id: six.scope_id(),
            }),
        }
    }

    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::Four(four) => ((&raw const *four).cast(), socklen(size_of_val(four))),
            Self::Six(six) => ((&raw const *six).cast(), socklen(size_of_val(six))),
        }
    }
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger than any address and aligned for all of them, and the family says which one it is.
            let four = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(four.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(four.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let six = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(six.sin6_addr.s6_addr);
            let port = u16::from_be(six.sin6_port);
            Some(SocketAddrV6::new(ip, port, six.sin6_flowinfo, six.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn vectors_of(into: &mut [&mut [u8]]) -> SmallVec<[libc::iovec; 8]> {
    into.iter_mut()
        .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
        .collect()
}

fn set<T>(socket: BorrowedFd<'_>, option: (c_int, c_int), value: &T) -> io::Result<()> {
    let len = socklen(size_of::<T>());
    // SAFETY: `value` has `len` bytes, which the kernel reads.
    done(unsafe {
        libc::setsockopt(socket.as_raw_fd(), option.0, option.1, (&raw const *value).cast(), len)
    })
}

fn zeroed_message() -> libc::msghdr {
    // SAFETY: `msghdr` is a plain C structure for which all zero bytes mean "nothing".
    unsafe { std::mem::zeroed() }
}

const fn zeroed_storage() -> libc::sockaddr_storage {
    // SAFETY: a plain C structure; all zero bytes are an address of no family.
    unsafe { std::mem::zeroed() }
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made the descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of C structures")]
fn socklen(len: usize) -> libc::socklen_t {
    len as libc::socklen_t
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 and 10")]
fn family(family: c_int) -> libc::sa_family_t {
    family as libc::sa_family_t
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_datagram_tells_where_it_came_from_and_went_to() {
        let socket = open(LOOPBACK, Kind::Datagram).unwrap();
        bind(socket.as_fd(), (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        NumberOption::tell_destination(LOOPBACK).set(socket.as_fd(), 1).unwrap();
        let port = local_address(socket.as_fd()).unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"abcdef", ("127.0.0.7", port)).unwrap();
        let (mut a, mut b) = ([0; 2], [0; 3]);
        let got = receive_datagram(socket.as_fd(), &mut [&mut a, &mut b]).unwrap();
        assert_eq!((&a, &b), (b"ab", b"cde"));
        assert_eq!((got.len, got.cut, got.segment), (5, true, None));
        assert_eq!(got.from, Some(sender.local_addr().unwrap()));
        assert_eq!(got.to, Some("127.0.0.7".parse().unwrap()));
        let error = receive_datagram(socket.as_fd(), &mut [&mut a]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn one_call_reads_what_waits() {
        let socket = open(LOOPBACK, Kind::Datagram).unwrap();
        bind(socket.as_fd(), (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for text in ["abc", "", "defgh"] {
            sender.send_to(text.as_bytes(), local_address(socket.as_fd()).unwrap()).unwrap();
        }
        let mut bytes = [[0; 7]; 4];
        let read = |bytes: &mut [[u8; 7]; 4]| {
            let mut places: Vec<_> =
                bytes.iter_mut().map(|bytes| bytes.split_at_mut(3).into()).collect();
            receive_datagrams(socket.as_fd(), &mut places)
        };
        let got = read(&mut bytes).unwrap();
        assert_eq!(got.iter().map(|got| got.len).collect::<Vec<_>>(), [3, 0, 5]);
        assert!(got.iter().all(|got| got.from == sender.local_addr().ok() && !got.cut));
        assert_eq!((&bytes[0][..3], &bytes[2][..5]), (&b"abc"[..], &b"defgh"[..]));
        assert_eq!(read(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_port_that_nobody_serves_is_told() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = open(LOOPBACK, Kind::Datagram).unwrap();
        NumberOption::keep_errors(LOOPBACK).set(socket.as_fd(), 1).unwrap();
        assert!(connect(socket.as_fd(), free).unwrap());
        assert_eq!(send(socket.as_fd(), b"x").unwrap(), 1);
        let error = take_send_error(socket.as_fd()).unwrap();
        assert_eq!(error, SendError { errno: libc::ECONNREFUSED, mtu: 0 });
        assert_eq!(take_send_error(socket.as_fd()), None);
    }

    #[test]
    fn a_connection_made_and_taken_without_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let near = open(LOOPBACK, Kind::Stream).unwrap();
        assert!(!connect(near.as_fd(), listener.local_addr().unwrap()).unwrap());
        let (far, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer, local_address(near.as_fd()).unwrap());
        assert_eq!(NumberOption::ERROR.of(near.as_fd()).unwrap(), 0);
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send(near.as_fd(), b"hello").unwrap(), 5);
        let (mut a, mut b) = ([0; 2], [0; 9]);
        assert_eq!(receive(far.as_fd(), &mut [&mut a, &mut b]).unwrap(), 5);
        assert_eq!((&a, &b[..3]), (b"he", &b"llo"[..]));
        shutdown_write(near.as_fd()).unwrap();
        assert_eq!(receive(far.as_fd(), &mut [&mut a]).unwrap(), 0);
        reset_on_close(far.as_fd()).unwrap();
        drop(far);
        let error = receive(near.as_fd(), &mut [&mut a]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn equal_datagrams_arrive_as_one() {
        let receiver = open(LOOPBACK, Kind::Datagram).unwrap();
        bind(receiver.as_fd(), (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        if NumberOption::UDP_GRO.set(receiver.as_fd(), 1).is_err() {
            return;
        }
        let sender = open(LOOPBACK, Kind::Datagram).unwrap();
        connect(sender.as_fd(), local_address(receiver.as_fd()).unwrap()).unwrap();
        NumberOption::UDP_SEGMENT.set(sender.as_fd(), 4).unwrap();
        assert_eq!(send(sender.as_fd(), b"abcdefghi").unwrap(), 9);
        let mut bytes = [0; 32];
        let got = receive_datagram(receiver.as_fd(), &mut [&mut bytes]).unwrap();
        assert_eq!((got.len, got.segment), (9, Some(4)));
    }

    #[test]
    fn an_address_survives_the_kernels_form() {
        for text in ["192.0.2.1:53", "[fe80::1%7]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let (mut storage, form) = (zeroed_storage(), Address::of(address));
            match form {
                // SAFETY: the storage is larger than any address and aligned for all of them.
                Address::Four(four) => unsafe {
                    (&raw mut storage).cast::<libc::sockaddr_in>().write(four);
                },
                // SAFETY: as above.
                Address::Six(six) => unsafe {
                    (&raw mut storage).cast::<libc::sockaddr_in6>().write(six);
                },
            }
            assert_eq!(address_of(&storage), Some(address));
        }
        assert_eq!(address_of(&zeroed_storage()), None);
    }
}
