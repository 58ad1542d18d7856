//! Images against the checkers of e2fsprogs, the kernel, and our own reader.

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![expect(clippy::unwrap_used, reason = "a test says where it fails")]

mod shapes;
mod support;
