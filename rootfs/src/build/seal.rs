//! A merged tree becomes an image: written, synced, hashed, published.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use openshell_ext4::tree::Contents;
use openshell_ext4::{Identity, Image, Options, Profile, Summary, Tree};

use super::{BuildError, Builder, Merged, laid, store};
use crate::cache::{Cached, Process, Record, SCHEMA, StagedPack};
use crate::digest::Digest;
use crate::manifest::config::ImageConfig;
use crate::pieces;
use crate::progress::{Phase, Progress};
use crate::source::Plan;

/// A writable disk with an image's files on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes; without one, a quarter more than its files and at least 256 MiB more.
    pub size_bytes: Option<u64>,
}

impl Merged {
    /// The digests of what was written before the image was.
    fn sums(&self, profile: Profile) -> Option<&pieces::PieceSums> {
        let Profile::Around(laid) = profile else { return None };
        self.packs.find(laid.id)?.sums()
    }
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
        // Before anything is written: a configuration that is refused is no image.
        let config = plan.config.as_deref().map(ImageConfig::parse).transpose()?;
        let staging = self.cache.stage()?;
        let path = staging.path().join("rootfs.ext4");
        let profile = adopt(merged, &staged, &path);
        // The one that becomes the image is published when it is complete.
        let mut staged = staged;
        let adopted: Vec<StagedPack> =
            staged.extract_if(.., |pack| adopts(profile, merged, pack)).collect();
        // Layers get their place while the image is written: both wait for the same disk, and neither for the other.
        let publish = |packs: Vec<StagedPack>| {
            packs.into_iter().try_for_each(|pack| self.cache.publish_layer(pack))
        };
        let (layers, sealed) = thread::scope(|scope| {
            let thread = thread::Builder::new().name("layers".to_owned());
            let layers = thread.spawn_scoped(scope, || publish(staged));
            let sealed = self.seal(key, merged, &path, profile, progress);
            let layers = layers.map_err(BuildError::Thread);
            (layers.map(|thread| thread.join().expect("publishing does not panic")), sealed)
        });
        layers??;
        let (summary, pieces_sha256) = sealed?;
        publish(adopted)?;
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
            pieces_sha256,
            nodes: merged.tree.len() as u64,
            raw_bytes: merged.layers.iter().map(|layer| layer.raw_bytes).sum(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            process: Process::of(config.as_ref()),
        };
        Ok(self.cache.publish(staging, record)?)
    }

    /// Writes a read-only image to a new file, or around the data in one that is there; syncs and hashes it.
    fn seal(
        &self,
        key: &Digest,
        merged: &Merged,
        path: &Path,
        profile: Profile,
        progress: &dyn Progress,
    ) -> Result<(Summary, Digest), BuildError> {
        progress.phase(Phase::Write);
        let is_there = matches!(profile, Profile::Around(laid) if laid.is_written);
        let file = File::options().read(true).write(true).create_new(!is_there).open(path);
        let file = file.map_err(store("make", path))?;
        let summary = self.write(&merged.tree, &merged.packs, &file, profile, key)?;
        progress.phase(Phase::Verify);
        let known = is_there.then(|| merged.sums(profile)).flatten();
        // Processors check and hash while the disk is busy.
        let (synced, sha256) = thread::scope(|scope| {
            let sync = thread::Builder::new().name("sync".to_owned());
            let synced = sync.spawn_scoped(scope, || file.sync_data());
            let checking = thread::Builder::new().name("check".to_owned());
            let checked = checking.spawn_scoped(scope, || check(&file));
            let sha256 = pieces::sum(&file, summary.size_bytes, known);
            let synced = synced.map(|thread| thread.join().expect("syncing does not panic"));
            let checked = checked.map_err(BuildError::Thread);
            let checked = checked.and_then(|it| it.join().expect("checking does not panic"));
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
        self.write(
            tree,
            contents,
            file,
            Profile::ReadWrite { size_bytes, inodes, journal: true },
            key,
        )
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

/// How the image is written. Its data is there already when `path` can be a second name for the pack of a layer that was read just now.
fn adopt(merged: &Merged, staged: &[StagedPack], path: &Path) -> Profile {
    let Some(mut laid) = merged.laid else { return Profile::Base };
    let pack = merged.packs.find(laid.id);
    if pack.is_some_and(|pack| laid::is_all_live(&merged.tree, &laid, pack)) {
        let at = usize::try_from(laid.id.0).ok();
        let layer = at.and_then(|at| merged.layers.get(at));
        let found = layer.and_then(|layer| staged.iter().find(|it| *it.diff_id() == layer.diff_id));
        laid.is_written = found.is_some_and(|staged| staged.link(path).is_ok());
    }
    Profile::Around(laid)
}

/// Whether this is the layer whose file becomes the image.
fn adopts(profile: Profile, merged: &Merged, staged: &StagedPack) -> bool {
    let Profile::Around(laid) = profile else { return false };
    let layer = usize::try_from(laid.id.0).ok().and_then(|at| merged.layers.get(at));
    laid.is_written && layer.is_some_and(|layer| layer.diff_id == *staged.diff_id())
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

/// What stands for a file's first `length` bytes in the record of an image.
///
/// # Errors
///
/// When the file ends before or cannot be read.
pub fn hash(file: &File, length: u64) -> io::Result<Digest> {
    pieces::sum(file, length, None)
}
