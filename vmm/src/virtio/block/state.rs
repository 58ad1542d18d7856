//! What a snapshot keeps of a block device apart from its queues.
//!
//! Invariant: nothing identity-like is in it (no path, no identity string): the disk a restored machine gets is a parameter, and only
//! what its guest already relies on must match.

/// Version 1 of a block device's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockState {
    /// Layout of this structure.
    pub version: u16,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Features offered.
    pub features: u64,
    /// Number of queues.
    pub queues: u16,
}

impl BlockState {
    /// The layout that this build writes.
    pub const VERSION: u16 = 1;
}
