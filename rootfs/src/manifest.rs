//! Manifests, indexes and configurations, read from the bytes that a source gave.
//!
//! Invariant: what parses is one thing only (an image or an index, never both), agrees with every media type that was
//! declared for it, and holds validated digests and sizes within bounds. Bytes are kept as they came and never written
//! anew, so that a digest stays the one that was asked for. Pure; the image specification 1.1 and Docker's schema 2.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::{Digest, InvalidDigest};
use crate::image::{Descriptor, Platform};

pub mod config;
pub mod resolve;
mod seq;

use seq::{UpTo, nullable};

/// Largest manifest or index that is read, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// Largest image configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 16 << 20;
/// Largest layer, as it is transferred, in bytes.
pub const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Most layers that an image may have.
pub const MAX_LAYERS: usize = 512;
/// Most entries of one index.
pub const MAX_ENTRIES: usize = 4096;

const CONFIG_TYPES: [&str; 2] = [
    oci_client::manifest::IMAGE_CONFIG_MEDIA_TYPE,
    oci_client::manifest::IMAGE_DOCKER_CONFIG_MEDIA_TYPE,
];

const LAYER_TYPES: [&str; 6] = [
    oci_client::manifest::IMAGE_LAYER_MEDIA_TYPE,
    oci_client::manifest::IMAGE_LAYER_GZIP_MEDIA_TYPE,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    oci_client::manifest::IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE,
    oci_client::manifest::IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// The annotation that names an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that marks an entry which only speaks of another.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// What a manifest's bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image for one platform.
    Image {
        /// The configuration.
        config: Descriptor,
        /// The layers, base first.
        layers: Vec<Descriptor>,
    },
    /// A list of images, or of lists.
    Index(Vec<Entry>),
}

/// An entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// What it is for, if the index says so.
    pub platform: Option<Platform>,
    /// Its name in a layout, if it has one.
    pub name: Option<String>,
    /// Whether it only attests to another entry, and holds no image.
    pub attestation: bool,
}

impl Entry {
    /// Whether this is an index itself.
    #[must_use]
    pub fn is_index(&self) -> bool {
        Kind::of(&self.descriptor.media_type) == Some(Kind::Index)
    }

    /// Whether this is an image's manifest.
    #[must_use]
    pub fn is_image(&self) -> bool {
        Kind::of(&self.descriptor.media_type) == Some(Kind::Image)
    }
}

/// Why a manifest or configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Over the limit for its kind.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// A manifest or a configuration.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// What is read at most.
        limit: u64,
    },
    /// Not JSON, or not of the shape that it should have.
    #[error("{what} cannot be read")]
    Json {
        /// A manifest or a configuration.
        what: &'static str,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's first format, which names layers in a way that cannot be verified.
    #[error(
        "the manifest has schema version 1, which is obsolete and cannot be verified layer by layer; push the image again \
         with a current tool"
    )]
    Schema1,
    /// A schema version that does not exist.
    #[error("the manifest has schema version {0}; version 2 is the only one")]
    Schema(u64),
    /// Fields of an image and of an index in one document.
    #[error("the manifest is an image and an index at once")]
    Ambiguous,
    /// Fields of neither.
    #[error("the manifest has neither layers nor manifests")]
    Neither,
    /// The media types that were declared do not say what the document is.
    #[error("the manifest is {found}, but was declared as {declared:?}")]
    MediaType {
        /// What it is.
        found: &'static str,
        /// The type in the document, the descriptor or the response.
        declared: String,
    },
    /// The configuration is not that of an image.
    #[error("this is an artifact with a configuration of type {0:?}, not an image")]
    Artifact(String),
    /// A layer that must be fetched from somewhere else.
    #[error(
        "layer {digest} is foreign ({why}): its bytes are not in the registry, and no other place is asked for them"
    )]
    Foreign {
        /// Which layer.
        digest: String,
        /// Its type, or that it has other addresses.
        why: String,
    },
    /// A layer of a kind that is not a file system.
    #[error("layer {digest} has the unknown type {media_type:?}")]
    LayerType {
        /// Which layer.
        digest: String,
        /// Its type.
        media_type: String,
    },
    /// A digest that is none.
    #[error("{what} has no usable digest")]
    Digest {
        /// What is described.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidDigest,
    },
    /// A configuration whose layers are not those of the manifest.
    #[error("the configuration has {diff_ids} layers and the manifest has {layers}")]
    LayerCount {
        /// In the configuration.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// A configuration without what every image has.
    #[error("the configuration {0}")]
    Config(&'static str),
}

/// The documents there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Index,
    Schema1,
}

impl Kind {
    /// What a media type says; `None` for types that say nothing of manifests.
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            oci_client::manifest::OCI_IMAGE_MEDIA_TYPE
            | oci_client::manifest::IMAGE_MANIFEST_MEDIA_TYPE => Some(Self::Image),
            oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE
            | oci_client::manifest::IMAGE_MANIFEST_LIST_MEDIA_TYPE => Some(Self::Index),
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Some(Self::Schema1),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Image => "an image",
            Self::Index => "an index",
            Self::Schema1 => "of schema version 1",
        }
    }
}

/// The fields that tell documents apart, and those that are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<UpTo<RawDescriptor, MAX_LAYERS>>,
    #[serde(default)]
    manifests: Option<UpTo<RawDescriptor, MAX_ENTRIES>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, deserialize_with = "nullable")]
    urls: UpTo<String, 64>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

impl RawDescriptor {
    fn checked(&self, what: &'static str, limit: u64) -> Result<Descriptor, ManifestError> {
        let digest =
            self.digest.parse().map_err(|source| ManifestError::Digest { what, source })?;
        if self.size > limit {
            return Err(ManifestError::TooLarge { what, bytes: self.size, limit });
        }
        Ok(Descriptor { media_type: self.media_type.clone(), digest, size: self.size })
    }

    fn layer(&self) -> Result<Descriptor, ManifestError> {
        let (digest, media_type) = (self.digest.clone(), self.media_type.clone());
        if media_type.contains(".foreign.") || media_type.contains(".nondistributable.") {
            return Err(ManifestError::Foreign { digest, why: media_type });
        }
        if !self.urls.0.is_empty() {
            return Err(ManifestError::Foreign {
                digest,
                why: "it has addresses of its own".into(),
            });
        }
        if !LAYER_TYPES.contains(&media_type.as_str()) {
            return Err(ManifestError::LayerType { digest, media_type });
        }
        self.checked("a layer", MAX_LAYER_BYTES)
    }

    fn entry(mut self) -> Result<Entry, ManifestError> {
        let descriptor = self.checked("an entry of the index", u64::MAX)?;
        let unknown = |platform: &Platform| platform.os == "unknown";
        let attestation = self.annotations.contains_key(REFERENCE_TYPE)
            || self.platform.as_ref().is_some_and(unknown);
        let name = self.annotations.remove(REF_NAME);
        Ok(Entry { descriptor, platform: self.platform, name, attestation })
    }
}

/// Reads a manifest or an index.
///
/// `declared` are the media types that came with the bytes: of the descriptor, and of the response. Types that say
/// nothing of manifests, such as `application/json`, are passed over.
///
/// # Errors
///
/// When the bytes are over [`MAX_MANIFEST_BYTES`], are not one of the two documents, contradict a declared type, or hold
/// a layer that is not in the registry or not a file system.
pub fn parse(bytes: &[u8], declared: &[&str]) -> Result<Manifest, ManifestError> {
    within("the manifest", bytes, MAX_MANIFEST_BYTES)?;
    let raw: Raw = json("the manifest", bytes)?;
    let declared = declared.iter().map(|text| essence(text));
    let declared: Vec<String> = declared.chain(raw.media_type.clone()).collect();
    let is_schema1 = |text: &String| Kind::of(text) == Some(Kind::Schema1);
    if raw.fs_layers.is_some() || raw.schema_version == 1 || declared.iter().any(is_schema1) {
        return Err(ManifestError::Schema1);
    }
    if raw.schema_version != 2 {
        return Err(ManifestError::Schema(raw.schema_version));
    }
    let kind = match (raw.config.is_some() || raw.layers.is_some(), raw.manifests.is_some()) {
        (true, true) => return Err(ManifestError::Ambiguous),
        (false, false) => return Err(ManifestError::Neither),
        (true, false) => Kind::Image,
        (false, true) => Kind::Index,
    };
    let contradicts = |text: &String| Kind::of(text).is_some_and(|declared| declared != kind);
    if let Some(declared) = declared.into_iter().find(contradicts) {
        return Err(ManifestError::MediaType { found: kind.name(), declared });
    }
    match (raw.config, raw.layers, raw.manifests) {
        (_, _, Some(entries)) => {
            let entries = entries.0.into_iter().map(RawDescriptor::entry);
            Ok(Manifest::Index(entries.collect::<Result<_, _>>()?))
        }
        (Some(config), Some(layers), None) => image(&config, &layers.0),
        _ => Err(ManifestError::Neither),
    }
}

fn image(config: &RawDescriptor, layers: &[RawDescriptor]) -> Result<Manifest, ManifestError> {
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(ManifestError::Artifact(config.media_type.clone()));
    }
    let config = config.checked("the configuration", MAX_CONFIG_BYTES as u64)?;
    let layers = layers.iter().map(RawDescriptor::layer).collect::<Result<_, _>>()?;
    Ok(Manifest::Image { config, layers })
}

/// A media type without its parameters, as types are compared.
fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn within(what: &'static str, bytes: &[u8], limit: usize) -> Result<(), ManifestError> {
    if bytes.len() > limit {
        let (bytes, limit) = (bytes.len() as u64, limit as u64);
        return Err(ManifestError::TooLarge { what, bytes, limit });
    }
    Ok(())
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })
}

/// Whether a media type is that of a manifest or an index, which registries keep apart from blobs.
#[must_use]
pub fn is_manifest_type(media_type: &str) -> bool {
    Kind::of(media_type).is_some()
}

/// Whether bytes are those of a descriptor: the size first, which costs nothing.
#[must_use]
pub fn matches(bytes: &[u8], descriptor: &Descriptor) -> bool {
    bytes.len() as u64 == descriptor.size
        && digest_like(bytes, &descriptor.digest) == descriptor.digest
}

/// The digest of bytes, by the function that another digest has.
#[must_use]
pub fn digest_like(bytes: &[u8], like: &Digest) -> Digest {
    let mut hasher = crate::digest::Hasher::new(like.algorithm());
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests;
