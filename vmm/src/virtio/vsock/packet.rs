//! Packet headers (VIRTIO 1.2 section 5.10.6).
//!
//! Invariant: parsing takes a copy that the guest can't change any more, and accepts every 44 bytes; what the fields mean is
//! judged by [`super::mux`]. Any thread.

/// Length of a header on the wire.
pub(super) const HEADER_BYTES: usize = 44;

/// The host's context id.
pub(super) const HOST_CID: u64 = 2;

/// Socket type: a byte stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// Flag of SHUTDOWN: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;

/// Flag of SHUTDOWN: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;

/// Operations of stream sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Ends or refuses a connection.
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Payload.
    ReadWrite = 5,
    /// The header's credit fields are news.
    CreditUpdate = 6,
    /// Asks for a [`Self::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation numbered `raw`, where there is one.
    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet header, fields as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Context id of the sender.
    pub(super) src_cid: u64,
    /// Context id of the receiver.
    pub(super) dst_cid: u64,
    /// Port of the sender.
    pub(super) src_port: u32,
    /// Port of the receiver.
    pub(super) dst_port: u32,
    /// Payload bytes after the header.
    pub(super) len: u32,
    /// [`TYPE_STREAM`], or something this device does not serve.
    pub(super) kind: u16,
    /// An [`Op`], or a number without one.
    pub(super) op: u16,
    /// Meaning depends on the operation.
    pub(super) flags: u32,
    /// Receive buffer of the sender, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes that left the sender's receive buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads the fields out of their wire form.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The wire form.
    pub(super) fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let (cids, rest) = bytes.split_at_mut(16);
        cids[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        cids[8..].copy_from_slice(&self.dst_cid.to_le_bytes());
        let kind_and_op = u32::from(self.kind) | u32::from(self.op) << 16;
        let words = [
            self.src_port,
            self.dst_port,
            self.len,
            kind_and_op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        for (slot, word) in rest.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The answer that says there is no such connection.
    pub(super) fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Reset as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn every_header_survives_the_round_trip(low in any::<[u8; 32]>(), high in any::<[u8; 12]>()) {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..32].copy_from_slice(&low);
            bytes[32..].copy_from_slice(&high);
            assert_eq!(Header::parse(&bytes).emit(), bytes);
        }
    }

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let mut bytes = [0; HEADER_BYTES];
        for (value, byte) in (0..).zip(&mut bytes) {
            *byte = value;
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
    }
}
