//! Images against the checkers of e2fsprogs, the kernel, and our own reader.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the whole program is tests of images that fit in memory, and what they share fails them the same way"
)]

mod bugs;
mod corrupt;
mod fields;
mod kernel;
mod laid;
mod random;
mod shapes;
mod support;
