//! Puts together what the driver and the sessions say, by the rules of readiness, into rows.

pub mod phase;
pub mod rules;
