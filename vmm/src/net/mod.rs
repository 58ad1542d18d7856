//! The host's side of the user-mode network stack: sockets, links and the thread that drives [`openshell_usernet::Stack`].
//!
//! [`engine`] is the thread: one epoll for the link, the sockets of flows, published ports and what the host tells of its own. A link
//! is a virtio queue pair ([`crate::virtio::net`]), a tap ([`tap`]) or a Unix stream ([`stream`]).
//! Invariant: the thread never waits anywhere but in its epoll, and opens no file by a name that came from a guest or a peer.

mod addresses;
pub mod alone;
mod buffer;
pub mod engine;
pub mod follow;
mod link;
mod port;
mod refusals;
pub mod resolvers;
mod setup;
mod sockets;
pub mod stream;
mod tally;
pub mod tap;
pub mod thread;
pub mod vnet_header;

pub use buffer::FrameBytes;
pub use link::{Iovecs, LinkEvent, PacketLink, Source};
pub use port::Limits;
pub use refusals::RefusalLog;
pub use sockets::{HostSockets, SocketCounters};
