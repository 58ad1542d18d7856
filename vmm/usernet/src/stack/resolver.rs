//! The resolver at the gateway's address, between the guest's datagrams and connections and the host's resolvers.
//!
//! Invariant: a connection to port 53 is known to the resolver from the first event to its end, and no longer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::config::Config;
use crate::datagrams::{Datagrams, Query};
use crate::dns::{Asker, Dns, DnsCounters, StreamId};
use crate::policy::Egress;
use crate::siphash::SipKey;
use crate::sockets::Readiness;
use crate::tcp::Tcp;
use crate::turn::Turn;
use crate::{FlowId, Instant, Payload};

/// So much is moved to a connection at a time.
const PIECE: usize = 4 << 10;
/// A connection holds so much before it is told more.
const ENOUGH: usize = 64 << 10;

/// The resolver, and the connections to it.
#[derive(Debug)]
pub(super) struct Resolver {
    dns: Dns,
    streams: BTreeMap<FlowId, StreamId>,
}

impl Resolver {
    pub(super) fn new(base: u32, secret: SipKey, config: &Config) -> Self {
        // What is longer the guest asks for again by TCP, so that no answer is cut into fragments.
        let max_udp_len = config.mtu.saturating_sub(28).max(512);
        let mut dns = Dns::new(base, secret, max_udp_len);
        dns.replace_servers(&config.resolvers);
        Self { dns, streams: BTreeMap::new() }
    }

    pub(super) fn set_servers(&mut self, servers: &[SocketAddr]) {
        self.dns.replace_servers(servers);
    }

    pub(super) const fn take_wants_servers(&mut self) -> bool {
        self.dns.take_wants_servers()
    }

    pub(super) const fn counters(&self) -> &DnsCounters {
        self.dns.counters()
    }

    pub(super) fn ask<P: Payload>(
        &mut self,
        query: &Query,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) {
        self.dns.ask(turn.now, query.guest, query.at, &query.bytes, egress, turn.sockets);
    }

    pub(super) fn socket_ready<P: Payload>(
        &mut self,
        flow: FlowId,
        readiness: Readiness,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) {
        if self.dns.owns(flow) {
            self.dns.ready(turn.now, flow, readiness, egress, turn.sockets);
        }
    }

    pub(super) fn run_timers<P: Payload>(&mut self, turn: &mut Turn<'_, P>) {
        self.dns.tick(turn.now, turn.sockets);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.dns.deadline()
    }

    /// Sends the datagrams that are ready.
    pub(super) fn answer<P: Payload>(
        &mut self,
        datagrams: &mut Datagrams<P>,
        turn: &mut Turn<'_, P>,
    ) {
        while let Some(reply) = self.dns.take_reply() {
            if let Asker::Udp { guest, at } = reply.asker {
                datagrams.answer(at, guest, &reply.bytes, turn);
            }
        }
    }

    /// Moves bytes between the resolver and the connections to it. Whether any of them has something to do now.
    pub(super) fn serve<P: Payload>(
        &mut self,
        tcp: &mut Tcp<P>,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) -> bool {
        let mut changed = false;
        while let Some(id) = tcp.take_served() {
            changed |= self.serve_one(id, tcp, turn, egress);
        }
        while let Some(stream) = self.dns.take_ready() {
            let id = self.streams.iter().find(|(_, of)| **of == stream).map(|(id, _)| *id);
            changed |= id.is_some_and(|id| self.serve_one(id, tcp, turn, egress));
        }
        changed
    }

    fn serve_one<P: Payload>(
        &mut self,
        id: FlowId,
        tcp: &mut Tcp<P>,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) -> bool {
        let Some(service) = tcp.service(id) else {
            if let Some(stream) = self.streams.remove(&id) {
                self.dns.close(stream, turn.sockets);
            }
            return false;
        };
        let known = self.streams.get(&id).copied();
        let Some(stream) = known.or_else(|| self.dns.open(turn.now)) else {
            let news = !std::mem::replace(&mut service.ended, true);
            if news {
                tcp.service_changed(id, turn);
            }
            return news;
        };
        self.streams.insert(id, stream);
        let taken = self.dns.push(turn.now, stream, &service.inbound, egress, turn.sockets);
        service.inbound.drain(..taken);
        if service.guest_ended && service.inbound.is_empty() && !service.finished {
            service.finished = true;
            self.dns.finish(stream);
        }
        let mut moved = 0;
        let mut piece = [0; PIECE];
        while service.outbound.len() < ENOUGH {
            let count = self.dns.pull(stream, &mut piece);
            service.outbound.extend(piece.get(..count).unwrap_or_default());
            moved += count;
            if count < PIECE {
                break;
            }
        }
        let done = self.dns.is_done(stream);
        let ended = done && !std::mem::replace(&mut service.ended, done);
        let changed = taken > 0 || moved > 0 || ended;
        if changed {
            tcp.service_changed(id, turn);
        }
        changed
    }
}
