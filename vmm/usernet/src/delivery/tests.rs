//! What is sent arrives, under any offloads, MTU and room at the link; what waits is bounded.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::scripted::{Rig, Told};
use crate::wire::icmpv4;

fn delivery(mtu: u16) -> Delivery {
    let config = Config { mtu, ..Config::default() };
    Delivery::new(&config, Errors::new(Ipv4Addr::new(192, 168, 127, 1), None), 0xfff0)
}

fn udp(v6: bool, segment: usize) -> Header {
    let (source, destination) = if v6 {
        (
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        )
    } else {
        (IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V4(Ipv4Addr::new(192, 168, 127, 2)))
    };
    Header::Udp {
        source: SocketAddr::new(source, 53),
        destination: SocketAddr::new(destination, 40_000),
        segment,
    }
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + seed) % 251).unwrap()).collect()
}

fn datagrams(told: Vec<Told>) -> Vec<Vec<u8>> {
    told.into_iter()
        .map(|told| match told {
            Told::Udp { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// How a batch is cut.
fn cut(bytes: &[u8], segment: usize) -> Vec<Vec<u8>> {
    if bytes.is_empty() {
        return vec![vec![]];
    }
    let segment = if segment == 0 { bytes.len() } else { segment };
    bytes.chunks(segment).map(<[u8]>::to_vec).collect()
}

#[test]
fn a_batch_is_one_frame_where_the_guest_cuts_it_itself() {
    for (offloads, frames) in [
        (Rig::all_offloads(), 1),
        (Offloads { udp: false, ..Rig::all_offloads() }, 40),
        (Offloads { checksum: false, ..Rig::all_offloads() }, 40),
        (Offloads::default(), 40),
    ] {
        let mut rig = Rig::new();
        rig.link.offloads = offloads;
        let batch = bytes(39 * 1_200 + 7, 0);
        delivery(1_500).send(udp(false, 1_200), &batch, &mut rig.turn());
        assert_eq!(rig.link.frames.len(), frames, "{offloads:?}");
        assert_eq!(datagrams(rig.received()), cut(&batch, 1_200));
    }
}

#[test]
fn a_frame_holds_no_more_datagrams_than_a_guest_cuts() {
    let mut rig = Rig::new();
    rig.link.offloads = Rig::all_offloads();
    let batch = bytes(65_000, 0);
    delivery(1_500).send(udp(false, 100), &batch, &mut rig.turn());
    assert_eq!(rig.link.frames.len(), 11);
    assert_eq!(datagrams(rig.received()), cut(&batch, 100));
}

#[test]
fn what_exceeds_the_mtu_goes_in_fragments() {
    for (v6, len, frames) in
        [(false, 1_472, 1), (false, 1_473, 2), (true, 1_452, 1), (true, 1_453, 2)]
    {
        let mut rig = Rig::new();
        rig.link.offloads = Rig::all_offloads();
        let data = bytes(len, 0);
        delivery(1_500).send(udp(v6, 0), &data, &mut rig.turn());
        assert!(rig.link.frames.iter().all(|(_, frame)| frame.len() <= 1_514));
        assert_eq!(rig.link.frames.len(), frames, "{len}");
        assert_eq!(datagrams(rig.received()), [data]);
    }
    let mut rig = Rig::new();
    let data = bytes(65_507, 0);
    delivery(1_500).send(udp(false, 0), &data, &mut rig.turn());
    assert_eq!(rig.link.frames.len(), 45);
    assert_eq!(datagrams(rig.received()), [data]);
    delivery(1_500).send(udp(false, 0), &bytes(65_508, 0), &mut rig.turn());
    assert_eq!((rig.link.frames.len(), rig.counters.datagrams_dropped), (0, 1));
}

#[test]
fn the_oldest_gives_way_to_too_many_that_wait() {
    let mut rig = Rig::new();
    let mut delivery = delivery(1_500);
    rig.make_room(0);
    for seed in 0..300 {
        delivery.send(udp(false, 0), &bytes(1_000, seed), &mut rig.turn());
        assert!(delivery.waiting_bytes() <= MAX_WAITING);
    }
    let kept = MAX_WAITING / (1_000 + OVERHEAD);
    assert_eq!(rig.counters.datagrams_dropped, 300 - kept as u64);
    rig.make_room(usize::MAX);
    delivery.link_ready(&mut rig.turn());
    let expected: Vec<_> = (300 - kept..300).map(|seed| bytes(1_000, seed)).collect();
    assert_eq!(datagrams(rig.received()), expected);
    assert_eq!(delivery.waiting_bytes(), 0);
}

#[test]
fn empty_datagrams_that_wait_are_bounded_too() {
    let mut rig = Rig::new();
    let mut delivery = delivery(1_500);
    rig.make_room(0);
    for _ in 0..10_000 {
        delivery.send(udp(false, 0), &[], &mut rig.turn());
    }
    assert!(delivery.waiting.len() <= MAX_WAITING / OVERHEAD);
    delivery.clear();
    assert_eq!((delivery.waiting.len(), delivery.waiting_bytes()), (0, 0));
}

#[test]
fn errors_keep_to_their_pace() {
    let mut rig = Rig::new();
    let mut delivery = delivery(1_500);
    let ends = crate::table::FlowKey {
        guest: crate::table::Endpoint::new(Ipv4Addr::new(192, 168, 127, 2).into(), 40_000),
        remote: crate::table::Endpoint::new(Ipv4Addr::new(203, 0, 113, 9).into(), 9),
    };
    for _ in 0..1_000 {
        delivery.report(Fault::Port, Quote::udp(&ends, 5), &mut rig.turn());
    }
    let sent = rig.counters.icmp_errors_sent;
    assert!((1..200).contains(&sent));
    assert_eq!(rig.received().len() as u64, sent);
    assert_eq!(rig.counters.icmp_errors_limited, 1_000 - sent);
    rig.pass(1);
    delivery.report(Fault::Port, Quote::udp(&ends, 5), &mut rig.turn());
    let Told::Icmp { source, bytes, .. } = &rig.received()[0] else { panic!("no ICMP") };
    assert_eq!(*source, ends.remote.ip());
    assert_eq!(bytes[..2], [icmpv4::UNREACHABLE, icmpv4::PORT]);
}

proptest! {
    #[test]
    fn everything_arrives_in_order_whatever_room_there_is(
        batches in vec((any::<bool>(), 0_usize..9_000, 0_usize..3_000), 1..12),
        rooms in vec(0_usize..6, 1..40), mtu in 576_u16..3_000, checksum: bool, udp_offload: bool,
    ) {
        let mut rig = Rig::new();
        rig.link.offloads = Offloads { checksum, udp: udp_offload, ..Offloads::default() };
        let mut delivery = delivery(mtu);
        let mut expected = Vec::new();
        let mut rooms = rooms.into_iter();
        for (seed, (v6, len, segment)) in batches.into_iter().enumerate() {
            rig.make_room(rooms.next().unwrap_or(0));
            let data = bytes(len, seed);
            delivery.send(udp(v6, segment), &data, &mut rig.turn());
            expected.extend(cut(&data, segment));
        }
        for room in rooms.chain([100, 1_000, 100_000]) {
            rig.make_room(room);
            delivery.link_ready(&mut rig.turn());
        }
        prop_assert_eq!(delivery.waiting_bytes(), 0);
        let longest = rig.link.frames.iter().filter(|(offload, _)| offload.segmentation.is_none());
        let longest = longest.map(|(_, frame)| frame.len()).max();
        prop_assert!(longest.is_none_or(|len| len <= usize::from(mtu) + 14));
        prop_assert_eq!(datagrams(rig.received()), expected);
        prop_assert_eq!(rig.counters.datagrams_dropped, 0);
    }
}
