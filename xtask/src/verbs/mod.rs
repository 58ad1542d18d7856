//! The verbs of `cargo xtask`, one file each: arguments in, exit code out.

pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod dist;
pub(crate) mod fuzz;
pub(crate) mod lab;
pub(crate) mod lint;
pub(crate) mod property;
pub(crate) mod test;
