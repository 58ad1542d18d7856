//! What processes that were killed left behind, and what goes with `prune`.
//!
//! Invariant: only what nobody holds the lock of goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LOCK_PATIENCE, Machine, Status, Store, StoreError, is_hidden, names, open_lock};

/// How old a directory without a lock must be before nobody can be at it.
const PERHAPS_LIVE: Duration = Duration::from_secs(60);

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Machines, by name.
    pub machines: Vec<String>,
    /// Directories that were half made or half removed.
    pub leftovers: Vec<PathBuf>,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Store {
    /// Removes what should have gone by itself: machines that were to go with their end, directories that are no machine. Cheap when there
    /// is nothing.
    pub fn sweep(&self) {
        for path in self.entries() {
            match if is_hidden(&path) { Ok(None) } else { Machine::open(&path) } {
                // A directory has its record from its first moment to its last but one.
                Ok(None) => drop(sweep_debris(&path, false)),
                Ok(Some(machine)) if machine.record.ephemeral => {
                    let patience = match machine.status() {
                        // One that is just ending removes itself.
                        Status::Exited(_) => Duration::ZERO,
                        // The kernel gives the lock of a killed process back a moment after the process is gone.
                        Status::Dead => LOCK_PATIENCE,
                        Status::Created | Status::Running(_) => continue,
                    };
                    drop(machine.hold_within(patience).and_then(|held| held.remove(self)));
                }
                _ => {}
            }
        }
    }

    /// Removes every machine that does not run and ended, or was created, before `unix_ms`, and everything that is left of others.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn prune(&self, before_unix_ms: u64, dry_run: bool) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for path in self.entries() {
            let bytes = disk_bytes(&path);
            let machine = if is_hidden(&path) { None } else { Machine::open(&path)? };
            let Some(machine) = machine else {
                if sweep_debris(&path, dry_run)? {
                    swept.bytes += bytes;
                    swept.leftovers.push(path);
                }
                continue;
            };
            if matches!(machine.status(), Status::Running(_)) {
                continue;
            }
            let since = machine.ended_unix_ms().unwrap_or(machine.record.created_unix_ms);
            if since >= before_unix_ms {
                continue;
            }
            let name = machine.record.name.clone();
            if !dry_run {
                match machine.hold() {
                    Ok(held) => held.remove(self)?,
                    // Somebody has taken it up again.
                    Err(StoreError::Running { .. } | StoreError::Busy { .. }) => continue,
                    Err(StoreError::NotFound { .. }) => continue,
                    Err(error) => return Err(error),
                }
            }
            swept.bytes += bytes;
            swept.machines.push(name);
        }
        swept.machines.sort();
        Ok(swept)
    }
}

/// Removes a directory that was half made or half removed, unless somebody is still at it.
fn sweep_debris(path: &Path, dry_run: bool) -> Result<bool, StoreError> {
    if path.join(names::LOCK).exists() {
        match open_lock(path) {
            Ok(lock) if lock.try_lock().is_ok() => {}
            // Somebody is at it, or has just given it its name or removed it.
            Ok(_) | Err(StoreError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    } else {
        // It has no lock yet, or none any more: its first moment, or its last.
        let fresh = path.metadata().and_then(|found| found.modified());
        let age = fresh.ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
        if age < PERHAPS_LIVE {
            return Ok(false);
        }
    }
    if !dry_run {
        drop(fs::remove_dir_all(path));
    }
    Ok(true)
}

/// Bytes on disk of a directory of files.
#[must_use]
pub(super) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.blocks() * 512).sum()
}

impl Machine {
    /// Bytes that it takes on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.directory)
    }
}
