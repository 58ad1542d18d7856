//! Route netlink: interfaces, addresses and routes, as much of it as a guest's set-up needs.
//!
//! [`Message`] builds requests and is pure; [`Socket`] sends one and waits for the kernel's answer. x86-64 only: numbers
//! are little endian.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::config::Prefix;

const HEADER_LEN: usize = 16;
const ACK: u16 = 4;
const REQUEST: u16 = 1;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const ANSWER_ERROR: u16 = 2;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const INET: u8 = 2;
const UP: u32 = 1;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_le_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST | ACK).to_le_bytes());
        bytes.extend(fixed);
        Self { bytes }
    }

    /// Appends an attribute; values are a few bytes.
    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("attributes are short");
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds what `fill` appends.
    fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let begin = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_le_bytes());
        let mut filled = fill(self);
        let len = u16::try_from(filled.bytes.len() - begin).expect("attributes are short");
        filled.bytes[begin..begin + 2].copy_from_slice(&len.to_le_bytes());
        filled
    }

    fn plain(mut self, value: &[u8]) -> Self {
        self.bytes.extend(value);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("requests are short");
        self.bytes[..4].copy_from_slice(&len.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_le_bytes());
        self.bytes
    }

    /// Sets an interface up, with another MTU if one is given.
    #[must_use]
    pub fn link_up(index: u32, mtu: Option<u16>) -> Self {
        let message = Self::new(NEW_LINK, 0, &link(index, UP, UP));
        match mtu {
            Some(mtu) => message.attribute(4, &u32::from(mtu).to_le_bytes()),
            None => message,
        }
    }

    /// Sets an interface's MTU.
    #[must_use]
    pub fn link_mtu(index: u32, mtu: u16) -> Self {
        Self::new(NEW_LINK, 0, &link(index, 0, 0)).attribute(4, &u32::from(mtu).to_le_bytes())
    }

    /// Sets an interface down.
    #[must_use]
    pub fn link_down(index: u32) -> Self {
        Self::new(NEW_LINK, 0, &link(index, 0, UP))
    }

    /// Makes a pair of connected interfaces.
    #[must_use]
    pub fn veth(name: &str, peer: &str) -> Self {
        Self::new(NEW_LINK, CREATE | EXCLUSIVE, &link(0, 0, 0))
            .attribute(3, &terminated(name))
            .nested(18, |info| {
                info.attribute(1, b"veth").nested(2, |data| {
                    data.nested(1, |end| end.plain(&link(0, 0, 0)).attribute(3, &terminated(peer)))
                })
            })
    }

    /// Moves an interface into the network namespace of a descriptor.
    #[must_use]
    pub fn link_to_namespace(index: u32, namespace: i32) -> Self {
        Self::new(NEW_LINK, 0, &link(index, 0, 0)).attribute(28, &namespace.to_le_bytes())
    }

    /// Removes an interface.
    #[must_use]
    pub fn delete_link(index: u32) -> Self {
        Self::new(DELETE_LINK, 0, &link(index, 0, 0))
    }

    /// Gives an interface an address.
    #[must_use]
    pub fn address(index: u32, prefix: Prefix) -> Self {
        let [a, b, c, d] = index.to_le_bytes();
        let message =
            Self::new(NEW_ADDRESS, CREATE | EXCLUSIVE, &[INET, prefix.len, 0, 0, a, b, c, d]);
        let octets = prefix.address.octets();
        let message = message.attribute(2, &octets).attribute(1, &octets);
        // A subnet of two addresses or one has no broadcast address.
        if prefix.len > 30 {
            return message;
        }
        let host = u32::MAX.checked_shr(u32::from(prefix.len)).unwrap_or(0);
        message.attribute(4, &(prefix.address.to_bits() | host).to_be_bytes())
    }

    /// The route to everywhere, or to one subnet.
    #[must_use]
    pub fn route(to: Option<Prefix>, via: Option<Ipv4Addr>, index: Option<u32>) -> Self {
        let len = to.map_or(0, |to| to.len);
        // Main table, made at boot, unicast. Without a router what is meant lies on the link.
        let scope = if via.is_some() { 0 } else { 253 };
        let fixed = [INET, len, 0, 0, 254, 3, scope, 1, 0, 0, 0, 0];
        let mut message = Self::new(NEW_ROUTE, CREATE | EXCLUSIVE, &fixed);
        if let Some(to) = to {
            message = message.attribute(1, &to.address.octets());
        }
        if let Some(via) = via {
            message = message.attribute(5, &via.octets());
        }
        match index {
            Some(index) => message.attribute(4, &index.to_le_bytes()),
            None => message,
        }
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_le_bytes());
    fixed.extend(flags.to_le_bytes());
    fixed.extend(change.to_le_bytes());
    fixed
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A socket to the kernel's routing tables.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, Errno> {
        // Protocol 0 is the routing one.
        let fd =
            net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// The number of an interface.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub fn index(&self, name: &str) -> Result<u32, Errno> {
        netdevice::name_to_index(&self.fd, name)
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn ask(&mut self, message: Message) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        net::send(&self.fd, &message.finish(self.sequence), SendFlags::empty())?;
        let mut buffer = [0_u8; 4096];
        loop {
            let (len, _) = net::recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            let answer = buffer.get(..len).unwrap_or_default();
            if let Some(result) = result_of(answer, self.sequence) {
                return result;
            }
        }
    }
}

/// The kernel's verdict on the request with this number, if the datagram is that.
fn result_of(bytes: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        bytes.try_into().ok().map(i32::from_le_bytes)
    };
    let kind = bytes.get(4..6)?;
    if kind != ANSWER_ERROR.to_le_bytes() || number(8)? != sequence.cast_signed() {
        return None;
    }
    Some(match number(HEADER_LEN)? {
        0 => Ok(()),
        negative => Err(Errno::from_raw_os_error(negative.saturating_neg())),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_have_the_lengths_they_say() {
        let prefix = Prefix { address: [10, 200, 0, 1].into(), len: 24 };
        for message in [
            Message::link_up(2, Some(1500)),
            Message::link_down(2),
            Message::veth("veth-a", "veth-bb"),
            Message::link_to_namespace(3, 5),
            Message::delete_link(4),
            Message::address(2, prefix),
            Message::route(None, Some([10, 200, 0, 1].into()), Some(2)),
            Message::route(Some(prefix), None, Some(2)),
        ] {
            let bytes = message.finish(9);
            assert_eq!(bytes[..4], u32::try_from(bytes.len()).unwrap().to_le_bytes());
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(bytes[8..12], 9_u32.to_le_bytes());
        }
    }

    #[test]
    fn an_address_has_the_broadcast_address_of_its_subnet() {
        for (len, expected) in
            [(24, Some([10, 1, 2, 255])), (30, Some([10, 1, 2, 3])), (31, None), (32, None)]
        {
            let prefix = Prefix { address: [10, 1, 2, 2].into(), len };
            let bytes = Message::address(1, prefix).finish(1);
            let last = (bytes.len() > 40).then(|| bytes[44..48].to_vec());
            assert_eq!(last, expected.map(Vec::from), "{len}");
        }
    }

    #[test]
    fn only_the_answer_to_a_request_is_its_result() {
        let answer = |kind: u16, sequence: u32, code: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&kind.to_le_bytes());
            bytes[8..12].copy_from_slice(&sequence.to_le_bytes());
            bytes[16..20].copy_from_slice(&code.to_le_bytes());
            bytes
        };
        assert_eq!(result_of(&answer(2, 7, 0), 7), Some(Ok(())));
        assert_eq!(result_of(&answer(2, 7, -17), 7), Some(Err(Errno::EXIST)));
        assert_eq!(result_of(&answer(2, 6, 0), 7), None);
        assert_eq!(result_of(&answer(16, 7, 0), 7), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..64), sequence in any::<u32>()) {
            _ = result_of(&bytes, sequence);
        }
    }
}
