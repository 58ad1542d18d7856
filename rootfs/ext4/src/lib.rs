//! ext4 images from a tree in memory, and trees from ext4 images.
//!
//! [`tree`] is what an image is made of: directories, files whose bytes lie elsewhere, and everything else that a file system of
//! Linux holds. Nothing here follows a path of the host, starts a process or needs a privilege.
//!
//! Invariant: an image is a function of its tree, the contents and the caller's digest alone: not of the clock, the host, the
//! number of threads or the order in which the tree was built.

#![forbid(unsafe_code)]

mod bytes;
pub mod check;
mod checksum;
mod format;
mod hash;
pub mod read;
pub mod tree;
pub mod write;
mod xattr;

pub use check::Report;
pub use checksum::Checksums;
pub use read::{Fault, Image, Input, Place, ReadError};
pub use tree::{Contents, FileData, NodeId, Tree};
pub use write::{Identity, Laid, Options, Output, Profile, Summary, WriteError, write};
pub use xattr::XattrError;
