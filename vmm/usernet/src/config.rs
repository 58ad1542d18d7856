//! What a stack is told when it is made: addresses, bounds and published ports.
//!
//! Every bound has the default that the documentation promises. Pure values.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::datagrams::DatagramBounds;
use crate::policy::{Places, Policy};
use crate::wire::{Mac, Macs};

/// The protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to the guest; [`crate::sockets::ForwardId`] counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Which protocol.
    pub protocol: ForwardProtocol,
    /// The guest's port.
    pub guest_port: u16,
}

/// Bounds of what a stack keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// TCP connections, those under way included.
    pub tcp_flows: u32,
    /// Connections whose host side does not stand yet.
    pub pending: usize,
    /// Of these, those to one address.
    pub pending_per_destination: usize,
    /// How long a connection may be pending.
    pub pending_time: Duration,
    /// Bytes in copies of what the guest has not acknowledged, all connections together.
    pub ring_bytes: usize,
    /// The same of one connection.
    pub ring_bytes_per_flow: usize,
    /// Payloads held back for sockets that are full, all connections together; half of the guest's ring at most.
    pub parked: usize,
    /// The same of one connection.
    pub parked_per_flow: usize,
    /// Segments that came out of order, all connections together.
    pub out_of_order: usize,
    /// Bytes that one connection may have sent to it before another has its turn.
    pub quantum: usize,
    /// A connection idle for so long makes room for another when the table is full.
    pub evict_after: Duration,
    /// The largest window that the guest is offered, in bytes.
    pub max_window: u32,
    /// UDP flows, echo requests, fragments.
    pub datagrams: DatagramBounds,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            tcp_flows: 16_384,
            pending: 1_024,
            pending_per_destination: 64,
            pending_time: Duration::from_secs(30),
            ring_bytes: 32 << 20,
            ring_bytes_per_flow: 1 << 20,
            parked: 128,
            parked_per_flow: 16,
            out_of_order: 64,
            quantum: 128 << 10,
            evict_after: Duration::from_secs(3_600),
            max_window: 8 << 20,
            datagrams: DatagramBounds::default(),
        }
    }
}

/// What a stack is told when it is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ours and the guest's hardware address. Frames from another are ignored.
    pub macs: Macs,
    /// The addresses of the guest's network.
    pub v4: Places,
    /// The same for IPv6, where the guest has it.
    pub v6: Option<Places>,
    /// The addresses that interfaces of the host have.
    pub host_addresses: Vec<IpAddr>,
    /// What the guest may reach.
    pub policy: Arc<Policy>,
    /// The host's resolvers, in the order in which they are asked.
    pub resolvers: Vec<SocketAddr>,
    /// The domains in which the guest looks up unqualified names.
    pub search: Vec<String>,
    /// The link's MTU in bytes, at least 576.
    pub mtu: u16,
    /// Published ports, in the order of their [`crate::sockets::ForwardId`].
    pub forwards: Vec<Forward>,
    /// Bounds.
    pub bounds: Bounds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            macs: Macs {
                gateway: Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]),
                guest: Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]),
            },
            v4: Places::default(),
            v6: None,
            host_addresses: Vec::new(),
            policy: Arc::default(),
            resolvers: Vec::new(),
            search: Vec::new(),
            mtu: 1_500,
            forwards: Vec::new(),
            bounds: Bounds::default(),
        }
    }
}
