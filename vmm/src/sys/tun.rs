//! Tap devices: opened by name, in a network namespace where one is given.
//!
//! Invariant: no thread that outlives the call changes its namespace. A tap is non-blocking, and every frame of it starts with a vnet
//! header of [`HEADER_LEN`] bytes.

#![expect(unsafe_code, reason = "ioctls of /dev/net/tun, setns and vectored I/O are raw")]

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use smallvec::SmallVec;

/// Bytes of the header before each frame: that of VIRTIO 1.2 section 5.1.6, with the number of buffers.
pub const HEADER_LEN: usize = 12;
/// Bytes of the longest name of an interface.
pub const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// What the reader of a tap takes upon itself: checksums to be filled in, frames to be cut. linux/if_tun.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TapOffloads(c_uint);

impl TapOffloads {
    /// All that there are: checksums, TCP over IPv4 and IPv6, UDP.
    const LADDER: [Self; 4] = [
        Self(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | Self::USO),
        Self(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6),
        Self(libc::TUN_F_CSUM),
        Self(0),
    ];
    const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

    /// Checksums may be partial.
    #[must_use]
    pub fn checksum(self) -> bool {
        self.0 & libc::TUN_F_CSUM != 0
    }

    /// Frames may be TCP to be cut.
    #[must_use]
    pub fn tcp(self) -> bool {
        self.0 & libc::TUN_F_TSO4 != 0
    }

    /// Frames may be UDP to be cut.
    #[must_use]
    pub fn udp(self) -> bool {
        self.0 & Self::USO != 0
    }
}

/// Opens the tap `name`, which is made when there is none, in the namespace of this process or in `netns`. With `offloads`
/// it has the most that the host's kernel knows.
///
/// # Errors
/// What the host said, of the namespace first.
pub fn open(name: &str, netns: Option<&Path>, offloads: bool) -> io::Result<(File, TapOffloads)> {
    let Some(path) = netns else { return open_here(name, offloads) };
    let namespace = OwnedFd::from(File::open(path)?);
    let name = name.to_owned();
    // A thread of its own: namespaces are entered by threads, and this one is never to be anywhere else.
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        // SAFETY: takes numbers only; it moves this thread alone, which ends below.
        done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        open_here(&name, offloads)
    })?;
    thread.join().map_err(|_| io::Error::other("the thread in the namespace ended early"))?
}

fn open_here(name: &str, offloads: bool) -> io::Result<(File, TapOffloads)> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.bytes().any(|byte| byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = nonblocking()?;
    // SAFETY: a plain C structure; all zero bytes are a request for nothing.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_le_bytes([byte]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: `request` is an ifreq, which the kernel reads and writes during the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let header_len: c_int = HEADER_LEN.try_into().unwrap_or_default();
    // SAFETY: the kernel reads one int.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len) })?;
    let wanted = if offloads { 0 } else { TapOffloads::LADDER.len() - 1 };
    for offered in &TapOffloads::LADDER[wanted..] {
        let bits = libc::c_ulong::from(offered.0);
        // SAFETY: takes numbers only.
        match done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, bits) }) {
            Ok(()) => return Ok((file, *offered)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

/// The hardware address of the tap's interface, which is that of whoever is behind it.
///
/// # Errors
/// What the host said.
pub fn hardware_address(tap: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    // SAFETY: a plain C structure; all zero bytes are a request for nothing.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: `request` is an ifreq, which the kernel writes during the call; a tap takes this request itself.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: the request that was answered writes this member.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut bytes = [0; 6];
    for (byte, value) in bytes.iter_mut().zip(address.sa_data) {
        [*byte] = value.to_le_bytes();
    }
    Ok(bytes)
}

/// Gives the tap's interface this hardware address.
///
/// # Errors
/// What the host said: `EBUSY` while the interface is up and its driver does not change it then.
pub fn set_hardware_address(tap: BorrowedFd<'_>, address: [u8; 6]) -> io::Result<()> {
    // SAFETY: a plain C structure; all zero bytes are a request for nothing.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let mut data = [0; 14];
    for (place, byte) in data.iter_mut().zip(address) {
        *place = libc::c_char::from_le_bytes([byte]);
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    // SAFETY: `request` is an ifreq, which the kernel reads during the call.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) })
}

fn nonblocking() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// Reads one frame with its header into `into`, one piece after the other; the bytes read. Of a frame that is longer the end is lost.
///
/// # Errors
/// `WouldBlock` when there is none; what the host said otherwise.
pub fn read_frame(tap: BorrowedFd<'_>, into: &mut [&mut [u8]]) -> io::Result<usize> {
    let vectors: SmallVec<[libc::iovec; 4]> = into
        .iter_mut()
        .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
        .collect();
    let count = c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the vectors name the pieces of `into`, which are borrowed for writing during the call.
    let got = unsafe { libc::readv(tap.as_fd().as_raw_fd(), vectors.as_ptr(), count) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
