//! A DHCP client (RFC 2131), as much of it as a machine needs that asks once.
//!
//! [`Client`] is pure: it is told the time and what arrived, and says what to send and how long to wait. Invariant: an
//! answer counts only with our transaction and hardware address, and asking ends after [`TRIES`] messages. The lease is
//! not renewed: the network that serves these machines gives an address for their whole life.

mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

pub use wire::{CLIENT_PORT, SERVER_PORT};
use wire::{Kind, Message, Request};

use crate::config::Prefix;

/// Messages that are sent at most, of both kinds together.
pub const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// What the server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address and its subnet.
    pub address: Prefix,
    /// The first router.
    pub router: Option<Ipv4Addr>,
    /// The link's MTU in bytes, if it makes sense.
    pub mtu: Option<u16>,
    /// Resolvers.
    pub dns: Vec<IpAddr>,
    /// Domains for unqualified names.
    pub search: Vec<String>,
}

/// What a client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Broadcast these bytes, then ask again.
    Send(Vec<u8>),
    /// Wait so long for an answer.
    Wait(Duration),
    /// Nobody answered.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Discovering,
    Requesting { address: Ipv4Addr, server: Ipv4Addr, asked: u32 },
}

/// A client that asks for one lease.
#[derive(Debug)]
pub struct Client {
    mac: [u8; 6],
    transaction: u32,
    hostname: Option<String>,
    state: State,
    sent: u32,
    /// When the next message is due.
    due: Duration,
}

impl Client {
    /// A client with this hardware address. `transaction` should be random.
    #[must_use]
    pub fn new(mac: [u8; 6], transaction: u32, hostname: Option<String>) -> Self {
        let (state, due) = (State::Discovering, Duration::ZERO);
        Self { mac, transaction, hostname, state, sent: 0, due }
    }

    /// What to do at `now`, the time since the client was made.
    pub fn next(&mut self, now: Duration) -> Action {
        if now < self.due {
            return Action::Wait(self.due.saturating_sub(now));
        }
        if self.sent == TRIES {
            return Action::GiveUp;
        }
        match &mut self.state {
            // Who made an offer and is silent since then may be gone.
            State::Requesting { asked: 2.., .. } => self.state = State::Discovering,
            State::Requesting { asked, .. } => *asked += 1,
            State::Discovering => {}
        }
        self.due = now.saturating_add(FIRST_WAIT.saturating_mul(1 << self.sent.min(3)));
        self.sent += 1;
        Action::Send(self.message(now))
    }

    /// Takes a datagram; the lease, if it brought one.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<Lease> {
        let message = Message::parse(bytes, self.mac, self.transaction)?;
        match (message.kind, self.state) {
            (Kind::Offer, State::Discovering) => {
                let (address, server) = (message.address?, message.server?);
                self.state = State::Requesting { address, server, asked: 0 };
                self.due = Duration::ZERO;
                None
            }
            // A server that commits rapidly skips the offer (RFC 4039).
            (Kind::Ack, State::Discovering) if message.rapid_commit => lease(message),
            (Kind::Ack, State::Requesting { server, .. }) if message.server == Some(server) => {
                lease(message)
            }
            (Kind::Nak, State::Requesting { server, .. }) if message.server == Some(server) => {
                self.state = State::Discovering;
                self.due = Duration::ZERO;
                None
            }
            _ => None,
        }
    }

    fn message(&self, now: Duration) -> Vec<u8> {
        let (address, server) = match self.state {
            State::Discovering => (None, None),
            State::Requesting { address, server, .. } => (Some(address), Some(server)),
        };
        Request {
            mac: self.mac,
            transaction: self.transaction,
            seconds: u16::try_from(now.as_secs()).unwrap_or(u16::MAX),
            hostname: self.hostname.as_deref(),
            address,
            server,
        }
        .emit()
    }
}

fn lease(message: Message) -> Option<Lease> {
    let address = message.address.filter(|address| is_host(*address))?;
    let len = message.prefix_len.unwrap_or_else(|| class_prefix(address));
    Some(Lease {
        address: Prefix { address, len },
        router: message.router.filter(|router| is_host(*router)),
        mtu: message.mtu.filter(|mtu| *mtu >= 576),
        dns: message.dns.into_iter().map(IpAddr::V4).collect(),
        search: message.search,
    })
}

fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
}

/// What a subnet was before there were masks, for a server that names none.
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests;
