use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{CNAME, HTTPS, MX, SOA, SVCB};
use proptest::prelude::*;

use super::super::message::{Header, Records};
use super::*;
use crate::policy::{Route, Transport};

#[test]
fn the_fixed_names_are_known_without_a_resolver() {
    let (host, gateway) = (Some("192.168.127.254"), Some("192.168.127.1"));
    let (ok, none) = (ResponseCode::NoError, ResponseCode::NXDomain);
    for (name, kind, result, answer) in [
        ("host.openshell.internal", RecordType::A, ok, host),
        ("host.containers.internal", RecordType::A, ok, host),
        ("HOST.Docker.Internal", RecordType::A, ok, host),
        ("gateway.containers.internal", RecordType::A, ok, gateway),
        ("host.docker.internal", RecordType::ANY, ok, host),
        ("host.docker.internal", RecordType::AAAA, ok, None),
        ("gateway.containers.internal", RecordType::AAAA, ok, None),
        ("host.docker.internal", RecordType::TXT, ok, None),
        ("host.docker.internal", RecordType::HTTPS, ok, None),
        ("docker.internal", RecordType::A, ok, None),
        ("gateway.docker.internal", RecordType::A, none, None),
        ("x.host.docker.internal", RecordType::A, none, None),
        ("254.127.168.192.in-addr.arpa", RecordType::PTR, none, None),
    ] {
        let mut world = World::new(&["deny any"]);
        world.ask(4000, &query(9, name, kind));
        let reply = world.reply().unwrap_or_else(|| panic!("{name} {kind}"));
        assert_eq!((reply.metadata.id, code(&reply)), (9, result), "{name} {kind}");
        assert!(reply.metadata.recursion_desired && reply.metadata.authoritative);
        assert_eq!(reply.queries[0].name().to_ascii(), format!("{name}."), "as it was asked");
        let addresses: Vec<_> = reply.answers.iter().map(|of| of.data.ip_addr().unwrap()).collect();
        assert_eq!(addresses, answer.into_iter().map(ip).collect::<Vec<_>>(), "{name} {kind}");
        assert!(reply.answers.iter().all(|of| of.name == *reply.queries[0].name()));
        assert!(world.host.sent.is_empty());
    }
    for name in [
        "host.docker.internal.example",
        "ahost.docker.internals",
        "internal",
        "xdocker.internal",
        "4.3.2.1.in-addr.arpa",
    ] {
        let mut world = World::new(&[]);
        world.ask(4000, &query(9, name, RecordType::A));
        world.asked();
    }
}

#[test]
fn a_refused_name_does_not_exist_and_nobody_is_asked() {
    let mut world = World::new(&["deny *.evil.example"]);
    world.ask(4000, &query(9, "A.EVIL.example", RecordType::TXT));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::NXDomain);
    assert!(world.host.sent.is_empty());
    assert_eq!(world.dns.counters().refused, 1);
    assert_eq!(world.egress.take_refusal().unwrap().name.as_deref(), Some("a.evil.example"));
    world.ask(4000, &query(9, "evil.example", RecordType::A));
    world.asked();
}

#[test]
fn only_one_plain_question_is_passed_on() {
    let plain = query(9, "a.example", RecordType::A);
    let changed = |at: usize, to: u8| {
        let mut bytes = plain.clone();
        bytes[at] = to;
        bytes
    };
    let longer = |tail: &[u8]| [plain.as_slice(), tail].concat();
    let opt = [0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0];
    let with_opts = |count: u8| {
        let mut bytes = longer(&opt.repeat(count.into()));
        bytes[11] = count;
        bytes
    };
    let mut two = longer(&plain[12..]);
    two[5] = 2;
    for (what, bytes, result) in [
        ("a response", changed(2, 0x81), None),
        ("too short", plain[..11].to_vec(), None),
        ("nothing", vec![], None),
        ("an update", changed(2, 0x29), Some(ResponseCode::NotImp)),
        ("two questions", two, Some(ResponseCode::FormErr)),
        ("no question", changed(5, 0), Some(ResponseCode::FormErr)),
        ("an answer", changed(7, 1), Some(ResponseCode::FormErr)),
        ("an authority", changed(9, 1), Some(ResponseCode::FormErr)),
        ("a record that is not there", changed(11, 1), Some(ResponseCode::FormErr)),
        ("bytes behind", longer(&[0]), Some(ResponseCode::FormErr)),
        ("cut", plain[..plain.len() - 1].to_vec(), Some(ResponseCode::FormErr)),
        ("two EDNS records", with_opts(2), Some(ResponseCode::FormErr)),
        ("a name that points to itself", changed(12, 0xc0), Some(ResponseCode::FormErr)),
        ("too long", longer(&[0; 1300]), Some(ResponseCode::FormErr)),
        ("a zone transfer", query(9, "a.example", RecordType::AXFR), Some(ResponseCode::NotImp)),
        ("a signature", query(9, "a.example", RecordType::TSIG), Some(ResponseCode::NotImp)),
    ] {
        let mut world = World::new(&[]);
        world.ask(4000, &bytes);
        assert_eq!(world.reply().map(|reply| code(&reply)), result, "{what}");
        assert!(world.host.sent.is_empty(), "{what}");
    }
    let mut world = World::new(&[]);
    world.ask(4000, &with_opts(1));
    assert_eq!(world.asked().2[2..], with_opts(1)[2..]);
}

#[test]
fn addresses_that_the_guest_may_not_reach_are_taken_out() {
    for (rules, given, kept) in [
        (&[][..], &["1.1.1.1", "1.0.0.1"][..], &["1.1.1.1", "1.0.0.1"][..]),
        (&[], &["1.1.1.1", "10.0.0.1"], &["1.1.1.1"]),
        (&[], &["127.0.0.1", "0.0.0.0", "192.168.127.254", "10.1.2.3", "169.254.169.254"], &[]),
        (&["allow any"], &["127.0.0.1", "0.0.0.0", "192.168.127.2", "224.0.0.1"], &[]),
        (&["allow 10.0.0.0/8:443"], &["10.0.0.1", "10.1.2.3", "192.168.0.1"], &["10.0.0.1"]),
        (&["allow host:17670"], &["10.1.2.3", "10.0.0.1"], &["10.1.2.3"]),
        (&["deny 1.1.1.1"], &["1.1.1.1", "1.0.0.1"], &["1.1.1.1", "1.0.0.1"]),
    ] {
        let mut world = World::new(rules);
        let records: Vec<_> = given.iter().map(|of| address("a.example", of)).collect();
        let reply = world.look_up("a.example", RecordType::A, &records);
        let addresses: Vec<_> = reply.answers.iter().map(|of| of.data.ip_addr().unwrap()).collect();
        assert_eq!(
            addresses,
            kept.iter().map(|of| ip(of)).collect::<Vec<_>>(),
            "{rules:?} {given:?}"
        );
        assert_eq!(code(&reply), ResponseCode::NoError);
        assert!(reply.answers.iter().all(|of| of.ttl == 33));
        let removed = (given.len() - kept.len()) as u64;
        assert_eq!(world.dns.counters().addresses_removed, removed);
    }
    let mut world = World::new(&[]);
    let hidden =
        ["::1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "fd00::1", "fe80::1"];
    let mut records: Vec<_> = hidden.iter().map(|of| address("a.example", of)).collect();
    records.push(address("a.example", "2606:4700::1"));
    let reply = world.look_up("a.example", RecordType::AAAA, &records);
    assert_eq!(reply.answers, [address("a.example", "2606:4700::1")]);
}

#[test]
fn what_is_left_of_an_answer_reads_as_before() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(77, "www.a.example", RecordType::A));
    let (flow, _, sent) = world.asked();
    let mut answer = answer_to(&sent);
    answer.metadata.authentic_data = true;
    answer.add_answers([
        record("www.a.example", RData::CNAME(CNAME(other_name("b.a.example")))),
        address("b.a.example", "10.0.0.1"),
        address("b.a.example", "1.1.1.1"),
        record("a.example", RData::MX(MX::new(10, other_name("mail.a.example")))),
    ]);
    let soa = SOA::new(other_name("ns.a.example"), other_name("root.a.example"), 1, 2, 3, 4, 5);
    answer.authorities.push(record("a.example", RData::SOA(soa)));
    answer.additionals.push(address("ns.a.example", "10.0.0.2"));
    answer.additionals.push(address("mail.a.example", "1.1.1.2"));
    answer.set_edns(hickory_proto::op::Edns::new().set_max_payload(1232).clone());
    world.deliver(flow, Ok(answer.to_vec().unwrap()));
    let reply = world.reply().unwrap();
    answer.metadata.id = 77;
    answer.metadata.authentic_data = false;
    answer.answers.remove(1);
    answer.additionals.remove(0);
    assert_eq!(reply, answer);
    assert_eq!(world.dns.counters().addresses_removed, 2);
}

/// Whether the guest can connect to `to` after what it was told.
fn reaches(world: &mut World, to: &str) -> bool {
    let to = SocketAddr::new(ip(to), 443);
    matches!(world.egress.flow(world.now, Transport::Tcp, to), Ok(Route::Socket(_)))
}

#[test]
fn an_answer_pins_what_the_name_leads_to_and_nothing_beside() {
    let mut world = World::new(&["allow *.good.example:443", "allow dns:any", "deny any"]);
    let cname = |from: &str, to: &str| record(from, RData::CNAME(CNAME(other_name(to))));
    // Order in an answer means nothing, and what is beside the chain was not asked for.
    world.look_up(
        "www.good.example",
        RecordType::A,
        &[
            address("edge.cdn.example", "1.1.1.1"),
            cname("www.good.example", "b.cdn.example"),
            cname("b.cdn.example", "edge.cdn.example"),
            cname("edge.cdn.example", "www.good.example"),
            address("beside.good.example", "1.1.1.2"),
        ],
    );
    world.look_up(
        "bad.example",
        RecordType::A,
        &[
            address("bad.example", "1.1.1.3"),
            cname("bad.example", "www.good.example"),
            address("www.good.example", "1.1.1.4"),
        ],
    );
    assert!(reaches(&mut world, "1.1.1.1"));
    for (n, why) in [(2, "beside the chain"), (3, "of another name"), (4, "said by another name")] {
        assert!(!reaches(&mut world, &format!("1.1.1.{n}")), "{why}");
    }
}

#[test]
fn hints_of_services_are_answers_too() {
    let hints = |v4: &[&str], v6: &[&str]| {
        let v4 = v4.iter().map(|of| of.parse::<Ipv4Addr>().unwrap().into()).collect();
        let v6 = v6.iter().map(|of| of.parse::<Ipv6Addr>().unwrap().into()).collect();
        vec![
            (SvcParamKey::Port, SvcParamValue::Port(8443)),
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4))),
            (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6))),
        ]
    };
    let https = |params| {
        record("_8443._https.a.example", RData::HTTPS(HTTPS(SVCB::new(1, other_name("."), params))))
    };
    let mut world = World::new(&["allow a.example:443", "allow dns:any", "deny tcp:any"]);
    let open = https(hints(&["1.1.1.1"], &["2606::1"]));
    let reply =
        world.look_up("_8443._https.a.example", RecordType::HTTPS, std::slice::from_ref(&open));
    assert_eq!(reply.answers, [open]);
    assert!(
        reaches(&mut world, "1.1.1.1") && reaches(&mut world, "2606::1"),
        "pinned to the host's name"
    );
    let mut params = hints(&["1.1.1.1", "10.0.0.1"], &["2606::1"]);
    let reply =
        world.look_up("_8443._https.a.example", RecordType::HTTPS, &[https(params.clone())]);
    params.remove(1);
    assert_eq!(reply.answers, [https(params)], "a list with one that is refused is left out");
}

#[test]
fn an_answer_that_cannot_be_read_is_a_failure() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(77, "a.example", RecordType::A));
    let (flow, _, sent) = world.asked();
    let mut answer = answer_to(&sent);
    answer.add_answer(address("a.example", "1.1.1.1"));
    let mut bytes = answer.to_vec().unwrap();
    bytes.truncate(bytes.len() - 1);
    world.deliver(flow, Ok(bytes));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
    assert_eq!(world.dns.counters().malformed_answers, 1);
}

#[test]
fn names_are_read_once_and_never_in_circles() {
    let at = |bytes: &[u8], at| Name::read(bytes, at).map(|(name, end)| (name.text(), end));
    let head = [0; 12];
    let message = |tail: &[u8]| [&head, tail].concat();
    let ok = |text: &str, end| Ok((text.to_owned(), end));
    let bad = Err(message::Malformed);
    assert_eq!(at(&message(b"\x01A\x02bC\x00"), 12), ok("a.bc", 18));
    assert_eq!(at(&message(b"\x01a\x00\x01b\xc0\x0c"), 15), ok("b.a", 19));
    assert_eq!(at(&message(b"\x00"), 12), ok("", 13));
    assert_eq!(at(&message(b"\x04a.b\\\x00"), 12), ok("a\\046b\\092", 18));
    for (tail, from) in [
        (&b"\xc0\x0c"[..], 12),
        (b"\x01a\xc0\x0c", 12),
        (b"\xc0\x0e\xc0\x0c", 12),
        (b"\x00\xc0\x0f\x01a\xc0\x0d", 15),
        (b"\xc0\x00", 12),
        (b"\x41a\x00", 12),
        (b"\x81a\x00", 12),
        (b"\x3fa", 12),
        (b"\x01", 12),
        (b"\xc0", 12),
        (b"", 12),
    ] {
        assert_eq!(at(&message(tail), from), bad, "{tail:?}");
    }
    let label = [&[63][..], &[b'a'; 63]].concat();
    let of = |last: u8| {
        message(&[&label.repeat(3), &[last][..], &vec![b'b'; last.into()], &[0]].concat())
    };
    assert!(at(&of(61), 12).is_ok(), "255 bytes");
    assert_eq!(at(&of(62), 12), bad, "256 bytes");
}

fn any_name() -> impl Strategy<Value = String> {
    "([a-c]{1,3}\\.){0,4}(example|good\\.example)"
}

fn any_record() -> impl Strategy<Value = OtherRecord> {
    let data = prop_oneof![
        any::<[u8; 4]>().prop_map(|of| RData::A(Ipv4Addr::from(of).into())),
        prop::sample::select(vec!["10.0.0.1", "127.0.0.1", "1.1.1.1", "10.1.2.3"])
            .prop_map(|of| RData::A(of.parse::<Ipv4Addr>().unwrap().into())),
        any::<[u8; 16]>().prop_map(|of| RData::AAAA(Ipv6Addr::from(of).into())),
        any_name().prop_map(|of| RData::CNAME(CNAME(other_name(&of)))),
        (any::<u16>(), any_name()).prop_map(|(n, of)| RData::MX(MX::new(n, other_name(&of)))),
        (any_name(), any_name()).prop_map(|(a, b)| {
            RData::SOA(SOA::new(other_name(&a), other_name(&b), 1, 2, 3, 4, 5))
        }),
    ];
    (any_name(), data).prop_map(|(name, data)| record(&name, data))
}

proptest! {
    #[test]
    fn messages_read_as_another_implementation_reads_them(name in any_name(), answers in prop::collection::vec(any_record(), 0..8), more in prop::collection::vec(any_record(), 0..4)) {
        let mut message = answer_to(&query(1, &name, RecordType::A));
        message.add_answers(answers.clone());
        message.authorities = more.clone();
        let bytes = message.to_vec().unwrap();
        let header = Header::read(&bytes).unwrap();
        let (question, at) = message::Question::read(&bytes, 12).unwrap();
        prop_assert_eq!(question.name.text(), name.clone());
        prop_assert_eq!(Some(question.name), Name::from_text(&name));
        let mut records = Records::new(&bytes, at, &header);
        for other in answers.iter().chain(&more) {
            let record = records.next().unwrap().unwrap();
            prop_assert_eq!(record.name.text() + ".", other.name.to_ascii());
            prop_assert_eq!((record.kind, record.ttl), (other.record_type().into(), other.ttl));
            if let Some(ip) = other.data.ip_addr() {
                let data = &bytes[record.data];
                let octets = match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                prop_assert_eq!(data, octets);
            }
        }
        prop_assert!(records.next().is_none());
        prop_assert_eq!(records.position(), bytes.len());
    }

    #[test]
    fn whatever_is_answered_no_refused_address_reaches_the_guest(name in any_name(), answers in prop::collection::vec(any_record(), 0..8), more in prop::collection::vec(any_record(), 0..4)) {
        let mut world = World::new(&["allow 10.0.0.0/24"]);
        world.ask(4000, &query(1, &name, RecordType::A));
        let (flow, _, sent) = world.asked();
        let mut message = answer_to(&sent);
        message.add_answers(answers);
        message.additionals = more;
        world.deliver(flow, Ok(message.to_vec().unwrap()));
        let reply = world.reply().unwrap();
        message.metadata.id = 1;
        let mut open = |of: &OtherRecord| {
            of.data.ip_addr().is_none_or(|ip| world.egress.answer(world.now, "x", ip, None).is_ok())
        };
        message.answers.retain(&mut open);
        message.additionals.retain(&mut open);
        if !reply.metadata.truncation {
            prop_assert_eq!(reply, message);
        }
    }

    #[test]
    fn no_bytes_of_a_guest_or_a_resolver_do_harm(
        asked in prop::collection::vec(any::<u8>(), 0..80),
        changes in prop::collection::vec((0_usize..200, any::<u8>()), 1..6),
        cut in 0_usize..200, records in prop::collection::vec(any_record(), 0..6),
    ) {
        let mut world = World::new(&["deny *.evil.example"]);
        world.ask(1, &asked);
        let mut plain = query(1, "a.example", RecordType::A);
        for (at, byte) in &changes {
            let at = at % plain.len();
            plain[at] = *byte;
        }
        world.ask(2, &plain);
        world.ask(3, &query(1, "a.example", RecordType::A));
        let (flow, _, sent) = world.asked();
        let mut answer = answer_to(&sent);
        answer.add_answers(records);
        let mut bytes = answer.to_vec().unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            // The identifier stays, so that the rest is looked at.
            if at > 1 { bytes[at] = byte }
        }
        bytes.truncate(bytes.len().max(cut + 1) - cut.min(bytes.len()));
        world.deliver(flow, Ok(bytes));
        for _ in 0..4 {
            world.pass(Duration::from_secs(2));
        }
        prop_assert_eq!(world.dns.in_flight(), 0);
        prop_assert!(world.host.open.is_empty());
        let mut replies = 0;
        while let Some(reply) = world.dns.take_reply() {
            replies += 1;
            prop_assert!(reply.bytes.len() >= 12 && reply.bytes[2] & 0x80 != 0);
        }
        prop_assert!((1..=3).contains(&replies));
    }
}
