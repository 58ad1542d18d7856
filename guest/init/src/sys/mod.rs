//! System calls and ports that no crate wraps as PID 1 needs them: the floor, and the only unsafe code.

pub mod bind;
pub mod execute;
pub mod ports;
pub mod signals;
pub mod spawn;
pub mod storage;
pub mod vsock;
