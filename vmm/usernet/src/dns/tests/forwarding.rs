use hickory_proto::op::Edns;

use super::*;

#[test]
fn a_query_goes_out_raw_and_its_answer_comes_back_as_it_is() {
    let mut world = World::new(&[]);
    let mut message =
        Message::from_vec(&query(0x1234, "WWW.Example.org", RecordType::TXT)).unwrap();
    message.set_edns(Edns::new().set_max_payload(1400).set_dnssec_ok(true).clone());
    let asked = message.to_vec().unwrap();
    world.ask(4000, &asked);
    let (flow, server, sent) = world.asked();
    assert_eq!(server, servers()[0]);
    assert_eq!(sent[2..], asked[2..], "all but the identifier");
    let mut answer = answer_to(&sent);
    answer.metadata.response_code = ResponseCode::ServFail;
    answer.set_edns(Edns::new().set_max_payload(1232).clone());
    answer.add_answer(record(
        "www.example.org",
        RData::NULL(hickory_proto::rr::rdata::NULL::with(vec![9; 30])),
    ));
    let bytes = answer.to_vec().unwrap();
    world.deliver(flow, Ok(bytes.clone()));
    let reply = world.reply_bytes().unwrap();
    assert_eq!(reply[..2], [0x12, 0x34]);
    assert_eq!(reply[2..], bytes[2..], "result, time to live and EDNS");
    assert!(world.host.sent.is_empty(), "what one resolver answers no other is asked");
    assert!(world.host.open.is_empty() && world.dns.in_flight() == 0);
}

#[test]
fn every_try_has_an_identifier_and_a_socket_of_its_own() {
    let mut world = World::new(&[]);
    let mut ids = BTreeSet::new();
    for n in 0..100 {
        world.ask(4000, &query(1, &format!("{n}.example"), RecordType::A));
        let (flow, _, sent) = world.asked();
        ids.insert([sent[0], sent[1]]);
        world.deliver(flow, Ok(answer_to(&sent).to_vec().unwrap()));
    }
    assert!(ids.len() > 95, "{} of 100", ids.len());
    assert_eq!(world.host.names.len(), 100);
}

#[test]
fn the_next_resolver_is_asked_when_one_is_silent() {
    let mut world = World::new(&[]);
    let asked = query(5, "example.org", RecordType::A);
    world.ask(4000, &asked);
    let mut asked_at = vec![(0, world.asked().1)];
    while let Some(deadline) = world.dns.deadline() {
        world.now = deadline;
        world.dns.tick(world.now, &mut world.host);
        if let Some((_, server, _)) = world.host.sent.pop() {
            asked_at.push((world.now.since(START).as_millis(), server));
        }
        assert!(asked_at.len() < 9);
    }
    let [first, second] = servers();
    assert_eq!(asked_at, [(0, first), (1666, second), (3332, first)]);
    let elapsed = world.now.since(START);
    assert!(
        elapsed > Duration::from_millis(4900) && elapsed <= Duration::from_secs(5),
        "{elapsed:?}"
    );
    let reply = world.reply().unwrap();
    assert_eq!((code(&reply), reply.metadata.id), (ResponseCode::ServFail, 5));
    assert!(world.dns.take_wants_servers() && !world.dns.take_wants_servers());
    assert!(world.host.open.is_empty());
    let counters = world.dns.counters();
    assert_eq!((counters.timed_out, counters.retried, counters.unanswered), (3, 2, 1));
}

#[test]
fn a_silent_resolver_is_asked_last_for_a_while() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    assert_eq!(world.asked().1, servers()[0]);
    world.pass(Duration::from_secs(2));
    let (flow, server, sent) = world.asked();
    assert_eq!(server, servers()[1]);
    world.deliver(flow, Ok(answer_to(&sent).to_vec().unwrap()));
    world.ask(4000, &query(5, "b.example", RecordType::A));
    assert_eq!(world.asked().1, servers()[1], "not the silent one");
    world.pass(Duration::from_secs(40));
    world.ask(4000, &query(5, "c.example", RecordType::A));
    assert_eq!(world.asked().1, servers()[0], "it has another chance");
}

#[test]
fn a_resolver_that_cannot_be_reached_is_left_at_once() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    let (flow, ..) = world.asked();
    world.deliver(flow, Err(HostError::Refused));
    let (flow, server, _) = world.asked();
    assert_eq!(server, servers()[1]);
    world.deliver(flow, Err(HostError::Refused));
    let (flow, ..) = world.asked();
    world.deliver(flow, Err(HostError::Refused));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
    world.host.refuses = Some(HostError::NetworkUnreachable);
    world.ask(4000, &query(6, "a.example", RecordType::A));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail, "at once");
}

#[test]
fn without_a_resolver_the_answer_is_a_failure_at_once() {
    let mut world = World::new(&[]);
    world.dns.replace_servers(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
    assert!(world.dns.take_wants_servers());
    world.ask(4000, &query(5, "host.docker.internal", RecordType::A));
    assert_eq!(world.reply().unwrap().answers.len(), 1, "its own names it knows");
    world.dns.replace_servers(&servers());
    world.ask(4000, &query(5, "a.example", RecordType::A));
    assert_eq!(world.asked().1, servers()[0]);
}

#[test]
fn resolvers_change_while_a_query_is_in_flight() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    world.asked();
    let new: SocketAddr = "1.0.0.1:53".parse().unwrap();
    world.dns.replace_servers(&[new]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.asked().1, new);
    world.dns.replace_servers(&[]);
    world.pass(Duration::from_secs(2));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    let (flow, _, sent) = world.asked();
    let right = answer_to(&sent);
    let mut other_id = right.clone();
    other_id.metadata.id ^= 1;
    let other_question = answer_to(&query(right.metadata.id, "b.example", RecordType::A));
    let other_type = answer_to(&query(right.metadata.id, "a.example", RecordType::AAAA));
    let mut no_question = right.clone();
    no_question.queries.clear();
    for wrong in [&other_id, &other_question, &other_type, &no_question] {
        world.deliver(flow, Ok(wrong.to_vec().unwrap()));
        assert!(world.reply().is_none());
    }
    world.deliver(flow, Ok(sent.clone()));
    world.deliver(flow, Ok(vec![1, 2, 3]));
    world.deliver(flow, Ok(vec![]));
    assert!(world.reply().is_none());
    assert!(world.dns.counters().mismatched >= 6);
    world.deliver(flow, Ok(right.to_vec().unwrap()));
    assert!(world.reply().is_some());
    // Who is late finds nobody.
    world.dns.ready(
        world.now,
        flow,
        Readiness { readable: true, ..Readiness::default() },
        &mut world.egress,
        &mut world.host,
    );
    assert!(world.reply().is_none());
}

#[test]
fn a_flood_of_guesses_ends_the_try() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::A));
    let (flow, _, sent) = world.asked();
    let mut guess = answer_to(&sent);
    guess.metadata.id ^= 0xffff;
    let guess = guess.to_vec().unwrap();
    world.host.inbox.entry(flow).or_default().extend((0..1000).map(|_| Ok(guess.clone())));
    world.ready(flow, Readiness { readable: true, ..Readiness::default() });
    let (again, ..) = world.asked();
    assert_ne!(again, flow);
    assert!(!world.host.open.contains_key(&flow));
}

#[test]
fn a_server_that_cannot_read_the_question_may_leave_it_out() {
    for (result, passed) in [(ResponseCode::FormErr, true), (ResponseCode::NXDomain, false)] {
        let mut world = World::new(&[]);
        world.ask(4000, &query(5, "a.example", RecordType::A));
        let (flow, _, sent) = world.asked();
        let mut answer = answer_to(&sent);
        answer.queries.clear();
        answer.metadata.response_code = result;
        world.deliver(flow, Ok(answer.to_vec().unwrap()));
        assert_eq!(world.reply().map(|reply| code(&reply)), passed.then_some(result));
    }
}

fn large(sent: &[u8], count: u8) -> Vec<u8> {
    let mut answer = answer_to(sent);
    let data = |n| RData::NULL(hickory_proto::rr::rdata::NULL::with(vec![n; 200]));
    answer.add_answers((0..count).map(|n| record("a.example", data(n))));
    answer.to_vec().unwrap()
}

#[test]
fn a_truncated_answer_is_asked_for_again_by_tcp() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::TXT));
    let (flow, server, sent) = world.asked();
    let mut short = answer_to(&sent);
    short.metadata.truncation = true;
    world.host.takes = Some(5);
    world.deliver(flow, Ok(short.to_vec().unwrap()));
    assert!(world.reply().is_none());
    let (&tcp, &to) = world.host.open.first_key_value().unwrap();
    assert!(tcp != flow && to == server);
    let writable = Readiness { writable: true, ..Readiness::default() };
    world.ready(tcp, writable);
    world.ready(tcp, writable);
    let sent = world.host.tcp_sent.remove(&tcp).unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([sent[0], sent[1]])), sent.len() - 2);
    let full = large(&sent[2..], 2);
    let mut framed = u16::try_from(full.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(&full);
    for piece in framed.chunks(7) {
        assert!(world.reply().is_none());
        world.deliver(tcp, Ok(piece.to_vec()));
    }
    assert_eq!(world.reply_bytes().unwrap()[2..], full[2..]);
    assert!(world.host.open.is_empty());
}

#[test]
fn an_answer_too_large_for_the_guest_is_cut_to_a_hint() {
    for (edns, count, cut) in
        [(0, 2, false), (0, 3, true), (1232, 5, false), (1232, 6, true), (4096, 7, true)]
    {
        let mut world = World::new(&[]);
        let mut message = Message::from_vec(&query(5, "a.example", RecordType::TXT)).unwrap();
        if edns != 0 {
            message.set_edns(Edns::new().set_max_payload(edns).clone());
        }
        world.ask(4000, &message.to_vec().unwrap());
        let (flow, _, sent) = world.asked();
        world.deliver(flow, Ok(large(&sent, count)));
        let reply = world.reply().unwrap();
        assert_eq!(reply.metadata.truncation, cut, "{edns} {count}");
        assert_eq!(reply.answers.len(), if cut { 0 } else { count.into() });
        assert_eq!(reply.queries.len(), 1);
    }
}

#[test]
fn a_resolver_without_tcp_is_a_resolver_that_failed() {
    let mut world = World::new(&[]);
    world.ask(4000, &query(5, "a.example", RecordType::TXT));
    for _ in 0..3 {
        let (flow, _, sent) = world.asked();
        let mut short = answer_to(&sent);
        short.metadata.truncation = true;
        world.deliver(flow, Ok(short.to_vec().unwrap()));
        let (&tcp, _) = world.host.open.first_key_value().unwrap();
        world.deliver(tcp, Ok(vec![]));
    }
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
}

#[test]
fn queries_in_flight_are_bounded_and_none_is_kept_twice() {
    let mut world = World::new(&[]);
    for port in 0..256 {
        world.ask(port + 1, &query(port, "a.example", RecordType::A));
    }
    assert_eq!(world.dns.in_flight(), 256);
    assert!(world.reply().is_none());
    world.ask(17, &query(16, "a.example", RecordType::A));
    assert_eq!((world.dns.in_flight(), world.dns.counters().repeated), (256, 1));
    assert!(world.reply().is_none());
    world.ask(300, &query(300, "a.example", RecordType::A));
    assert_eq!(code(&world.reply().unwrap()), ResponseCode::ServFail);
    assert_eq!(world.dns.counters().full, 1);
    for _ in 0..3 {
        world.pass(Duration::from_millis(1667));
    }
    let mut answered = BTreeSet::new();
    while let Some(reply) = world.dns.take_reply() {
        assert!(matches!(reply.asker, Asker::Udp { guest, .. } if answered.insert(guest)));
    }
    assert_eq!((answered.len(), world.dns.in_flight()), (256, 0), "each is answered once");
    assert!(world.host.open.is_empty());
}
