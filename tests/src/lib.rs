//! What end-to-end tests and benchmarks share: bare-metal guests, and machines as processes.

pub mod bare;
pub mod image;
pub mod machine;
pub mod memory;
pub mod netns;
pub mod pattern;
mod process;
pub mod pty;
pub mod streams;
pub mod walk;

pub use process::{Taken, signal, taken, terminal};
