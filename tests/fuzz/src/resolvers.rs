//! A host whose resolvers say what a fuzzer says.
//!
//! Invariant: a socket's name is used once, and none is used after it was closed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use openshell_usernet::sockets::{
    Close, Connect, Datagrams, ForwardId, HostError, Received, Unsendable, Unsent,
};
use openshell_usernet::{FlowId, Sockets};

/// Sockets of a stack's resolver.
#[derive(Debug, Default)]
pub struct Resolvers {
    /// Those that are open, and what was sent on each.
    pub open: BTreeMap<FlowId, Vec<u8>>,
    /// What waits on each.
    pub inbox: BTreeMap<FlowId, VecDeque<Vec<u8>>>,
    /// The next socket cannot be opened.
    pub refuses: bool,
    /// What the next send on a stream takes.
    pub takes: Option<usize>,
    used: BTreeSet<FlowId>,
}

impl Resolvers {
    fn opened(&mut self, flow: FlowId) -> Result<(), HostError> {
        assert!(self.used.insert(flow), "the name {flow:?} was used before");
        if std::mem::take(&mut self.refuses) {
            return Err(HostError::Refused);
        }
        self.open.insert(flow, Vec::new());
        Ok(())
    }

    fn sent(&mut self, flow: FlowId, bytes: &[u8]) {
        self.open.get_mut(&flow).expect("the socket is open").extend_from_slice(bytes);
    }
}

impl Sockets<()> for Resolvers {
    fn tcp_connect(&mut self, flow: FlowId, _: SocketAddr) -> Result<Connect, HostError> {
        self.opened(flow).map(|()| Connect::UnderWay)
    }

    fn tcp_accept(&mut self, _: ForwardId, _: FlowId) -> Result<Option<SocketAddr>, HostError> {
        unreachable!("a resolver accepts nothing")
    }

    fn tcp_send(&mut self, _: FlowId, _: &[()]) -> Result<usize, HostError> {
        unreachable!("a resolver sends bytes of its own")
    }

    fn tcp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError> {
        let taken = self.takes.take().map_or(bytes.len(), |takes| takes.min(bytes.len()));
        self.sent(flow, &bytes[..taken]);
        Ok(taken)
    }

    fn tcp_receive(&mut self, flow: FlowId, into: &mut [&mut [u8]]) -> Result<Received, HostError> {
        assert!(self.open.contains_key(&flow));
        let inbox = self.inbox.entry(flow).or_default();
        let Some(mut piece) = inbox.pop_front() else { return Ok(Received::Nothing) };
        let count = piece.len().min(into[0].len());
        into[0][..count].copy_from_slice(&piece[..count]);
        if count < piece.len() {
            inbox.push_front(piece.split_off(count));
        }
        Ok(if count == 0 { Received::End } else { Received::Bytes(count) })
    }

    fn tcp_send_space(&mut self, _: FlowId) -> usize {
        usize::MAX
    }

    fn tcp_shutdown_write(&mut self, _: FlowId) {}

    fn udp_open(&mut self, flow: FlowId, _: SocketAddr) -> Result<(), HostError> {
        self.opened(flow)
    }

    fn udp_accept(&mut self, _: ForwardId, _: FlowId) -> Result<Option<SocketAddr>, HostError> {
        unreachable!("a resolver accepts nothing")
    }

    fn udp_send(&mut self, _: FlowId, _: &[Unsent<()>]) -> Result<(), Unsendable> {
        unreachable!("a resolver sends bytes of its own")
    }

    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        self.sent(flow, bytes);
        Ok(())
    }

    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        assert!(self.open.contains_key(&flow));
        let Some(message) = self.inbox.entry(flow).or_default().pop_front() else {
            return Ok(None);
        };
        let len = message.len().min(into.len());
        into[..len].copy_from_slice(&message[..len]);
        Ok(Some(Datagrams { len, segment: len }))
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
        None
    }

    fn close(&mut self, flow: FlowId, _: Close) {
        self.open.remove(&flow);
        self.inbox.remove(&flow);
    }
}
