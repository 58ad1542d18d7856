//! What the user wrote ([`spec`]) and what will be built from it ([`plan`]).

pub mod plan;
