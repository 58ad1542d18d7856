//! File trees as tar streams: what both ends of a copy between a host and its guest do.
//!
//! [`pack`] reads a tree, [`unpack`] makes one from bytes that may be hostile. Invariant: what is unpacked lies beneath its destination
//! or is refused, whatever names and links an archive has; memory does not grow with an archive.
#![forbid(unsafe_code)]

mod archive;
mod error;
mod pack;
mod place;
mod records;
#[cfg(test)]
mod tests;
mod unpack;

pub use archive::{Entry, Kind, Reader};
pub use error::CopyError;
pub use pack::pack;
pub use unpack::{Keep, unpack};

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files of any kind, directories among them.
    pub files: u64,
    /// Bytes of their data, without holes.
    pub bytes: u64,
}
