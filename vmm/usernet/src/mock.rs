//! A link and sockets without a machine, for tests and fuzzing: what the stack does to them can be looked at, and what they do to it is
//! said by whoever holds them.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use crate::link::{LinkFull, Offload, Offloads, Payload};
use crate::sockets::{
    Close, Connect, Datagrams, ForwardId, HostError, Readiness, Received, Sockets, Unsendable,
    Unsent,
};
use crate::{FlowId, Link};

/// Payload in memory of its own; how much of it is held can be looked at.
#[derive(Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    held: Rc<Cell<usize>>,
}

impl Bytes {
    /// These bytes; `held` counts how many are held anywhere.
    #[must_use]
    pub fn new(bytes: Vec<u8>, held: &Rc<Cell<usize>>) -> Self {
        held.set(held.get() + 1);
        Self { start: 0, end: bytes.len(), bytes, held: Rc::clone(held) }
    }

    /// What is left of them.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.held.set(self.held.get() - 1);
    }
}

impl Payload for Bytes {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn skip(&mut self, count: usize) {
        self.start += count.min(self.len());
    }

    fn truncate(&mut self, count: usize) {
        self.end = self.start + count.min(self.len());
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = self.len().min(out.len());
        out[..count].copy_from_slice(&self.as_slice()[..count]);
        count
    }
}

/// A link with a bounded number of receive buffers.
#[derive(Debug, Default)]
pub struct MockLink {
    /// What the guest takes.
    pub offloads: Offloads,
    /// How many more frames it takes.
    pub room: usize,
    /// Whether a frame was refused since this was last cleared.
    pub refused: bool,
    /// Frames to the guest, oldest first.
    pub frames: VecDeque<(Offload, Vec<u8>)>,
}

impl Link for MockLink {
    type Payload = Bytes;

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        if self.room == 0 {
            self.refused = true;
            return Err(LinkFull);
        }
        self.room -= 1;
        let frame = [head, &body.concat()].concat();
        self.frames.push_back((offload, frame));
        Ok(())
    }
}

/// One socket, as its peer sees it.
#[derive(Debug, Default)]
pub struct MockSocket {
    /// Where it was connected to, or who connected.
    pub peer: Option<SocketAddr>,
    /// What the guest's side sent.
    pub received: Vec<u8>,
    /// Datagrams that were sent, or echo data.
    pub datagrams: Vec<Vec<u8>>,
    /// What the guest's side may still send at this moment.
    pub space: usize,
    /// Whether a send was cut short since this was last cleared.
    pub was_full: bool,
    /// What waits to be read.
    pub waiting: VecDeque<u8>,
    /// Datagrams that wait to be read.
    pub waiting_datagrams: VecDeque<Vec<u8>>,
    /// One read brings so many bytes at most.
    pub read_limit: usize,
    /// Behind what waits, the peer has ended its side.
    pub ended: bool,
    /// Behind what waits, the connection is lost.
    pub error: Option<HostError>,
    /// The guest's side has ended.
    pub shut_down: bool,
    /// It was closed.
    pub closed: Option<Close>,
}

/// Sockets whose peers are in the hand of the test.
#[derive(Debug, Default)]
pub struct MockSockets {
    /// All there ever were.
    pub sockets: BTreeMap<FlowId, MockSocket>,
    /// In the order in which they were opened.
    pub opened: Vec<FlowId>,
    /// What becomes of the next connects; [`Connect::Done`] when none is left.
    pub connects: VecDeque<Result<Connect, HostError>>,
    /// Who waits at published ports.
    pub waiting: VecDeque<SocketAddr>,
    /// What a new socket takes.
    pub space: usize,
    /// What a new socket gives in one read.
    pub read_limit: usize,
}

impl MockSockets {
    /// The socket that was opened last.
    ///
    /// # Panics
    /// When none was opened.
    pub fn last(&mut self) -> (FlowId, &mut MockSocket) {
        let id = *self.opened.last().expect("a socket was opened");
        (id, self.sockets.get_mut(&id).expect("what was opened is there"))
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.sockets.values().filter(|socket| socket.closed.is_none()).count()
    }

    /// Names whoever waits at a published port.
    fn accept(&mut self, flow: FlowId) -> Option<SocketAddr> {
        let peer = self.waiting.pop_front()?;
        self.add(flow, peer);
        Some(peer)
    }

    fn add(&mut self, flow: FlowId, peer: SocketAddr) {
        let (space, read_limit) = (self.space, self.read_limit);
        let socket = MockSocket { peer: Some(peer), space, read_limit, ..MockSocket::default() };
        let before = self.sockets.insert(flow, socket);
        assert!(before.is_none_or(|socket| socket.closed.is_some()), "{flow:?} is taken");
        self.opened.push(flow);
    }

    fn socket(&mut self, flow: FlowId) -> &mut MockSocket {
        let socket = self.sockets.get_mut(&flow).expect("only sockets that were opened are used");
        assert!(socket.closed.is_none(), "{flow:?} was closed");
        socket
    }
}

impl Sockets<Bytes> for MockSockets {
    fn tcp_connect(&mut self, flow: FlowId, peer: SocketAddr) -> Result<Connect, HostError> {
        let result = self.connects.pop_front().unwrap_or(Ok(Connect::Done));
        if result.is_ok() {
            self.add(flow, peer);
        }
        result
    }

    fn tcp_accept(
        &mut self,
        _forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError> {
        Ok(self.accept(flow))
    }

    fn tcp_send(&mut self, flow: FlowId, parts: &[Bytes]) -> Result<usize, HostError> {
        let bytes = parts.iter().map(Bytes::as_slice).collect::<Vec<_>>().concat();
        self.tcp_send_bytes(flow, &bytes)
    }

    fn tcp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<usize, HostError> {
        let socket = self.socket(flow);
        assert!(!socket.shut_down, "nothing is sent after the end");
        if let Some(error) = socket.error {
            return Err(error);
        }
        let count = bytes.len().min(socket.space);
        socket.was_full |= count < bytes.len();
        socket.space -= count;
        socket.received.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn tcp_receive(&mut self, flow: FlowId, into: &mut [&mut [u8]]) -> Result<Received, HostError> {
        let socket = self.socket(flow);
        if socket.waiting.is_empty() {
            return match (socket.error, socket.ended) {
                (Some(error), _) => Err(error),
                (None, true) => Ok(Received::End),
                (None, false) => Ok(Received::Nothing),
            };
        }
        let mut left = socket.read_limit.max(1).min(socket.waiting.len());
        let mut count = 0;
        for piece in into {
            for byte in piece.iter_mut().take(left) {
                *byte = socket.waiting.pop_front().expect("no more than waits");
                count += 1;
            }
            left -= piece.len().min(left);
        }
        assert!(count > 0, "a read has room");
        Ok(Received::Bytes(count))
    }

    fn tcp_send_space(&mut self, flow: FlowId) -> usize {
        self.socket(flow).space
    }

    fn tcp_shutdown_write(&mut self, flow: FlowId) {
        let socket = self.socket(flow);
        assert!(!socket.shut_down, "once is enough");
        socket.shut_down = true;
    }

    fn udp_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.add(flow, peer);
        Ok(())
    }

    fn udp_accept(
        &mut self,
        _forward: ForwardId,
        flow: FlowId,
    ) -> Result<Option<SocketAddr>, HostError> {
        Ok(self.accept(flow))
    }

    fn udp_send(&mut self, flow: FlowId, batch: &[Unsent<Bytes>]) -> Result<(), Unsendable> {
        for (index, Unsent { payload, segment }) in batch.iter().enumerate() {
            let len = segment.map_or(payload.len(), usize::from).max(1);
            for datagram in payload.as_slice().chunks(len) {
                let sent = self.udp_send_bytes(flow, datagram);
                sent.map_err(|error| Unsendable { index, error })?;
            }
        }
        Ok(())
    }

    fn udp_send_bytes(&mut self, flow: FlowId, bytes: &[u8]) -> Result<(), HostError> {
        let socket = self.socket(flow);
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        socket.datagrams.push(bytes.to_vec());
        Ok(())
    }

    fn udp_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<Datagrams>, HostError> {
        let socket = self.socket(flow);
        if let Some(error) = socket.error.take() {
            return Err(error);
        }
        Ok(socket.waiting_datagrams.pop_front().map(|datagram| {
            let len = datagram.len().min(into.len());
            into[..len].copy_from_slice(&datagram[..len]);
            Datagrams { len, segment: len }
        }))
    }

    fn echo_open(&mut self, flow: FlowId, peer: SocketAddr) -> Result<(), HostError> {
        self.add(flow, peer);
        Ok(())
    }

    fn echo_send(&mut self, flow: FlowId, sequence: u16, data: &[u8]) -> Result<(), HostError> {
        let socket = self.socket(flow);
        socket.datagrams.push([&sequence.to_be_bytes(), data].concat());
        Ok(())
    }

    fn echo_receive(
        &mut self,
        flow: FlowId,
        into: &mut [u8],
    ) -> Result<Option<(u16, usize)>, HostError> {
        let Some(reply) = self.socket(flow).waiting_datagrams.pop_front() else { return Ok(None) };
        let Some(([high, low], data)) = reply.split_first_chunk() else { return Ok(None) };
        let len = data.len().min(into.len());
        into[..len].copy_from_slice(&data[..len]);
        Ok(Some((u16::from_be_bytes([*high, *low]), len)))
    }

    fn take_error(&mut self, flow: FlowId) -> Option<HostError> {
        self.socket(flow).error.take()
    }

    fn close(&mut self, flow: FlowId, how: Close) {
        if let Some(socket) = self.sockets.get_mut(&flow) {
            socket.closed.get_or_insert(how);
        }
    }
}

/// Everything at once, as an event queue may say it.
pub const EVERYTHING: Readiness = Readiness { readable: true, writable: true, failed: false };
