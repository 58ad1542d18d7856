//! The parts of a stack, and which of them a frame, an event or a moment concerns.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Config, ForwardProtocol};
use crate::policy::{Egress, Policy, Protocol, Scene, Transport};
use crate::siphash::SipKey;
use crate::sockets::{ForwardId, Readiness};
use crate::table::{Endpoint, FlowKey};
use crate::tcp::Tcp;
use crate::turn::Turn;
use crate::wire::{
    EthernetHeader, Ipv4Header, Ipv6Header, Mac, Part, TcpHeader, ethertype, protocol,
};
use crate::{FlowId, Frame, Instant, Payload};

/// Names of TCP connections begin here.
const TCP_BASE: u32 = 0;

/// The parts of a stack.
#[derive(Debug)]
pub(super) struct Core<P> {
    config: Config,
    secret: SipKey,
    egress: Egress,
    tcp: Tcp<P>,
    /// Published ports where more may wait than was taken.
    crowded: Vec<ForwardId>,
}

impl<P: Payload> Core<P> {
    pub(super) fn new(config: Config, key: [u8; 16]) -> Self {
        let secret = SipKey::new(key);
        let owned = config.host_addresses.iter().copied();
        let scene = Scene::new(config.v4, config.v6, owned);
        Self {
            secret,
            egress: Egress::new(Arc::clone(&config.policy), scene),
            tcp: Tcp::new(&config, secret.derive(0), TCP_BASE),
            crowded: Vec::new(),
            config,
        }
    }

    pub(super) fn guest_frame(&mut self, frame: Frame<'_, P>, turn: &mut Turn<'_, P>) {
        turn.counters.guest_frames += 1;
        turn.counters.guest_bytes += frame.payload.len() as u64;
        let whole = Part::frame(frame.head, frame.payload.len());
        let Ok((ethernet, rest)) = EthernetHeader::parse(whole) else {
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
        match ethernet.ethertype {
            ethertype::IPV4 => self.ipv4(to, rest, frame.payload, turn),
            ethertype::IPV6 => self.ipv6(to, rest, frame.payload, turn),
            _ => turn.counters.unserved += 1,
        }
    }

    fn ipv4(&mut self, to: Mac, part: Part<'_>, payload: P, turn: &mut Turn<'_, P>) {
        let Ok((ip, rest)) = Ipv4Header::parse(part) else {
            turn.counters.malformed += 1;
            return;
        };
        let (source, destination) = (IpAddr::V4(ip.source), IpAddr::V4(ip.destination));
        if source != self.config.v4.guest {
            turn.counters.spoofed += 1;
            return;
        }
        match ip.protocol {
            protocol::TCP if ip.fragment().is_none() && !to.is_multicast() => {
                self.tcp_segment(source, destination, rest, payload, turn);
            }
            _ => turn.counters.unserved += 1,
        }
    }

    fn ipv6(&mut self, to: Mac, part: Part<'_>, payload: P, turn: &mut Turn<'_, P>) {
        let Ok((ip, rest)) = Ipv6Header::parse(part) else {
            turn.counters.malformed += 1;
            return;
        };
        let (source, destination) = (IpAddr::V6(ip.source), IpAddr::V6(ip.destination));
        if self.config.v6.is_none_or(|places| places.guest != source) {
            turn.counters.spoofed += 1;
            return;
        }
        match ip.protocol {
            protocol::TCP if ip.fragment.is_none() && !to.is_multicast() => {
                self.tcp_segment(source, destination, rest, payload, turn);
            }
            _ => turn.counters.unserved += 1,
        }
    }

    fn tcp_segment(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        part: Part<'_>,
        mut payload: P,
        turn: &mut Turn<'_, P>,
    ) {
        let Ok((header, rest)) = TcpHeader::parse(part) else {
            turn.counters.malformed += 1;
            return;
        };
        payload.skip(rest.offset());
        payload.truncate(rest.len());
        let key = FlowKey {
            guest: Endpoint::new(source, header.source),
            remote: Endpoint::new(destination, header.destination),
        };
        let (egress, now) = (&mut self.egress, turn.now);
        let route = || egress.flow(now, Transport::Tcp, key.remote.socket_addr());
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
        }
    }

    pub(super) fn forward_ready(&mut self, id: ForwardId, turn: &mut Turn<'_, P>) {
        let Some(forward) = self.config.forwards.get(usize::from(id.0)) else { return };
        let guest = Endpoint::new(self.config.v4.guest, forward.guest_port);
        match forward.protocol {
            ForwardProtocol::Tcp => {
                let more = self.tcp.accept(id, guest, self.config.v4.gateway, turn, self.secret);
                if more && !self.crowded.contains(&id) {
                    self.crowded.push(id);
                }
            }
            ForwardProtocol::Udp => {}
        }
    }

    #[expect(clippy::unused_self, reason = "datagrams wait for the link too")]
    pub(super) fn link_ready(&mut self, _turn: &mut Turn<'_, P>) {}

    pub(super) fn run_timers(&mut self, turn: &mut Turn<'_, P>) {
        self.tcp.run_timers(turn);
    }

    pub(super) fn flush(&mut self, turn: &mut Turn<'_, P>) {
        for id in std::mem::take(&mut self.crowded) {
            self.forward_ready(id, turn);
        }
        self.tcp.flush(turn);
    }

    pub(super) fn next_deadline(&self, link_full: bool) -> Option<Instant> {
        self.tcp.next_deadline(link_full)
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
    }

    #[expect(clippy::unused_self, reason = "the resolver is not there yet")]
    pub(super) fn set_resolvers(&mut self, _resolvers: &[SocketAddr]) {}

    pub(super) fn link_reset(&mut self, turn: &mut Turn<'_, P>) {
        self.tcp.link_reset(turn);
    }

    pub(super) const fn tcp_flows(&self) -> usize {
        self.tcp.len()
    }
}
