//! Everything of the guest's that is not TCP: UDP, echo, fragments, ARP, neighbor discovery, DHCP, and the errors about them.
//!
//! Invariant: what leaves the guest's own network was judged by the policy as the guest wrote it, before any translation; what
//! the guest sends under another address than its own is counted and goes nowhere. It answers at the gateway's address what the
//! stack answers there, except DNS, whose queries it hands on.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::FlowId;
use crate::arp;
use crate::config::{Config, ForwardProtocol};
use crate::delivery::{Delivery, Header};
use crate::dhcp::{self, Lease};
use crate::echo::{self, Echo, EchoBounds};
use crate::fragments::{DatagramKey, Fragments, Limits};
use crate::icmp::{Errors, Fault, Quote};
use crate::link::{Frame, Offload, Payload, Segmentation};
use crate::ndp::{self, Message, Router};
use crate::policy::{Denied, Egress, Protocol, RefuseBy, Route, Scene, Transport};
use crate::siphash::SipKey;
use crate::sockets::{ForwardId, HostError, Readiness, Unsent};
use crate::table::{Endpoint, FlowKey};
use crate::time::Instant;
use crate::turn::Turn;
use crate::udp::{DNS_PORT, Outbox, Udp, UdpBounds};
use crate::wire::{
    ArpPacket, Headers, Icmp, IcmpHeader, IpHeader, Macs, Part, UdpHeader, ethertype, icmpv6,
    protocol,
};

/// A lease lasts for a day: it is the same afterwards.
const LEASE_SECONDS: u32 = 86_400;
/// Of a DHCP message, no more is looked at.
const MAX_DHCP: usize = 1_500;

/// What is kept at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatagramBounds {
    /// UDP flows.
    pub udp: UdpBounds,
    /// Echo requests.
    pub echo: EchoBounds,
    /// Fragments.
    pub fragments: Limits,
}

/// A query to the resolver at the gateway's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Who asks.
    pub guest: SocketAddr,
    /// Whom it asked.
    pub at: SocketAddr,
    /// The message.
    pub bytes: Vec<u8>,
}

/// What a datagram of the guest consists of.
#[derive(Debug)]
enum Body<'a, P> {
    /// It is where the guest put it.
    InPlace(P),
    /// It was put together from fragments.
    Joined(&'a [u8]),
}

impl<P: Payload> Body<'_, P> {
    /// Leaves only `part`, whose offset counts from the beginning of this.
    fn cut(self, part: Part<'_>) -> Self {
        match self {
            Self::InPlace(mut payload) => {
                payload.skip(part.offset());
                payload.truncate(part.len());
                Self::InPlace(payload)
            }
            Self::Joined(bytes) => {
                let end = part.offset() + part.len();
                Self::Joined(bytes.get(part.offset()..end).unwrap_or_default())
            }
        }
    }

    fn to_vec(&self) -> Vec<u8> {
        self.first(usize::MAX)
    }

    /// The first `count` bytes, or all when there are fewer.
    fn first(&self, count: usize) -> Vec<u8> {
        match self {
            Self::InPlace(payload) => {
                let mut bytes = vec![0; payload.len().min(count)];
                let copied = payload.copy_to(&mut bytes);
                bytes.truncate(copied);
                bytes
            }
            Self::Joined(bytes) => bytes.get(..count).unwrap_or(bytes).to_vec(),
        }
    }
}

/// Datagrams of one guest.
#[derive(Debug)]
pub struct Datagrams<P> {
    macs: Macs,
    guest: Ipv4Addr,
    lease: Lease,
    /// Of IPv6, where the guest has it.
    router: Option<Router>,
    /// When the router tells of itself unasked; it does once it was asked.
    advertises_at: Option<Instant>,
    /// Ports of the guest that UDP ports of the host lead to, by the number of their forward.
    forwards: Vec<Option<u16>>,
    delivery: Delivery,
    udp: Udp,
    outbox: Outbox<P>,
    echo: Echo,
    fragments: Fragments,
}

impl DatagramBounds {
    /// How many names flows take at most.
    #[must_use]
    pub const fn names_needed(&self) -> u32 {
        Udp::names_needed(&self.udp) + Echo::names_needed(&self.echo)
    }
}

impl<P: Payload> Datagrams<P> {
    /// For the guest of `scene` on the link of `config`. Names of flows have the indices from `base` on; `secret` keys what the
    /// guest should not be able to guess.
    #[must_use]
    pub fn new(
        config: &Config,
        bounds: DatagramBounds,
        scene: &Scene,
        base: u32,
        secret: SipKey,
    ) -> Self {
        let places = scene.v4();
        let v4 = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let (guest, gateway) = (v4(places.guest), v4(places.gateway));
        let v6 = |address: IpAddr| match address {
            IpAddr::V6(v6) => v6,
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        };
        let router = scene.v6().map(|places| Router {
            mac: config.macs.gateway,
            network: places.network,
            gateway: v6(places.gateway),
            host: v6(places.host),
            mtu: config.mtu,
            search: Vec::new(),
        });
        let errors = Errors::new(gateway, router.as_ref().map(|router| router.gateway));
        let lease = Lease {
            address: guest,
            prefix_len: places.network.len_bits(),
            router: gateway,
            resolver: gateway,
            search: Vec::new(),
            mtu: config.mtu,
            seconds: LEASE_SECONDS,
        };
        let forwards = config.forwards.iter().map(|forward| {
            (forward.protocol == ForwardProtocol::Udp).then_some(forward.guest_port)
        });
        // No flow is hashed in one word.
        let identification = u32::try_from(secret.hash(&[base.into()]) >> 32).unwrap_or(0);
        Self {
            macs: config.macs,
            guest,
            lease,
            router,
            advertises_at: None,
            forwards: forwards.collect(),
            delivery: Delivery::new(config, errors, identification),
            udp: Udp::new(bounds.udp, base, secret),
            outbox: Outbox::default(),
            echo: Echo::new(bounds.echo, base + Udp::names_needed(&bounds.udp), secret),
            fragments: Fragments::new(bounds.fragments),
        }
    }

    /// The domains in which the guest looks up unqualified names; it hears of them with its next lease.
    pub fn replace_search(&mut self, search: Vec<String>) {
        if let Some(router) = &mut self.router {
            router.search.clone_from(&search);
        }
        self.lease.search = search;
    }

    /// Whether names like this are those of UDP flows and echo requests.
    #[must_use]
    pub const fn names(&self, id: FlowId) -> bool {
        self.udp.names(id) || self.echo.names(id)
    }

    /// The way to the guest, for parts of the stack with datagrams of their own.
    pub const fn delivery(&mut self) -> &mut Delivery {
        &mut self.delivery
    }

    /// UDP flows under way, and pairs of an echo identifier and a destination.
    #[must_use]
    pub const fn flows(&self) -> (usize, usize) {
        (self.udp.len(), self.echo.len())
    }

    /// Sends an answer of the resolver at the gateway's address.
    pub fn answer(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        bytes: &[u8],
        turn: &mut Turn<'_, P>,
    ) {
        self.delivery.send(Header::Udp { source, destination, segment: 0 }, bytes, turn);
    }

    /// An ARP packet from the guest.
    pub fn guest_arp(&mut self, part: Part<'_>, turn: &mut Turn<'_, P>, scene: &Scene) {
        let Ok(packet) = ArpPacket::parse(part) else {
            turn.counters.malformed += 1;
            return;
        };
        if arp::is_spoofed(&packet, self.macs.guest, self.guest) {
            turn.counters.spoofed += 1;
            return;
        }
        let ours = |address| {
            let address = IpAddr::V4(address);
            scene.is_gateway(address) || scene.is_host_alias(address)
        };
        let Some(answer) = arp::answer(&packet, self.macs, self.guest, ours) else { return };
        turn.counters.neighbors_answered += 1;
        let mut frame = Headers::ethernet(self.macs, ethertype::ARP);
        frame.push(&answer.build());
        // One that is lost is asked for again.
        let _lost = turn.send(Offload::default(), frame.as_bytes(), &[]).is_err();
    }

    /// A packet from the guest that is not TCP: `packet` is all of it, `ip` its header and `transport` what stands behind that. A
    /// query that is to be answered at the gateway's address comes back.
    pub fn guest_packet(
        &mut self,
        ip: &IpHeader,
        packet: Part<'_>,
        transport: Part<'_>,
        frame: Frame<'_, P>,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) -> Option<Query> {
        if ip.source.is_ipv6() && self.router.is_none() {
            turn.counters.unserved += 1;
            return None;
        }
        // Without an address the guest asks for one, or whether somebody has it.
        let asks = match ip.source {
            IpAddr::V4(_) => ip.protocol == protocol::UDP,
            IpAddr::V6(_) => ip.protocol == protocol::ICMPV6,
        };
        let nobody = asks && ip.source.is_unspecified();
        if !nobody && !self.is_guest(ip.source) {
            turn.counters.spoofed += 1;
            return None;
        }
        let Some(place) = ip.fragment else {
            let segmentation = frame.offload.segmentation;
            let body = Body::InPlace(frame.payload);
            return self.datagram(ip, packet, transport, (body, segmentation), turn, egress);
        };
        let key = DatagramKey {
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            identification: place.identification,
        };
        let mut payload = frame.payload;
        payload.skip(transport.offset());
        payload.truncate(transport.len());
        match self.fragments.add(turn.now, key, place, &payload) {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                turn.counters.fragments_joined += 1;
                let whole = IpHeader { fragment: None, ..*ip };
                let part = Part::whole(&bytes);
                // What it was quoted from is gone; errors about it quote what they make up.
                self.datagram(&whole, part, part, (Body::Joined(&bytes), None), turn, egress)
            }
            Err(_) => {
                turn.counters.fragments_dropped += 1;
                None
            }
        }
    }

    /// Whether the guest may send from `source`: IPv6 addresses it makes itself.
    #[must_use]
    pub fn is_guest(&self, source: IpAddr) -> bool {
        match source {
            IpAddr::V4(source) => source == self.guest,
            IpAddr::V6(source) => {
                self.router.as_ref().is_some_and(|router| router.may_be_guest(source))
            }
        }
    }

    fn datagram(
        &mut self,
        ip: &IpHeader,
        packet: Part<'_>,
        transport: Part<'_>,
        (body, segmentation): (Body<'_, P>, Option<Segmentation>),
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) -> Option<Query> {
        match ip.protocol {
            protocol::UDP => self.guest_udp(ip, transport, body, segmentation, turn, egress),
            protocol::ICMP if ip.source.is_ipv4() => {
                self.guest_icmp(Icmp::V4, ip, transport, body, turn, egress);
                None
            }
            protocol::ICMPV6 if ip.source.is_ipv6() => {
                self.guest_icmp(Icmp::V6, ip, transport, body, turn, egress);
                None
            }
            _ => {
                turn.counters.unserved += 1;
                self.delivery.report(Fault::Protocol, Quote::of(ip, packet, transport), turn);
                None
            }
        }
    }

    fn guest_udp(
        &mut self,
        ip: &IpHeader,
        transport: Part<'_>,
        body: Body<'_, P>,
        segmentation: Option<Segmentation>,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) -> Option<Query> {
        let Ok((header, data)) = UdpHeader::parse(transport) else {
            turn.counters.malformed += 1;
            return None;
        };
        let body = body.cut(data);
        let guest = SocketAddr::new(ip.source, header.source);
        let to = SocketAddr::new(ip.destination, header.destination);
        if self.guest_asks_for_settings(guest, to, &body, turn) {
            return None;
        }
        if !self.is_guest(guest.ip()) {
            turn.counters.spoofed += 1;
            return None;
        }
        let segment = match segmentation {
            None => None,
            Some(Segmentation::Udp(size)) if size > 0 => {
                (usize::from(size) < data.len()).then_some(size)
            }
            Some(_) => {
                turn.counters.malformed += 1;
                return None;
            }
        };
        let ends = FlowKey {
            guest: Endpoint::new(guest.ip(), guest.port()),
            remote: Endpoint::new(to.ip(), to.port()),
        };
        let found = match self.udp.find(&ends) {
            Some(id) => Ok(id),
            None => match egress.flow(turn.now, Transport::Udp, to) {
                Ok(Route::Socket(peer)) => self.udp.open(ends, peer, turn),
                Ok(Route::Stack) if to.port() == DNS_PORT => {
                    return Some(Query { guest, at: to, bytes: body.to_vec() });
                }
                Ok(Route::Stack) => return None,
                Err(denied) => {
                    if let Some(fault) = fault(denied, egress) {
                        self.report_udp(fault, &ends, data.len(), turn);
                    }
                    return None;
                }
            },
        };
        let sent = found.and_then(|id| self.send(id, body, segment, turn));
        if let Err(error) = sent
            && let Some(fault) = Fault::of(error)
        {
            self.report_udp(fault, &ends, data.len(), turn);
        }
        None
    }

    fn send(
        &mut self,
        id: FlowId,
        body: Body<'_, P>,
        segment: Option<u16>,
        turn: &mut Turn<'_, P>,
    ) -> Result<(), HostError> {
        let Self { udp, outbox, delivery, .. } = self;
        match body {
            Body::InPlace(payload) => {
                outbox.push(id, Unsent { payload, segment }, udp, delivery, turn);
                Ok(())
            }
            Body::Joined(bytes) => {
                outbox.send(udp, delivery, turn);
                udp.send_bytes(id, bytes, turn)
            }
        }
    }

    /// Sends the datagrams of the guest that have waited for others of their flows.
    pub fn send_out(&mut self, turn: &mut Turn<'_, P>) {
        self.outbox.send(&mut self.udp, &mut self.delivery, turn);
    }

    fn report_udp(&mut self, fault: Fault, ends: &FlowKey, len: usize, turn: &mut Turn<'_, P>) {
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        self.delivery.report(fault, Quote::udp(ends, len), turn);
    }

    /// Answers DHCP; whether it was that.
    fn guest_asks_for_settings(
        &mut self,
        guest: SocketAddr,
        to: SocketAddr,
        body: &Body<'_, P>,
        turn: &mut Turn<'_, P>,
    ) -> bool {
        let answered = match to {
            SocketAddr::V4(to) if to.port() == dhcp::SERVER_PORT => {
                if *to.ip() != Ipv4Addr::BROADCAST && *to.ip() != self.lease.router {
                    return false;
                }
                self.answer_dhcp(body, turn)
            }
            SocketAddr::V6(to) if to.port() == dhcp::v6::SERVER_PORT => {
                if *to.ip() != dhcp::v6::ALL_SERVERS {
                    return false;
                }
                self.answer_dhcpv6(guest, body, turn)
            }
            _ => return false,
        };
        if answered {
            turn.counters.dhcp_answered += 1;
        } else {
            turn.counters.dhcp_ignored += 1;
        }
        true
    }

    fn answer_dhcp(&mut self, body: &Body<'_, P>, turn: &mut Turn<'_, P>) -> bool {
        let bytes = body.first(MAX_DHCP);
        let Ok(reply) = dhcp::answer(&bytes, self.macs.guest, &self.lease) else { return false };
        let header = Header::Udp {
            source: SocketAddr::new(IpAddr::V4(self.lease.router), dhcp::SERVER_PORT),
            destination: SocketAddr::new(IpAddr::V4(reply.destination), dhcp::CLIENT_PORT),
            segment: 0,
        };
        self.delivery.send_to(reply.mac, header, reply.as_bytes(), turn);
        true
    }

    fn answer_dhcpv6(
        &mut self,
        guest: SocketAddr,
        body: &Body<'_, P>,
        turn: &mut Turn<'_, P>,
    ) -> bool {
        let Some(router) = self.router.as_ref().filter(|_| self.is_guest(guest.ip())) else {
            return false;
        };
        let bytes = body.first(MAX_DHCP);
        let reply = dhcp::v6::answer(&bytes, router.mac, router.gateway, &router.search);
        let Some(reply) = reply else { return false };
        let header = Header::Udp {
            source: SocketAddr::new(IpAddr::V6(ndp::LINK_LOCAL), dhcp::v6::SERVER_PORT),
            destination: SocketAddr::new(guest.ip(), dhcp::v6::CLIENT_PORT),
            segment: 0,
        };
        self.delivery.send(header, &reply, turn);
        true
    }

    fn guest_icmp(
        &mut self,
        icmp: Icmp,
        ip: &IpHeader,
        transport: Part<'_>,
        body: Body<'_, P>,
        turn: &mut Turn<'_, P>,
        egress: &mut Egress,
    ) {
        let Ok((header, data)) = IcmpHeader::parse(transport) else {
            turn.counters.malformed += 1;
            return;
        };
        if icmp == Icmp::V6 && icmpv6::NEIGHBOR_DISCOVERY.contains(&header.kind) {
            self.guest_discovers(ip, &header, data, turn);
            return;
        }
        if !self.is_guest(ip.source) {
            turn.counters.spoofed += 1;
            return;
        }
        if !icmp.is_echo_request(header.kind) || header.code != 0 {
            turn.counters.unserved += 1;
            return;
        }
        let (identifier, sequence) = (header.identifier(), header.sequence());
        let ends = FlowKey {
            guest: Endpoint::new(ip.source, identifier),
            remote: Endpoint::new(ip.destination, 0),
        };
        match egress.echo(turn.now, ip.destination) {
            Ok(Route::Stack) => {
                turn.counters.echo_answered += 1;
                let data = body.cut(data).to_vec();
                let (from, delivery) = (ip.destination, &mut self.delivery);
                echo::reply(from, ip.source, identifier, sequence, &data, delivery, turn);
            }
            Ok(Route::Socket(peer)) => {
                if !self.echo.admit(turn) {
                    return;
                }
                let data = body.cut(data).to_vec();
                if let Err(fault) = self.echo.request(ends, peer, sequence, &data, turn) {
                    self.delivery.report(fault, Quote::echo(&ends, sequence), turn);
                }
            }
            Err(denied) => {
                if let Some(fault) = fault(denied, egress) {
                    self.delivery.report(fault, Quote::echo(&ends, sequence), turn);
                }
            }
        }
    }

    fn guest_discovers(
        &mut self,
        ip: &IpHeader,
        header: &IcmpHeader,
        data: Part<'_>,
        turn: &mut Turn<'_, P>,
    ) {
        let (Some(router), IpAddr::V6(source)) = (&self.router, ip.source) else { return };
        let Some(message) = router.answer(source, ip.hop_limit, header, data.bytes()) else {
            return;
        };
        turn.counters.neighbors_answered += 1;
        if header.kind == icmpv6::ROUTER_SOLICITATION {
            self.advertises_at = Some(turn.now + ndp::INTERVAL);
        }
        self.send_message(&message, turn);
    }

    fn send_message(&mut self, message: &Message, turn: &mut Turn<'_, P>) {
        let (source, destination) = (message.source.into(), message.destination.into());
        let header = Header::Icmp { source, destination, header: message.header };
        self.delivery.send(header, &message.body, turn);
    }

    /// Tells the guest of its router before what it knows of it is too old.
    fn advertise(&mut self, turn: &mut Turn<'_, P>) {
        if let Some(router) = &self.router
            && self.advertises_at.is_some_and(|at| at <= turn.now)
        {
            let message = router.advertisement(Ipv6Addr::UNSPECIFIED);
            self.advertises_at = Some(turn.now + ndp::INTERVAL);
            self.send_message(&message, turn);
        }
    }

    /// Somebody waits at a published port. Whether more may wait there than was taken.
    pub fn forward_ready(
        &mut self,
        forward: ForwardId,
        turn: &mut Turn<'_, P>,
        scene: &Scene,
    ) -> bool {
        let port = self.forwards.get(usize::from(forward.0)).copied().flatten();
        let Some(port) = port else { return false };
        let gateway = IpAddr::V4(self.lease.router);
        // Whoever the guest could not answer, or would take for itself, is seen as the gateway.
        let seen_as = |peer: SocketAddr| {
            let ip = peer.ip().to_canonical();
            let near = !ip.is_ipv4()
                || ip.is_loopback()
                || ip.is_unspecified()
                || scene.is_host(ip)
                || scene.in_guest_network(ip);
            SocketAddr::new(if near { gateway } else { ip }, peer.port())
        };
        let guest = Endpoint::new(IpAddr::V4(self.guest), port);
        self.udp.forward_ready(forward, guest, seen_as, turn)
    }

    /// Something has become possible on the socket of a flow.
    pub fn socket_ready(&mut self, id: FlowId, readiness: Readiness) {
        if self.udp.names(id) {
            self.udp.socket_ready(id, readiness);
        } else {
            self.echo.socket_ready(id);
        }
    }

    /// The link may have room again.
    pub fn link_ready(&mut self, turn: &mut Turn<'_, P>) {
        self.delivery.link_ready(turn);
    }

    /// The guest has reset its network card: what waits for it is forgotten.
    pub fn link_reset(&mut self) {
        self.outbox.clear();
        self.delivery.clear();
    }

    /// Ends what was idle for its time.
    pub fn run_timers(&mut self, turn: &mut Turn<'_, P>) {
        self.udp.run_timers(turn);
        self.echo.run_timers(turn);
        self.fragments.expire(turn.now);
        self.advertise(turn);
    }

    /// Reads what sockets have, a bounded amount, and sends it to the guest. Whether something may be left for another flush at once.
    pub fn flush(&mut self, turn: &mut Turn<'_, P>) -> bool {
        let echo = self.echo.flush(&mut self.delivery, turn);
        self.udp.flush(&mut self.delivery, turn) || echo
    }

    /// When [`Self::run_timers`] has something to do, or [`Self::flush`] has at once.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.udp.next_deadline(),
            self.echo.next_deadline(),
            self.fragments.next_deadline(),
            self.advertises_at,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Ends flows that the policy of this moment refuses.
    pub fn sweep(&mut self, turn: &mut Turn<'_, P>, egress: &mut Egress) {
        let now = turn.now;
        let mut stays =
            |protocol, to| matches!(egress.live_flow(now, protocol, to), Ok(Route::Socket(_)));
        self.udp.sweep(|to| stays(Protocol::Udp, to), turn);
        self.echo.sweep(|to| stays(Protocol::Icmp, SocketAddr::new(to, 0)), turn);
    }
}

/// What the guest is told of a refusal; `None`: nothing.
fn fault(denied: Denied, egress: &Egress) -> Option<Fault> {
    match (denied, egress.policy().refuses_by()) {
        (Denied::Gateway, _) => Some(Fault::Port),
        (_, RefuseBy::Silence) => None,
        (_, RefuseBy::Reset | RefuseBy::Icmp) => Some(Fault::Prohibited),
    }
}
