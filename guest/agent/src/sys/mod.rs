//! The floor: what a new process does to itself, and the only unsafe code.

pub mod inherited;
pub mod spawn;
