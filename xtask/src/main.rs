//! Every developer and CI command of openshell-vmm.
#![forbid(unsafe_code)]

fn main() {}
