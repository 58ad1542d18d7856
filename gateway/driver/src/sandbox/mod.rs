//! The sandboxes of the driver: what is known of each, and the task that keeps its machine.

mod condition;
mod driver;
mod keeper;
mod registry;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::fmt;

pub use condition::{Condition, Status};
pub use driver::{BOOT_LIMIT, Driver, DriverError, SUPERVISOR, Settings, TlsPaths};
pub use registry::{Snapshot, Stamped};
pub use watch::{Change, Watcher};

use crate::id::SandboxId;
use crate::resources::Size;

/// What a sandbox is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its workspace.
    pub workspace: String,
}

/// A sandbox as somebody asked for it, and as it was found to be possible.
#[derive(Clone)]
pub struct Request {
    /// What it is known by.
    pub identity: Identity,
    /// Its image, as `openshell-rootfs` takes it.
    pub image: String,
    /// The size of its machine.
    pub size: Size,
    /// What is not as asked, a line each.
    pub notes: Vec<String>,
    /// What the user set.
    pub environment: BTreeMap<String, String>,
    /// The main process; a login shell if empty.
    pub command: Vec<String>,
    /// Whether the main process has a terminal.
    pub tty: bool,
    /// How much the supervisor says; the driver's own level if empty.
    pub log_level: String,
    /// What the supervisor shows the gateway.
    pub token: String,
}

/// A request that was kept and cannot be used any more.
#[derive(Debug, Clone)]
pub struct Unusable {
    /// Whose it is, if that can be told.
    pub identity: Option<Identity>,
    /// Why.
    pub why: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Environment and token are secrets.
        f.debug_struct("Request")
            .field("identity", &self.identity)
            .field("image", &self.image)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
