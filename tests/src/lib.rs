//! What end-to-end tests and benchmarks share: bare-metal guests, and machines as processes.

pub mod bare;
