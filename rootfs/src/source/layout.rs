//! `oci:DIRECTORY`: an image layout, whose blobs lie under their digests.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{ImageLayers, Local, Plan, SourceError, read_capped};
use crate::digest::Digest;
use crate::image::{BlobError, Blobs, Descriptor, Platform};
use crate::manifest::resolve::{Root, resolve};
use crate::manifest::{self, Entry, MAX_MANIFEST_BYTES, Manifest};
use crate::reference::Select;

const FORM: &str = "an OCI image layout";

/// Finds the image for a platform in a layout.
///
/// # Errors
///
/// When the directory is not a layout, does not say which image is meant, or has none for the platform.
pub fn oci_layout(
    directory: &Path,
    select: Option<&Select>,
    platform: &Platform,
) -> Result<Local, SourceError> {
    let form = |why: String| SourceError::Form { path: directory.to_owned(), expected: FORM, why };
    if !directory.join("oci-layout").is_file() {
        return Err(form("it has no file `oci-layout`".to_owned()));
    }
    let blobs = LayoutBlobs { directory: directory.to_owned() };
    let root = root(directory, select, &blobs)?;
    let mut fetch = |descriptor: &Descriptor, limit: usize| blobs.document(descriptor, limit);
    let image = resolve(root, platform, &mut fetch)
        .map_err(|source| SourceError::Resolve { path: directory.to_owned(), source })?;
    let plan = Plan::of(&image);
    Ok(Local { plan, layers: Box::new(ImageLayers { image, blobs }) })
}

/// The document that the search for the platform begins at.
fn root(
    directory: &Path,
    select: Option<&Select>,
    blobs: &LayoutBlobs,
) -> Result<Root, SourceError> {
    let path = directory.join("index.json");
    let bytes = read_capped(&path, MAX_MANIFEST_BYTES as u64)?;
    let parsed = manifest::parse(&bytes, &[]);
    let parsed = parsed.map_err(|source| SourceError::Refused { path: path.clone(), source })?;
    let Manifest::Index(entries) = parsed else {
        let why = "its `index.json` is not an index".to_owned();
        return Err(SourceError::Form { path: directory.to_owned(), expected: FORM, why });
    };
    let wanted = |entry: &&Entry| match select {
        None => true,
        Some(Select::Name(name)) => entry.name.as_deref() == Some(name),
        Some(Select::Digest(digest)) => entry.descriptor.digest == *digest,
    };
    let found: Vec<&Entry> = entries.iter().filter(wanted).collect();
    let named = |entries: &[&Entry]| {
        let first = entries.first().and_then(|entry| entry.name.clone());
        entries.iter().all(|entry| entry.name == first)
    };
    match found[..] {
        // Several images of one name are one image for several platforms.
        [_, _, ..] if named(&found) => {
            let digest = Digest::sha256(&bytes);
            let bytes = if found.len() == entries.len() { bytes } else { narrowed(&found) };
            Ok(Root { bytes, digest, media_type: None })
        }
        [entry] => {
            let descriptor = &entry.descriptor;
            let bytes = blobs.document(descriptor, MAX_MANIFEST_BYTES);
            let bytes = bytes.map_err(|error| SourceError::Form {
                path: directory.to_owned(),
                expected: FORM,
                why: format!("blob {}: {error}", descriptor.digest),
            })?;
            if !manifest::matches(&bytes, descriptor) {
                let why = format!("blob {} is damaged", descriptor.digest);
                return Err(SourceError::Form { path: directory.to_owned(), expected: FORM, why });
            }
            let media_type = Some(descriptor.media_type.clone());
            Ok(Root { bytes, digest: descriptor.digest.clone(), media_type })
        }
        _ => {
            let label = |entry: &Entry| {
                entry.name.clone().unwrap_or_else(|| entry.descriptor.digest.to_string())
            };
            let names =
                entries.iter().take(32).map(|entry| label(entry).escape_default().to_string());
            Err(SourceError::Choose { path: directory.to_owned(), names: names.collect() })
        }
    }
}

/// An index of some entries of another one.
fn narrowed(entries: &[&Entry]) -> Vec<u8> {
    let manifests: Vec<serde_json::Value> = entries
        .iter()
        .map(|entry| {
            let mut value = serde_json::to_value(&entry.descriptor).unwrap_or_default();
            value["platform"] = serde_json::to_value(&entry.platform).unwrap_or_default();
            value
        })
        .collect();
    serde_json::json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes()
}

/// The blobs of a layout.
#[derive(Debug)]
struct LayoutBlobs {
    directory: PathBuf,
}

impl LayoutBlobs {
    /// A digest is validated, so that it is safe as part of a path.
    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn document(&self, descriptor: &Descriptor, limit: usize) -> Result<Vec<u8>, BlobError> {
        Ok(read_capped(&self.path(&descriptor.digest), limit as u64)?)
    }
}

impl Blobs for LayoutBlobs {
    fn open(&self, layer: &Descriptor) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        let path = self.path(&layer.digest);
        let file = File::open(&path).map_err(|source| SourceError::Read { path, source })?;
        Ok(Box::new(file))
    }
}
