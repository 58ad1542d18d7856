//! Who this process acts as.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

/// The effective user id.
#[must_use]
pub fn effective_id() -> u32 {
    // SAFETY: the call takes nothing, always succeeds and has no effect.
    unsafe { libc::geteuid() }
}
