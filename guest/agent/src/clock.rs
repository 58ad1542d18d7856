//! The guest's clock, set to the host's: after a pause it is behind.

use std::time::Duration;

use openshell_agent_proto::{Failure, FailureKind};
use rustix::time::{ClockId, Timespec, clock_settime};

/// Sets the clock to `unix_ns` nanoseconds since 1970.
///
/// # Errors
/// When the kernel refuses.
pub fn set(unix_ns: u64) -> Result<(), Failure> {
    let time = Duration::from_nanos(unix_ns);
    let failed = |why: String| Failure::new(FailureKind::System, format!("clock: {why}"));
    let time = Timespec::try_from(time).map_err(|_| failed(format!("{unix_ns} is no time")))?;
    clock_settime(ClockId::Realtime, time).map_err(|errno| failed(errno.to_string()))
}
