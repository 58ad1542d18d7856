//! ICMP for IPv4 (RFC 792) and for IPv6 (RFC 4443): the eight bytes that both begin with.

use super::{Malformed, Part, Sum};

/// Types and codes of ICMP for IPv4.
pub mod icmpv4 {
    /// The answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// The destination cannot be reached; the code says why.
    pub const UNREACHABLE: u8 = 3;
    /// Slow down (obsolete, an error message).
    pub const SOURCE_QUENCH: u8 = 4;
    /// There is a better way (an error message).
    pub const REDIRECT: u8 = 5;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 8;
    /// No hops left, or fragments that did not all come in time (code 1).
    pub const TIME_EXCEEDED: u8 = 11;
    /// A header that makes no sense.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Code of [`UNREACHABLE`]: no way to the network.
    pub const NET: u8 = 0;
    /// Code of [`UNREACHABLE`]: no way to the host.
    pub const HOST: u8 = 1;
    /// Code of [`UNREACHABLE`]: the host does not speak the protocol.
    pub const PROTOCOL: u8 = 2;
    /// Code of [`UNREACHABLE`]: nobody listens.
    pub const PORT: u8 = 3;
    /// Code of [`UNREACHABLE`]: it would have to be cut and must not be; the MTU comes along.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Code of [`UNREACHABLE`]: forbidden.
    pub const PROHIBITED: u8 = 13;
}

/// Types and codes of ICMP for IPv6.
pub mod icmpv6 {
    /// The destination cannot be reached; the code says why. Types below 128 are error messages.
    pub const UNREACHABLE: u8 = 1;
    /// It exceeds a link's MTU, which comes along.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// No hops left, or fragments that did not all come in time (code 1).
    pub const TIME_EXCEEDED: u8 = 3;
    /// A header that makes no sense.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 128;
    /// The answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Asks for routers.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// A router says what there is.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Asks for a neighbor's hardware address.
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// A neighbor's hardware address.
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// Types of neighbor discovery, redirects included; such messages are never forwarded.
    pub const NEIGHBOR_DISCOVERY: std::ops::RangeInclusive<u8> = ROUTER_SOLICITATION..=137;

    /// Code of [`UNREACHABLE`]: no way there.
    pub const NO_ROUTE: u8 = 0;
    /// Code of [`UNREACHABLE`]: forbidden.
    pub const PROHIBITED: u8 = 1;
    /// Code of [`UNREACHABLE`]: the address cannot be reached.
    pub const ADDRESS: u8 = 3;
    /// Code of [`UNREACHABLE`]: nobody listens.
    pub const PORT: u8 = 4;
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Icmp {
    /// For IPv4.
    V4,
    /// For IPv6.
    V6,
}

impl Icmp {
    /// Its number above IP, one of [`super::protocol`].
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::V4 => super::protocol::ICMP,
            Self::V6 => super::protocol::ICMPV6,
        }
    }

    /// Whether messages of this type report errors: to such, no error is ever reported. Types that nobody knows count as errors
    /// where the RFCs say so.
    #[must_use]
    pub const fn is_error(self, kind: u8) -> bool {
        match self {
            Self::V4 => matches!(
                kind,
                icmpv4::UNREACHABLE
                    | icmpv4::SOURCE_QUENCH
                    | icmpv4::REDIRECT
                    | icmpv4::TIME_EXCEEDED
                    | icmpv4::PARAMETER_PROBLEM
            ),
            Self::V6 => kind < 128 || kind == 137,
        }
    }

    /// Whether this is an echo request.
    #[must_use]
    pub const fn is_echo_request(self, kind: u8) -> bool {
        match self {
            Self::V4 => kind == icmpv4::ECHO_REQUEST,
            Self::V6 => kind == icmpv6::ECHO_REQUEST,
        }
    }

    /// The type of an echo reply.
    #[must_use]
    pub const fn echo_reply(self) -> u8 {
        match self {
            Self::V4 => icmpv4::ECHO_REPLY,
            Self::V6 => icmpv6::ECHO_REPLY,
        }
    }
}

/// The first eight bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpHeader {
    /// What the message is.
    pub kind: u8,
    /// What more precisely.
    pub code: u8,
    /// Four bytes whose meaning the type decides.
    pub rest: [u8; 4],
}

impl IcmpHeader {
    /// Its bytes.
    pub const LEN: usize = 8;

    /// An echo request or reply of this type.
    #[must_use]
    pub const fn echo(kind: u8, identifier: u16, sequence: u16) -> Self {
        let ([a, b], [c, d]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
        Self { kind, code: 0, rest: [a, b, c, d] }
    }

    /// Identifier of an echo message.
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        u16::from_be_bytes([self.rest[0], self.rest[1]])
    }

    /// Sequence number of an echo message.
    #[must_use]
    pub const fn sequence(&self) -> u16 {
        u16::from_be_bytes([self.rest[2], self.rest[3]])
    }

    /// Reads it; what follows it comes too.
    ///
    /// # Errors
    /// Too short.
    pub fn parse(part: Part<'_>) -> Result<(Self, Part<'_>), Malformed> {
        let ([kind, code, _, _, a, b, c, d], rest) = part.split()?;
        Ok((Self { kind: *kind, code: *code, rest: [*a, *b, *c, *d] }, rest))
    }

    /// Its bytes, with the checksum of header and `body`. `pseudo` is the sum of the pseudo-header for IPv6 and empty for IPv4.
    #[must_use]
    pub fn build(&self, pseudo: Sum, body: &[&[u8]]) -> [u8; Self::LEN] {
        let [a, b, c, d] = self.rest;
        let mut out = [self.kind, self.code, 0, 0, a, b, c, d];
        let sum = body.iter().fold(pseudo.with(&out), |sum, piece| sum.with(piece));
        out[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        out
    }
}
