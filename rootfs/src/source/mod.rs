//! Where images come from when it is not a registry: layouts, archives, directories.
//!
//! A source gives a [`Plan`], which says what the layers are, and a [`Layers`], which opens them. Invariant: a source
//! only reads files that the user named, or files inside them that a validated digest names.

mod archive;
mod directory;
mod layout;
mod plain;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::PathBuf;

pub use archive::docker_archive;
pub use directory::directory;
pub use layout::oci_layout;
pub use plain::rootfs_tar;

use crate::digest::Digest;
use crate::image::{BlobError, Blobs, Descriptor, Image};
use crate::layer::LayerSource;
use crate::limits::Limit;
use crate::manifest::ManifestError;
use crate::manifest::resolve::ResolveError;

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What tells it from other images: the digest of its manifest, its configuration or its only archive. None when
    /// that is known only once its one layer has been read.
    pub identity: Option<Digest>,
    /// The layers, base first.
    pub layers: Vec<LayerSource>,
    /// The manifest, byte for byte, where there is one.
    pub manifest: Option<Vec<u8>>,
    /// The configuration, byte for byte, where there is one.
    pub config: Option<Vec<u8>>,
}

impl Plan {
    /// The plan of an image with a manifest.
    pub fn of(image: &Image) -> Self {
        let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| LayerSource {
            name: descriptor.digest.to_string(),
            media_type: Some(descriptor.media_type.clone()),
            size: Some(descriptor.size),
            digest: Some(descriptor.digest.clone()),
            diff_id: Some(diff_id.clone()),
        };
        Self {
            identity: Some(image.manifest_digest.clone()),
            layers: image.layers.iter().zip(&image.diff_ids).map(layer).collect(),
            manifest: Some(image.manifest.clone()),
            config: Some(image.config.clone()),
        }
    }
}

/// Opens the layers of a plan. Called from several threads at once.
pub trait Layers: Sync {
    /// The bytes of a layer, as they are transferred.
    ///
    /// # Errors
    ///
    /// When they cannot be had.
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError>;
}

/// The layers of an image with a manifest.
#[derive(Debug)]
pub struct ImageLayers<B> {
    /// The image.
    pub image: Image,
    /// Where its blobs are.
    pub blobs: B,
}

impl<B: Blobs> Layers for ImageLayers<B> {
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        let descriptor = self.image.layers.get(layer).ok_or("there is no such layer")?;
        self.blobs.open(descriptor)
    }
}

/// An image of this host, ready to be built.
pub struct Local {
    /// What it is made of.
    pub plan: Plan,
    /// Its layers.
    pub layers: Box<dyn Layers>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// Why a source gives no image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file passes a limit.
    #[error("{} has more than the limit of {limit}", .path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: Limit,
    },
    /// The directory or archive is not what its form says.
    #[error("{} is not {expected}: {why}", .path.display())]
    Form {
        /// The directory or archive.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is missing or wrong.
        why: String,
    },
    /// The image that was asked for is not there, or not the only one.
    #[error("{} has {}; name one: {}", .path.display(), match .names.len() { 0 => "no images", _ => "no such image or several" }, .names.join(", "))]
    Choose {
        /// The directory or archive.
        path: PathBuf,
        /// The names of those that are there.
        names: Vec<String>,
    },
    /// A document of the image is refused.
    #[error("the image in {} is refused", .path.display())]
    Refused {
        /// The directory or archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The image that was asked for cannot be had.
    #[error("no image in {}", .path.display())]
    Resolve {
        /// The directory or archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ResolveError,
    },
}

/// Reads a small file whole.
fn read_capped(path: &std::path::Path, limit: u64) -> Result<Vec<u8>, SourceError> {
    let error = |source| SourceError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > limit {
        return Err(SourceError::Limit {
            path: path.to_owned(),
            limit: Limit::ManifestBytes(limit),
        });
    }
    Ok(bytes)
}
