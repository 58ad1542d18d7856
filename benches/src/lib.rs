//! What the benchmarks share: one schema for results, statistics, the host's fingerprint, and processes that are measured.
//!
//! Invariant: a benchmark reports and never judges. Every figure comes with its raw samples, and those of peers are taken in the same
//! run, turn by turn.

pub mod call;
pub mod guest;
pub mod host;
pub mod process;
pub mod results;
pub mod statistics;
pub mod trace;
pub mod vmm;
