//! Vsock sockets: a listening one and who connects to it, and one that is connected to the host.

#![expect(unsafe_code, reason = "no crate in use has addresses of vsock")]

use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

/// Connections that may wait: a host may start many commands at once.
const BACKLOG: i32 = 128;

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT`, as it takes a `timeval`.
const CONNECT_TIMEOUT: libc::c_int = 6;
/// How long the host may take to answer: it may be paused, or one of many machines' may be.
const CONNECT_PATIENCE_S: libc::time_t = 60;

/// The host's address.
pub const HOST: u32 = libc::VMADDR_CID_HOST;

/// Listens on `port`; descriptors are closed on exec and do not block.
///
/// # Errors
/// What the kernel says; `EAFNOSUPPORT` without vsock.
pub fn listen_on(port: u32) -> Result<OwnedFd, Errno> {
    let fd = socket()?;
    let address = libc::sockaddr_vm { svm_port: port, svm_cid: libc::VMADDR_CID_ANY, ..unknown() };
    // SAFETY: the address lives across the call and has the length given.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), address_len()) } != 0 {
        return Err(last_errno());
    }
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Begins to connect to `port` of the host; the socket is closed on exec, does not block, and is writable when it is connected.
///
/// # Errors
/// What the kernel says; `EAFNOSUPPORT` without vsock.
pub fn connect_to_host(port: u32) -> Result<OwnedFd, Errno> {
    let fd = socket()?;
    let patience = libc::timeval { tv_sec: CONNECT_PATIENCE_S, tv_usec: 0 };
    let len = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
    let (level, option) = (libc::AF_VSOCK, CONNECT_TIMEOUT);
    let place = (&raw const patience).cast();
    // SAFETY: the value lives across the call and has the length given. Without it the kernel's own patience counts.
    unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, place, len) };
    let address = libc::sockaddr_vm { svm_port: port, svm_cid: HOST, ..unknown() };
    // SAFETY: the address lives across the call and has the length given.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), address_len()) } != 0 {
        match last_errno() {
            Errno::INPROGRESS => {}
            errno => return Err(errno),
        }
    }
    Ok(fd)
}

/// Accepts a connection, which is closed on exec and does not block; it, and the address of who connected. Does not wait for one.
///
/// # Errors
/// `EAGAIN` when nobody waits, and what else the kernel says.
pub fn accept(listener: &OwnedFd) -> Result<(OwnedFd, u32), Errno> {
    // Asked in vain, vsock's accept sleeps until the next tick, 4 ms, also on a socket that does not block (`schedule_timeout(0)`).
    if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&Timespec::default()))? == 0 {
        return Err(Errno::AGAIN);
    }
    let (mut address, mut len) = (unknown(), address_len());
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let place = (&raw mut address).cast();
    // SAFETY: address and length live across the call, and the length is the address's.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), place, &raw mut len, flags) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = AddressFamily::from_raw(libc::AF_VSOCK.cast_unsigned().try_into().unwrap_or(0));
    socket_with(family, SocketType::STREAM, flags, None)
}

fn unknown() -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or(0),
        svm_reserved1: 0,
        svm_port: 0,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    }
}

fn address_len() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
