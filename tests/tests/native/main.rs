//! Bare-metal guests on the host's KVM: how machines end, what devices do to hostile drivers, what a run leaves behind.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "the whole program is tests, and what they share fails them the same way"
)]

mod block;
mod console;
mod container;
mod ends;
mod guest;
mod hygiene;
mod interrupts;
mod machine;
mod machines;
mod net;
mod places;
mod random;
mod resets;
mod rings;
mod rng;
mod signals;
mod trace;
mod transport;
mod vsock;
