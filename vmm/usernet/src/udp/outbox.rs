//! Datagrams of the guest that wait for the end of the turn, so that those of one flow leave together.
//!
//! Invariant: those of one flow keep their order; no more than [`MOST`] wait, and none outlasts the turn. The net thread owns it.

use super::Udp;
use crate::FlowId;
use crate::delivery::Delivery;
use crate::link::Payload;
use crate::sockets::Unsent;
use crate::turn::Turn;

/// Payloads that wait at most: each holds what the guest gave for it.
const MOST: usize = 128;
/// Flows that they are of, at most.
const MOST_FLOWS: usize = 16;

/// What waits.
#[derive(Debug)]
pub struct Outbox<P> {
    batches: Vec<Batch<P>>,
    /// Lists of batches that were sent, for their memory.
    spare: Vec<Vec<Unsent<P>>>,
    len: usize,
}

#[derive(Debug)]
struct Batch<P> {
    flow: FlowId,
    payloads: Vec<Unsent<P>>,
}

impl<P> Default for Outbox<P> {
    fn default() -> Self {
        Self { batches: Vec::new(), spare: Vec::new(), len: 0 }
    }
}

impl<P: Payload> Outbox<P> {
    /// Adds one, and sends all first where there is no room for it.
    pub fn push(
        &mut self,
        flow: FlowId,
        unsent: Unsent<P>,
        udp: &mut Udp,
        delivery: &mut Delivery,
        turn: &mut Turn<'_, P>,
    ) {
        let known = |batches: &[Batch<P>]| batches.iter().rposition(|batch| batch.flow == flow);
        let mut place = known(&self.batches);
        if self.len >= MOST || place.is_none() && self.batches.len() >= MOST_FLOWS {
            self.send(udp, delivery, turn);
            place = None;
        }
        self.len += 1;
        if let Some(batch) = place.and_then(|place| self.batches.get_mut(place)) {
            batch.payloads.push(unsent);
            return;
        }
        let mut payloads = self.spare.pop().unwrap_or_default();
        payloads.push(unsent);
        self.batches.push(Batch { flow, payloads });
    }

    /// Sends all that wait.
    pub fn send(&mut self, udp: &mut Udp, delivery: &mut Delivery, turn: &mut Turn<'_, P>) {
        self.len = 0;
        for Batch { flow, mut payloads } in self.batches.drain(..) {
            udp.send(flow, &payloads, delivery, turn);
            payloads.clear();
            self.spare.push(payloads);
        }
    }

    /// Drops all that wait.
    pub fn clear(&mut self) {
        self.len = 0;
        self.batches.clear();
    }
}
