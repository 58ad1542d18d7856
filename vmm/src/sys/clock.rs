//! Clocks that the standard library does not read.

#![expect(unsafe_code, reason = "the process clock has no safe wrapper")]

use std::time::Duration;

/// The processor time that this process has used, in user and kernel mode.
#[must_use]
pub fn process_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that outlives the call. The clock exists on every Linux; were it refused, `time` stays 0.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanos)
}
