//! The network stack alone, with the host's kernel as its guest: programs and sockets in namespaces of the test's own.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole program is tests, and what they share fails them the same way"
)]

mod datagrams;
mod ends;
mod host;
mod many;
mod names;
mod policy;
mod programs;
mod rig;
mod six;
mod streams;
