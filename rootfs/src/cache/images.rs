//! Complete images, and the names that lead to them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::files_of;
use super::record::SCHEMA;
use super::{Cache, CacheError, Pin, Record, Staging, Tag, failed, replace};
use crate::digest::Digest;
use crate::image::Platform;

/// A complete image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Its directory.
    pub directory: PathBuf,
    /// What is known of it.
    pub record: Record,
}

impl Cached {
    /// The image: read-only, never changed.
    pub fn image(&self) -> PathBuf {
        self.directory.join("rootfs.ext4")
    }

    /// The configuration of the OCI image, byte for byte, where it has one.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    /// When it was last used.
    pub fn used(&self) -> SystemTime {
        let modified = fs::metadata(self.directory.join("image.json"));
        modified.and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl Cache {
    /// The image that was made for a key, if there is one whose size is right. Counts as a use of it.
    pub fn find(&self, key: &Digest) -> Option<Cached> {
        let found = self.peek(key)?;
        // Only the order of eviction depends on it.
        if let Ok(file) = File::open(found.directory.join("image.json")) {
            drop(file.set_modified(SystemTime::now()));
        }
        Some(found)
    }

    /// As [`Cache::find`], without being a use.
    pub fn peek(&self, key: &Digest) -> Option<Cached> {
        let directory = self.image_directory(key);
        let record: Record = read_json(&directory.join("image.json"))?;
        let found = Cached { directory, record };
        let bytes = fs::metadata(found.image()).ok()?.len();
        let good = found.record.schema == SCHEMA
            && found.record.key == *key
            && found.record.bytes == bytes;
        good.then_some(found)
    }

    /// Gives a complete and synced image its place. The caller holds the key's lock.
    ///
    /// # Errors
    ///
    /// When it cannot be moved there.
    pub fn publish(&self, staging: Staging, record: Record) -> Result<Cached, CacheError> {
        let json = serde_json::to_vec_pretty(&record).expect("records are plain data");
        staging.write("image.json", &json)?;
        let directory = self.image_directory(&record.key);
        // What is in the way failed the test of `peek`.
        self.discard(&directory)?;
        staging.publish(&directory)?;
        Ok(Cached { directory, record })
    }

    /// All complete images.
    pub fn images(&self) -> Vec<Cached> {
        let keys = files_of(&self.part("images"));
        keys.iter().filter_map(|path| self.peek(&key_of(path)?)).collect()
    }

    /// Takes an image away, with the names that lead to it. False when somebody uses it.
    ///
    /// # Errors
    ///
    /// When it cannot be moved out of its place.
    pub fn remove(&self, key: &Digest) -> Result<bool, CacheError> {
        let directory = self.image_directory(key);
        if self.is_open(&directory) {
            return Ok(false);
        }
        self.discard(&directory)?;
        for path in files_of(&self.part("tags")) {
            if read_json::<Tag>(&path).is_none_or(|tag| tag.key == *key) {
                drop(fs::remove_file(path));
            }
        }
        Ok(true)
    }

    /// Remembers what a reference led to.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn remember(&self, tag: &Tag) -> Result<(), CacheError> {
        let json = serde_json::to_vec_pretty(tag).expect("tags are plain data");
        replace(&self.tag_path(&tag.reference, &tag.platform), &json)
    }

    /// What a reference led to when it was last looked at, if that image is still there.
    pub fn recall(&self, reference: &str, platform: &Platform) -> Option<(Tag, Cached)> {
        let tag: Tag = read_json(&self.tag_path(reference, platform))?;
        let same = tag.schema == SCHEMA && tag.reference == reference && tag.platform == *platform;
        let cached = same.then(|| self.find(&tag.key))??;
        Some((tag, cached))
    }

    /// All that is remembered of references.
    pub fn tags(&self) -> Vec<Tag> {
        files_of(&self.part("tags")).iter().filter_map(|path| read_json(path)).collect()
    }

    /// Keeps an image for somebody, until they let go.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn pin(&self, holder: &str, key: &Digest) -> Result<(), CacheError> {
        let pin = Pin { schema: SCHEMA, holder: holder.to_owned(), key: key.clone() };
        let json = serde_json::to_vec_pretty(&pin).expect("pins are plain data");
        replace(&self.pin_path(holder), &json)
    }

    /// Lets go of what was kept for somebody.
    ///
    /// # Errors
    ///
    /// When the pin is there and cannot be removed.
    pub fn unpin(&self, holder: &str) -> Result<(), CacheError> {
        let path = self.pin_path(holder);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Who keeps which image.
    pub fn pins(&self) -> Vec<Pin> {
        files_of(&self.part("pins")).iter().filter_map(|path| read_json(path)).collect()
    }

    /// Whether somebody, such as a machine, holds a lock on the image.
    pub(super) fn is_open(&self, directory: &Path) -> bool {
        let Ok(image) = File::open(directory.join("rootfs.ext4")) else { return false };
        image.try_lock().is_err()
    }

    /// Moves something out of its place in one step, and then takes it apart.
    pub(super) fn discard(&self, path: &Path) -> Result<(), CacheError> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let staging = self.stage()?;
        fs::rename(path, staging.path().join("discarded")).map_err(failed("discard", path))
    }

    fn image_directory(&self, key: &Digest) -> PathBuf {
        self.part("images").join(key.hex())
    }

    /// The file that says what a reference leads to: replaced, never changed in place.
    pub fn tag_path(&self, reference: &str, platform: &Platform) -> PathBuf {
        let variant = platform.variant.as_deref().unwrap_or_default();
        let Platform { os, architecture, .. } = platform;
        let text = format!("{reference}\n{os}\n{architecture}\n{variant}");
        self.part("tags").join(format!("{}.json", Digest::sha256(text.as_bytes()).hex()))
    }

    fn pin_path(&self, holder: &str) -> PathBuf {
        self.part("pins").join(format!("{}.json", Digest::sha256(holder.as_bytes()).hex()))
    }
}

/// The key that a directory of images is named after.
pub(super) fn key_of(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

/// A file of our own making; none when it is missing or of another version.
fn read_json<T: DeserializeOwned + Serialize>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
