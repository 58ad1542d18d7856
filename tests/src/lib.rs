//! What end-to-end tests and benchmarks share: bare-metal guests, and machines as processes.

pub mod bare;
pub mod machine;
mod process;

pub use process::terminal;
