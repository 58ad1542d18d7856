//! The answers to the guest's ARP requests (RFC 826): all of our addresses have one hardware address.
//!
//! Invariant: only the guest is answered, and never about an address of its own, so that its probes for duplicates (RFC 5227)
//! stay without an answer. Nothing is learnt: there is one guest.

use std::net::Ipv4Addr;

use crate::wire::{ArpOperation, ArpPacket, Mac, Macs};

/// What to answer to `packet`, if anything. `guest` is the guest's address; `ours` says which addresses are answered for.
#[must_use]
pub fn answer(
    packet: &ArpPacket,
    macs: Macs,
    guest: Ipv4Addr,
    ours: impl Fn(Ipv4Addr) -> bool,
) -> Option<ArpPacket> {
    let from_guest = packet.sender_mac == macs.guest
        && (packet.sender == guest || packet.sender.is_unspecified());
    let asked = packet.operation == ArpOperation::Request
        && packet.target != guest
        && packet.target != packet.sender
        && ours(packet.target);
    (from_guest && asked).then_some(ArpPacket {
        operation: ArpOperation::Reply,
        sender_mac: macs.gateway,
        sender: packet.target,
        target_mac: packet.sender_mac,
        target: packet.sender,
    })
}

/// Whether `packet` comes from the guest under its own addresses.
#[must_use]
pub fn is_spoofed(packet: &ArpPacket, guest_mac: Mac, guest: Ipv4Addr) -> bool {
    packet.sender_mac != guest_mac || !(packet.sender == guest || packet.sender.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: Macs = Macs {
        gateway: Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]),
        guest: Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]),
    };

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 127, last)
    }

    #[test]
    fn our_addresses_are_answered_for_and_no_others() {
        let request = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: MACS.guest,
            sender: address(2),
            target_mac: Mac::ZERO,
            target: address(1),
        };
        let stranger = Mac([2; 6]);
        for (packet, answered, spoofed) in [
            (request, true, false),
            (ArpPacket { target: address(254), ..request }, true, false),
            (ArpPacket { sender: Ipv4Addr::UNSPECIFIED, ..request }, true, false),
            (ArpPacket { target: address(77), ..request }, false, false),
            (ArpPacket { target: Ipv4Addr::new(192, 0, 2, 1), ..request }, false, false),
            // The guest looks whether somebody else has its address, then says that it has it.
            (
                ArpPacket { sender: Ipv4Addr::UNSPECIFIED, target: address(2), ..request },
                false,
                false,
            ),
            (ArpPacket { target: address(2), ..request }, false, false),
            (ArpPacket { operation: ArpOperation::Reply, ..request }, false, false),
            (ArpPacket { sender_mac: stranger, ..request }, false, true),
            (ArpPacket { sender: address(1), target: address(1), ..request }, false, true),
            (ArpPacket { sender: address(9), ..request }, false, true),
        ] {
            let ours = |at| at == address(1) || at == address(254);
            let expected = answered.then_some(ArpPacket {
                operation: ArpOperation::Reply,
                sender_mac: MACS.gateway,
                sender: packet.target,
                target_mac: MACS.guest,
                target: packet.sender,
            });
            assert_eq!(answer(&packet, MACS, address(2), ours), expected, "{packet:?}");
            assert_eq!(is_spoofed(&packet, MACS.guest, address(2)), spoofed, "{packet:?}");
        }
    }
}
