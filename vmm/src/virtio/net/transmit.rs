//! The transmit queue: chains of the guest become frames, and go back when nobody needs their bytes any more.
//!
//! Invariants: the header and the head of a frame are copied out once and judged on the copy; every chain that was taken goes back to
//! its queue when its [`GuestBytes`] is dropped, wherever that happens. The net thread owns the queue.

use std::sync::{Arc, Mutex, PoisonError};

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Payload};

use crate::memory::{Gather, GuestAddress, GuestRam};
use crate::net::Iovecs;
use crate::net::vnet_header::{self as header, HEADER_BYTES, Malformed};
use crate::virtio::{Chain, Completion, Queue, QueueError};

use super::counters::Counters;
use super::features;

/// Where chains go that nobody needs any more, until they are put on the used ring.
#[derive(Debug)]
struct Returns {
    ram: Arc<GuestRam>,
    /// At most as many as the queue has descriptors. Taken by one thread only, so that nobody ever waits.
    done: Mutex<Vec<Completion>>,
}

impl Returns {
    fn push(&self, completion: Completion) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
    }

    fn take_into(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Bytes of a frame where the guest put them. The chain they are in goes back to the guest when this is dropped.
#[derive(Debug)]
pub struct GuestBytes {
    returns: Arc<Returns>,
    /// `None` only while it is dropped.
    chain: Option<Chain>,
    /// Bytes of the chain's readable part before the first one.
    start: u64,
    len: usize,
}

impl Payload for GuestBytes {
    fn len(&self) -> usize {
        self.len
    }

    fn skip(&mut self, count: usize) {
        let count = count.min(self.len);
        self.start += count as u64;
        self.len -= count;
    }

    fn truncate(&mut self, count: usize) {
        self.len = self.len.min(count);
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len);
        let into = out.get_mut(..count).unwrap_or_default();
        let read = self.chain.as_ref().map(|chain| chain.read(&self.returns.ram, self.start, into));
        if matches!(read, Some(Ok(()))) { count } else { 0 }
    }
}

impl Iovecs for GuestBytes {
    fn gather<'a>(&'a self, into: &mut Gather<'a>) {
        let segments = self.chain.as_ref().map_or(&[][..], Chain::readable);
        let (mut skip, mut left) = (self.start, self.len as u64);
        for segment in segments {
            let len = u64::from(segment.len_bytes);
            let skipped = skip.min(len);
            skip -= skipped;
            let take = left.min(len - skipped);
            left -= take;
            let addr = GuestAddress(segment.addr.0.saturating_add(skipped));
            // The chain was found to lie in RAM when it was taken.
            into.ram(&self.returns.ram, addr, u32::try_from(take).unwrap_or(0)).ok();
            if left == 0 {
                break;
            }
        }
    }
}

impl Drop for GuestBytes {
    fn drop(&mut self) {
        if let Some(chain) = self.chain.take() {
            self.returns.push(chain.complete(0));
        }
    }
}

/// The transmit queue of an active device.
#[derive(Debug)]
pub(super) struct Transmit {
    queue: Queue,
    returns: Arc<Returns>,
    done: Vec<Completion>,
    /// There may be chains to take; otherwise the doorbell is on.
    ready: bool,
}

impl Transmit {
    pub(super) fn new(queue: Queue, ram: Arc<GuestRam>) -> Self {
        let returns = Arc::new(Returns { ram, done: Mutex::default() });
        Self { queue, returns, done: Vec::new(), ready: true }
    }

    /// The doorbell rang.
    pub(super) fn on_bell(&mut self) {
        self.ready = true;
        self.queue.disable_doorbell();
    }

    /// Whether there may be a frame.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Takes the next chain and makes a frame of it, whose head is copied into `head`. `Ok(None)` when the queue is empty; the doorbell
    /// is on then. What is malformed is counted and given back.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub(super) fn next<'a>(
        &mut self,
        head: &'a mut [u8; HEAD_LEN],
        features: u64,
        mtu: u16,
        counters: &mut Counters,
    ) -> Result<Option<Frame<'a, GuestBytes>>, QueueError> {
        // A guest that gives malformed chains as fast as they are taken holds up nobody else.
        for _ in 0..self.queue.size() {
            if !self.ready {
                break;
            }
            let Some(chain) = self.queue.pop()? else {
                self.ready = self.queue.enable_doorbell()?;
                continue;
            };
            let start = read_start(&chain, &self.returns.ram, head);
            let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
            let len = len.saturating_sub(HEADER_BYTES);
            let chain = Some(chain);
            let returns = Arc::clone(&self.returns);
            let payload = GuestBytes { returns, chain, start: HEADER_BYTES as u64, len };
            let judged = start.and_then(|(bytes, head_len)| {
                let head = head.get(..head_len).unwrap_or_default();
                Ok((header::parse(&bytes, head, len, features::taken(features), mtu)?, head_len))
            });
            match judged {
                Ok((offload, head_len)) => {
                    counters.transmitted(len);
                    let head = head.get(..head_len).unwrap_or_default();
                    return Ok(Some(Frame { head, payload, offload }));
                }
                Err(malformed) => counters.malformed(malformed),
            }
        }
        Ok(None)
    }

    /// Gives what nobody needs any more back to the driver; whether it wants an interrupt for it.
    pub(super) fn publish(&mut self) -> bool {
        self.returns.take_into(&mut self.done);
        if self.done.is_empty() {
            return false;
        }
        self.queue.complete_all(self.done.drain(..));
        self.queue.wants_interrupt()
    }
}

/// Copies the header, and as much of the frame as fits into `head`, in one pass over the chain; how much that was.
fn read_start(
    chain: &Chain,
    ram: &GuestRam,
    head: &mut [u8; HEAD_LEN],
) -> Result<([u8; HEADER_BYTES], usize), Malformed> {
    let mut start = [0; HEADER_BYTES + HEAD_LEN];
    let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX).min(start.len());
    let into = start.get_mut(..len).unwrap_or_default();
    chain.read(ram, 0, into).map_err(|_| Malformed::TooShort)?;
    let (bytes, frame) = into.split_first_chunk().ok_or(Malformed::TooShort)?;
    head.get_mut(..frame.len()).unwrap_or_default().copy_from_slice(frame);
    Ok((*bytes, frame.len()))
}
