//! What a snapshot keeps of a network card apart from its queues.
//!
//! Invariant: nothing identity-like is in it: the hardware address is a parameter of the machine that is restored. Connections are not
//! in it either; the stack answers what it does not know with a reset.

/// Version 1 of a network card's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetState {
    /// Layout of this structure.
    pub version: u16,
    /// Features offered.
    pub features: u64,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Descriptors of the receive and of the transmit queue.
    pub ring_size: u16,
    /// What the configuration says of the link.
    pub link_up: bool,
}

impl NetState {
    /// The layout that this build writes.
    pub const VERSION: u16 = 1;
}
