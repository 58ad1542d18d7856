//! The parts of a stack, and which of them a frame, an event or a moment concerns.
//!
//! Invariant: what does not come from the guest's own addresses goes to no part.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::resolver::Resolver;
use crate::config::{Config, ForwardProtocol};
use crate::datagrams::Datagrams;
use crate::icmp::{Fault, Quote};
use crate::policy::{Egress, Policy, Protocol, Refusal, Scene, Transport};
use crate::siphash::SipKey;
use crate::sockets::{ForwardId, Readiness};
use crate::table::{Endpoint, FlowKey};
use crate::tcp::{Tcp, Told};
use crate::turn::Turn;
use crate::wire::{EthernetHeader, IpHeader, Part, TcpHeader, ethertype, protocol};
use crate::{FlowId, Frame, Instant, Payload};

/// Answers of the resolver go through TCP, and may let it take more queries, so many times in one turn at most.
const ROUNDS: usize = 4;

/// The parts of a stack.
#[derive(Debug)]
pub(super) struct Core<P> {
    config: Config,
    secret: SipKey,
    egress: Egress,
    tcp: Tcp<P>,
    datagrams: Datagrams<P>,
    resolver: Resolver,
    /// Published ports where more may wait than was taken.
    crowded: Vec<ForwardId>,
    /// Something is left for another flush at once.
    unfinished: bool,
}

impl<P: Payload> Core<P> {
    pub(super) fn new(config: Config, key: [u8; 16]) -> Self {
        let secret = SipKey::new(key);
        let owned = config.host_addresses.iter().copied();
        let scene = Scene::new(config.v4, config.v6, owned);
        // Each part names its flows in a stretch of its own.
        let datagrams_base = config.bounds.tcp_flows;
        let bounds = config.bounds.datagrams;
        let resolver_base = datagrams_base + bounds.names_needed();
        let mut datagrams =
            Datagrams::new(&config, bounds, &scene, datagrams_base, secret.derive(2));
        datagrams.replace_search(config.search.clone());
        Self {
            tcp: Tcp::new(&config, secret.derive(3), 0),
            datagrams,
            resolver: Resolver::new(resolver_base, secret.derive(4), &config),
            egress: Egress::new(Arc::clone(&config.policy), scene),
            crowded: Vec::new(),
            unfinished: false,
            secret,
            config,
        }
    }

    pub(super) fn guest_frame(&mut self, frame: Frame<'_, P>, turn: &mut Turn<'_, P>) {
        turn.counters.guest_frames += 1;
        turn.counters.guest_bytes += frame.payload.len() as u64;
        let whole = Part::frame(frame.head, frame.payload.len());
        let Ok((ethernet, packet)) = EthernetHeader::parse(whole) else {
            turn.counters.malformed += 1;
            return;
        };
        if ethernet.source != self.config.macs.guest {
            turn.counters.spoofed += 1;
            return;
        }
        let to = ethernet.destination;
        if to != self.config.macs.gateway && !to.is_multicast() {
            turn.counters.misdirected += 1;
            return;
        }
        if ethernet.ethertype == ethertype::ARP {
            return self.datagrams.guest_arp(packet, turn, self.egress.scene());
        }
        let (ip, transport) = match IpHeader::parse(ethernet.ethertype, packet) {
            Some(Ok(parsed)) => parsed,
            Some(Err(_)) => {
                turn.counters.malformed += 1;
                return;
            }
            None => {
                turn.counters.unserved += 1;
                return;
            }
        };
        if self.goes_no_further(&ip) {
            turn.counters.hops_exceeded += 1;
            let quote = Quote::of(&ip, packet, transport);
            return self.datagrams.delivery().report(Fault::Hops, quote, turn);
        }
        if ip.protocol == protocol::TCP {
            // TCP never cuts its packets on this link, and speaks to one host at a time.
            if ip.fragment.is_some() || to.is_multicast() {
                turn.counters.unserved += 1;
                return;
            }
            return self.tcp_segment(&ip, transport, frame.payload, turn);
        }
        let query =
            self.datagrams.guest_packet(&ip, packet, transport, frame, turn, &mut self.egress);
        if let Some(query) = query {
            self.resolver.ask(&query, turn, &mut self.egress);
            self.resolver.answer(&mut self.datagrams, turn);
        }
    }

    /// Whether a packet of the guest's would have to be passed on, and has no hop left for it.
    fn goes_no_further(&self, ip: &IpHeader) -> bool {
        let scene = self.egress.scene();
        let to = ip.destination;
        let stays = to.is_multicast()
            || to == IpAddr::V4(Ipv4Addr::BROADCAST)
            || matches!(to, IpAddr::V6(v6) if v6.is_unicast_link_local())
            || scene.in_guest_network(to);
        ip.hop_limit <= 1 && !stays && self.datagrams.is_guest(ip.source)
    }

    fn tcp_segment(
        &mut self,
        ip: &IpHeader,
        part: Part<'_>,
        mut payload: P,
        turn: &mut Turn<'_, P>,
    ) {
        if !self.datagrams.is_guest(ip.source) {
            turn.counters.spoofed += 1;
            return;
        }
        let Ok((header, rest)) = TcpHeader::parse(part) else {
            turn.counters.malformed += 1;
            return;
        };
        payload.skip(rest.offset());
        payload.truncate(rest.len());
        let key = FlowKey {
            guest: Endpoint::new(ip.source, header.source),
            remote: Endpoint::new(ip.destination, header.destination),
        };
        let (egress, now) = (&mut self.egress, turn.now);
        let route = || {
            let verdict = egress.flow(now, Transport::Tcp, key.remote.socket_addr());
            verdict.map_err(|denied| Told::of_denied(denied, egress.policy().refuses_by()))
        };
        self.tcp.segment(key, &header, payload, turn, self.secret, route);
    }

    pub(super) fn socket_ready(
        &mut self,
        flow: FlowId,
        readiness: Readiness,
        turn: &mut Turn<'_, P>,
    ) {
        if self.tcp.names(flow) {
            self.tcp.socket_ready(flow, readiness, turn);
        } else if self.datagrams.names(flow) {
            self.datagrams.socket_ready(flow, readiness);
        } else {
            self.resolver.socket_ready(flow, readiness, turn, &mut self.egress);
        }
    }

    pub(super) fn forward_ready(&mut self, id: ForwardId, turn: &mut Turn<'_, P>) {
        let Some(forward) = self.config.forwards.get(usize::from(id.0)) else { return };
        let scene = self.egress.scene();
        let more = match forward.protocol {
            ForwardProtocol::Tcp => {
                let guest = Endpoint::new(self.config.v4.guest, forward.guest_port);
                self.tcp.accept(id, guest, scene, turn, self.secret)
            }
            ForwardProtocol::Udp => self.datagrams.forward_ready(id, turn, scene),
        };
        if more && !self.crowded.contains(&id) {
            self.crowded.push(id);
        }
    }

    pub(super) fn link_ready(&mut self, turn: &mut Turn<'_, P>) {
        self.datagrams.link_ready(turn);
    }

    pub(super) fn run_timers(&mut self, turn: &mut Turn<'_, P>) {
        self.tcp.run_timers(turn);
        self.datagrams.run_timers(turn);
        self.resolver.run_timers(turn);
    }

    pub(super) fn flush(&mut self, turn: &mut Turn<'_, P>) {
        for id in std::mem::take(&mut self.crowded) {
            self.forward_ready(id, turn);
        }
        self.datagrams.send_out(turn);
        self.resolver.answer(&mut self.datagrams, turn);
        for _ in 0..ROUNDS {
            self.tcp.flush(turn);
            if !self.resolver.serve(&mut self.tcp, turn, &mut self.egress) {
                break;
            }
        }
        self.resolver.answer(&mut self.datagrams, turn);
        while let Some((key, syn, fault)) = self.tcp.take_fault() {
            self.tell(fault, &key, &syn, turn);
        }
        // With a full table, others may come when one of its connections has gone.
        let goes_on = |id: &ForwardId| {
            let forward = self.config.forwards.get(usize::from(id.0));
            let is_udp = forward.is_some_and(|of| of.protocol == ForwardProtocol::Udp);
            is_udp || !self.tcp.is_full()
        };
        self.unfinished = self.datagrams.flush(turn) || self.crowded.iter().any(goes_on);
    }

    fn tell(&mut self, fault: Fault, key: &FlowKey, syn: &TcpHeader, turn: &mut Turn<'_, P>) {
        self.datagrams.delivery().report(fault, Quote::tcp(key, syn), turn);
    }

    pub(super) fn next_deadline(&self, link_full: bool) -> Option<Instant> {
        if self.unfinished {
            return Some(Instant::from_nanos(0));
        }
        let deadlines = [
            self.tcp.next_deadline(link_full),
            self.datagrams.next_deadline(),
            self.resolver.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    pub(super) fn set_policy(&mut self, policy: Arc<Policy>, turn: &mut Turn<'_, P>) {
        self.egress.replace_policy(policy);
        self.sweep(turn);
    }

    pub(super) fn set_host_addresses(&mut self, owned: Vec<IpAddr>, turn: &mut Turn<'_, P>) {
        self.egress.replace_owned(owned);
        self.sweep(turn);
    }

    fn sweep(&mut self, turn: &mut Turn<'_, P>) {
        let (egress, now) = (&mut self.egress, turn.now);
        self.tcp.sweep(turn, |key| {
            egress.live_flow(now, Protocol::Tcp, key.remote.socket_addr()).is_ok()
        });
        self.datagrams.sweep(turn, &mut self.egress);
    }

    pub(super) fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.resolver.set_servers(resolvers);
    }

    pub(super) fn set_search(&mut self, search: Vec<String>) {
        self.datagrams.replace_search(search);
    }

    pub(super) fn link_reset(&mut self, turn: &mut Turn<'_, P>) {
        self.tcp.link_reset(turn);
        self.datagrams.link_reset();
    }

    pub(super) fn take_refusal(&mut self) -> Option<Refusal> {
        self.egress.take_refusal()
    }

    pub(super) const fn egress(&self) -> &Egress {
        &self.egress
    }

    pub(super) const fn resolver(&mut self) -> &mut Resolver {
        &mut self.resolver
    }

    pub(super) const fn tcp_flows(&self) -> usize {
        self.tcp.len()
    }

    pub(super) const fn datagram_flows(&self) -> (usize, usize) {
        self.datagrams.flows()
    }
}
