//! A file whose readiness is waited for.

#![expect(unsafe_code, reason = "the runtime wants a promise about the descriptor")]

use std::fs::File;
use std::io;

use tokio::io::unix::AsyncFd;

/// Registers a file that does not block with the current runtime.
///
/// # Errors
/// What the kernel says.
pub fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` gives out one descriptor, always the same, and it stays open as long as the `AsyncFd` that owns the file;
    // nobody takes it out of there.
    Ok(unsafe { AsyncFd::register(file) }?)
}
