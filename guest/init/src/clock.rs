//! The clock and the random pool: both are right before the first process could rely on them.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::failure::{Failure, Step};

const POOL_PATIENCE: Duration = Duration::from_secs(10);

/// Sets the clock to `unix_ms` if it is behind that.
///
/// # Errors
/// When the time cannot be one, or the kernel refuses.
pub fn not_before(unix_ms: u64) -> Result<(), Failure> {
    let wanted = Duration::from_millis(unix_ms);
    let now = clock_gettime(ClockId::Realtime);
    if u64::try_from(now.tv_sec).unwrap_or(0) >= wanted.as_secs() {
        return Ok(());
    }
    let seconds = i64::try_from(wanted.as_secs())
        .map_err(|_| Failure::new(Step::Clock, format!("{unix_ms} is no time")))?;
    let time = Timespec { tv_sec: seconds, tv_nsec: wanted.subsec_nanos().into() };
    clock_settime(ClockId::Realtime, time).map_err(Step::Clock.at("clock"))
}

/// Waits until random numbers are, which is at once on a machine that seeds its guests.
///
/// # Errors
/// When nothing seeds the pool.
pub fn random_pool() -> Result<(), Failure> {
    let since = Instant::now();
    let mut byte = [0_u8; 1];
    loop {
        match getrandom(&mut byte[..], GetRandomFlags::NONBLOCK) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) if since.elapsed() < POOL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::AGAIN) => {
                let message = "no seed within 10 seconds: the machine has no entropy device";
                return Err(Failure::new(Step::Entropy, message).path("/dev/random"));
            }
            Err(errno) => return Err(Step::Entropy.at("/dev/random")(errno)),
        }
    }
}
