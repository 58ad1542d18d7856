//! What the host tells of its own accord: that a file's directory changed, and that its addresses did.
//!
//! Invariant: every descriptor made here is non-blocking and closed on exec. Any thread.

#![expect(unsafe_code, reason = "inotify and netlink are raw")]

use std::ffi::{CString, c_int};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Of rtnetlink: attribute headers have 4 bytes, message headers 16, address messages 8.
const ATTRIBUTE_HEADER: usize = 4;
const MESSAGE_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// A descriptor that becomes readable when something in one of `directories` changes. A directory that is not there is left out.
///
/// # Errors
/// What the host said.
pub fn directories<'a>(directories: impl Iterator<Item = &'a Path>) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    for directory in directories {
        add(fd.as_fd(), directory);
    }
    Ok(fd)
}

/// Adds a directory to those that `watch` tells of; one that is not there is left out.
pub fn add(watch: BorrowedFd<'_>, directory: &Path) {
    let events = libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO | libc::IN_CREATE | libc::IN_DELETE;
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return };
    // SAFETY: `path` ends in a zero byte and outlives the call.
    unsafe { libc::inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), events) };
}

/// Reads and forgets what waits in a descriptor that only tells that something happened; whether anything did.
pub fn clear(fd: BorrowedFd<'_>) -> bool {
    let mut bytes = [0; 4096];
    let mut any = false;
    // SAFETY: the kernel writes at most the length of `bytes`.
    while unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) } > 0 {
        any = true;
    }
    any
}

/// A socket that tells changes of the host's addresses, and all of them when asked with [`ask_addresses`].
///
/// # Errors
/// What the host said.
pub fn addresses() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only.
    let fd = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
    // SAFETY: a plain C structure; all zero bytes are the kernel's own address.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or_default();
    address.nl_groups = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR).cast_unsigned();
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: `address` outlives the call and has `len` bytes.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Asks for every address of the host.
///
/// # Errors
/// What the host said.
pub fn ask_addresses(netlink: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = Vec::with_capacity(MESSAGE_HEADER + ADDRESS_HEADER);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let len = u32::try_from(MESSAGE_HEADER + ADDRESS_HEADER).unwrap_or_default();
    request.extend_from_slice(&ne(len));
    request.extend_from_slice(&ne_half(libc::RTM_GETADDR));
    request.extend_from_slice(&ne_half(u16::try_from(flags).unwrap_or_default()));
    request.extend_from_slice(&[0; 8]); // sequence and sender
    request.extend_from_slice(&[0; ADDRESS_HEADER]); // of every family
    super::inet::send(netlink, &request).map(drop)
}

/// What one read of the netlink socket told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Told {
    /// Addresses that the host has.
    pub have: Vec<IpAddr>,
    /// Addresses that it has no more.
    pub gone: Vec<IpAddr>,
    /// The answer to [`ask_addresses`] is complete.
    pub complete: bool,
}

/// Reads what waits; nothing is left out of `into` but what was told is added to it. False: nothing waits.
///
/// # Errors
/// What the host said; `ENOBUFS`: changes were lost, and all must be asked for again.
pub fn read_addresses(netlink: BorrowedFd<'_>, into: &mut Told) -> io::Result<bool> {
    let mut bytes = vec![0; 32 << 10];
    match super::inet::receive(netlink, &mut [&mut bytes]) {
        Ok(len) => {
            parse(&bytes[..len], into);
            Ok(len > 0)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse(mut bytes: &[u8], into: &mut Told) {
    while let Some(len) = word(bytes).filter(|&len| len >= MESSAGE_HEADER && len <= bytes.len()) {
        let (message, kind) = (&bytes[..len], half(&bytes[4..]));
        let body = &message[MESSAGE_HEADER..];
        match kind {
            Some(libc::RTM_NEWADDR) => into.have.extend(address(body)),
            Some(libc::RTM_DELADDR) => into.gone.extend(address(body)),
            Some(kind) if c_int::from(kind) == libc::NLMSG_DONE => into.complete = true,
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The address of an address message: the local one where the attribute of the peer differs.
fn address(body: &[u8]) -> Option<IpAddr> {
    let mut attributes = body.get(ADDRESS_HEADER..)?;
    let mut found = None;
    while let Some(len) = half(attributes)
        .map(usize::from)
        .filter(|&len| len >= ATTRIBUTE_HEADER && len <= attributes.len())
    {
        let data = &attributes[ATTRIBUTE_HEADER..len];
        let ip = data
            .first_chunk::<16>()
            .map(|six| IpAddr::from(*six))
            .or_else(|| data.first_chunk::<4>().map(|four| IpAddr::from(*four)));
        match half(&attributes[2..]) {
            Some(libc::IFA_LOCAL) => return ip,
            Some(libc::IFA_ADDRESS) => found = ip,
            _ => {}
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made the descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's order")]
fn ne(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's order")]
fn ne_half(value: u16) -> [u8; 2] {
    value.to_ne_bytes()
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's order")]
fn word(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes) as usize)
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's order")]
fn half(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hosts_addresses_are_told() {
        let netlink = addresses().unwrap();
        ask_addresses(netlink.as_fd()).unwrap();
        let mut told = Told::default();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !told.complete && Instant::now() < deadline {
            read_addresses(netlink.as_fd(), &mut told).unwrap();
        }
        assert!(told.complete && told.gone.is_empty());
    }

    #[test]
    fn a_change_of_a_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let watch = directories([directory.path(), missing.as_path()].into_iter()).unwrap();
        assert!(!clear(watch.as_fd()));
        std::fs::write(directory.path().join("resolv.conf"), "x").unwrap();
        assert!(clear(watch.as_fd()));
        assert!(!clear(watch.as_fd()));
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_left(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            parse(&bytes, &mut Told::default());
        }

        #[test]
        fn any_body_is_read_or_left(body in prop::collection::vec(any::<u8>(), 0..64), kind in 16_u16..24) {
            let mut bytes = ne(u32::try_from(MESSAGE_HEADER + body.len()).unwrap()).to_vec();
            bytes.extend_from_slice(&ne_half(kind));
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&body);
            let mut told = Told::default();
            parse(&bytes, &mut told);
            prop_assert!(told.have.len() + told.gone.len() <= 1);
        }
    }
}
