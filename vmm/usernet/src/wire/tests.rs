//! Parsers against arbitrary bytes, against their builders, and against smoltcp and etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire as smol;

use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The sum as RFC 1071 section 4.1 writes it down.
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// What is handed out lies in what came in.
fn check_inside(outer: Part<'_>, inner: Part<'_>) {
    assert!(inner.bytes().len() <= inner.len());
    assert!(inner.offset() >= outer.offset());
    assert!(inner.offset() + inner.len() <= outer.offset() + outer.len());
    let at = inner.offset() - outer.offset();
    let there = outer.bytes().get(at..).unwrap_or_default();
    assert!(there.starts_with(inner.bytes()));
}

/// Every parser on the same bytes.
fn parse_all(part: Part<'_>) {
    let rests = [
        EthernetHeader::parse(part).map(|(_, rest)| rest),
        Ipv4Header::parse(part).map(|(header, rest)| {
            assert!(header.fragment_offset % 8 == 0);
            rest
        }),
        Ipv6Header::parse(part).map(|(_, rest)| rest),
        UdpHeader::parse(part).map(|(_, rest)| rest),
        TcpHeader::parse(part).map(|(header, rest)| {
            assert!(header.window_scale.is_none_or(|shift| shift <= 14));
            rest
        }),
        IcmpHeader::parse(part).map(|(_, rest)| rest),
    ];
    for rest in rests.into_iter().flatten() {
        check_inside(part, rest);
    }
    assert!(ArpPacket::parse(part).is_err() || part.len() >= ArpPacket::LEN);
}

fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn any_v6() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(Ipv6Addr::from)
}

fn any_mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

prop_compose! {
    fn any_ipv4()(source in any_v4(), destination in any_v4(), protocol: u8, ttl: u8, tos: u8,
        dont_fragment: bool, identification: u16, offset in 0_u16..0x2000, more_fragments: bool)
        -> Ipv4Header {
        Ipv4Header { source, destination, protocol, ttl, tos, dont_fragment, identification,
            fragment_offset: offset << 3, more_fragments }
    }
}

prop_compose! {
    fn any_ipv6()(source in any_v6(), destination in any_v6(), hop_limit: u8, traffic_class: u8,
        protocol in prop_oneof![Just(protocol::TCP), Just(protocol::UDP), Just(protocol::ICMPV6)],
        fragment in proptest::option::of((any::<u32>(), 1_u32..0x2000, any::<bool>())))
        -> Ipv6Header {
        let fragment = fragment.map(|(identification, offset, more)| {
            FragmentPlace { identification, offset: offset << 3, more }
        });
        Ipv6Header { source, destination, protocol, hop_limit, traffic_class, fragment }
    }
}

prop_compose! {
    fn any_tcp()(source: u16, destination: u16, sequence: u32, acknowledgment: u32, flags: u8,
        window: u16, mss: Option<u16>, scale in proptest::option::of(0_u8..15)) -> TcpHeader {
        let syn = TcpFlags(flags).has(TcpFlags::SYN);
        TcpHeader { source, destination, sequence, acknowledgment, flags: TcpFlags(flags), window,
            mss: mss.filter(|_| syn), window_scale: scale.filter(|_| syn) }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(head in vec(any::<u8>(), 0..300), beyond in 0_usize..2000) {
        parse_all(Part::frame(&head, head.len() + beyond));
        parse_all(Part::frame(&head, head.len() / 2));
    }

    #[test]
    fn nearly_right_bytes_make_no_parser_panic(
        v4 in any_ipv4(), v6 in any_ipv6(), tcp in any_tcp(), body in vec(any::<u8>(), 0..80),
        changes in vec((0_usize..120, any::<u8>()), 0..4), cut in 0_usize..120,
    ) {
        let v4 = [&v4.build(body.len())[..], &body].concat();
        let v6 = [&v6.build(body.len())[..], &body].concat();
        let tcp = [&tcp.build(0)[..tcp.built_len()], &body].concat();
        for mut bytes in [v4, v6, tcp] {
            for (at, value) in &changes {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte = *value;
                }
            }
            parse_all(Part::whole(&bytes));
            parse_all(Part::frame(&bytes[..cut.min(bytes.len())], bytes.len()));
            parse_all(Part::frame(&bytes, cut));
        }
    }

    #[test]
    fn the_sum_is_that_of_rfc_1071(bytes in vec(any::<u8>(), 0..600), cuts in vec(0_usize..600, 0..4)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut sum = Sum::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            sum = sum.with(&bytes[from..cut]);
            from = cut;
        }
        // Zero has two representations; both complete to the same checksum modulo them.
        prop_assert_eq!(sum.partial() % 0xffff, plain_sum(&bytes) % 0xffff);
        let mut whole = bytes;
        if whole.len() % 2 == 1 {
            whole.push(0);
        }
        whole.extend(sum.finish().to_be_bytes());
        prop_assert_eq!(plain_sum(&whole), 0xffff);
    }

    #[test]
    fn a_receiver_completes_a_partial_checksum(
        source in any_v4(), destination in any_v4(), header in any_tcp(),
        body in vec(any::<u8>(), 0..200),
    ) {
        let (source, destination) = (IpAddr::V4(source), IpAddr::V4(destination));
        let len = u32::try_from(header.built_len() + body.len()).unwrap();
        let pseudo = Sum::pseudo(source, destination, protocol::TCP, len);
        let partial = header.build(pseudo.partial());
        let completed = Sum::new().with(&partial[..header.built_len()]).with(&body).finish();
        let summed = header.build_summed(pseudo, &[&body]);
        prop_assert_eq!(&completed.to_be_bytes()[..], &summed[16..18]);
    }

    #[test]
    fn ethernet_and_arp_read_back(
        destination in any_mac(), source in any_mac(), ethertype: u16, reply: bool,
        sender in any_v4(), target in any_v4(),
    ) {
        let header = EthernetHeader { destination, source, ethertype };
        let bytes = header.build();
        let (read, rest) = EthernetHeader::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert!(rest.is_empty());
        let oracle = smol::EthernetFrame::new_checked(&bytes).unwrap();
        prop_assert_eq!(oracle.dst_addr().0, destination.0);
        prop_assert_eq!(oracle.src_addr().0, source.0);
        prop_assert_eq!(u16::from(oracle.ethertype()), ethertype);

        let operation = if reply { ArpOperation::Reply } else { ArpOperation::Request };
        let packet = ArpPacket {
            operation, sender_mac: source, sender, target_mac: destination, target,
        };
        let bytes = packet.build();
        prop_assert_eq!(ArpPacket::parse(Part::whole(&bytes)).unwrap(), packet);
        let oracle = smol::ArpRepr::parse(&smol::ArpPacket::new_checked(&bytes[..]).unwrap()).unwrap();
        let smol::ArpRepr::EthernetIpv4 {
            operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, ..
        } = oracle else { panic!("{oracle:?}") };
        prop_assert_eq!(operation == smol::ArpOperation::Reply, reply);
        prop_assert_eq!(source_hardware_addr.0, source.0);
        prop_assert_eq!((source_protocol_addr, target_protocol_addr), (sender, target));
    }

    #[test]
    fn ipv4_reads_back(header in any_ipv4(), body in vec(any::<u8>(), 0..100), padding in 0_usize..40) {
        let mut bytes = [&header.build(body.len())[..], &body].concat();
        bytes.resize(bytes.len() + padding, 0xee);
        let (read, payload) = Ipv4Header::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(payload.all().unwrap(), &body[..]);
        let (oracle, _) = etherparse::Ipv4Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(oracle.calc_header_checksum(), oracle.header_checksum);
        prop_assert_eq!(oracle.source, header.source.octets());
        prop_assert_eq!(oracle.destination, header.destination.octets());
        prop_assert_eq!(oracle.fragment_offset.value() << 3, header.fragment_offset);
        prop_assert_eq!(oracle.more_fragments, header.more_fragments);
        prop_assert_eq!(oracle.dont_fragment, header.dont_fragment);
        prop_assert_eq!(oracle.identification, header.identification);
        prop_assert_eq!(usize::from(oracle.payload_len().unwrap()), body.len());
    }

    #[test]
    fn ipv4_is_accepted_as_smoltcp_accepts_it(
        header in any_ipv4(), body in vec(any::<u8>(), 0..60),
        change in proptest::option::of((0_usize..20, any::<u8>())),
    ) {
        let mut bytes = [&header.build(body.len())[..], &body].concat();
        if let Some((at, value)) = change {
            bytes[at] = value;
        }
        let ours = Ipv4Header::parse(Part::whole(&bytes));
        let theirs = smol::Ipv4Packet::new_checked(&bytes[..])
            .ok()
            .filter(|packet| packet.version() == 4 && packet.header_len() >= 20 && packet.verify_checksum());
        prop_assert_eq!(ours.is_ok(), theirs.is_some(), "{:?}", ours);
        if let (Ok((_, payload)), Some(packet)) = (ours, theirs) {
            prop_assert_eq!(payload.all().unwrap(), packet.payload());
        }
    }

    #[test]
    fn ipv6_reads_back(header in any_ipv6(), body in vec(any::<u8>(), 0..100)) {
        let bytes = match header.fragment {
            None => [&header.build(body.len())[..], &body].concat(),
            Some(place) => [&header.build_fragment(place, body.len())[..], &body].concat(),
        };
        let (read, payload) = Ipv6Header::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(payload.all().unwrap(), &body[..]);
        let oracle = smol::Ipv6Packet::new_checked(&bytes[..]).unwrap();
        prop_assert_eq!(oracle.src_addr(), header.source);
        prop_assert_eq!(oracle.dst_addr(), header.destination);
        prop_assert_eq!(oracle.hop_limit(), header.hop_limit);
        prop_assert_eq!(oracle.traffic_class(), header.traffic_class);
        if let Some(place) = header.fragment {
            let oracle = smol::Ipv6FragmentHeader::new_checked(&oracle.payload()[2..]).unwrap();
            prop_assert_eq!(oracle.ident(), place.identification);
            prop_assert_eq!(u32::from(oracle.frag_offset()) << 3, place.offset);
            prop_assert_eq!(oracle.more_frags(), place.more);
        }
    }

    #[test]
    fn udp_reads_back(source: u16, destination: u16, body in vec(any::<u8>(), 0..300), at in 0_usize..300) {
        let header = UdpHeader { source, destination };
        let len = u32::try_from(body.len() + 8).unwrap();
        let pseudo = Sum::pseudo(IpAddr::V4(PEER), IpAddr::V4(GUEST), protocol::UDP, len);
        let (one, two) = body.split_at(at.min(body.len()));
        let bytes = [&header.build_summed(pseudo, body.len(), &[one, two])[..], &body].concat();
        let (read, payload) = UdpHeader::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(payload.all().unwrap(), &body[..]);
        let oracle = etherparse::UdpHeader::from_slice(&bytes).unwrap().0;
        let ip = etherparse::Ipv4Header::new(
            0, 64, etherparse::IpNumber::UDP, PEER.octets(), GUEST.octets()).unwrap();
        prop_assert_eq!(oracle.calc_checksum_ipv4(&ip, &body).unwrap(), oracle.checksum);
        prop_assert_eq!((oracle.source_port, oracle.destination_port), (source, destination));
    }

    #[test]
    fn tcp_reads_back(
        source in any_v6(), destination in any_v6(), header in any_tcp(), body in vec(any::<u8>(), 0..300),
    ) {
        let len = header.built_len();
        let pseudo = Sum::pseudo(IpAddr::V6(source), IpAddr::V6(destination), protocol::TCP,
            u32::try_from(len + body.len()).unwrap());
        let bytes = [&header.build_summed(pseudo, &[&body])[..len], &body].concat();
        let (read, payload) = TcpHeader::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(payload.all().unwrap(), &body[..]);
        let packet = smol::TcpPacket::new_checked(&bytes[..]).unwrap();
        prop_assert!(packet.verify_checksum(&source.into(), &destination.into()));
        prop_assert_eq!(packet.seq_number().0.cast_unsigned(), header.sequence);
        prop_assert_eq!(packet.window_len(), header.window);
        let (oracle, _) = etherparse::TcpHeader::from_slice(&bytes).unwrap();
        let mut options = (None, None);
        for option in oracle.options_iterator() {
            match option.unwrap() {
                etherparse::TcpOptionElement::MaximumSegmentSize(mss) => options.0 = Some(mss),
                etherparse::TcpOptionElement::WindowScale(shift) => options.1 = Some(shift),
                _ => {}
            }
        }
        prop_assert_eq!(options, (header.mss, header.window_scale));
    }

    #[test]
    fn icmp_reads_back(identifier: u16, sequence: u16, body in vec(any::<u8>(), 0..300)) {
        let header = IcmpHeader::echo(icmpv4::ECHO_REQUEST, identifier, sequence);
        let bytes = [&header.build(Sum::new(), &[&body])[..], &body].concat();
        let (read, data) = IcmpHeader::parse(Part::whole(&bytes)).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!((read.identifier(), read.sequence()), (identifier, sequence));
        prop_assert_eq!(data.all().unwrap(), &body[..]);
        let packet = smol::Icmpv4Packet::new_checked(&bytes[..]).unwrap();
        let oracle = smol::Icmpv4Repr::parse(&packet, &smoltcp::phy::ChecksumCapabilities::default());
        prop_assert_eq!(oracle, Ok(smol::Icmpv4Repr::EchoRequest {
            ident: identifier, seq_no: sequence, data: &body,
        }));
    }

    #[test]
    fn options_of_any_bytes_are_read_as_far_as_they_make_sense(options in vec(any::<u8>(), 0..40)) {
        let mut bytes = vec![0; 20];
        bytes.extend(&options);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes[12] = u8::try_from(bytes.len() / 4).unwrap() << 4;
        bytes[13] = TcpFlags::SYN.0;
        let (header, rest) = TcpHeader::parse(Part::whole(&bytes)).unwrap();
        prop_assert!(rest.is_empty());
        let oracle = etherparse::TcpHeaderSlice::from_slice(&bytes).unwrap();
        for option in oracle.options_iterator() {
            let Ok(option) = option else { return Ok(()) };
            match option {
                etherparse::TcpOptionElement::MaximumSegmentSize(_) => prop_assert!(header.mss.is_some()),
                etherparse::TcpOptionElement::WindowScale(_) => prop_assert!(header.window_scale.is_some()),
                _ => {}
            }
        }
    }
}

#[test]
fn lengths_are_judged_against_the_frame() {
    let header = Ipv4Header::new(GUEST, PEER, protocol::UDP);
    let bytes = header.build(1000);
    let check = |frame_len, expected| {
        let read =
            Ipv4Header::parse(Part::frame(&bytes, frame_len)).map(|(_, payload)| payload.len());
        assert_eq!(read, expected, "frame of {frame_len}");
    };
    check(1019, Err(Malformed::Truncated));
    check(1020, Ok(1000));
    check(1500, Ok(1000));
    check(19, Err(Malformed::Truncated));
}

#[test]
fn a_header_beyond_the_head_is_refused() {
    let mut bytes = Ipv4Header::new(GUEST, PEER, protocol::TCP).build(40);
    bytes[0] = 0x4f;
    let refused = Ipv4Header::parse(Part::frame(&bytes, 60));
    assert_eq!(refused, Err(Malformed::HeadersTooLong));
    let tcp = [0; 10];
    assert_eq!(TcpHeader::parse(Part::frame(&tcp, 60)), Err(Malformed::HeadersTooLong));
}

#[test]
fn extension_headers_are_skipped_and_bounded() {
    let (source, destination) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
    let check = |first: u8, extensions: &[&[u8]], expected: Result<(u8, usize), Malformed>| {
        let body = [extensions.concat(), vec![0xaa; 8]].concat();
        let header = Ipv6Header::new(source, destination, first).build(body.len());
        let bytes = [&header[..], &body].concat();
        let read = Ipv6Header::parse(Part::whole(&bytes));
        let read = read.map(|(header, payload)| (header.protocol, payload.len()));
        assert_eq!(read, expected, "{first} {extensions:?}");
    };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    check(0, &[&options(17)], Ok((17, 8)));
    check(60, &[&options(17)], Ok((17, 8)));
    check(60, &[&options(0), &options(17)], Err(Malformed::Extension));
    check(43, &[&[17, 0, 0, 0, 0, 0, 0, 0]], Ok((17, 8)));
    check(43, &[&[17, 0, 0, 1, 0, 0, 0, 0]], Err(Malformed::Extension));
    check(51, &[&options(17)], Err(Malformed::Extension));
    check(60, &[&[17, 9, 0, 0, 0, 0, 0, 0]], Err(Malformed::Truncated));
    // A whole datagram in a fragment header, then one of several.
    check(44, &[&[60, 0, 0, 0, 0, 0, 0, 1], &options(17)], Ok((17, 8)));
    check(44, &[&[60, 0, 0, 1, 0, 0, 0, 1], &options(17)], Ok((60, 16)));
    let many = [options(60); 7];
    let many: Vec<&[u8]> = many.iter().map(|option| &option[..]).collect();
    check(60, &many, Err(Malformed::Extension));
}

#[test]
fn macs_are_written_as_usual() {
    let mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
    assert_eq!(mac.to_string(), "5a:94:ef:e4:0c:dd");
    assert!(!mac.is_multicast() && Mac::BROADCAST.is_multicast());
}

#[test]
fn headers_stand_one_behind_the_other() {
    let macs = Macs { gateway: Mac([2; 6]), guest: Mac([4; 6]) };
    let tcp = TcpHeader {
        source: 80,
        destination: 40_000,
        sequence: 1,
        acknowledgment: 2,
        flags: TcpFlags::SYN | TcpFlags::ACK,
        window: 3,
        mss: Some(1460),
        window_scale: Some(8),
    };
    for (source, destination, ip_len) in [
        (IpAddr::V4(PEER), IpAddr::V4(GUEST), 20),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::UNSPECIFIED), 40),
    ] {
        let len = tcp.built_len();
        let mut headers = Headers::ip(macs, source, destination, protocol::TCP, len);
        assert_eq!(headers.len(), 14 + ip_len);
        let pseudo = Sum::pseudo(source, destination, protocol::TCP, u32::try_from(len).unwrap());
        headers.push(&tcp.build_summed(pseudo, &[])[..len]);
        let sliced = etherparse::SlicedPacket::from_ethernet(headers.as_bytes()).unwrap();
        let Some(etherparse::TransportSlice::Tcp(slice)) = sliced.transport else {
            panic!("{sliced:?}");
        };
        assert_eq!((slice.source_port(), slice.destination_port()), (80, 40_000));
        assert_eq!(slice.payload(), b"");
    }
}
