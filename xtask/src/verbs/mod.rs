//! The verbs of `cargo xtask`, one file each: arguments in, exit code out.

pub(crate) mod lab;
