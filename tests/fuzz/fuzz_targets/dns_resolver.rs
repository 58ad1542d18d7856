//! A resolver that answers with anything: what the guest is told holds no address that it may not reach, also as another
//! implementation reads it.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{DNSClass, RData};
use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_fuzz::resolvers::Resolvers;
use openshell_usernet::Instant;
use openshell_usernet::dns::Dns;
use openshell_usernet::policy::{Egress, Policy, Scene};
use openshell_usernet::siphash::SipKey;
use openshell_usernet::sockets::Readiness;

/// `_x.a.example`, and EDNS that takes much.
const QUESTION: &[u8] = b"\x02_x\x01a\x07example\0";
const EDNS: &[u8] = b"\0\0\x29\xff\xff\0\0\0\0\0\0";

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&[way, kind, a, b, c, d, e, f], records)) = data.split_first_chunk() else {
        return Corpus::Reject;
    };
    let mut dns = Dns::new(0, SipKey::new([2; 16]), 0xffff);
    dns.replace_servers(&["9.9.9.9:53".parse().unwrap()]);
    let mut egress = Egress::new(Policy::default().into(), Scene::default());
    let mut host = Resolvers::default();
    let (now, kind) = (Instant::from_nanos(0), if kind == 0 { 65 } else { kind });
    let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1], QUESTION, &[0, kind, 0, 1], EDNS].concat();
    let guest = SocketAddr::new([192, 168, 127, 2].into(), 4000);
    dns.ask(now, guest, guest, &query, &mut egress, &mut host);
    let Some((&flow, sent)) = host.open.first_key_value() else { return Corpus::Reject };
    let head = [sent[0], sent[1], 0x80 | way & 2, way >> 4, 0, 1, a & 7, b, c & 7, d, e & 7, f];
    let question = &query[12..query.len() - EDNS.len()];
    let answer = [&head[..], question, records].concat();
    host.inbox.entry(flow).or_default().push_back(answer.clone());
    let readable = Readiness { readable: true, writable: true, failed: false };
    dns.ready(now, flow, readable, &mut egress, &mut host);
    if let Some((&stream, _)) = host.open.first_key_value().filter(|(of, _)| **of != flow) {
        dns.ready(now, stream, readable, &mut egress, &mut host);
        let sent = host.open.get(&stream).cloned().unwrap_or_default();
        let mut answer = answer;
        answer[..2].copy_from_slice(&sent[2..4]);
        let Ok(len) = u16::try_from(answer.len()) else { return Corpus::Reject };
        let framed = [&len.to_be_bytes()[..], &answer].concat();
        let cut = framed.len().min(usize::from(way) + 1);
        for piece in [&framed[..cut], &framed[cut..]].into_iter().filter(|piece| !piece.is_empty())
        {
            if host.open.contains_key(&stream) {
                host.inbox.entry(stream).or_default().push_back(piece.to_vec());
                dns.ready(now, stream, readable, &mut egress, &mut host);
            }
        }
    }
    let Some(reply) = dns.take_reply() else { panic!("the answer was not passed on") };
    assert!(dns.take_reply().is_none() && host.open.is_empty() && dns.in_flight() == 0);
    assert_eq!((reply.asker, &reply.bytes[..2]), (dns_asker(guest), &[0, 7][..]));
    for address in Message::from_vec(&reply.bytes).iter().flat_map(addresses) {
        assert!(egress.answer(now, "x", address, None).is_ok(), "{address}");
    }
    Corpus::Keep
});

fn dns_asker(guest: SocketAddr) -> openshell_usernet::dns::Asker {
    openshell_usernet::dns::Asker::Udp { guest, at: guest }
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let records = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
    let mut addresses = Vec::new();
    for record in records.filter(|record| record.dns_class == DNSClass::IN) {
        addresses.extend(record.data.ip_addr());
        let service = match &record.data {
            RData::HTTPS(https) => &https.0,
            RData::SVCB(svcb) => svcb,
            _ => continue,
        };
        for (_, value) in &service.svc_params {
            match value {
                SvcParamValue::Ipv4Hint(hint) => {
                    addresses.extend(hint.0.iter().map(|of| IpAddr::from(of.0)))
                }
                SvcParamValue::Ipv6Hint(hint) => {
                    addresses.extend(hint.0.iter().map(|of| IpAddr::from(of.0)))
                }
                _ => {}
            }
        }
    }
    addresses
}
