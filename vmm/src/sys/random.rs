//! The host's random bytes.
//!
//! Invariant: it never blocks: before the host's pool is ready it is an error. Any thread may call it.

#![expect(unsafe_code, reason = "getrandom(2) fills memory through a pointer")]

use std::io;

/// Fills `out` from its start and returns how many bytes were written, which is all of them up to 256.
///
/// # Errors
/// What the host said; `WouldBlock` before its pool is ready.
pub fn fill(out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `out.len()` bytes from `out`'s start, which this function borrows alone.
    let got = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), libc::GRND_NONBLOCK) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Random bytes.
///
/// # Errors
/// What the host said; `WouldBlock` before its pool is ready.
pub fn array<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "more may come in pieces") };
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_fills_differ() {
        let [a, b, zeros] = [super::array::<32>().unwrap(), super::array().unwrap(), [0; 32]];
        assert!(a != b && a != zeros && b != zeros);
    }
}
