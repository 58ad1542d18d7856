//! Segments to the guest.

use crate::link::{LinkFull, Offload, PartialChecksum, Payload, Segmentation};
use crate::table::FlowKey;
use crate::turn::Turn;
use crate::wire::{Headers, Macs, Sum, TcpHeader, protocol};

/// The longest IP packet.
const MAX_PACKET: usize = 65_535;

/// Bytes of an IP header of ours to this guest.
pub(super) const fn ip_header_len(key: &FlowKey) -> usize {
    if key.guest.address.to_ipv4_mapped().is_some() { 20 } else { 40 }
}

/// How many bytes of payload one frame to the guest may carry: a whole number of segments of `mss` bytes where it cuts frames
/// itself.
pub(super) fn frame_payload<P: Payload>(turn: &Turn<'_, P>, key: &FlowKey, mss: u16) -> usize {
    let offloads = turn.link.offloads();
    let (header, cuts) = match ip_header_len(key) {
        20 => (20, offloads.tcp4),
        _ => (40, offloads.tcp6),
    };
    let mss = usize::from(mss);
    if !(cuts && offloads.checksum) {
        return mss;
    }
    let most = MAX_PACKET - header - TcpHeader::LEN;
    most - most % mss
}

/// Sends one segment, or several as one frame when `body` is longer than `mss`.
pub(super) fn emit<P: Payload>(
    turn: &mut Turn<'_, P>,
    macs: Macs,
    key: &FlowKey,
    header: &TcpHeader,
    mss: u16,
    body: [&[u8]; 2],
) -> Result<(), LinkFull> {
    let body_len = body[0].len() + body[1].len();
    let header_len = header.built_len();
    let (source, destination) = (key.remote.ip(), key.guest.ip());
    let tcp_len = header_len + body_len;
    let mut headers = Headers::ip(macs, source, destination, protocol::TCP, tcp_len);
    // A packet is at most 65,535 bytes long.
    let sum_len = u32::try_from(tcp_len).unwrap_or(u32::MAX);
    let pseudo = Sum::pseudo(source, destination, protocol::TCP, sum_len);
    let mut offload = Offload::default();
    let bytes = if turn.link.offloads().checksum {
        let start = u16::try_from(headers.len()).unwrap_or(u16::MAX);
        let offset = TcpHeader::CHECKSUM_OFFSET;
        offload.checksum = Some(PartialChecksum { start, offset });
        header.build(pseudo.partial())
    } else {
        header.build_summed(pseudo, &body)
    };
    if body_len > usize::from(mss) {
        offload.segmentation = Some(match ip_header_len(key) {
            20 => Segmentation::Tcp4(mss),
            _ => Segmentation::Tcp6(mss),
        });
    }
    headers.push(bytes.get(..header_len).unwrap_or(&bytes));
    turn.send(offload, headers.as_bytes(), &body)
}
