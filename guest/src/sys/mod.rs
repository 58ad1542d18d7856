//! What only unsafe code can do: a new process's own steps before it executes its program, and promises about descriptors.

pub mod ready;
pub mod spawn;
