//! The command `openshell-rootfs`: arguments to library calls to an exit code.

#![forbid(unsafe_code)]

fn main() {}
