//! What goes when the cache is too large: layers that no image has, then images and layers that were not used for long.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::images::key_of;
use super::lock::files_of;
use super::{Cache, CacheError};
use crate::digest::Digest;

/// What to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prune {
    /// Bytes on disk that the cache may take; without a budget only what nothing needs goes.
    pub budget: Option<u64>,
    /// Say what would go, and let it stay.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Freed {
    /// Images.
    pub images: Vec<Digest>,
    /// Directories of layers, by name.
    pub layers: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes on disk that are left.
    pub left: u64,
}

/// Something that can go.
struct Candidate {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
    what: What,
}

enum What {
    Image(Digest),
    Layer(String),
}

impl Cache {
    /// Makes the cache as small as it should be. What is pinned, open or being made stays.
    ///
    /// # Errors
    ///
    /// When something cannot be moved out of its place.
    pub fn prune(&self, prune: Prune) -> Result<Freed, CacheError> {
        if !prune.dry_run {
            self.sweep();
            self.sweep_locks();
            self.sweep_pointers();
        }
        let mut freed = Freed { left: size_of(self.root()), ..Freed::default() };
        for candidate in self.candidates(prune.budget.is_some()) {
            let wanted = match &candidate.what {
                What::Layer(_) if candidate.used == SystemTime::UNIX_EPOCH => true,
                _ => prune.budget.is_some_and(|budget| freed.left > budget),
            };
            if wanted && (prune.dry_run || self.evict(&candidate)?) {
                freed.bytes += candidate.bytes;
                freed.left = freed.left.saturating_sub(candidate.bytes);
                match candidate.what {
                    What::Image(key) => freed.images.push(key),
                    What::Layer(name) => freed.layers.push(name),
                }
            }
        }
        Ok(freed)
    }

    /// What can go, in the order in which it goes. Layers that no image has count as never used.
    fn candidates(&self, with_images: bool) -> Vec<Candidate> {
        let pinned: HashSet<Digest> = self.pins().into_iter().map(|pin| pin.key).collect();
        let images = self.images();
        let mut candidates = Vec::new();
        for path in files_of(&self.part("images")) {
            let Some(key) = key_of(&path) else { continue };
            let image = images.iter().find(|image| image.record.key == key);
            if pinned.contains(&key) || !with_images && image.is_some() {
                continue;
            }
            let used = image.map_or(SystemTime::UNIX_EPOCH, super::Cached::used);
            let bytes = size_of(&path);
            candidates.push(Candidate { used, bytes, path, what: What::Image(key) });
        }
        for path in files_of(&self.part("layers")) {
            let users = images.iter().filter(|image| {
                let mut layers = image.record.layers.iter();
                layers.any(|layer| self.layer_directory(&layer.diff_id) == path)
            });
            let used = users.map(super::Cached::used).max().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = size_of(&path);
            candidates.push(Candidate { used, bytes, path, what: What::Layer(name) });
        }
        // Of things last used together, layers go first: the image can still be run.
        let is_image = |candidate: &Candidate| matches!(candidate.what, What::Image(_));
        candidates
            .sort_by(|a, b| (a.used, is_image(a), &a.path).cmp(&(b.used, is_image(b), &b.path)));
        candidates
    }

    /// Takes something away unless somebody has it open or is making it.
    fn evict(&self, candidate: &Candidate) -> Result<bool, CacheError> {
        let lock = match &candidate.what {
            What::Image(key) => self.try_lock(&format!("image-{}", key.hex()))?,
            What::Layer(name) => {
                let hex = name.split_once('-').map_or(name.as_str(), |(_, hex)| hex);
                self.try_lock(&format!("layer-{hex}"))?
            }
        };
        if lock.is_none() {
            return Ok(false);
        }
        match &candidate.what {
            What::Image(key) => self.remove(key),
            What::Layer(_) => self.discard(&candidate.path).map(|()| true),
        }
    }

    /// Takes names away that lead to images that are gone.
    fn sweep_pointers(&self) {
        let images: HashSet<Digest> =
            self.images().into_iter().map(|image| image.record.key).collect();
        for tag in self.tags() {
            if !images.contains(&tag.key) {
                drop(fs::remove_file(self.tag_path(&tag.reference, &tag.platform)));
            }
        }
    }
}

/// Bytes on disk of everything below a directory of the cache.
fn size_of(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = if metadata.is_dir() { files_of(path) } else { Vec::new() };
    // The cache is three directories deep.
    // The data of a layer and the image around it may be one file: each counts for its part.
    let names = if metadata.is_dir() { 1 } else { metadata.nlink().max(1) };
    metadata.blocks() * 512 / names + below.iter().map(|path| size_of(path)).sum::<u64>()
}
