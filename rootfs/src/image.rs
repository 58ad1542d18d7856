//! What an image is made of: manifests, configurations, descriptors and where their bytes come from.
//!
//! Everything here is plain data and one trait, [`Blobs`], which each source of images implements: registries, layouts
//! and archives. Blobs are verified by whoever reads them, never by trust in the source.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A reference to a blob: its type, digest and size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type, which is checked against the bytes.
    pub media_type: String,
    /// The digest of the bytes as they are transferred.
    pub digest: Digest,
    /// How many bytes there are.
    pub size: u64,
}

/// Operating system, architecture and variant that an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The architecture, such as `amd64`.
    pub architecture: String,
    /// The variant of the architecture, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image for one platform, resolved but not read: its identity and its layers, base first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of `manifest`: the identity of the image.
    pub manifest_digest: Digest,
    /// The platform's manifest, byte for byte as it was received.
    pub manifest: Vec<u8>,
    /// The image configuration, byte for byte as it was received.
    pub config: Vec<u8>,
    /// The layers as they are transferred, base first.
    pub layers: Vec<Descriptor>,
    /// The digests of the uncompressed layers, as many as `layers`.
    pub diff_ids: Vec<Digest>,
}

/// A place that layers can be read from. Called from several threads at once, one per layer.
pub trait Blobs: Sync {
    /// Opens the bytes of a layer of the image, as they are transferred.
    ///
    /// # Errors
    ///
    /// When the source does not have the blob, or cannot be reached.
    fn open(&self, layer: &Descriptor) -> Result<Box<dyn Read + Send + '_>, BlobError>;
}

/// Why a blob could not be opened: the text names the source.
pub type BlobError = Box<dyn std::error::Error + Send + Sync>;
