//! The header in front of every packet (VIRTIO 1.2 section 5.1.6).
//!
//! Invariant: what [`parse`] lets pass is true of the frame that follows: every offset lies inside its copied head, and nothing is asked
//! for that was not negotiated. Pure.

use openshell_usernet::link::{PartialChecksum, Segmentation};
use openshell_usernet::{Offload, Offloads};

/// With num_buffers, as always in a device of version 1.
pub const HEADER_BYTES: usize = 12;
/// Where num_buffers lies.
pub const NUM_BUFFERS_OFFSET: usize = 10;

/// Destination, source, type.
pub const ETHERNET_BYTES: usize = 14;
const VLAN_TAG_BYTES: usize = 4;
/// The longest frame: an IP packet of 65535 bytes behind an Ethernet header with a tag.
pub const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + VLAN_TAG_BYTES + 65535;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

const TCP_CHECKSUM_OFFSET: u16 = 16;
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// Why a packet of the driver is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header and an Ethernet header.
    #[error("the packet is too short")]
    TooShort,
    /// Longer than a packet may be, or than the MTU without being cut.
    #[error("the packet is too long")]
    TooLong,
    /// A partial checksum that was not negotiated or lies outside.
    #[error("the checksum fields do not fit the packet")]
    Checksum,
    /// To be cut in a way that was not negotiated or that makes no sense.
    #[error("the segmentation fields do not fit the packet")]
    Segmentation,
    /// `hdr_len` goes past the frame.
    #[error("the header length does not fit the packet")]
    HeaderLength,
}

fn field(bytes: &[u8; HEADER_BYTES], offset: usize) -> u16 {
    match bytes.get(offset..) {
        Some(&[low, high, ..]) => u16::from_le_bytes([low, high]),
        _ => 0,
    }
}

/// What the header `bytes` say of a frame of `frame_len` bytes that starts with `head`, to one who takes `taken` from the sender, at an MTU of
/// `mtu` bytes.
///
/// # Errors
/// [`Malformed`]: the packet is to be dropped.
pub fn parse(
    bytes: &[u8; HEADER_BYTES],
    head: &[u8],
    frame_len: usize,
    taken: Offloads,
    mtu: u16,
) -> Result<Offload, Malformed> {
    if head.len() < ETHERNET_BYTES {
        return Err(Malformed::TooShort);
    }
    if frame_len > MAX_FRAME_BYTES {
        return Err(Malformed::TooLong);
    }
    let &[flags, gso_type, ..] = bytes;
    if usize::from(field(bytes, 2)) > frame_len {
        return Err(Malformed::HeaderLength);
    }
    let checksum = match flags & NEEDS_CSUM {
        0 => None,
        _ => Some(partial_checksum(bytes, head, taken)?),
    };
    let segmentation = match gso_type {
        GSO_NONE => None,
        _ => Some(segmentation(gso_type, field(bytes, 4), checksum, taken)?),
    };
    let uncut = usize::from(mtu) + ETHERNET_BYTES + VLAN_TAG_BYTES;
    if segmentation.is_none() && frame_len > uncut {
        return Err(Malformed::TooLong);
    }
    Ok(Offload { checksum, segmentation, checksum_valid: false })
}

fn partial_checksum(
    bytes: &[u8; HEADER_BYTES],
    head: &[u8],
    taken: Offloads,
) -> Result<PartialChecksum, Malformed> {
    let (start, offset) = (field(bytes, 6), field(bytes, 8));
    let end = usize::from(start) + usize::from(offset) + 2;
    if !taken.checksum || usize::from(start) < ETHERNET_BYTES || end > head.len() {
        return Err(Malformed::Checksum);
    }
    Ok(PartialChecksum { start, offset })
}

fn segmentation(
    gso_type: u8,
    size: u16,
    checksum: Option<PartialChecksum>,
    taken: Offloads,
) -> Result<Segmentation, Malformed> {
    let (segmentation, is_taken, checksum_offset) = match gso_type {
        GSO_TCPV4 => (Segmentation::Tcp4(size), taken.tcp4, TCP_CHECKSUM_OFFSET),
        GSO_TCPV6 => (Segmentation::Tcp6(size), taken.tcp6, TCP_CHECKSUM_OFFSET),
        GSO_UDP_L4 => (Segmentation::Udp(size), taken.udp, UDP_CHECKSUM_OFFSET),
        _ => return Err(Malformed::Segmentation),
    };
    // Every packet that is cut needs a checksum of its own.
    let offset = checksum.map(|checksum| checksum.offset);
    if size == 0 || !is_taken || offset != Some(checksum_offset) {
        return Err(Malformed::Segmentation);
    }
    Ok(segmentation)
}

/// The header of a frame for the driver, which takes `offloads`; `head_len` bytes of it are protocol headers. `None` when the frame asks
/// for what the driver does not take. `num_buffers` is left at 0.
pub fn build(offload: Offload, head_len: usize, offloads: Offloads) -> Option<[u8; HEADER_BYTES]> {
    let mut flags = 0;
    let (mut start, mut offset) = (0, 0);
    if let Some(checksum) = offload.checksum {
        if !offloads.checksum {
            return None;
        }
        flags = NEEDS_CSUM;
        (start, offset) = (checksum.start, checksum.offset);
    } else if offload.checksum_valid && offloads.checksum {
        flags = DATA_VALID;
    }
    let (gso_type, size, taken) = match offload.segmentation {
        None => (GSO_NONE, 0, true),
        Some(Segmentation::Tcp4(size)) => (GSO_TCPV4, size, offloads.tcp4),
        Some(Segmentation::Tcp6(size)) => (GSO_TCPV6, size, offloads.tcp6),
        Some(Segmentation::Udp(size)) => (GSO_UDP_L4, size, offloads.udp),
    };
    if !taken || (offload.segmentation.is_some() && offload.checksum.is_none()) {
        return None;
    }
    let head_len = if gso_type == GSO_NONE { 0 } else { u16::try_from(head_len).ok()? };
    let [h0, h1] = head_len.to_le_bytes();
    let [g0, g1] = size.to_le_bytes();
    let [s0, s1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    Some([flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Offloads = Offloads { checksum: true, tcp4: true, tcp6: true, udp: true };

    fn header(flags: u8, gso_type: u8, fields: [u16; 4]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = flags;
        bytes[1] = gso_type;
        for (place, value) in bytes[2..10].chunks_mut(2).zip(fields) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// `parse` of a frame of so many bytes at an MTU of 1500.
    fn of(
        bytes: [u8; HEADER_BYTES],
        frame_len: usize,
        taken: Offloads,
    ) -> Result<Offload, Malformed> {
        let head = vec![0; frame_len.min(256)];
        parse(&bytes, &head, frame_len, taken, 1500)
    }

    #[test]
    fn fields_that_fit_are_taken() {
        let plain = header(0, GSO_NONE, [0; 4]);
        for len in [14, 60, 1514, 1518] {
            assert_eq!(of(plain, len, Offloads::default()), Ok(Offload::default()), "{len}");
        }
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let partial = header(NEEDS_CSUM, GSO_NONE, [54, 0, 34, 16]);
        assert_eq!(of(partial, 60, ALL), Ok(Offload { checksum, ..Offload::default() }));
        let cut = header(NEEDS_CSUM, GSO_TCPV4, [54, 1460, 34, 16]);
        let segmentation = Some(Segmentation::Tcp4(1460));
        let want = Offload { checksum, segmentation, checksum_valid: false };
        assert_eq!(of(cut, MAX_FRAME_BYTES, ALL), Ok(want));
        // A flag that only the device sets, and one that nobody knows, mean nothing here.
        assert_eq!(of(header(0xfe, GSO_NONE, [0; 4]), 60, ALL), Ok(Offload::default()));
    }

    #[test]
    fn fields_that_do_not_fit_are_refused() {
        use Malformed::{Checksum, HeaderLength, Segmentation, TooLong, TooShort};
        let tcp = [54, 1460, 34, 16];
        for (bytes, len, taken, want) in [
            (header(0, 0, [0; 4]), 13, ALL, TooShort),
            (header(0, 0, [0; 4]), 0, ALL, TooShort),
            (header(0, 0, [0; 4]), 1519, ALL, TooLong),
            (header(1, 1, tcp), MAX_FRAME_BYTES + 1, ALL, TooLong),
            (header(0, 0, [61, 0, 0, 0]), 60, ALL, HeaderLength),
            (header(1, 0, [0, 0, 34, 16]), 60, Offloads { checksum: false, ..ALL }, Checksum),
            (header(1, 0, [0, 0, 13, 16]), 60, ALL, Checksum),
            (header(1, 0, [0, 0, 34, 25]), 60, ALL, Checksum),
            (header(1, 0, [0, 0, u16::MAX, u16::MAX]), 1514, ALL, Checksum),
            (header(1, 0, [0, 0, 250, 16]), 1514, ALL, Checksum),
            (header(1, 1, tcp), 60, Offloads { tcp4: false, ..ALL }, Segmentation),
            (header(1, 4, tcp), 60, Offloads { tcp6: false, ..ALL }, Segmentation),
            (header(1, 5, [42, 1400, 34, 6]), 60, Offloads { udp: false, ..ALL }, Segmentation),
            (header(0, 1, tcp), 60, ALL, Segmentation),
            (header(1, 1, [54, 0, 34, 16]), 60, ALL, Segmentation),
            (header(1, 1, [54, 1460, 34, 6]), 60, ALL, Segmentation),
            (header(1, 5, tcp), 60, ALL, Segmentation),
            (header(1, 3, tcp), 60, ALL, Segmentation),
            (header(1, 0x81, tcp), 60, ALL, Segmentation),
            (header(1, 0x80, tcp), 60, ALL, Segmentation),
        ] {
            assert_eq!(of(bytes, len, taken), Err(want), "{bytes:?} {len}");
        }
    }

    #[test]
    fn a_driver_is_given_only_what_it_takes() {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let large = Offload {
            checksum,
            segmentation: Some(Segmentation::Tcp4(1460)),
            checksum_valid: false,
        };
        let want = header(NEEDS_CSUM, GSO_TCPV4, [54, 1460, 34, 16]);
        assert_eq!(build(large, 54, ALL), Some(want));
        assert_eq!(build(large, 54, Offloads { tcp4: false, ..ALL }), None);
        assert_eq!(build(large, 54, Offloads::default()), None);
        assert_eq!(build(Offload { checksum: None, ..large }, 54, ALL), None);
        let valid = Offload { checksum_valid: true, ..Offload::default() };
        assert_eq!(build(valid, 54, ALL), Some(header(DATA_VALID, 0, [0; 4])));
        assert_eq!(build(valid, 54, Offloads::default()), Some([0; HEADER_BYTES]));
        assert_eq!(build(Offload::default(), 70_000, ALL), Some([0; HEADER_BYTES]));
        assert_eq!(build(large, 70_000, ALL), None);
    }

    proptest! {
        #[test]
        fn what_passes_lies_inside(bytes: [u8; HEADER_BYTES], len in 0..70_000_usize, checksum: bool, udp: bool) {
            let head = vec![0; len.min(256)];
            let taken = Offloads { checksum, udp, ..ALL };
            if let Ok(offload) = parse(&bytes, &head, len, taken, 1500) {
                if let Some(PartialChecksum { start, offset }) = offload.checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= head.len());
                    prop_assert!(taken.checksum);
                }
                if offload.segmentation.is_some() {
                    prop_assert!(offload.checksum.is_some());
                } else {
                    prop_assert!(len <= 1518);
                }
            }
        }

        #[test]
        fn what_is_built_for_a_driver_the_device_would_take(
            start in 14..200_u16, size in 1..1500_u16, kind in 0..4_u8,
        ) {
            let (segmentation, offset) = match kind {
                0 => (None, 16),
                1 => (Some(Segmentation::Tcp4(size)), 16),
                2 => (Some(Segmentation::Tcp6(size)), 16),
                _ => (Some(Segmentation::Udp(size)), 6),
            };
            let checksum = Some(PartialChecksum { start, offset });
            let offload = Offload { checksum, segmentation, checksum_valid: false };
            let bytes = build(offload, 54, ALL).unwrap();
            prop_assert_eq!(of(bytes, 1000, ALL), Ok(offload));
        }
    }
}
