//! What a guest uses, and its clock.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openshell_agent_proto::{FromHost, Stats};

use super::connection::{Connection, Owned};
use super::error::AgentError;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the guest uses, by its own account.
///
/// # Errors
/// [`AgentError`].
pub fn stats(path: &Path) -> Result<Stats, AgentError> {
    let mut connection = Connection::open(path, &FromHost::Stats)?;
    match connection.next_within(Some(PATIENCE))? {
        Owned::Stats(stats) => Ok(stats),
        Owned::Done => Err(AgentError::Unexpected { what: "end" }),
    }
}

/// Sets the guest's clock to the host's: what a machine needs that was paused.
///
/// # Errors
/// [`AgentError`].
pub fn set_clock(path: &Path) -> Result<(), AgentError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let mut connection = Connection::open(path, &FromHost::SetClock(now))?;
    match connection.next_within(Some(PATIENCE))? {
        Owned::Done => Ok(()),
        Owned::Stats(_) => Err(AgentError::Unexpected { what: "figures" }),
    }
}
