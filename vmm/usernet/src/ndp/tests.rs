//! The router against smoltcp's reader of neighbor discovery.

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr};

use super::*;
use crate::wire::{Sum, protocol};

const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0x77);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1);
const HOST: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0xfe);

fn router() -> Router {
    Router {
        mac: Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]),
        network: Cidr::new(GATEWAY.into(), 64).unwrap(),
        gateway: GATEWAY,
        host: HOST,
        mtu: 1_500,
        search: vec!["corp.example".to_owned()],
    }
}

/// The message as smoltcp reads it.
fn read<R>(message: &Message, check: impl FnOnce(NdiscRepr<'_>) -> R) -> R {
    let len = u32::try_from(8 + message.body.len()).unwrap();
    let (source, destination) = (message.source, message.destination);
    let pseudo = Sum::pseudo(source.into(), destination.into(), protocol::ICMPV6, len);
    let header = message.header.build(pseudo, &[&message.body]);
    let bytes = [&header[..], &message.body].concat();
    let packet = Icmpv6Packet::new_checked(&bytes[..]).unwrap();
    let checksums = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&source, &destination, &packet, &checksums).unwrap() {
        Icmpv6Repr::Ndisc(repr) => check(repr),
        other => panic!("{other:?}"),
    }
}

fn solicit(target: Ipv6Addr, source: Ipv6Addr, hop_limit: u8) -> Option<Message> {
    let header = IcmpHeader { kind: icmpv6::NEIGHBOR_SOLICITATION, code: 0, rest: [0; 4] };
    router().answer(source, hop_limit, &header, &target.octets())
}

#[test]
fn neighbors_that_are_ours_are_answered_for() {
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, 4);
    for (target, source, answered) in [
        (GATEWAY, GUEST, true),
        (HOST, GUEST, true),
        (LINK_LOCAL, link_local, true),
        (GATEWAY, Ipv6Addr::UNSPECIFIED, true),
        (GUEST, Ipv6Addr::UNSPECIFIED, false),
        (link_local, Ipv6Addr::UNSPECIFIED, false),
        // Somebody who says to be us.
        (GATEWAY, HOST, false),
        (GATEWAY, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), false),
    ] {
        let answer = solicit(target, source, 255);
        assert_eq!(answer.is_some(), answered, "{target} {source}");
        let Some(answer) = answer else { continue };
        let probe = source.is_unspecified();
        assert_eq!(answer.destination, if probe { ALL_NODES } else { source });
        read(&answer, |repr| {
            let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } = repr else {
                panic!("{repr:?}");
            };
            assert_eq!(target_addr, target);
            assert_eq!(lladdr.unwrap().as_bytes(), router().mac.0);
            assert_eq!(flags.contains(NdiscNeighborFlags::SOLICITED), !probe);
        });
    }
    assert_eq!(solicit(GATEWAY, GUEST, 254), None, "from further away");
}

#[test]
fn a_guest_that_asks_for_routers_learns_its_network() {
    let header = IcmpHeader { kind: icmpv6::ROUTER_SOLICITATION, code: 0, rest: [0; 4] };
    for source in [GUEST, Ipv6Addr::UNSPECIFIED] {
        let answer = router().answer(source, 255, &header, &[]).unwrap();
        assert_eq!(answer.source, LINK_LOCAL);
        read(&answer, |repr| {
            let NdiscRepr::RouterAdvert { lladdr, mtu, prefix_info, router_lifetime, .. } = repr
            else {
                panic!("{repr:?}");
            };
            let prefix = prefix_info.unwrap();
            assert_eq!((prefix.prefix_len, mtu), (64, Some(1_500)));
            assert_eq!(prefix.prefix, Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0));
            assert_eq!(lladdr.unwrap().as_bytes(), router().mac.0);
            assert!(router_lifetime.secs() > INTERVAL.as_secs());
        });
    }
    // Every option is a multiple of eight bytes and the last one ends the message.
    let body = router().advertisement(GUEST).body;
    let mut rest = &body[8..];
    let mut kinds = Vec::new();
    while let [kind, units, ..] = rest {
        kinds.push(*kind);
        rest = &rest[usize::from(*units) * 8..];
    }
    assert_eq!(kinds, [1, 5, 3, 25, 31]);
}

#[test]
fn the_guest_makes_its_own_addresses_but_not_ours() {
    for (address, may) in [
        (GUEST, true),
        (Ipv6Addr::new(0xfd00, 1, 2, 3, 9, 9, 9, 9), true),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 9, 9, 9, 9), true),
        (GATEWAY, false),
        (HOST, false),
        (LINK_LOCAL, false),
        (Ipv6Addr::UNSPECIFIED, false),
        (Ipv6Addr::new(0xfd00, 1, 2, 4, 0, 0, 0, 9), false),
    ] {
        assert_eq!(router().may_be_guest(address), may, "{address}");
    }
}

proptest! {
    #[test]
    fn any_message_is_answered_well_or_not(
        kind in 130_u8..140, code in 0_u8..2, body in vec(any::<u8>(), 0..64), known: bool,
    ) {
        let mut body = body;
        if known && body.len() >= 16 {
            body[..16].copy_from_slice(&GATEWAY.octets());
        }
        let header = IcmpHeader { kind, code, rest: [0; 4] };
        if let Some(answer) = router().answer(GUEST, 255, &header, &body) {
            prop_assert_eq!(code, 0);
            read(&answer, |_| ());
        }
    }
}
