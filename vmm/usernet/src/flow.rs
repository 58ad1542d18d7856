//! Names of flows.

/// A flow of the stack: a TCP connection, a UDP association, an echo identifier, a query to a resolver. The socket that serves the
/// flow has the same name. A name is not used again before 2^24 others have been in its place, so that a late event of a closed
/// socket finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// The flow in place `index` of its table, the `generation`th one there; of the generation, 24 bits count.
    #[must_use]
    pub const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation: generation & 0xff_ffff }
    }

    /// Its place in the table.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// 56 bits that name it, for the user data of an event queue.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The reverse of [`Self::to_bits`]; bits above the 56th are ignored.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    pub const fn from_bits(bits: u64) -> Self {
        Self::new(bits as u32, (bits >> 32) as u32)
    }
}
