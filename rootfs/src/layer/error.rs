//! Why a layer was refused.

use std::io;

use crate::digest::Digest;
use crate::image::BlobError;
use crate::limits::Limit;
use crate::tar::TarError;

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob could not be opened.
    #[error("layer {layer} could not be opened")]
    Open {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// The compressed bytes could not be read.
    #[error("layer {layer} could not be read")]
    Read {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The media type is not one of a layer that can be had.
    #[error("layer {layer} has the media type {media_type:?}, which is not a layer of files")]
    MediaType {
        /// The layer.
        layer: String,
        /// Its media type.
        media_type: String,
    },
    /// The bytes are compressed in another way than the media type says, or in one that images do not use.
    #[error("layer {layer} is {found}, but its media type says {stated}")]
    Compression {
        /// The layer.
        layer: String,
        /// What the bytes are.
        found: &'static str,
        /// What the media type says.
        stated: &'static str,
    },
    /// The compressed bytes do not decompress.
    #[error("layer {layer} does not decompress")]
    Decompress {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are more or fewer compressed bytes than the descriptor says.
    #[error("layer {layer} has {found} bytes, its descriptor says {stated}")]
    Size {
        /// The layer.
        layer: String,
        /// How many were read; one more than stated when reading stopped there.
        found: u64,
        /// What the descriptor says.
        stated: u64,
    },
    /// The compressed bytes have another digest.
    #[error("layer {stated} is damaged: its bytes have the digest {found}")]
    Digest {
        /// The digest of the bytes.
        found: Digest,
        /// What the descriptor says.
        stated: Digest,
    },
    /// The uncompressed bytes have another digest.
    #[error("layer {layer} unpacks to {found}, the image's configuration says {stated}")]
    DiffId {
        /// The layer.
        layer: String,
        /// The digest of the uncompressed bytes.
        found: Digest,
        /// What the configuration says.
        stated: Digest,
    },
    /// The archive is malformed or passes a limit.
    #[error("layer {layer}")]
    Archive {
        /// The layer.
        layer: String,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// The layer as a whole passes a limit.
    #[error("layer {layer}{}: more than the limit of {limit}", at(.entry))]
    Limit {
        /// The layer.
        layer: String,
        /// The entry at which that was noticed, when one was being read.
        entry: Option<String>,
        /// The limit.
        limit: Limit,
    },
    /// The data of its files could not be stored.
    #[error("storing the data of layer {layer}")]
    Store {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The build was given up because another layer failed.
    #[error("layer {layer} was given up")]
    Cancelled {
        /// The layer.
        layer: String,
    },
}

impl LayerError {
    /// The same, said of an entry.
    pub(super) fn at(self, entry: Option<String>) -> Self {
        match self {
            Self::Limit { layer, limit, .. } => Self::Limit { layer, entry, limit },
            other => other,
        }
    }
}

fn at(entry: &Option<String>) -> String {
    entry.as_ref().map_or_else(String::new, |entry| format!(", archive entry {entry:?}"))
}
