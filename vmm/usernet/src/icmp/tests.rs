//! What errors quote, and about what there is none.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::table::Endpoint;
use crate::wire::ethertype;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The quote of a packet whose first `at_hand` bytes were copied.
fn quote(header: Ipv4Header, transport: &[u8], at_hand: usize) -> Option<Vec<u8>> {
    let bytes = [&header.build(transport.len())[..], transport].concat();
    let packet = Part::frame(&bytes[..at_hand.min(bytes.len())], bytes.len());
    let (ip, transport) = IpHeader::parse(ethertype::IPV4, packet).unwrap().unwrap();
    Quote::of(&ip, packet, transport).map(|quote| quote.as_bytes().to_vec())
}

#[test]
fn no_error_is_about_an_error_a_later_fragment_or_many_hosts() {
    let udp = Ipv4Header::new(GUEST, PEER, protocol::UDP);
    let icmp = Ipv4Header::new(GUEST, PEER, protocol::ICMP);
    let many = |destination| Ipv4Header { destination, ..udp };
    for (header, transport, quoted) in [
        (udp, &[0; 8][..], true),
        (udp, &[0; 7], false),
        (Ipv4Header { more_fragments: true, ..udp }, &[0; 8], true),
        (Ipv4Header { fragment_offset: 8, ..udp }, &[0; 8], false),
        (icmp, &[icmpv4::ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0], true),
        (icmp, &[icmpv4::UNREACHABLE, 0, 0, 0, 0, 0, 0, 0], false),
        (icmp, &[icmpv4::TIME_EXCEEDED, 0, 0, 0, 0, 0, 0, 0], false),
        (icmp, &[icmpv4::PARAMETER_PROBLEM, 0, 0, 0, 0, 0, 0, 0], false),
        (many(Ipv4Addr::BROADCAST), &[0; 8], false),
        (many(Ipv4Addr::new(224, 0, 0, 251)), &[0; 8], false),
        (Ipv4Header { source: Ipv4Addr::UNSPECIFIED, ..udp }, &[0; 8], false),
    ] {
        assert_eq!(quote(header, transport, 256).is_some(), quoted, "{header:?} {transport:?}");
    }
    // The transport header is not at hand.
    assert_eq!(quote(udp, &[0; 100], 24), None);
}

#[test]
fn every_fault_has_its_code() {
    use Fault::{Host, Network, Port, Prohibited, Protocol, TooBig};
    for (fault, v4, v6) in [
        (Network, [3, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
        (Host, [3, 1, 0, 0, 0, 0], [1, 3, 0, 0, 0, 0]),
        (Protocol, [3, 2, 0, 0, 0, 0], [4, 1, 0, 0, 0, 6]),
        (Port, [3, 3, 0, 0, 0, 0], [1, 4, 0, 0, 0, 0]),
        (TooBig(Some(1_400)), [3, 4, 0, 0, 5, 120], [2, 0, 0, 0, 5, 120]),
        (TooBig(Some(20)), [3, 4, 0, 0, 0, 68], [2, 0, 0, 0, 5, 0]),
        (TooBig(None), [3, 4, 0, 0, 5, 0], [2, 0, 0, 0, 5, 0]),
        (Prohibited, [3, 13, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]),
    ] {
        for (icmp, expected) in [(Icmp::V4, v4), (Icmp::V6, v6)] {
            let header = fault.header(icmp);
            let [a, b, c, d] = header.rest;
            assert_eq!([header.kind, header.code, a, b, c, d], expected, "{fault:?} {icmp:?}");
            assert!(icmp.is_error(header.kind));
        }
    }
}

#[test]
fn what_the_host_says_is_told_or_kept() {
    for (error, fault) in [
        (HostError::Refused, Some(Fault::Port)),
        (HostError::NetworkUnreachable, Some(Fault::Network)),
        (HostError::HostUnreachable, Some(Fault::Host)),
        (HostError::TimedOut, Some(Fault::Host)),
        (HostError::Prohibited, Some(Fault::Prohibited)),
        (HostError::TooLarge { mtu: Some(1_300) }, Some(Fault::TooBig(Some(1_300)))),
        (HostError::NoRoom, None),
        (HostError::Reset, None),
        (HostError::Other(5), None),
    ] {
        assert_eq!(Fault::of(error), fault);
    }
}

#[test]
fn quotes_that_are_made_up_read_as_packets_of_the_flow() {
    for (guest, remote) in [
        (IpAddr::V4(GUEST), IpAddr::V4(PEER)),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::from_bits(9))),
    ] {
        let key = FlowKey { guest: Endpoint::new(guest, 40), remote: Endpoint::new(remote, 50) };
        let kind = if guest.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let flags = crate::wire::TcpFlags::SYN;
        let syn = TcpHeader {
            source: 40,
            destination: 50,
            sequence: 7,
            acknowledgment: 0,
            flags,
            window: 1,
            mss: Some(9),
            window_scale: Some(1),
        };
        for (quote, number) in [
            (Quote::udp(&key, 1_000), protocol::UDP),
            (Quote::echo(&key, 3), if guest.is_ipv4() { 1 } else { 58 }),
            (Quote::tcp(&key, &syn), protocol::TCP),
        ] {
            let quote = quote.unwrap();
            let packet = Part::frame(quote.as_bytes(), 2_000);
            let (ip, transport) = IpHeader::parse(kind, packet).unwrap().unwrap();
            assert_eq!((ip.source, ip.destination, ip.protocol), (guest, remote, number));
            match number {
                protocol::UDP => {
                    let (header, data) = UdpHeader::parse(transport).unwrap();
                    assert_eq!((header.source, header.destination, data.len()), (40, 50, 1_000));
                }
                protocol::TCP => assert_eq!(TcpHeader::parse(transport).unwrap().0, syn),
                _ => {
                    let (header, _) = IcmpHeader::parse(transport).unwrap();
                    assert_eq!((header.identifier(), header.sequence()), (40, 3));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn a_quote_is_the_beginning_of_the_packet(
        transport in vec(any::<u8>(), 0..600), at_hand in 20_usize..400,
    ) {
        let header = Ipv4Header::new(GUEST, PEER, protocol::UDP);
        let bytes = [&header.build(transport.len())[..], &transport].concat();
        if let Some(quote) = quote(header, &transport, at_hand) {
            prop_assert!(quote.len() >= 28 && quote.len() <= HEAD_LEN);
            prop_assert!(bytes.starts_with(&quote));
        } else {
            prop_assert!(at_hand.min(bytes.len()) < 28);
        }
    }
}
