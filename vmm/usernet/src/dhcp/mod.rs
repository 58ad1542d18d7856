//! A DHCP server for one client (RFC 2131, 2132, 3397, 4039, 6842).
//!
//! Invariant: the client gets the same lease every time, however often it asks and whatever it gave back; whoever has another
//! hardware address gets no answer. The server keeps nothing between two messages.

mod options;
#[cfg(test)]
mod tests;
pub mod v6;

use std::net::Ipv4Addr;

pub(crate) use options::encode_domain;
use options::{Asked, Options};

use crate::wire::Mac;

/// The port that servers listen at.
pub const SERVER_PORT: u16 = 67;
/// The port that clients listen at.
pub const CLIENT_PORT: u16 = 68;
/// No message is longer than this, so that any client takes it (RFC 2131 section 2).
pub const MAX_LEN: usize = 548;

const FIXED_LEN: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP's length, which some relays and clients insist on.
const MIN_LEN: usize = 300;
const BROADCAST_FLAG: u8 = 0x80;

/// What the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the subnet's prefix, at most 32.
    pub prefix_len: u8,
    /// Its router; also the server's own address.
    pub router: Ipv4Addr,
    /// Its resolver.
    pub resolver: Ipv4Addr,
    /// Domains that unqualified names are looked up in, the first one being the client's own.
    pub search: Vec<String>,
    /// The link's MTU in bytes.
    pub mtu: u16,
    /// How long it lasts, in seconds.
    pub seconds: u32,
}

/// Kinds of messages (RFC 2132 section 9.6).
mod kind {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// Why a message has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// It is no DHCP message from a client of this link, or its options make no sense.
    #[error("malformed DHCP message")]
    Malformed,
    /// Somebody else's hardware address is in it.
    #[error("DHCP message of a foreign client")]
    ForeignClient,
    /// It is for another server.
    #[error("DHCP message for another server")]
    OtherServer,
    /// The client gives its address back or finds it in use: neither has an answer, and its next lease is the same.
    #[error("DHCP message without an answer")]
    NotAnswered,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    bytes: [u8; MAX_LEN],
    len: usize,
    /// Where it goes: the broadcast address, or the client's.
    pub destination: Ipv4Addr,
    /// Where its frame goes.
    pub mac: Mac,
}

impl Reply {
    /// The message, for UDP from [`SERVER_PORT`] to [`CLIENT_PORT`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// The fixed part of a request, as far as it matters.
#[derive(Debug, Clone, Copy)]
struct Request<'a> {
    fixed: &'a [u8; FIXED_LEN],
    asked: Asked<'a>,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8], client: Mac) -> Result<Self, Ignored> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_LEN>().ok_or(Ignored::Malformed)?;
        let options = rest.strip_prefix(&COOKIE).ok_or(Ignored::Malformed)?;
        let relayed = fixed[24..28] != [0; 4];
        if fixed[..3] != [1, 1, 6] || relayed {
            return Err(Ignored::Malformed);
        }
        if fixed[28..34] != client.0 {
            return Err(Ignored::ForeignClient);
        }
        let (server_name, file) = (&fixed[44..108], &fixed[108..]);
        let asked = Asked::parse(options, file, server_name).ok_or(Ignored::Malformed)?;
        Ok(Self { fixed, asked })
    }

    /// The address that the client has already (`ciaddr`), if any.
    fn current(&self) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::new(self.fixed[12], self.fixed[13], self.fixed[14], self.fixed[15]);
        (!address.is_unspecified()).then_some(address)
    }

    fn wants_broadcast(&self) -> bool {
        self.fixed[10] & BROADCAST_FLAG != 0
    }
}

/// Answers the message `bytes` of the client whose hardware address is `client`.
///
/// # Errors
/// It has no answer.
pub fn answer(bytes: &[u8], client: Mac, lease: &Lease) -> Result<Reply, Ignored> {
    let request = Request::parse(bytes, client)?;
    if request.asked.server.is_some_and(|server| server != lease.router) {
        return Err(Ignored::OtherServer);
    }
    let kind = match request.asked.kind {
        kind::DISCOVER if request.asked.rapid_commit => kind::ACK,
        kind::DISCOVER => kind::OFFER,
        kind::REQUEST => {
            let wanted = request.asked.address.or(request.current());
            match wanted {
                Some(address) if address == lease.address => kind::ACK,
                Some(_) => kind::NAK,
                None => return Err(Ignored::Malformed),
            }
        }
        kind::INFORM => return Ok(inform(&request, lease)),
        kind::DECLINE | kind::RELEASE => return Err(Ignored::NotAnswered),
        _ => return Err(Ignored::Malformed),
    };
    if kind == kind::NAK {
        return Ok(nak(&request, lease));
    }
    let mut reply = begin(&request);
    reply.bytes[16..20].copy_from_slice(&lease.address.octets());
    let renewed = kind == kind::ACK && request.current() == Some(lease.address);
    if renewed {
        reply.bytes[12..16].copy_from_slice(&lease.address.octets());
    }
    let mut options = Options::new(&mut reply.bytes, FIXED_LEN + COOKIE.len());
    options.put(53, &[kind]);
    options.put(54, &lease.router.octets());
    options.put(51, &lease.seconds.to_be_bytes());
    if request.asked.kind == kind::DISCOVER && kind == kind::ACK {
        options.put(80, &[]);
    }
    settings(&mut options, &request, lease);
    reply.len = options.end(MIN_LEN);
    if !renewed && request.wants_broadcast() {
        broadcast(&mut reply);
    } else {
        reply.destination = lease.address;
    }
    Ok(reply)
}

/// The settings alone, for a client that has its address from elsewhere (RFC 2131 section 4.3.5).
fn inform(request: &Request<'_>, lease: &Lease) -> Reply {
    let mut reply = begin(request);
    reply.bytes[12..16].copy_from_slice(&request.fixed[12..16]);
    let mut options = Options::new(&mut reply.bytes, FIXED_LEN + COOKIE.len());
    options.put(53, &[kind::ACK]);
    options.put(54, &lease.router.octets());
    settings(&mut options, request, lease);
    reply.len = options.end(MIN_LEN);
    match request.current() {
        // Known to be reachable, whatever its flag says.
        Some(address) if address == lease.address => reply.destination = address,
        _ => broadcast(&mut reply),
    }
    reply
}

/// A refusal, which always goes to everybody: the client has no address then (RFC 2131 section 4.1).
fn nak(request: &Request<'_>, lease: &Lease) -> Reply {
    let mut reply = begin(request);
    let mut options = Options::new(&mut reply.bytes, FIXED_LEN + COOKIE.len());
    options.put(53, &[kind::NAK]);
    options.put(54, &lease.router.octets());
    if let Some(identifier) = request.asked.client_identifier {
        options.put(61, identifier);
    }
    reply.len = options.end(MIN_LEN);
    broadcast(&mut reply);
    reply
}

/// An answer to the client's hardware address, with the fields that are given back as they came.
fn begin(request: &Request<'_>) -> Reply {
    let fixed = request.fixed;
    let mut bytes = [0; MAX_LEN];
    bytes[..3].copy_from_slice(&[2, 1, 6]);
    // Transaction, flags, the client's hardware address with its padding.
    bytes[4..8].copy_from_slice(&fixed[4..8]);
    bytes[10..12].copy_from_slice(&fixed[10..12]);
    bytes[28..44].copy_from_slice(&fixed[28..44]);
    bytes[FIXED_LEN..FIXED_LEN + COOKIE.len()].copy_from_slice(&COOKIE);
    let mut mac = [0; 6];
    mac.copy_from_slice(&fixed[28..34]);
    Reply { bytes, len: FIXED_LEN, destination: Ipv4Addr::UNSPECIFIED, mac: Mac(mac) }
}

fn broadcast(reply: &mut Reply) {
    reply.destination = Ipv4Addr::BROADCAST;
    reply.mac = Mac::BROADCAST;
}

/// What a client needs to know beside its address. What does not fit is left out, the least important first.
fn settings(options: &mut Options<'_>, request: &Request<'_>, lease: &Lease) {
    let prefix = u32::from(lease.prefix_len).min(32);
    let mask = u32::MAX.unbounded_shl(32 - prefix);
    if let Some(identifier) = request.asked.client_identifier {
        options.put(61, identifier);
    }
    options.put(1, &mask.to_be_bytes());
    options.put(3, &lease.router.octets());
    options.put(6, &lease.resolver.octets());
    options.put(26, &lease.mtu.to_be_bytes());
    if let Some(domain) = lease.search.first() {
        options.put(15, domain.trim_end_matches('.').as_bytes());
    }
    if request.asked.parameters.contains(&119) {
        options.put_search(&lease.search);
    }
}
