//! What the user wrote ([`spec`]) and what will be built from it ([`plan`]).
//!
//! Invariant: [`open`] is the one way from the first to the second, and nothing below it looks at what the user wrote
//! again.

pub mod failure;
pub mod kernel;
pub mod lock;
pub mod net;
pub mod net_limits;
pub mod net_plan;
pub mod open;
pub mod plan;
pub mod publish;
pub mod spec;
pub mod toml_file;
pub mod units;
pub mod user;
