//! A streaming reader of tar archives: v7, ustar, GNU and pax, sparse files and binary extended attributes included.
//!
//! Invariant: the size that is used to read an entry's data is the size that is used to skip it, whichever header it
//! came from. Malformed input is an error that names the entry, never a guess. Runs on the thread that hashes the
//! uncompressed layer. POSIX.1-2001 pax interchange format; GNU tar manual, "Tar Internals".

mod encode;
mod error;
mod extended;
mod header;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;

pub use encode::{END, encode, padding};
pub use error::{Fault, TarError};
pub use reader::{Entry, Extent, Kind, Reader};
