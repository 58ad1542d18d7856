//! The server against messages that are written down byte by byte, against smoltcp's reader and client, and against any bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};

use super::*;

const CLIENT: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);

fn lease() -> Lease {
    Lease {
        address: ADDRESS,
        prefix_len: 24,
        router: ROUTER,
        resolver: ROUTER,
        search: vec!["corp.example".to_owned(), "example.".to_owned()],
        mtu: 1500,
        seconds: 86_400,
    }
}

/// A client's message, with what tests change about it.
#[derive(Clone)]
struct Message {
    current: Ipv4Addr,
    broadcast: bool,
    mac: Mac,
    options: Vec<u8>,
}

impl Message {
    fn new(kind: u8) -> Self {
        Self {
            current: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            mac: CLIENT,
            options: vec![53, 1, kind],
        }
    }

    fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.extend([code, u8::try_from(value.len()).unwrap()]);
        self.options.extend(value);
        self
    }

    fn current(self, current: Ipv4Addr) -> Self {
        Self { current, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_LEN];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe]);
        if self.broadcast {
            bytes[10] = BROADCAST_FLAG;
        }
        bytes[12..16].copy_from_slice(&self.current.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes.extend(COOKIE);
        bytes.extend(&self.options);
        bytes.push(255);
        bytes
    }
}

/// Kind, the client's new address, where the answer goes.
type Told = (DhcpMessageType, Ipv4Addr, Ipv4Addr);

fn check(message: &Message, expected: Result<Told, Ignored>) -> Option<Reply> {
    let reply = answer(&message.bytes(), CLIENT, &lease());
    let told = reply.as_ref().map(|reply| {
        let packet = DhcpPacket::new_checked(reply.as_bytes()).unwrap();
        let repr = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(repr.transaction_id, 0xcafe_babe);
        assert_eq!(repr.client_hardware_address.0, message.mac.0);
        assert_eq!(repr.server_identifier, Some(ROUTER));
        assert!(reply.as_bytes().len() >= MIN_LEN);
        let to_all = reply.destination == Ipv4Addr::BROADCAST;
        assert_eq!(reply.mac, if to_all { Mac::BROADCAST } else { CLIENT });
        (repr.message_type, repr.your_ip, reply.destination)
    });
    assert_eq!(told.map_err(|ignored| *ignored), expected);
    reply.ok()
}

fn option(reply: &Reply, code: u8) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(reply.as_bytes()).unwrap();
    packet.options().find(|option| option.kind == code).map(|option| option.data.to_vec())
}

#[test]
fn a_client_gets_the_same_lease_every_time() {
    let offered = Ok((DhcpMessageType::Offer, ADDRESS, ADDRESS));
    let acknowledged = Ok((DhcpMessageType::Ack, ADDRESS, ADDRESS));
    let selecting = Message::new(3).option(50, &ADDRESS.octets()).option(54, &ROUTER.octets());
    for _ in 0..3 {
        check(&Message::new(1), offered);
        check(&Message::new(1).option(50, &[10, 0, 0, 9]), offered);
        check(&selecting, acknowledged);
        check(&Message::new(3).option(50, &ADDRESS.octets()), acknowledged);
        check(&Message::new(3).current(ADDRESS), acknowledged);
        check(&Message::new(4).option(50, &ADDRESS.octets()), Err(Ignored::NotAnswered));
        check(&Message::new(7).current(ADDRESS), Err(Ignored::NotAnswered));
    }
}

#[test]
fn answers_go_where_the_client_hears_them() {
    let all = Ipv4Addr::BROADCAST;
    let deaf = |message: Message| Message { broadcast: true, ..message };
    let (offer, ack, nak) = (DhcpMessageType::Offer, DhcpMessageType::Ack, DhcpMessageType::Nak);
    let none = Ipv4Addr::UNSPECIFIED;
    let other = Ipv4Addr::new(10, 0, 2, 15);
    check(&deaf(Message::new(1)), Ok((offer, ADDRESS, all)));
    check(&deaf(Message::new(3).option(50, &ADDRESS.octets())), Ok((ack, ADDRESS, all)));
    // It has its address already.
    check(&deaf(Message::new(3).current(ADDRESS)), Ok((ack, ADDRESS, ADDRESS)));
    check(&Message::new(3).current(other), Ok((nak, none, all)));
    check(&Message::new(3).option(50, &other.octets()), Ok((nak, none, all)));
    check(&deaf(Message::new(8).current(ADDRESS)), Ok((ack, none, ADDRESS)));
    check(&Message::new(8).current(other), Ok((ack, none, all)));
    check(&Message::new(8), Ok((ack, none, all)));
}

#[test]
fn what_is_not_for_this_server_is_ignored() {
    let foreign = Message { mac: Mac([2; 6]), ..Message::new(1) };
    check(&foreign, Err(Ignored::ForeignClient));
    check(&Message::new(3).option(54, &[192, 168, 127, 9]), Err(Ignored::OtherServer));
    check(&Message::new(3), Err(Ignored::Malformed));
    for kind in [0, 2, 5, 6, 9, 255] {
        check(&Message::new(kind), Err(Ignored::Malformed));
    }
    check(&Message::new(1).option(50, &[1, 2, 3]), Err(Ignored::Malformed));
    let good = Message::new(1).bytes();
    for (at, value) in [(0, 2), (1, 6), (2, 16), (24, 10), (236, 0)] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(answer(&bytes, CLIENT, &lease()).unwrap_err(), Ignored::Malformed, "{at}");
    }
    for len in 0..good.len() - 1 {
        // Without its end, a message is still one.
        let expected = if len < 243 { Err(Ignored::Malformed) } else { Ok(()) };
        assert_eq!(answer(&good[..len], CLIENT, &lease()).map(|_| ()), expected, "{len}");
    }
}

#[test]
fn a_lease_tells_what_the_client_needs() {
    let message = Message::new(1).option(55, &[1, 3, 6, 119]).option(61, &[1, 2, 3]);
    let reply = check(&message, Ok((DhcpMessageType::Offer, ADDRESS, ADDRESS))).unwrap();
    for (code, expected) in [
        (1, vec![255, 255, 255, 0]),
        (3, vec![192, 168, 127, 1]),
        (6, vec![192, 168, 127, 1]),
        (15, b"corp.example".to_vec()),
        (26, vec![5, 0xdc]),
        (51, vec![0, 1, 0x51, 0x80]),
        (54, vec![192, 168, 127, 1]),
        (61, vec![1, 2, 3]),
        (119, b"\x04corp\x07example\0\x07example\0".to_vec()),
    ] {
        assert_eq!(option(&reply, code), Some(expected), "option {code}");
    }
    let informed = Message::new(8).current(ADDRESS);
    let reply = answer(&informed.bytes(), CLIENT, &lease()).unwrap();
    assert_eq!(option(&reply, 51), None);
    assert_eq!(option(&reply, 119), None);
    assert_eq!(option(&reply, 6), Some(vec![192, 168, 127, 1]));
}

#[test]
fn options_may_stand_in_the_fields_for_names() {
    let mut bytes = Message::new(0).bytes();
    bytes.truncate(FIXED_LEN + COOKIE.len());
    bytes.extend([52, 1, 3, 255]);
    bytes[108..112].copy_from_slice(&[53, 1, 3, 255]);
    bytes[44..51].copy_from_slice(&[50, 4, 192, 168, 127, 2, 255]);
    let reply = answer(&bytes, CLIENT, &lease()).unwrap();
    assert_eq!(option(&reply, 53), Some(vec![5]));
}

#[test]
fn a_client_in_a_hurry_gets_its_lease_at_once() {
    let message = Message::new(1).option(80, &[]);
    let reply = check(&message, Ok((DhcpMessageType::Ack, ADDRESS, ADDRESS))).unwrap();
    assert_eq!(option(&reply, 80), Some(vec![]));
}

#[test]
fn domains_that_do_not_fit_are_left_out() {
    let long = "a".repeat(60);
    let mut lease = lease();
    lease.search = vec!["bad..name".to_owned(); 3];
    lease.search.extend(vec![format!("{long}.{long}"); 9]);
    let message = Message::new(1).option(55, &[119]).option(61, &[7; 255]);
    let reply = answer(&message.bytes(), CLIENT, &lease).unwrap();
    assert!(reply.as_bytes().len() <= MAX_LEN);
    assert_eq!(option(&reply, 119), None, "the identifier left no room");
    let message = Message::new(1).option(55, &[119]);
    let reply = answer(&message.bytes(), CLIENT, &lease).unwrap();
    assert_eq!(option(&reply, 119).unwrap().len() % 123, 0);
}

#[test]
fn the_mask_is_that_of_the_prefix() {
    for (prefix_len, mask) in [(0, 0), (8, 0xff00_0000_u32), (30, 0xffff_fffc), (32, u32::MAX)] {
        let lease = Lease { prefix_len, ..lease() };
        let reply = answer(&Message::new(1).bytes(), CLIENT, &lease).unwrap();
        assert_eq!(option(&reply, 1), Some(mask.to_be_bytes().to_vec()));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_within_bounds_or_not(
        mut bytes in vec(any::<u8>(), 0..700), options in vec(any::<u8>(), 0..330), wrong in 0..8_u8,
    ) {
        // Most of the time what is no option is right, so that options are read at all.
        if wrong != 0 {
            bytes = Message { options, ..Message::new(1) }.bytes();
        }
        if let Ok(reply) = answer(&bytes, CLIENT, &lease()) {
            let packet = DhcpPacket::new_checked(reply.as_bytes()).unwrap();
            let repr = DhcpRepr::parse(&packet).unwrap();
            prop_assert!(repr.your_ip == ADDRESS || repr.your_ip.is_unspecified());
            prop_assert!([ADDRESS, Ipv4Addr::BROADCAST].contains(&reply.destination));
            prop_assert!([CLIENT, Mac::BROADCAST].contains(&reply.mac));
            prop_assert_eq!(packet.options().last().map(|option| option.kind).is_some(), true);
        }
    }
}
