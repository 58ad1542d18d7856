//! Layers that were unpacked before.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::codec::{self, Facts};
use super::{Cache, CacheError, Lock, Staging, failed};
use crate::digest::Digest;
use crate::layer::{Layer, Pack, PackWriter, WriteBack};

/// A layer that was just unpacked and has no name in the cache yet. Its lock is held until it has.
#[derive(Debug)]
pub struct StagedPack {
    diff_id: Digest,
    staging: Staging,
    write_back: Option<WriteBack>,
    _lock: Lock,
}

impl Cache {
    /// The lock that whoever unpacks a layer holds.
    ///
    /// # Errors
    ///
    /// As [`Cache::lock`].
    pub fn lock_layer(&self, diff_id: &Digest, waiting: &dyn Fn(&str)) -> Result<Lock, CacheError> {
        self.lock(&format!("layer-{}", diff_id.hex()), waiting)
    }

    /// A layer that was unpacked before, if it is complete.
    pub fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        let directory = self.layer_directory(diff_id);
        let (facts, aside, entries) = codec::decode(&fs::read(directory.join("index")).ok()?)?;
        let pack = File::open(directory.join("pack")).ok()?;
        // It goes on behind its data when an image was made around that.
        if pack.metadata().ok()?.len() < facts.pack_bytes {
            return None;
        }
        let pack = Pack::with_aside(pack, facts.pack_bytes, aside);
        let raw_bytes = facts.raw_bytes;
        let (digest, diff_id) = (diff_id.clone(), diff_id.clone());
        Some(Layer { entries, pack, raw_bytes, digest, diff_id })
    }

    /// Where a layer's data goes while it is unpacked under its lock.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn stage_layer(
        &self,
        diff_id: &Digest,
        lock: Lock,
    ) -> Result<(StagedPack, PackWriter), CacheError> {
        let staging = self.stage()?;
        let writer = PackWriter::named(&staging.path().join("pack"));
        let diff_id = diff_id.clone();
        Ok((StagedPack { diff_id, staging, write_back: None, _lock: lock }, writer))
    }

    /// Syncs a complete layer and gives it its place.
    ///
    /// # Errors
    ///
    /// When it cannot be synced or moved.
    pub fn publish_layer(&self, mut staged: StagedPack) -> Result<(), CacheError> {
        let pack = staged.staging.path().join("pack");
        let settled = staged.write_back.take().map_or(Ok(()), WriteBack::settle);
        let synced = settled.and_then(|()| File::open(&pack)?.sync_data());
        synced.map_err(failed("sync", &pack))?;
        let index = staged.staging.path().join("index");
        let synced = File::open(&index).and_then(|file| file.sync_data());
        synced.map_err(failed("sync", &index))?;
        let directory = self.layer_directory(&staged.diff_id);
        self.discard(&directory)?;
        staged.staging.publish(&directory)
    }

    pub(super) fn layer_directory(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}-{}", diff_id.algorithm().name(), diff_id.hex());
        self.part("layers").join(name)
    }
}

impl StagedPack {
    /// The digest of the layer's archive.
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Gives the file of the data another name, for the image that is made around it.
    ///
    /// # Errors
    ///
    /// When the file system has no second names for files.
    pub fn link(&self, to: &Path) -> std::io::Result<()> {
        fs::hard_link(self.staging.path().join("pack"), to)
    }

    /// Writes the entries of the layer beside its data, and takes over who waits for the disk.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn write_index(&mut self, layer: &mut Layer) -> Result<(), CacheError> {
        self.write_back = layer.pack.take_write_back();
        let facts = Facts { raw_bytes: layer.raw_bytes, pack_bytes: layer.pack.length() };
        let path = self.staging.path().join("index");
        let bytes = codec::encode(facts, layer.pack.aside(), &layer.entries);
        fs::write(&path, bytes).map_err(failed("write", &path))
    }
}
