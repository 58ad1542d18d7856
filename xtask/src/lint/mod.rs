//! Checks that no compiler makes: who may use whom, where unsafe code may be, what may be named how.

pub(crate) mod arrows;
pub(crate) mod deny;
pub(crate) mod names;
pub(crate) mod unsafety;

mod sources;
