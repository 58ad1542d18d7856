//! The unsafe floor: system calls that no crate wraps the way the machine needs them.

pub mod console_io;
pub mod kick;
#![expect(unsafe_code, reason = "system calls that no crate wraps")]

pub mod clock;
pub mod open_file;
pub mod random;
pub mod signal;
pub mod tty;
pub mod unix_peer;
