//! Processors that this process may run on.
//!
//! Invariant: it opens nothing, so that a confined thread may ask as well as any other.

#![expect(unsafe_code, reason = "sched_getaffinity(2) fills a set through a pointer")]

use std::mem::{MaybeUninit, size_of};

/// Whether two threads of this process can run at the same time, as far as their affinity says.
#[must_use]
pub fn several() -> bool {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel writes at most the size given, into a set that this function owns.
    let asked =
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
    // SAFETY: a set is an array of words, for which zeroes are as good as what the kernel wrote.
    let set = unsafe { set.assume_init() };
    // SAFETY: it reads the set, which is borrowed.
    let count = unsafe { libc::CPU_COUNT(&set) };
    // A set too small for the host's processors is refused: there are more than 1024.
    asked != 0 || count > 1
}

#[cfg(test)]
mod tests {
    #[test]
    fn agrees_with_the_standard_library_where_no_quota_interferes() {
        let quota_aware = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(super::several() || quota_aware == 1);
    }
}
