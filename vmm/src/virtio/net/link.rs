//! The device's queues as the stack sees them: a [`Link`].
//!
//! Invariant: a queue whose driver broke the rules is not touched again: from then on the link takes and gives nothing, until a reset makes
//! another one. Chains go back and interrupts are raised once a turn. The net thread owns it.

use std::sync::Arc;

use openshell_usernet::link::HEAD_LEN;
use openshell_usernet::{Frame, Link, LinkFull, Offload, Offloads};

use crate::memory::GuestRam;
use crate::virtio::{ActivateError, Activation, Interrupt, QueueError};

use super::control::Control;
use super::counters::Counters;
use super::features::{self, CTRL_GUEST_OFFLOADS, CTRL_VQ, GUEST_OFFLOADS, MRG_RXBUF};
use super::receive::{Receive, Refused};
use super::transmit::{GuestBytes, Transmit};
use crate::net::vnet_header as header;

/// Queue indices without VIRTIO_NET_F_MQ.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;
/// Their number.
pub(super) const QUEUES: usize = 3;

/// The way to and from the driver of an active device.
#[derive(Debug)]
pub struct QueueLink {
    receive: Receive,
    transmit: Transmit,
    control: Option<Control>,
    ram: Arc<GuestRam>,
    interrupt: Interrupt,
    features: u64,
    /// Of [`GUEST_OFFLOADS`], what the driver takes now.
    taken: u64,
    mtu: u16,
    counters: Counters,
    broken: Option<QueueError>,
}

impl QueueLink {
    /// # Errors
    /// [`ActivateError::MissingQueue`] without a receive or a transmit queue, or without a control queue that was negotiated.
    pub fn new(activation: Activation, mtu: u16) -> Result<Self, ActivateError> {
        let features = features::consistent(activation.features);
        let mut queues = activation.queues.into_iter();
        let mut queue = |index| queues.next().flatten().ok_or(ActivateError::MissingQueue(index));
        let receive = Receive::new(queue(RECEIVE)?, features & MRG_RXBUF != 0);
        let transmit = Transmit::new(queue(TRANSMIT)?, Arc::clone(&activation.ram));
        let control = match features & CTRL_VQ {
            0 => None,
            _ => Some(Control::new(queue(CONTROL)?)),
        };
        Ok(Self {
            receive,
            transmit,
            control,
            ram: activation.ram,
            interrupt: activation.interrupt,
            features,
            taken: features & GUEST_OFFLOADS,
            mtu,
            counters: Counters::default(),
            broken: None,
        })
    }

    /// Doorbells rang. True when a frame that found no room may find it now.
    #[must_use = "a frame that waits for room would wait for ever"]
    pub fn on_bells(&mut self, [receive, transmit, control]: [bool; QUEUES]) -> bool {
        if self.broken.is_some() {
            return false;
        }
        if transmit {
            self.transmit.on_bell();
        }
        if let Some(queue) = self.control.as_mut().filter(|_| control) {
            queue.on_bell();
        }
        receive && self.receive.on_bell()
    }

    /// The next frame from the driver, its head copied into `head`; `None` when none waits.
    pub fn next_frame<'a>(
        &mut self,
        head: &'a mut [u8; HEAD_LEN],
    ) -> Option<Frame<'a, GuestBytes>> {
        if self.broken.is_some() {
            return None;
        }
        let Self { transmit, counters, features, mtu, .. } = self;
        match transmit.next(head, *features, *mtu, counters) {
            Ok(frame) => frame,
            Err(error) => {
                self.break_down(error);
                None
            }
        }
    }

    /// Obeys the control queue, hands over what was filled and what is done with, and raises one interrupt if any of it wants one. True
    /// when there is more to take.
    pub fn end_turn(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let mut wanted = self.receive.end_turn();
        wanted |= self.transmit.publish();
        if let Some(control) = self.control.as_mut().filter(|control| control.is_ready()) {
            // Without the feature no offload may be changed, but commands are answered.
            let can_change = self.features & CTRL_GUEST_OFFLOADS != 0;
            let negotiated = if can_change { self.features } else { 0 };
            let mut taken = self.taken;
            match control.serve(&self.ram, negotiated, &mut taken) {
                Ok(control_wants) => wanted |= control_wants,
                Err(error) => self.break_down(error),
            }
            self.taken = if can_change { taken } else { self.taken };
        }
        if wanted {
            self.interrupt.raise_queue();
        }
        self.broken.is_none()
            && (self.transmit.is_ready() || self.control.as_ref().is_some_and(Control::is_ready))
    }

    /// How the driver broke the rules, if it did: it has been asked for a reset.
    #[must_use]
    pub fn broken(&self) -> Option<&QueueError> {
        self.broken.as_ref()
    }

    /// What passed so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Tells the driver that the configuration changed.
    pub(super) fn raise_config(&self) {
        self.interrupt.raise_config();
    }

    fn break_down(&mut self, error: QueueError) {
        self.broken = Some(error);
        self.interrupt.fail_device();
    }
}

impl Link for QueueLink {
    type Payload = GuestBytes;

    fn offloads(&self) -> Offloads {
        features::offloads(self.taken)
    }

    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull> {
        if self.broken.is_some() {
            return Err(LinkFull);
        }
        let Some(header) = header::build(offload, head.len(), self.offloads()) else {
            self.counters.not_taken();
            return Ok(());
        };
        match self.receive.send(&self.ram, header, head, body) {
            Ok(()) => {
                let body_len: usize = body.iter().map(|piece| piece.len()).sum();
                self.counters.received(head.len() + body_len);
                Ok(())
            }
            Err(Refused::TooLarge) => {
                self.counters.too_large();
                Ok(())
            }
            Err(Refused::Full) => {
                self.counters.waited();
                Err(LinkFull)
            }
            Err(Refused::Broken(error)) => {
                self.break_down(error);
                Err(LinkFull)
            }
        }
    }
}
