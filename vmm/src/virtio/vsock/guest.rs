//! The guest's side: the queues of an active device, and payload moved between their buffers and the sockets.
//!
//! Invariants: a header is copied out once and judged on the copy; every chain goes back to its queue. One turn moves a bounded
//! number of packets, so that no stream and no queue starves the others. The vsock worker owns it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::memory::{GuestAddress, GuestRam};
use crate::virtio::{
    Activation, Chain, Completion, Interrupt, Queue, QueueError, Segment,
};

use super::host::Host;
use super::mux::{HostRead, Input};
use super::packet::{HEADER_BYTES, Header};
use super::stream::{Outgoing, StreamId};

/// Packets of each direction in one turn.
const TURN_PACKETS: usize = 64;

/// Buffers of the guest that one read from a socket fills at most.
const BATCH_CHAINS: usize = 16;

/// Bytes that one turn of one stream reads from its socket at most.
const BATCH_BYTES: u32 = 64 << 10;

/// Ranges of guest memory in one call.
const BATCH_RANGES: usize = 64;

const SCRATCH_BYTES: usize = 16 << 10;

/// The receive queue, with the chains that were taken and not used yet.
struct Receive {
    queue: Queue,
    spare: VecDeque<Chain>,
    /// It was empty, and the doorbell is on.
    starved: bool,
}

/// An active device.
pub(super) struct Guest {
    receive: Receive,
    transmit: Queue,
    /// Nothing is sent on it yet; it belongs to the device all the same.
    _event: Option<Queue>,
    transmit_ready: bool,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    scratch: Box<[u8]>,
    ranges: Vec<(GuestAddress, u32)>,
}

impl Guest {
    /// `None` when a queue that is needed is missing.
    pub(super) fn new(activation: Activation) -> Option<Self> {
        let mut queues = activation.queues.into_iter();
        let (receive, transmit) = (queues.next()??, queues.next()??);
        Some(Self {
            receive: Receive { queue: receive, spare: VecDeque::new(), starved: false },
            transmit,
            _event: queues.next().flatten(),
            transmit_ready: true,
            ram: activation.ram,
            interrupt: activation.interrupt,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            ranges: Vec::with_capacity(BATCH_RANGES),
        })
    }

    /// The receive queue's doorbell rang.
    pub(super) fn on_receive_bell(&mut self) {
        self.receive.starved = false;
        self.receive.queue.disable_doorbell();
    }

    /// The transmit queue's doorbell rang.
    pub(super) fn on_transmit_bell(&mut self) {
        self.transmit_ready = true;
        self.transmit.disable_doorbell();
    }

    /// The driver broke the rules of a queue: the device asks for a reset.
    pub(super) fn fail(&self) {
        self.interrupt.fail_device();
    }

    /// One turn of both queues. True when there is more to do at once.
    pub(super) fn serve(&mut self, host: &mut Host) -> Result<bool, QueueError> {
        self.transmit_turn(host)?;
        self.receive_turn(host)?;
        let more = host.mux.wants_buffer() && !self.receive.starved;
        Ok(self.transmit_ready || more)
    }

    /// Serves what the guest has sent so far, once, without answering.
    pub(super) fn drain(&mut self, host: &mut Host) -> Result<(), QueueError> {
        for _ in 0..self.transmit.size() {
            let Some(chain) = self.transmit.pop()? else { break };
            self.take_packet(&chain, host);
            self.transmit.complete(chain.complete(0));
            host.act();
        }
        Ok(())
    }

    fn transmit_turn(&mut self, host: &mut Host) -> Result<(), QueueError> {
        let mut left = TURN_PACKETS;
        while self.transmit_ready && left > 0 {
            let Some(chain) = self.transmit.pop()? else {
                self.transmit_ready = self.transmit.enable_doorbell()?;
                continue;
            };
            left -= 1;
            self.take_packet(&chain, host);
            self.transmit.complete(chain.complete(0));
            host.act();
        }
        if self.transmit.wants_interrupt() {
            self.interrupt.raise_queue();
        }
        Ok(())
    }

    /// A packet too short for a header is nobody's: it is dropped.
    fn take_packet(&mut self, chain: &Chain, host: &mut Host) {
        let mut bytes = [0; HEADER_BYTES];
        if chain.read(&self.ram, 0, &mut bytes).is_err() {
            return;
        }
        let header = Header::parse(&bytes);
        let now = host.now();
        let payload_bytes = chain.readable_len() - HEADER_BYTES as u64;
        if u64::from(header.len) > payload_bytes {
            host.mux.on_malformed(&header, now);
            return;
        }
        if let Input::Payload { id, direct } = host.mux.on_packet(&header, now)
            && header.len > 0
        {
            self.take_payload(chain, header.len, id, direct, host);
        }
    }

    /// Sends the payload from where it lies, and buffers what the socket does not take.
    fn take_payload(
        &mut self,
        chain: &Chain,
        len: u32,
        id: StreamId,
        direct: bool,
        host: &mut Host,
    ) {
        let mut sent = 0;
        if direct && let Some(socket) = host.stream(id) {
            self.ranges.clear();
            push_ranges(&mut self.ranges, chain.readable(), len);
            match self.ram.send(socket, &self.ranges) {
                Ok(count) => sent = u32::try_from(count).unwrap_or(len).min(len),
                Err(error) => host.on_send_error(id, &error),
            }
            host.mux.forwarded(id, sent);
        }
        while sent < len {
            let take = (len - sent).min(u32::try_from(self.scratch.len()).unwrap_or(len));
            let piece = self.scratch.get_mut(..take as usize).unwrap_or_default();
            let offset = HEADER_BYTES as u64 + u64::from(sent);
            if chain.read(&self.ram, offset, piece).is_err() {
                host.mux.host_failed(id);
                return;
            }
            host.mux.buffer(id, piece);
            sent += take;
        }
        host.flush(id);
    }

    fn receive_turn(&mut self, host: &mut Host) -> Result<(), QueueError> {
        for _ in 0..TURN_PACKETS {
            if !host.mux.wants_buffer() || !self.receive.fill(1)? {
                break;
            }
            match host.mux.next_outgoing() {
                None => {}
                Some(Outgoing::Control(header)) => {
                    self.receive.put_control(&self.ram, &header);
                }
                Some(Outgoing::Payload { id, max_bytes }) => {
                    let end = self.read_host(id, max_bytes, host)?;
                    let now = host.now();
                    host.mux.host_read(id, end, now);
                }
            }
            host.act();
        }
        if self.receive.queue.wants_interrupt() {
            self.interrupt.raise_queue();
        }
        Ok(())
    }

    /// One read from a stream's socket, spread over as many buffers of the guest as it fills.
    fn read_host(
        &mut self,
        id: StreamId,
        max_bytes: u32,
        host: &mut Host,
    ) -> Result<HostRead, QueueError> {
        self.ranges.clear();
        let mut wanted = max_bytes.min(BATCH_BYTES);
        let mut chains = 0;
        while wanted > 0 && chains < BATCH_CHAINS && self.ranges.len() < BATCH_RANGES {
            if !self.receive.fill(chains + 1)? {
                break;
            }
            let Some(chain) = self.receive.spare.get(chains) else { break };
            let room = payload_room(chain).min(wanted);
            push_ranges(&mut self.ranges, chain.writable(), room);
            wanted -= room;
            chains += 1;
        }
        let Some(socket) = host.stream(id) else { return Ok(HostRead::Failed) };
        match self.ram.receive(socket, &self.ranges) {
            Ok(0) if self.ranges.is_empty() => {
                // Buffers with room for a header only carry no payload; give them back for others.
                self.receive.give_back(chains);
                Ok(HostRead::More)
            }
            Ok(0) => Ok(HostRead::Ended),
            Ok(got) => {
                let got = u32::try_from(got).unwrap_or(u32::MAX);
                self.receive.put_payload(&self.ram, id, got, host);
                Ok(HostRead::More)
            }
            Err(error) => Ok(match error.kind() {
                std::io::ErrorKind::WouldBlock => HostRead::Drained,
                std::io::ErrorKind::Interrupted => HostRead::More,
                _ => HostRead::Failed,
            }),
        }
    }
}

impl Receive {
    /// Has at least `count` spare chains, each with room for a header. False when the guest has not given enough; its doorbell
    /// is on then if there is none at all.
    fn fill(&mut self, count: usize) -> Result<bool, QueueError> {
        while self.spare.len() < count {
            match self.queue.pop()? {
                Some(chain) if chain.writable_len() < HEADER_BYTES as u64 => {
                    self.queue.complete(chain.complete(0));
                }
                Some(chain) => self.spare.push_back(chain),
                None if !self.spare.is_empty() => return Ok(false),
                None => {
                    if !self.queue.enable_doorbell()? {
                        self.starved = true;
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn put_control(&mut self, ram: &GuestRam, header: &Header) {
        if let Some(chain) = self.spare.pop_front() {
            let completion = emit(ram, chain, header);
            self.queue.complete(completion);
        }
    }

    /// Heads the `got` payload bytes that lie in the first spare chains.
    fn put_payload(&mut self, ram: &GuestRam, id: StreamId, got: u32, host: &mut Host) {
        let mut left = got;
        while left > 0 {
            let Some(chain) = self.spare.pop_front() else { return };
            let len = payload_room(&chain).min(left);
            left -= len;
            let completion = match host.mux.payload_header(id, len) {
                Some(header) if len > 0 => emit(ram, chain, &header),
                _ => chain.complete(0),
            };
            self.queue.complete(completion);
        }
    }

    fn give_back(&mut self, chains: usize) {
        for chain in self.spare.drain(..chains.min(self.spare.len())) {
            self.queue.complete(chain.complete(0));
        }
    }
}

fn emit(ram: &GuestRam, chain: Chain, header: &Header) -> Completion {
    let written = match chain.write(ram, 0, &header.emit()) {
        Ok(()) => u32::try_from(HEADER_BYTES).unwrap_or(0).saturating_add(header.len),
        Err(_) => 0,
    };
    chain.complete(written)
}

/// Payload bytes that one packet in this chain carries at most.
fn payload_room(chain: &Chain) -> u32 {
    let room = chain.writable_len().saturating_sub(HEADER_BYTES as u64);
    u32::try_from(room).unwrap_or(u32::MAX).min(BATCH_BYTES)
}

/// Adds the ranges of `len` payload bytes that follow the header in `segments`. The list is cut at [`BATCH_RANGES`].
fn push_ranges(ranges: &mut Vec<(GuestAddress, u32)>, segments: &[Segment], len: u32) {
    let mut skip = u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX);
    let mut left = len;
    for segment in segments {
        if left == 0 || ranges.len() == BATCH_RANGES {
            return;
        }
        let skipped = skip.min(segment.len_bytes);
        skip -= skipped;
        let take = (segment.len_bytes - skipped).min(left);
        if take > 0 {
            left -= take;
            ranges.push((GuestAddress(segment.addr.0.wrapping_add(u64::from(skipped))), take));
        }
    }
}
