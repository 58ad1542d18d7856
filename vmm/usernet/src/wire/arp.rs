//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::{Mac, Malformed, Part};

/// What an ARP packet asks or says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArpOperation {
    /// Who has the target's address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpPacket {
    /// Question or answer.
    pub operation: ArpOperation,
    /// Of the sender.
    pub sender_mac: Mac,
    /// Of the sender; `0.0.0.0` in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// Of the target; means nothing in a request.
    pub target_mac: Mac,
    /// Of the target.
    pub target: Ipv4Addr,
}

impl ArpPacket {
    /// Its bytes.
    pub const LEN: usize = 28;

    /// Reads it from what follows an Ethernet header.
    ///
    /// # Errors
    /// It is too short, not for IPv4 over Ethernet, or neither request nor reply.
    pub fn parse(part: Part<'_>) -> Result<Self, Malformed> {
        let (bytes, _) = part.split::<{ Self::LEN }>()?;
        let Some(rest) = bytes.strip_prefix(&[0, 1, 8, 0, 6, 4]) else {
            return Err(Malformed::Version);
        };
        let [0, operation, fields @ ..] = rest else { return Err(Malformed::Version) };
        let operation = match operation {
            1 => ArpOperation::Request,
            2 => ArpOperation::Reply,
            _ => return Err(Malformed::Version),
        };
        let fields: &[u8; 20] = fields.try_into().map_err(|_| Malformed::Truncated)?;
        let mac = |at: usize| {
            let mut mac = [0; 6];
            mac.copy_from_slice(&fields[at..at + 6]);
            Mac(mac)
        };
        let address =
            |at: usize| Ipv4Addr::new(fields[at], fields[at + 1], fields[at + 2], fields[at + 3]);
        Ok(Self {
            operation,
            sender_mac: mac(0),
            sender: address(6),
            target_mac: mac(10),
            target: address(16),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn build(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        out[7] = match self.operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
        };
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..].copy_from_slice(&self.target.octets());
        out
    }
}
