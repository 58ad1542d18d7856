//! The frame side: what stands between the stack and the guest's network card.
//!
//! Three things implement it: the queues of a virtio-net device, a tap device with a vnet header, a Unix stream. The offloads are
//! those of VIRTIO 1.2 section 5.1.6, which a tap's vnet header shares.

/// How many bytes of each frame from the guest are copied before anything is judged: Ethernet, IPv6 or IPv4 with options, and TCP
/// with all its options fit.
pub const HEAD_LEN: usize = 256;

/// Bytes of a frame, left where the guest put them. Whoever drops it gives the memory back to the guest, so that to keep one
/// is to hold the guest's descriptor: that is how the stack pushes back.
pub trait Payload {
    /// How many bytes are left.
    fn len(&self) -> usize;

    /// Whether none is left.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves out the first `count` bytes, or all when there are fewer.
    fn skip(&mut self, count: usize);

    /// Leaves out what follows the first `count` bytes.
    fn truncate(&mut self, count: usize);

    /// Copies from the beginning into `out`, without skipping; the number of bytes copied.
    fn copy_to(&self, out: &mut [u8]) -> usize;
}

/// Where a checksum belongs that its sender left to the receiver: the ones' complement sum of everything from `start` to the end of
/// the frame goes to `start + offset`, where the sum of the pseudo-header stands already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Bytes from the beginning of the frame.
    pub start: u16,
    /// Bytes from `start`.
    pub offset: u16,
}

/// How one frame stands for several packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segmentation {
    /// TCP over IPv4; each packet carries at most this many bytes of payload.
    Tcp4(u16),
    /// TCP over IPv6.
    Tcp6(u16),
    /// UDP; each datagram has this many bytes, the last one at most.
    Udp(u16),
}

/// What is left to do about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum of layer 4 is partial.
    pub checksum: Option<PartialChecksum>,
    /// The frame is to be cut.
    pub segmentation: Option<Segmentation>,
    /// The checksum of layer 4 is known to be right.
    pub checksum_valid: bool,
}

/// What the guest takes at this moment; it may change while the link is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Frames with a [`PartialChecksum`].
    pub checksum: bool,
    /// [`Segmentation::Tcp4`].
    pub tcp4: bool,
    /// [`Segmentation::Tcp6`].
    pub tcp6: bool,
    /// [`Segmentation::Udp`].
    pub udp: bool,
}

/// One frame from the guest.
#[derive(Debug)]
pub struct Frame<'a, P> {
    /// A copy of its first [`HEAD_LEN`] bytes, or of all when there are fewer. Only this copy is judged: the guest may
    /// rewrite its own memory at any time.
    pub head: &'a [u8],
    /// The whole frame in place, `head` included.
    pub payload: P,
    /// As the guest's driver said it. Not yet judged.
    pub offload: Offload,
}

/// There is no room for a frame at this moment; the caller of the stack says when there is again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has no receive buffer for the frame")]
pub struct LinkFull;

/// The way to the guest.
pub trait Link {
    /// What frames from the guest consist of.
    type Payload: Payload;

    /// What the guest takes now.
    fn offloads(&self) -> Offloads;

    /// Sends one frame, `head` followed by the pieces of `body`. It is all or nothing.
    ///
    /// # Errors
    /// [`LinkFull`]: nothing was sent.
    fn send(&mut self, offload: Offload, head: &[u8], body: &[&[u8]]) -> Result<(), LinkFull>;
}
