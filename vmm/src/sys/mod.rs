//! The unsafe floor: system calls that no crate wraps the way the machine needs them.

pub mod clock;
pub mod console_io;
pub mod inet;
pub mod kick;
pub mod limit;
pub mod linger;
pub mod open_file;
pub mod panics;
pub mod poll;
pub mod process;
pub mod processors;
pub mod random;
pub mod signal;
pub mod start_up;
pub mod tty;
pub mod tun;
pub mod unix;
pub mod unix_peer;
pub mod user;
pub mod watch;
