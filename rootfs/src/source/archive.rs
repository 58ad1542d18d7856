//! `docker-archive:FILE`: what `docker save` writes, in its old form and in the one that is an image layout too.
//!
//! Only the headers of the archive are read at first; a layer is read from its place when it is needed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Layers, Local, Plan, SourceError};
use crate::digest::Digest;
use crate::image::{BlobError, Platform};
use crate::layer::{Compression, LayerSource};
use crate::limits::Limits;
use crate::manifest::config::ImageConfig;
use crate::manifest::{MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES};
use crate::path::{components, display};
use crate::tar::{Kind, Reader};

const FORM: &str = "an archive of `docker save`";

/// How often a link inside the archive may lead to another one.
const HOPS: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().flatten()
    }
}

/// Finds an image in an archive. `scratch` is where a compressed archive is unpacked to, without a name.
///
/// # Errors
///
/// When the file is no such archive, does not say which image is meant, or has none for the platform.
pub fn docker_archive(
    path: &Path,
    name: Option<&str>,
    platform: &Platform,
    limits: &Limits,
    scratch: &Path,
) -> Result<Local, SourceError> {
    let archive = Archive::open(path, limits, scratch)?;
    let manifest = archive.read("manifest.json", MAX_MANIFEST_BYTES)?;
    let images: Vec<Saved> = serde_json::from_slice(&manifest)
        .map_err(|error| archive.form(format!("its `manifest.json` cannot be read: {error}")))?;
    let image = archive.choose(&images, name)?;
    if image.layers.len() > MAX_LAYERS {
        return Err(archive.form(format!("it has {} layers", image.layers.len())));
    }
    let config = archive.read(&image.config, MAX_CONFIG_BYTES)?;
    let parsed = ImageConfig::parse(&config)
        .map_err(|source| SourceError::Refused { path: path.to_owned(), source })?;
    if platform.suits(&parsed.platform).is_none() {
        let found = parsed.platform.to_string().escape_default().to_string();
        return Err(archive.form(format!("its image is for {found}, not for {platform}")));
    }
    if parsed.diff_ids.len() != image.layers.len() {
        let (layers, diff_ids) = (image.layers.len(), parsed.diff_ids.len());
        return Err(archive.form(format!("{layers} layers and {diff_ids} in its configuration")));
    }
    let mut layers = Vec::new();
    let mut places = Vec::new();
    for (layer, diff_id) in image.layers.iter().zip(&parsed.diff_ids) {
        let (offset, size) = archive.place(layer)?;
        places.push((offset, size));
        layers.push(LayerSource {
            name: display(layer.as_bytes()),
            media_type: None,
            size: Some(size),
            digest: blob_digest(layer),
            diff_id: Some(diff_id.clone()),
        });
    }
    let identity = Some(Digest::sha256(&config));
    let plan = Plan { identity, layers, manifest: None, config: Some(config) };
    Ok(Local { plan, layers: Box::new(Members { file: archive.file, places }) })
}

/// A name with what people leave out: programs differ in what they write into archives.
fn full(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

/// The digest that a member's name promises, in the newer form.
fn blob_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// An archive whose members are known by name.
struct Archive {
    path: PathBuf,
    file: File,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Archive {
    fn open(path: &Path, limits: &Limits, scratch: &Path) -> Result<Self, SourceError> {
        let error = |source| SourceError::Read { path: path.to_owned(), source };
        let file = plain(File::open(path).map_err(error)?, limits, scratch).map_err(error)?;
        let length = file.metadata().map_err(error)?.len();
        let mut archive = Self { path: path.to_owned(), file, members: HashMap::new() };
        let source = BufReader::new(archive.file.try_clone().map_err(error)?);
        let mut reader = Reader::new(source, limits);
        loop {
            let entry = reader.next_entry().map_err(|error| archive.form(error.to_string()))?;
            let Some(entry) = entry else { return Ok(archive) };
            let member = match entry.kind {
                Kind::File { sparse: None, .. } => {
                    let (offset, size) = reader.stored();
                    if offset.saturating_add(size) > length {
                        return Err(archive.form("it is cut off".to_owned()));
                    }
                    reader.pass_over().map_err(|error| archive.form(error.to_string()))?;
                    Member::File { offset, size }
                }
                Kind::HardLink(target) => Member::Link(target),
                Kind::Symlink(target) => Member::Link(beside(&entry.path, &target)),
                _ => continue,
            };
            archive.members.insert(entry.path, member);
        }
    }

    fn form(&self, why: String) -> SourceError {
        SourceError::Form { path: self.path.clone(), expected: FORM, why }
    }

    /// Where a member's bytes are.
    fn place(&self, name: &str) -> Result<(u64, u64), SourceError> {
        let mut at = beside(b"", name.as_bytes());
        for _ in 0..HOPS {
            match self.members.get(&at) {
                Some(Member::File { offset, size }) => return Ok((*offset, *size)),
                Some(Member::Link(target)) => at.clone_from(target),
                None => break,
            }
        }
        Err(self.form(format!("it has no member {:?}", display(name.as_bytes()))))
    }

    fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, SourceError> {
        let (offset, size) = self.place(name)?;
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        if length > limit {
            return Err(self.form(format!("{:?} has {size} bytes", display(name.as_bytes()))));
        }
        let mut bytes = vec![0; length];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|source| SourceError::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    fn choose<'a>(
        &self,
        images: &'a [Saved],
        name: Option<&str>,
    ) -> Result<&'a Saved, SourceError> {
        let wanted = |image: &&Saved| {
            name.is_none_or(|name| image.tags().any(|tag| full(tag) == full(name)))
        };
        let mut found = images.iter().filter(wanted);
        if let (Some(image), None) = (found.next(), found.next()) {
            return Ok(image);
        }
        let names = images.iter().flat_map(Saved::tags).take(32);
        let names = names.map(|name| name.escape_default().to_string()).collect();
        Err(SourceError::Choose { path: self.path.clone(), names })
    }
}

/// The file itself if it is not compressed, else what it unpacks to.
fn plain(mut file: File, limits: &Limits, scratch: &Path) -> io::Result<File> {
    let mut unpacked = Compression::decoder(BufReader::new(file.try_clone()?), limits)?;
    let Some(decoder) = &mut unpacked else {
        file.rewind()?;
        return Ok(file);
    };
    let mut target = tempfile::tempfile_in(scratch)?;
    let copied = io::copy(&mut decoder.take(limits.raw_bytes + 1), &mut target)?;
    if copied > limits.raw_bytes {
        return Err(io::Error::other(format!(
            "it unpacks to more than {} bytes",
            limits.raw_bytes
        )));
    }
    target.rewind()?;
    Ok(target)
}

/// What a link's target or a member's name means, without leaving the archive.
fn beside(link: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = components(link).collect();
    parts.pop();
    for part in components(target) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join(&b'/')
}

struct Members {
    file: File,
    places: Vec<(u64, u64)>,
}

impl Layers for Members {
    fn open(&self, layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        let (offset, size) = *self.places.get(layer).ok_or("there is no such layer")?;
        Ok(Box::new(Slice { file: &self.file, offset, left: size }))
    }
}

/// A part of a file, read without moving the position that its users share.
struct Slice<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut into[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
