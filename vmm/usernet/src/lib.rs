//! A user-mode network stack: it translates between the Ethernet frames of one guest and the sockets of its host.
//!
//! TCP is translated, not terminated twice: one host socket per guest connection, windows mirrored, no payload of the guest copied
//! on its way to `sendmsg`. The stack is pure: it reads no clock, opens no socket and has no thread. Time arrives as an argument,
//! frames leave through a [`Link`], and what a socket does is behind [`Sockets`]. The caller is the event loop that owns both.
//!
//! Invariant: whatever bytes arrive from the guest, from a peer or from a resolver, the stack does not panic, and what it keeps is
//! bounded by its configuration.

#![forbid(unsafe_code)]

pub mod arp;
pub mod config;
pub mod counters;
pub mod datagrams;
pub mod delivery;
pub mod dhcp;
pub mod dns;
pub mod echo;
pub mod flow;
pub mod fragments;
pub mod icmp;
pub mod limits;
pub mod link;
#[cfg(any(test, fuzzing))]
pub mod mock;
pub mod ndp;
pub mod pcap;
pub mod policy;
pub mod resolv;
pub mod ring;
#[cfg(test)]
mod scripted;
pub mod siphash;
#[cfg(test)]
mod smoltcp_card;
pub mod sockets;
pub mod stack;
pub mod table;
mod tcp;
pub mod time;
pub mod timers;
pub mod turn;
pub mod udp;
pub mod wire;

pub use config::Config;
pub use counters::Counters;
pub use flow::FlowId;
pub use link::{Frame, Link, LinkFull, Offload, Offloads, Payload};
pub use sockets::Sockets;
pub use stack::{Io, Stack};
pub use time::Instant;
