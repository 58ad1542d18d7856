//! The unsafe floor: system calls that no crate wraps the way the machine needs them.

pub mod unix;
