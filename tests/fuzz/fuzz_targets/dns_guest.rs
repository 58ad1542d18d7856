//! A guest that asks: datagrams, streams cut anywhere, time, and a host that answers, refuses or is silent.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use openshell_fuzz::Script;
use openshell_fuzz::resolvers::Resolvers;
use openshell_usernet::Instant;
use openshell_usernet::dns::{Dns, StreamId};
use openshell_usernet::policy::{Egress, Fallback, Policy, Scene};
use openshell_usernet::siphash::SipKey;
use openshell_usernet::sockets::Readiness;

fuzz_target!(|data: &[u8]| {
    let rules = vec!["deny *.evil.example".parse().unwrap()];
    let policy = Policy::new(rules, Fallback::Public).unwrap();
    let mut dns = Dns::new(100, SipKey::new([1; 16]), 1472);
    dns.replace_servers(&["9.9.9.9:53".parse().unwrap(), "127.0.0.53:53".parse().unwrap()]);
    let mut guest = Guest {
        dns,
        egress: Egress::new(policy.into(), Scene::default()),
        host: Resolvers::default(),
        now: Instant::from_nanos(0),
        streams: Vec::new(),
        asked: 0,
        answered: 0,
    };
    let mut script = Script(data);
    while script.goes_on() {
        guest.step(&mut script);
        guest.check();
    }
    // All that was asked comes to its end by time alone.
    for _ in 0..5 {
        guest.now = guest.now + Duration::from_secs(2);
        guest.dns.tick(guest.now, &mut guest.host);
    }
    guest.check();
    assert_eq!(guest.dns.in_flight(), 0);
    assert!(guest.host.open.is_empty(), "sockets are left open");
});

struct Guest {
    dns: Dns,
    egress: Egress,
    host: Resolvers,
    now: Instant,
    streams: Vec<StreamId>,
    asked: usize,
    answered: usize,
}

impl Guest {
    fn step(&mut self, script: &mut Script<'_>) {
        let (what, which) = (script.byte(), script.byte());
        let stream = self.streams.get(usize::from(which) % self.streams.len().max(1)).copied();
        match (what % 9, stream) {
            (0, _) => {
                let len = usize::from(script.byte());
                let guest = SocketAddr::new([192, 168, 127, 2].into(), u16::from(which) + 1);
                let at = SocketAddr::new([192, 168, 127, 1].into(), 53);
                let query = script.bytes(len);
                self.dns.ask(self.now, guest, at, query, &mut self.egress, &mut self.host);
                self.asked += 1;
            }
            (1, _) => match self.dns.open(self.now) {
                Some(id) => self.streams.push(id),
                None => assert_eq!(self.streams.len(), Dns::MAX_STREAMS),
            },
            (2, Some(id)) => {
                let bytes = script.bytes(which.into());
                let taken = self.dns.push(self.now, id, bytes, &mut self.egress, &mut self.host);
                assert!(taken <= bytes.len());
            }
            (3, Some(id)) => {
                let waits = self.dns.readable(id);
                let count = self.dns.pull(id, &mut vec![0; which.into()]);
                assert_eq!(count, waits.min(which.into()));
            }
            (4, Some(id)) => self.dns.finish(id),
            (5, Some(id)) => {
                self.dns.close(id, &mut self.host);
                self.streams.retain(|other| *other != id);
            }
            (6, _) => {
                self.now = self.now + Duration::from_millis(u64::from(which) * 20);
                self.dns.tick(self.now, &mut self.host);
                assert!(self.dns.deadline().is_none_or(|deadline| deadline > self.now));
            }
            (7, _) => self.host.refuses = which & 1 != 0,
            // The resolver says the question back as an answer without records, or truncated.
            (8, _) => {
                let sockets: Vec<_> =
                    self.host.open.iter().map(|(flow, sent)| (*flow, sent.clone())).collect();
                let Some((flow, mut message)) =
                    sockets.get(usize::from(which) % sockets.len().max(1)).cloned()
                else {
                    return;
                };
                if let Some(flags) = message.get_mut(2) {
                    *flags |= 0x80 | (script.byte() & 2);
                }
                self.host.inbox.entry(flow).or_default().push_back(message);
                let readiness = Readiness { readable: true, writable: true, failed: false };
                self.dns.ready(self.now, flow, readiness, &mut self.egress, &mut self.host);
            }
            _ => {}
        }
    }

    fn check(&mut self) {
        while let Some(reply) = self.dns.take_reply() {
            self.answered += 1;
            assert!(reply.bytes.len() >= 12 && reply.bytes[2] & 0x80 != 0, "a response");
            assert!(reply.bytes.len() <= 1472);
        }
        assert!(self.answered <= self.asked, "an answer that nobody asked for");
        assert!(self.dns.in_flight() <= Dns::MAX_IN_FLIGHT);
        assert!(self.host.open.len() <= Dns::MAX_IN_FLIGHT);
        for _ in &self.streams {
            self.dns.take_ready();
        }
    }
}
