//! Why a machine cannot be had or changed, with a remedy for each reason.

use std::io;
use std::path::PathBuf;

use super::NAME_MAX;
use super::record::ReadError;
use crate::explain::Explain;

/// Why a machine cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No place for state.
    #[error("there is no place for machines: neither $XDG_STATE_HOME nor $HOME is set")]
    NoHome,
    /// The host.
    #[error("cannot {action} {}", .path.display())]
    Host {
        /// What did not happen.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file of the machine's.
    #[error("{0}")]
    Record(#[source] ReadError),
    /// Not a name.
    #[error("{name:?} cannot be the name of a machine")]
    BadName {
        /// As it was written.
        name: String,
    },
    /// Another machine has it.
    #[error("there is a machine {name:?} already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// None.
    #[error("there is no machine {word:?}")]
    NotFound {
        /// What was asked for.
        word: String,
    },
    /// Several.
    #[error("{word:?} begins the ids of {count} machines")]
    Ambiguous {
        /// What was asked for.
        word: String,
        /// How many.
        count: usize,
    },
    /// It runs.
    #[error("machine {name:?} is running, as process {pid}")]
    Running {
        /// Its name.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// It does not run.
    #[error("machine {name:?} is not running")]
    NotRunning {
        /// Its name.
        name: String,
    },
    /// Another command has it.
    #[error("machine {name:?} is being changed by another command")]
    Busy {
        /// Its name.
        name: String,
    },
}

impl StoreError {
    /// The exit code of a verb that fails with this: 3 not found, 4 not permitted, 5 busy, 1 otherwise.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 3,
            Self::Host { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 4,
            Self::NameTaken { .. }
            | Self::Running { .. }
            | Self::NotRunning { .. }
            | Self::Busy { .. } => 5,
            Self::BadName { .. } | Self::Ambiguous { .. } => 2,
            Self::NoHome | Self::Host { .. } | Self::Record(_) => 1,
        }
    }
}

impl Explain for StoreError {
    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::NoHome => "set XDG_STATE_HOME to a directory of yours".to_owned(),
            Self::Host { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "set XDG_STATE_HOME to a directory that you may write".to_owned()
                }
                io::ErrorKind::StorageFull => {
                    "make room: `openshell-vmm prune` and `openshell-rootfs prune` do".to_owned()
                }
                _ => return None,
            },
            Self::Record(ReadError::Version { .. }) => {
                "use the openshell-vmm that made it, or a newer one".to_owned()
            }
            Self::Record(_) => "remove its directory".to_owned(),
            Self::BadName { .. } => format!(
                "a name has letters, digits, '_', '.' and '-', begins with a letter or digit, and has at most {NAME_MAX} bytes"
            ),
            Self::NameTaken { name } => {
                format!("take another name, or `openshell-vmm rm {name}` first")
            }
            Self::NotFound { .. } => "`openshell-vmm ps -a` lists all machines".to_owned(),
            Self::Ambiguous { .. } => "write more of it".to_owned(),
            Self::Running { name, .. } => format!("`openshell-vmm stop {name}` stops it"),
            Self::NotRunning { name } => format!("`openshell-vmm start {name}` starts it"),
            Self::Busy { .. } => "try again in a moment".to_owned(),
        })
    }
}
