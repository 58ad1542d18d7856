//! Why a registry did not give what it was asked for, and whether it is worth asking again.
//!
//! Invariant: no error holds a secret: addresses are printed without their query, which may be a signature, and what a
//! registry says is cut short and cleaned of control characters.

use std::time::Duration;

use crate::auth::AuthError;
use crate::digest::Digest;

/// What went wrong in a conversation with a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client could not be made.
    #[error("cannot set up the registry client: {0}")]
    Setup(String),
    /// The configuration of registries is wrong.
    #[error("the configuration of registries is wrong: {0}")]
    Hosts(String),
    /// The host cannot be reached, or the connection broke.
    #[error("no connection with {host}")]
    Transport {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// No answer, or one that came too slowly.
    #[error("{host} was too slow: {what} within {after:?}")]
    Slow {
        /// Which host.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The host refused with a status.
    #[error("{host} answered {status}{}", suffix(.message))]
    Status {
        /// Which host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said, cut short.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The host asks for a longer wait than is worth it.
    #[error("{host} has had too many requests and asks to wait {wait:?}")]
    Limited {
        /// Which host.
        host: String,
        /// How long it asks to wait.
        wait: Duration,
    },
    /// The host does not take the credentials that were found, or wants some.
    #[error("{host} does not let {who} read {repository}{}", suffix(.note))]
    Unauthorized {
        /// Which host.
        host: String,
        /// With which credentials.
        who: &'static str,
        /// Which repository.
        repository: String,
        /// Why there may be no better credentials.
        note: String,
    },
    /// Credentials could not be looked up.
    #[error("no credentials for {host}")]
    Credentials {
        /// For which host.
        host: String,
        /// Why.
        #[source]
        source: AuthError,
    },
    /// The host asks for a kind of authentication that there is not, or in a way that cannot be read.
    #[error("{host} asks for authentication that cannot be given: {why}")]
    Challenge {
        /// Which host.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// An address that must not be followed.
    #[error("{host} leads to {target}, which is not followed: {why}")]
    Redirect {
        /// Which host.
        host: String,
        /// Where to, without the query.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// Bytes in an encoding, whose digest would be another one.
    #[error("{host} sent the content as {encoding:?}, though asked not to encode it")]
    Encoding {
        /// Which host.
        host: String,
        /// The encoding.
        encoding: String,
    },
    /// More bytes than there may be.
    #[error("{host} sent more than {limit} bytes for {what}")]
    TooLarge {
        /// Which host.
        host: String,
        /// What was asked for.
        what: String,
        /// How much there may be.
        limit: u64,
    },
    /// Another number of bytes than the descriptor says.
    #[error("{host} has {found} bytes for {digest}, which has {expected}")]
    Length {
        /// Which host.
        host: String,
        /// Of which blob.
        digest: Digest,
        /// By its descriptor.
        expected: u64,
        /// By the host.
        found: u64,
    },
    /// The bytes ended before their length.
    #[error("{host} stopped sending {digest} after {at} bytes")]
    Cut {
        /// Which host.
        host: String,
        /// Which blob.
        digest: Digest,
        /// Where.
        at: u64,
    },
    /// Another part than the one that was asked for.
    #[error("{host} sent another range than the one from byte {at}: {range:?}")]
    Range {
        /// Which host.
        host: String,
        /// What was asked for.
        at: u64,
        /// What came.
        range: String,
    },
    /// Other bytes than the digest says.
    #[error("{host} sent {found} for {expected}")]
    Digest {
        /// Which host.
        host: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The registry does not say which digest a tag has.
    #[error("{host} gives no digest for {what}")]
    NoDigest {
        /// Which host.
        host: String,
        /// Which tag.
        what: String,
    },
    /// The client is going away.
    #[error("the registry client has ended")]
    Ended,
}

fn suffix(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !source.is_builder(),
            Self::Slow { .. } | Self::Cut { .. } => true,
            // 416 comes when ranges are refused: the next request goes without one.
            Self::Status { status, .. } => {
                matches!(status, 408 | 416 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// Whether the registry says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }

    /// How long the host asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a host said, fit for a line of an error.
pub(super) fn clean(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(200).map(printable).collect::<String>().trim().to_owned()
}
