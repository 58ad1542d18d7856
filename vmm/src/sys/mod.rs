//! The unsafe floor: system calls that no crate wraps the way the machine needs them.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

pub mod clock;
pub mod open_file;
pub mod unix_peer;
