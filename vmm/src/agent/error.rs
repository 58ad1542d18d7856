//! Why a session with a guest's agent came to nothing.

use std::io;
use std::path::PathBuf;

use openshell_agent_proto::{Failure, WireError};
use openshell_copy::CopyError;

use crate::explain::Explain;

/// Why a session came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens on the machine's socket.
    #[error("cannot connect to the machine's socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The machine runs, and nobody in its guest answers.
    #[error("no agent answers in the guest of {}", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// The guest has not answered in time.
    #[error("the guest has not answered within {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection broke before the session was over.
    #[error("the machine ended, or its agent did, before the session was over")]
    Broken,
    /// What the guest sends is not the protocol.
    #[error("the guest's agent does not keep to the protocol")]
    Protocol(#[source] WireError),
    /// What the guest sent does not belong there.
    #[error("the guest's agent does not keep to the protocol: unexpected {what}")]
    Unexpected {
        /// What came.
        what: &'static str,
    },
    /// The guest could not do it.
    #[error("{0}")]
    Guest(Failure),
    /// The user insisted.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// The user has left with the keys that do that.
    #[error("detached")]
    Detached,
    /// It took longer than it may.
    #[error("the command has not ended within {seconds} s")]
    Timeout {
        /// How long it may take.
        seconds: u64,
    },
    /// A copy failed on the host's side.
    #[error("{0}")]
    Copy(CopyError),
    /// The host's own streams or files.
    #[error("cannot {what}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    /// The exit code of a command that fails so.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Guest(failure) => failure.kind().exit_code(),
            Self::Interrupted(signal) => {
                u8::try_from(*signal & 0x7f).unwrap_or(0).saturating_add(128)
            }
            Self::Timeout { .. } => 124,
            Self::Detached => 0,
            _ => 125,
        }
    }

    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

impl From<WireError> for AgentError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error)
    }
}

impl Explain for AgentError {
    fn fix(&self) -> Option<String> {
        let text = match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "start the machine first, or look whether it still runs"
            }
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                "the machine has ended; start it again"
            }
            Self::NoAgent { .. } => {
                "wait until the guest is up; its first process must be openshell-init with \"agent\": true"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
