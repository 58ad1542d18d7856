//! A merged tree becomes an image: written, synced, hashed, published.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use openshell_ext4::tree::Contents;
use openshell_ext4::{Identity, Image, Options, Profile, Summary, Tree};

use super::{BuildError, Builder, Merged, store};
use crate::cache::{Cached, Record, SCHEMA, StagedPack};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::progress::{Phase, Progress};
use crate::source::Plan;

/// A writable disk with an image's files on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes; without one, a quarter more than its files and at least 256 MiB more.
    pub size_bytes: Option<u64>,
}

impl Builder<'_> {
    pub(super) fn seal_and_publish(
        &self,
        key: &Digest,
        plan: &Plan,
        merged: &Merged,
        staged: Vec<StagedPack>,
        progress: &dyn Progress,
    ) -> Result<Cached, BuildError> {
        let staging = self.cache.stage()?;
        // Layers get their place while the image is written: both wait for the same disk, and neither for the other.
        let (layers, sealed) = thread::scope(|scope| {
            let publish =
                move || staged.into_iter().try_for_each(|pack| self.cache.publish_layer(pack));
            let layers =
                thread::Builder::new().name("layers".to_owned()).spawn_scoped(scope, publish);
            let sealed = self.seal(key, merged, &staging.path().join("rootfs.ext4"), progress);
            let layers = layers.map_err(BuildError::Thread);
            (layers.map(|thread| thread.join().expect("publishing does not panic")), sealed)
        });
        layers??;
        let (summary, sha256) = sealed?;
        progress.phase(Phase::Publish);
        if let Some(config) = &plan.config {
            staging.write("config.json", config)?;
        }
        if let Some(manifest) = &plan.manifest {
            staging.write("manifest.json", manifest)?;
        }
        let record = Record {
            schema: SCHEMA,
            key: key.clone(),
            identity: merged.identity.clone(),
            layers: merged.layers.clone(),
            bytes: summary.size_bytes,
            sha256,
            nodes: merged.tree.len() as u64,
            raw_bytes: merged.layers.iter().map(|layer| layer.raw_bytes).sum(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        };
        Ok(self.cache.publish(staging, record)?)
    }

    /// Writes a read-only image to a new file, syncs and hashes it.
    fn seal(
        &self,
        key: &Digest,
        merged: &Merged,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<(Summary, Digest), BuildError> {
        progress.phase(Phase::Write);
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(store("make", path))?;
        let summary = self.write(&merged.tree, &merged.packs, &file, Profile::Base, key)?;
        progress.phase(Phase::Verify);
        // The processor hashes while the disk is busy.
        let (synced, sha256) = thread::scope(|scope| {
            let sync = thread::Builder::new().name("sync".to_owned());
            let synced = sync.spawn_scoped(scope, || file.sync_data());
            let checked = check(&file);
            let sha256 = hash(&file, summary.size_bytes);
            let synced = synced.map(|thread| thread.join().expect("syncing does not panic"));
            (synced, checked.map(|()| sha256))
        });
        synced.map_err(BuildError::Thread)?.map_err(store("sync", path))?;
        Ok((summary, sha256?.map_err(store("read", path))?))
    }

    /// Writes a disk that can be written to, with the files of an image on it.
    ///
    /// # Errors
    ///
    /// When the files do not fit or the disk cannot be written.
    pub fn disk(
        &self,
        tree: &Tree,
        contents: &dyn Contents,
        disk: Disk,
        key: &Digest,
        file: &File,
    ) -> Result<Summary, BuildError> {
        const MINIMUM: u64 = 256 << 20;
        let room =
            |used: u64| used.saturating_add((used / 4).max(MINIMUM)).next_multiple_of(1 << 20);
        let size_bytes = disk.size_bytes.unwrap_or_else(|| room(used_by(tree)));
        let inodes = u32::try_from(tree.len().saturating_mul(2)).unwrap_or(u32::MAX);
        self.write(tree, contents, file, Profile::ReadWrite { size_bytes, inodes }, key)
    }

    fn write(
        &self,
        tree: &Tree,
        contents: &dyn Contents,
        file: &File,
        profile: Profile,
        key: &Digest,
    ) -> Result<Summary, BuildError> {
        let identity = Identity::from_digest(&key.bytes32());
        let options = Options { profile, identity, threads: self.threads };
        openshell_ext4::write(tree, contents, file, &options).map_err(BuildError::Write)
    }
}

/// Derives every checksum of an image again.
fn check(file: &File) -> Result<(), BuildError> {
    let report = Image::open(file).and_then(|image| image.check()).map_err(BuildError::Check)?;
    let fault = report.faults().first();
    fault.map_or(Ok(()), |fault| Err(BuildError::Check((*fault).into())))
}

/// Bytes that the files of a tree take, in whole blocks, with something for each node.
fn used_by(tree: &Tree) -> u64 {
    const NODE: u64 = 512;
    let mut used = tree.len() as u64 * NODE;
    for entry in tree.walk(Tree::ROOT) {
        let Some(node) = tree.find(entry.node) else { continue };
        let openshell_ext4::tree::Kind::File(data) = node.kind() else { continue };
        let blocks = data.pieces().iter().map(|piece| piece.length.next_multiple_of(4096));
        // A file of several names is counted once for each, in equal parts.
        used += blocks.sum::<u64>() / u64::from(node.names().max(1));
    }
    used
}

/// The digest of a file's first `length` bytes.
///
/// # Errors
///
/// When the file ends before or cannot be read.
pub fn hash(file: &File, length: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let wanted = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        at += wanted as u64;
    }
    Ok(hasher.finish())
}
