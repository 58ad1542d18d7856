//! The pipeline: a plan becomes an image in the cache, or one that is there already.
//!
//! Layers are read by several threads, merged on the caller's, and sealed by several again. Invariant: an image is
//! published after its layers, its checksums and its size were all checked, and the caller holds the key's lock from the
//! look into the cache to that moment, so that one image is made once.

mod key;
mod laid;
mod layers;
mod news;
mod seal;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZero;
use std::path::Path;
use std::thread;

use openshell_ext4::Laid;
use openshell_ext4::tree::{ContentId, Contents, Tree};

use crate::cache::{Cache, CacheError, Cached, LayerRecord, Lock};
use crate::digest::Digest;
use crate::layer::{Layer, LayerError, Pack};
use crate::layout::{Addition, Editor, Layout, LayoutError};
use crate::limits::{Limit, Limits};
use crate::manifest::ManifestError;
use crate::merge::{Merge, MergeError};
use crate::progress::{Phase, Progress};
use crate::source::{Layers, Plan};

pub use seal::{Disk, hash};

use news::News;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The cache failed on the host.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A layer was refused.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Layers cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The image cannot have its layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The image's configuration is refused.
    #[error(transparent)]
    Config(#[from] ManifestError),
    /// The image passes a limit as a whole.
    #[error("the image has more than the limit of {0}")]
    Limit(Limit),
    /// The file system could not be written.
    #[error("the file system could not be written")]
    Write(#[source] openshell_ext4::WriteError),
    /// The image that was written is not one.
    #[error("the file system that was written is not sound")]
    Check(#[source] openshell_ext4::ReadError),
    /// The image could not be stored.
    #[error("cannot {action} {}", .path.display())]
    Store {
        /// What did not happen.
        action: &'static str,
        /// To which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] io::Error),
}

/// How images are made.
#[derive(Debug)]
pub struct Builder<'a> {
    /// Where they are kept.
    pub cache: &'a Cache,
    /// What each image gets.
    pub layout: &'a Layout,
    /// Files of the caller's that go into this one.
    pub additions: &'a [Addition],
    /// How much an image may ask for.
    pub limits: &'a Limits,
    /// Layers that are read at once.
    pub parallel: usize,
    /// Threads that write an image. They do not change it.
    pub threads: usize,
}

/// A merged image that is not sealed: its tree, and the data of its files.
#[derive(Debug)]
struct Merged {
    tree: Tree,
    packs: Packs,
    /// The data that the image is made around.
    laid: Option<Laid>,
    layers: Vec<LayerRecord>,
    identity: Digest,
}

/// The data of the files of an image: the n-th pack is `ContentId(n)`.
#[derive(Debug, Default)]
struct Packs(Vec<Pack>);

impl Packs {
    fn add(&mut self, pack: Pack) -> ContentId {
        self.0.push(pack);
        ContentId(u32::try_from(self.0.len() - 1).expect("fewer layers and additions than 2^32"))
    }

    fn find(&self, id: ContentId) -> Option<&Pack> {
        usize::try_from(id.0).ok().and_then(|at| self.0.get(at))
    }
}

impl Contents for Packs {
    fn read_at(&self, id: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.find(id).ok_or(io::ErrorKind::NotFound)?.read_at(offset, into)
    }
}

impl<'a> Builder<'a> {
    /// A builder with the defaults, for as many processors as there are.
    pub fn new(cache: &'a Cache, layout: &'a Layout, limits: &'a Limits) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let parallel = processors.clamp(2, 8);
        Self { cache, layout, additions: &[], limits, parallel, threads: processors.min(8) }
    }

    /// The image of a plan, made now or before.
    ///
    /// # Errors
    ///
    /// When a layer is refused or cannot be had, the layers do not fit together, or the host fails.
    pub fn image(
        &self,
        plan: &Plan,
        layers: &dyn Layers,
        progress: &dyn Progress,
    ) -> Result<Cached, BuildError> {
        self.check(plan)?;
        let Some(identity) = &plan.identity else {
            return self.image_of_stream(plan, layers, progress);
        };
        progress.identified(identity);
        let key = self.key(identity, plan);
        if let Some(found) = self.cache.find(&key) {
            return Ok(found);
        }
        let lock = self.lock(&key, progress)?;
        if let Some(found) = self.cache.find(&key) {
            return Ok(found);
        }
        let news = News::new(progress, lock);
        let reading = layers::Reading { builder: self, plan, layers, progress: &news };
        let (read, staged) = reading.all()?;
        let merged = self.merge(plan, read, &news)?;
        self.seal_and_publish(&key, plan, &merged, staged, &news)
    }

    /// An image whose identity is known once its layer has been read.
    fn image_of_stream(
        &self,
        plan: &Plan,
        layers: &dyn Layers,
        progress: &dyn Progress,
    ) -> Result<Cached, BuildError> {
        let reading = layers::Reading { builder: self, plan, layers, progress };
        let (read, staged) = reading.all()?;
        let merged = self.merge(plan, read, progress)?;
        progress.identified(&merged.identity);
        let key = self.key(&merged.identity, plan);
        let lock = self.lock(&key, progress)?;
        if let Some(found) = self.cache.find(&key) {
            return Ok(found);
        }
        let news = News::new(progress, lock);
        self.seal_and_publish(&key, plan, &merged, staged, &news)
    }

    fn lock(&self, key: &Digest, progress: &dyn Progress) -> Result<Lock, BuildError> {
        let waiting = |news: &str| {
            progress.phase(Phase::Waiting);
            progress.leader(news);
        };
        Ok(self.cache.lock(&format!("image-{}", key.hex()), &waiting)?)
    }

    fn check(&self, plan: &Plan) -> Result<(), BuildError> {
        if plan.layers.len() > self.limits.layers {
            return Err(BuildError::Limit(Limit::Layers(self.limits.layers)));
        }
        Ok(())
    }

    fn merge(
        &self,
        plan: &Plan,
        layers: Vec<Layer>,
        progress: &dyn Progress,
    ) -> Result<Merged, BuildError> {
        progress.phase(Phase::Merge);
        let mut merge = Merge::new(self.limits);
        let mut packs = Packs::default();
        let mut records = Vec::new();
        let first = layers.first().map(|layer| layer.digest.clone());
        let identity = plan.identity.clone().or(first).unwrap_or_else(|| Digest::sha256(b""));
        let around = laid::layer(plan);
        let mut laid = None;
        for (at, layer) in layers.into_iter().enumerate() {
            let (diff_id, raw_bytes) = (layer.diff_id, layer.raw_bytes);
            records.push(LayerRecord { diff_id, raw_bytes });
            let pack = packs.add(layer.pack);
            if around == Some(at) {
                laid = packs.find(pack).and_then(|found| laid::place(pack, found));
            }
            merge.apply(pack, layer.entries)?;
        }
        let mut tree = merge.finish();
        let mut editor = Editor::new(&mut tree, self.limits);
        editor.apply(self.layout, &packs)?;
        for addition in self.additions {
            let file = addition.file.try_clone();
            let file = file.map_err(store("read", &addition.source))?;
            editor.add(addition, packs.add(Pack::open(file, addition.length)))?;
        }
        Ok(Merged { tree, packs, laid, layers: records, identity })
    }
}

fn store(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Store { action, path, source }
}
