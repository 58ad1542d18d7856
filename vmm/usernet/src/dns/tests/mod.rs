//! A resolver of a guest between a scripted host and messages made by another implementation.

mod forwarding;
mod messages;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::{Name as OtherName, RData, Record as OtherRecord, RecordType};

use super::*;
use crate::policy::{Fallback, Places, Policy, Scene};
use crate::sockets::{
    Close, Connect, Datagrams, ForwardId, HostError, Received, Unsendable, Unsent,
};

const START: Instant = Instant::from_nanos(1_000_000_000_000);
const BASE: u32 = 1000;

/// What a test sees and says of the host.
#[derive(Debug, Default)]
struct Host {
    /// Sockets that are open, and to whom.
    open: BTreeMap<FlowId, SocketAddr>,
    /// What was sent, by whom to whom.
    sent: Vec<(FlowId, SocketAddr, Vec<u8>)>,
    inbox: BTreeMap<FlowId, VecDeque<Result<Vec<u8>, HostError>>>,
    refuses: Option<HostError>,
    /// What a TCP socket takes at once.
    takes: Option<usize>,
    tcp_sent: BTreeMap<FlowId, Vec<u8>>,
    names: Vec<FlowId>,
}

impl Host {
    fn opened(&mut self, flow: FlowId, peer: SocketAddr) {
        assert!(!self.names.contains(&flow), "a name was used twice");
        assert!(flow.index() >= BASE);
        self.names.push(flow);
        self.open.insert(flow, peer);
    }
}

impl Sockets<()> for Host {
    fn tcp_connect(&mut self, flow: FlowId, peer: SocketAddr) -> Result<Connect, HostError> {
        self.opened(flow, peer);
        self.refuses.map_or(Ok(Connect::UnderWay), Err)
    }

    fn tcp_accept(&mut self, _: ForwardId, _: FlowId) -> Result<Option<SocketAddr>, HostError> {
        unreachable!("a resolver accepts nothing")
    }

    fn tcp_send(&mut self, _: FlowId, _: &[()]) -> Result<usize, HostError> {
        unreachable!("a resolver sends bytes of its own")
    }

    fn tcp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError> {
        let taken = self.takes.take().unwrap_or(bytes.len()).min(bytes.len());
        self.tcp_sent.entry(flow).or_default().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn tcp_receive(&mut self, flow: FlowId, into: &mut [&mut [u8]]) -> Result<Received, HostError> {
        let Some(piece) = self.inbox.entry(flow).or_default().pop_front() else {
            return Ok(Received::Nothing);
        };
        let piece = piece?;
        into[0][..piece.len()].copy_from_slice(&piece);
        Ok(if piece.is_empty() { Received::End } else { Received::Bytes(piece.len()) })
    }

    fn tcp_send_space(&mut self, _: FlowId) -> usize {
        unreachable!("queries are small")
    }

    fn tcp_shutdown_write(&mut self, _: FlowId) {}

    fn udp_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        if let Some(error) = self.refuses {
            return Err(error);
        }
        self.opened(flow, peer);
        Ok(())
    }

    fn udp_accept(&mut self, _: ForwardId, _: FlowId) -> Result<Option<SocketAddr>, HostError> {
        unreachable!("a resolver accepts nothing")
    }

    fn udp_send(&mut self, _: FlowId, _: &[Unsent<()>]) -> Result<(), Unsendable> {
        unreachable!("a resolver sends bytes of its own")
    }

    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        self.sent.push((flow, self.open[&flow], bytes.to_vec()));
        Ok(())
    }

    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        let Some(message) = self.inbox.entry(flow).or_default().pop_front() else {
            return Ok(None);
        };
        let message = message?;
        into[..message.len()].copy_from_slice(&message);
        Ok(Some(Datagrams { len: message.len(), segment: message.len() }))
    }

    fn echo_open(&mut self, _: FlowId, _: SocketAddr) -> Result<(), HostError> {
        unreachable!("a resolver sends no echoes")
    }

    fn echo_send(&mut self, _: FlowId, _: u16, _: &[u8]) -> Result<(), HostError> {
        unreachable!("a resolver sends no echoes")
    }

    fn echo_receive(&mut self, _: FlowId, _: &mut [u8]) -> Result<Option<(u16, usize)>, HostError> {
        unreachable!("a resolver sends no echoes")
    }

    fn take_error(&mut self, _: FlowId) -> Option<HostError> {
        self.refuses
    }

    fn close(&mut self, flow: FlowId, _: Close) {
        self.open.remove(&flow);
        self.inbox.remove(&flow);
    }
}

/// A guest, its resolver, and the host's resolvers.
struct World {
    dns: Dns,
    egress: Egress,
    host: Host,
    now: Instant,
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(ip("192.168.127.2"), port)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn servers() -> [SocketAddr; 2] {
    ["127.0.0.53:53".parse().unwrap(), "9.9.9.9:53".parse().unwrap()]
}

impl World {
    fn new(rules: &[&str]) -> Self {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::new(rules, Fallback::Public).unwrap();
        let scene = Scene::new(Places::default(), None, [ip("10.1.2.3")]);
        let mut dns = Dns::new(BASE, SipKey::new([7; 16]), 1472);
        dns.replace_servers(&servers());
        let egress = Egress::new(policy.into(), scene);
        Self { dns, egress, host: Host::default(), now: START }
    }

    /// The guest asks by UDP.
    fn ask(&mut self, port: u16, query: &[u8]) {
        let at = SocketAddr::new(ip("192.168.127.1"), PORT);
        self.dns.ask(self.now, guest(port), at, query, &mut self.egress, &mut self.host);
    }

    /// The answer that waits for the guest.
    fn reply(&mut self) -> Option<Message> {
        self.reply_bytes().map(|bytes| Message::from_vec(&bytes).unwrap())
    }

    fn reply_bytes(&mut self) -> Option<Vec<u8>> {
        self.dns.take_reply().map(|reply| reply.bytes)
    }

    /// What the host was asked last: on which socket, at which resolver, and what.
    fn asked(&mut self) -> (FlowId, SocketAddr, Vec<u8>) {
        self.host.sent.pop().expect("somebody was asked")
    }

    fn deliver(&mut self, flow: FlowId, message: Result<Vec<u8>, HostError>) {
        self.host.inbox.entry(flow).or_default().push_back(message);
        self.ready(flow, Readiness { readable: true, ..Readiness::default() });
    }

    fn ready(&mut self, flow: FlowId, readiness: Readiness) {
        assert!(self.dns.owns(flow));
        self.dns.ready(self.now, flow, readiness, &mut self.egress, &mut self.host);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.dns.tick(self.now, &mut self.host);
    }

    /// Asks, lets the host answer with `records`, and returns what the guest gets.
    fn look_up(&mut self, name: &str, kind: RecordType, records: &[OtherRecord]) -> Message {
        self.ask(4000, &query(77, name, kind));
        let (flow, _, asked) = self.asked();
        let mut answer = answer_to(&asked);
        answer.add_answers(records.iter().cloned());
        self.deliver(flow, Ok(answer.to_vec().unwrap()));
        let reply = self.reply().expect("an answer");
        assert_eq!(reply.metadata.id, 77);
        reply
    }
}

fn other_name(text: &str) -> OtherName {
    let mut name = OtherName::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(other_name(name), kind));
    message.to_vec().unwrap()
}

fn answer_to(query: &[u8]) -> Message {
    let asked = Message::from_vec(query).unwrap();
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(asked.queries[0].clone());
    message
}

fn record(name: &str, data: RData) -> OtherRecord {
    OtherRecord::from_rdata(other_name(name), 33, data)
}

fn address(name: &str, address: &str) -> OtherRecord {
    record(
        name,
        match ip(address) {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        },
    )
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}
