//! What is wrong with an archive, and where.

use crate::limits::Limit;
use crate::path::PathError;

/// Why an archive could not be read further.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// An entry, or the header that should have begun one, is malformed.
    #[error("archive entry {entry:?} at byte {offset}: {fault}")]
    Entry {
        /// The entry's name as far as it is known.
        entry: String,
        /// Where its header begins in the uncompressed archive.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The bytes of the archive could not be read.
    #[error("reading the archive at byte {offset}")]
    Read {
        /// How much had been read before.
        offset: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data of an entry could not be put where it goes.
    #[error("storing the data of {entry:?}")]
    Store {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The header's checksum does not match.
    #[error("the header's checksum is wrong, this is not a tar header")]
    Checksum,
    /// The archive ends inside a header or inside data.
    #[error("the archive ends in the middle of it")]
    Truncated,
    /// A zero block that is not followed by another one.
    #[error("a single zero block stands before it")]
    LoneZeroBlock,
    /// A field is not a number, or not one in range.
    #[error("the field {0} is not a number in range")]
    Number(&'static str),
    /// The records of an extended header are malformed.
    #[error("a malformed record in the extended header")]
    Record,
    /// A record that must be about one file stands in a global header.
    #[error("a global header sets {0}")]
    Global(String),
    /// An extended header is followed by no entry.
    #[error("an extended header without an entry")]
    Dangling,
    /// The map of a sparse file is malformed.
    #[error("a malformed sparse map")]
    Sparse,
    /// An entry type that cannot be skipped without losing content.
    #[error("entry type {:?} is not known", char::from(*.0))]
    Type(u8),
    /// An extended attribute's name or value is malformed.
    #[error("a malformed extended attribute")]
    Xattr,
    /// The name or link target is not a path of an image.
    #[error("{0}")]
    Path(PathError),
    /// A limit is passed.
    #[error("more than the limit of {0}")]
    Limit(Limit),
}
