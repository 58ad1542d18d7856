//! The stack: what arrives is handed to the part that it concerns, and what is left for the end of a turn is done there.
//!
//! A turn of the caller's event loop is: frames from the guest, events of sockets, timers, in any order and number, then
//! [`Stack::flush`]. Invariant: after `flush`, whatever the stack still has to do waits for an event, for room at the link, or for
//! the moment that [`Stack::next_deadline`] names. Runs on the caller's thread.

use crate::config::Config;
use crate::counters::Counters;
use crate::siphash::SipKey;
use crate::sockets::{ForwardId, Readiness};
use crate::wire::{EthernetHeader, Part};
use crate::{FlowId, Frame, Instant, Link, Payload, Sockets};

/// The two sides of a stack, as long as one call lasts.
#[derive(Debug)]
pub struct Io<'a, L, S> {
    /// The way to the guest.
    pub link: &'a mut L,
    /// The host's sockets.
    pub sockets: &'a mut S,
}

/// The network of one guest. `P` is what payload from the guest consists of.
#[derive(Debug)]
pub struct Stack<P> {
    config: Config,
    secret: SipKey,
    counters: Counters,
    payload: std::marker::PhantomData<P>,
}

impl<P: Payload> Stack<P> {
    /// A stack. `key` is random and never used again: sequence numbers and places in tables depend on it.
    #[must_use]
    pub fn new(config: Config, key: [u8; 16]) -> Self {
        Self {
            config,
            secret: SipKey::new(key),
            counters: Counters::default(),
            payload: std::marker::PhantomData,
        }
    }

    /// A frame arrived from the guest. Its payload may be kept for a while: dropping it is what gives it back.
    pub fn guest_frame<L, S>(&mut self, now: Instant, frame: Frame<'_, P>, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, &self.secret, io);
        self.counters.guest_frames += 1;
        self.counters.guest_bytes += frame.payload.len() as u64;
        let Ok((header, _)) = EthernetHeader::parse(Part::frame(frame.head, frame.payload.len()))
        else {
            self.counters.malformed += 1;
            return;
        };
        if header.source != self.config.macs.guest {
            self.counters.spoofed += 1;
        }
        drop(frame);
    }

    /// Something has become possible on the socket of `flow`. One that was closed since is ignored.
    pub fn socket_ready<L, S>(
        &mut self,
        now: Instant,
        flow: FlowId,
        readiness: Readiness,
        io: &mut Io<'_, L, S>,
    ) where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, flow, readiness, io);
    }

    /// Somebody waits at a published port.
    pub fn forward_ready<L, S>(&mut self, now: Instant, forward: ForwardId, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, forward, io);
    }

    /// The link has room again after a [`crate::LinkFull`].
    pub fn link_ready<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, io);
    }

    /// Does what is due by `now`; to be called when [`Self::next_deadline`] has come.
    pub fn run_timers<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, io);
    }

    /// Ends a turn: sends to the sockets what frames brought, to the guest what sockets brought, and acknowledgments. It does a
    /// bounded amount of work; where more is left, [`Self::next_deadline`] has passed already.
    pub fn flush<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, io);
    }

    /// When to call [`Self::run_timers`] and [`Self::flush`] though nothing else happens. `None`: when something happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The guest has reset its network card: payloads that are held back are dropped at once. Flows stay; the guest's own protocols
    /// tell what became of them.
    pub fn link_reset<L, S>(&mut self, now: Instant, io: &mut Io<'_, L, S>)
    where
        L: Link<Payload = P>,
        S: Sockets<P>,
    {
        let _ = (now, io);
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }
}
