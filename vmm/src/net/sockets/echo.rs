//! Echo sockets: the kernel's own kind where this user may have it, raw ones where that is allowed, none otherwise.
//!
//! Invariant: only replies to what was sent here are handed on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use openshell_usernet::sockets::HostError;

use crate::sys::inet::{self, Kind, NumberOption};
use crate::sys::random;

use super::told;

const HEADER_BYTES: usize = 8;
const MAX_IP_HEADER_BYTES: usize = 60;

/// A socket for echo requests to one peer.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) fd: OwnedFd,
    /// Type of a request and of a reply.
    types: (u8, u8),
    /// Of a raw socket: its identifier.
    identifier: Option<u16>,
    /// What is read starts with an IP header.
    behind_ip: bool,
}

impl Echo {
    pub(super) fn connect(peer: SocketAddr) -> io::Result<Self> {
        let refused =
            |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
        let (fd, raw) = match inet::open(peer.ip(), Kind::Ping) {
            Err(error) if refused(&error) => (inet::open(peer.ip(), Kind::RawIcmp)?, true),
            opened => (opened?, false),
        };
        if raw {
            inet::echo_replies_only(fd.as_fd(), peer.ip())?;
        }
        inet::connect(fd.as_fd(), SocketAddr::new(peer.ip(), 0))?;
        NumberOption::keep_errors(peer.ip()).set(fd.as_fd(), 1).ok();
        let four = matches!(peer.ip(), IpAddr::V4(_));
        let identifier = random::array()?;
        Ok(Self {
            fd,
            types: if four { (8, 0) } else { (128, 129) },
            identifier: raw.then_some(u16::from_be_bytes(identifier)),
            behind_ip: raw && four,
        })
    }

    pub(super) fn send(&self, sequence: u16, data: &[u8]) -> Result<(), HostError> {
        let mut message = Vec::with_capacity(HEADER_BYTES + data.len());
        message.extend_from_slice(&[self.types.0, 0, 0, 0]);
        message.extend_from_slice(&self.identifier.unwrap_or(0).to_be_bytes());
        message.extend_from_slice(&sequence.to_be_bytes());
        message.extend_from_slice(data);
        if self.behind_ip {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        match inet::send(self.fd.as_fd(), &message) {
            Ok(_) => Ok(()),
            // A request may be lost.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(told(&error)),
        }
    }

    pub(super) fn receive(&self, into: &mut [u8]) -> Result<Option<(u16, usize)>, HostError> {
        let mut message = vec![0; into.len() + HEADER_BYTES + MAX_IP_HEADER_BYTES];
        loop {
            let len = match inet::receive(self.fd.as_fd(), &mut [&mut message]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(told(&error)),
            };
            if let Some((sequence, data)) = self.reply(&message[..len]) {
                let count = data.len().min(into.len());
                into[..count].copy_from_slice(&data[..count]);
                return Ok(Some((sequence, count)));
            }
        }
    }

    /// Sequence number and data of a reply to a request of ours.
    fn reply<'a>(&self, packet: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let message = if self.behind_ip {
            let header_bytes = usize::from(packet.first()? & 0xf) * 4;
            packet.get(header_bytes..)?
        } else {
            packet
        };
        let (&[kind, _, _, _, id_high, id_low, high, low], data) =
            message.split_first_chunk::<HEADER_BYTES>()?;
        let ours = self.identifier.is_none_or(|own| own == u16::from_be_bytes([id_high, id_low]));
        (kind == self.types.1 && ours).then_some((u16::from_be_bytes([high, low]), data))
    }
}

/// The Internet checksum of `bytes`, whose own field is zero.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_to_nothing() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xff, 0xff, 7];
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&message), 0);
    }

    fn echo(identifier: Option<u16>, behind_ip: bool) -> Echo {
        let fd = inet::open(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), Kind::Datagram).unwrap();
        Echo { fd, types: (8, 0), identifier, behind_ip }
    }

    #[test]
    fn only_replies_to_own_requests_are_handed_on() {
        let raw = echo(Some(0x0102), true);
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend_from_slice(&[0, 0, 0, 0, 1, 2, 0, 9, 5]);
        assert_eq!(raw.reply(&packet), Some((9, &[5][..])));
        packet[25] = 3;
        assert_eq!(raw.reply(&packet), None, "another's identifier");
        packet[25] = 2;
        packet[20] = 3;
        assert_eq!(raw.reply(&packet), None, "not a reply");
        assert_eq!(echo(None, false).reply(&[0, 0, 0, 0, 9, 9, 1, 0]), Some((256, &[][..])));
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_left(packet in prop::collection::vec(any::<u8>(), 0..80)) {
            echo(Some(1), true).reply(&packet);
            echo(None, false).reply(&packet);
        }
    }
}
