//! Feature bits and configuration space (VIRTIO 1.2 sections 5.1.3 and 5.1.4).
//!
//! Invariant: a bit that needs another one is looked at together with it, so that a driver which accepts half of a pair gets neither.
//! Pure.

use openshell_usernet::Offloads;

use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};

/// The device takes packets with partial checksums.
pub const CSUM: u64 = 1 << 0;
/// The driver takes packets with partial checksums.
pub const GUEST_CSUM: u64 = 1 << 1;
/// What the driver takes can be changed while it runs.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The configuration names the MTU.
pub const MTU: u64 = 1 << 3;
/// The configuration names the address.
pub const MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 uncut.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 uncut.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The device takes TCP over IPv4 uncut.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 uncut.
pub const HOST_TSO6: u64 = 1 << 12;
/// One packet may fill several receive buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The configuration says whether the link is up.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// The driver takes UDP over IPv4 uncut.
pub const GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP over IPv6 uncut.
pub const GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP uncut.
pub const HOST_USO: u64 = 1 << 56;

/// What the driver takes, as the control queue names it.
pub(super) const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;

/// Every bit that can be offered.
pub const ALL: u64 = GUEST_OFFLOADS
    | CSUM
    | CTRL_GUEST_OFFLOADS
    | MTU
    | MAC
    | HOST_TSO4
    | HOST_TSO6
    | HOST_USO
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | F_INDIRECT_DESC
    | F_EVENT_IDX;

/// Bits that mean nothing without others: the bit, and what it needs.
const NEEDS: [(u64, u64); 9] = [
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_USO4, GUEST_CSUM),
    (GUEST_USO6, GUEST_CSUM),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_USO, CSUM),
    (CTRL_GUEST_OFFLOADS, CTRL_VQ),
    (CTRL_GUEST_OFFLOADS, GUEST_CSUM),
];

/// `features` without the bits whose needs are not met.
#[must_use]
pub(super) fn consistent(features: u64) -> u64 {
    NEEDS.iter().fold(
        features,
        |features, &(bit, needs)| {
            if features & needs == 0 { features & !bit } else { features }
        },
    )
}

/// What the stack may send to a driver that takes the offloads in `bits`.
#[must_use]
pub(super) fn offloads(bits: u64) -> Offloads {
    let bits = consistent(bits);
    let has = |wanted: u64| bits & wanted == wanted;
    Offloads {
        checksum: has(GUEST_CSUM),
        tcp4: has(GUEST_TSO4),
        tcp6: has(GUEST_TSO6),
        udp: has(GUEST_USO4 | GUEST_USO6),
    }
}

/// What the device takes from a driver that accepted `features`.
#[must_use]
pub(super) fn taken(features: u64) -> Offloads {
    Offloads {
        checksum: features & CSUM != 0,
        tcp4: features & HOST_TSO4 != 0,
        tcp6: features & HOST_TSO6 != 0,
        udp: features & HOST_USO != 0,
    }
}

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
const CONFIG_BYTES: usize = 12;

/// `struct virtio_net_config` as far as its fields exist: address, status, queue pairs, MTU. Bytes past it read as 0.
pub(super) fn read_config(mac: [u8; 6], mtu: u16, link_up: bool, offset: u64, data: &mut [u8]) {
    let mut space = [0; CONFIG_BYTES];
    let status = if link_up { LINK_UP } else { 0 };
    let fields = [status.to_le_bytes(), 1_u16.to_le_bytes(), mtu.to_le_bytes()];
    let bytes = mac.into_iter().chain(fields.into_iter().flatten());
    for (place, byte) in space.iter_mut().zip(bytes) {
        *place = byte;
    }
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_goes_with_what_it_needs() {
        for (features, want) in [
            (ALL, ALL),
            (ALL & !CSUM, ALL & !(CSUM | HOST_TSO4 | HOST_TSO6 | HOST_USO)),
            (ALL & !GUEST_CSUM, ALL & !(GUEST_OFFLOADS | CTRL_GUEST_OFFLOADS)),
            (ALL & !CTRL_VQ, ALL & !(CTRL_VQ | CTRL_GUEST_OFFLOADS)),
            (0, 0),
        ] {
            assert_eq!(consistent(features), want, "{features:#x}");
        }
        let tcp_only = offloads(GUEST_CSUM | GUEST_TSO4 | GUEST_USO4);
        assert_eq!(
            tcp_only,
            Offloads { checksum: true, tcp4: true, tcp6: false, udp: false },
            "UDP goes uncut only when both families do"
        );
        assert_eq!(offloads(GUEST_TSO4), Offloads::default());
    }

    #[test]
    fn configuration_is_read_in_any_piece() {
        let mac = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
        let whole = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee, 1, 0, 1, 0, 0xdc, 5, 0, 0];
        for offset in 0..whole.len() {
            for len in 0..=whole.len() - offset {
                let mut data = vec![0xaa; len];
                read_config(mac, 1500, true, offset as u64, &mut data);
                assert_eq!(data, whole[offset..offset + len]);
            }
        }
        let mut data = [0xaa; 4];
        for offset in [12, u64::MAX] {
            read_config(mac, 1500, false, offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
        read_config(mac, 1500, false, 6, &mut data);
        assert_eq!(data, [0, 0, 1, 0], "the link is down");
    }
}
