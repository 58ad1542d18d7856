//! Disk images as a device sees them: a fixed number of bytes that can be read, written, flushed and given back.
//!
//! Invariant: formats are never sniffed; what an image is was decided on the command line. The worker of the queue that owns a disk
//! runs it.

pub mod io;
pub mod limits;
pub mod overlay;
pub mod raw;

use std::io::Result;

use crate::memory::IoBuf;

pub use io::Op;
pub use overlay::Overlay;
pub use raw::Raw;

/// A disk that operations run on one after the other.
pub trait Disk: Send + std::fmt::Debug {
    /// Carries out `op` at byte `offset`. The caller checked the range against the disk's size.
    ///
    /// # Errors
    /// What the host said; the range's contents are then undefined.
    fn perform(&mut self, op: Op, offset: u64, bufs: &[IoBuf]) -> Result<()>;
}
