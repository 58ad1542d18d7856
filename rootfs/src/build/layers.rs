//! All layers of an image, several at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{BuildError, Builder, laid};
use crate::cache::StagedPack;
use crate::layer::{self, Budget, Layer, LayerError, LayerSource, PackWriter};
use crate::progress::{Phase, Progress};
use crate::source::{Layers, Plan};

/// Memory that a layer's data may take before it goes to a file, where it is not kept anyway.
const PACK_MEMORY: usize = 8 << 20;

/// What is needed to read the layers of a plan.
pub(super) struct Reading<'a> {
    pub(super) builder: &'a Builder<'a>,
    pub(super) plan: &'a Plan,
    pub(super) layers: &'a dyn Layers,
    pub(super) progress: &'a dyn Progress,
}

type Read = Result<(Layer, Option<StagedPack>), BuildError>;

impl Reading<'_> {
    /// The layers, base first, and those among them that are to be published in the cache.
    pub(super) fn all(&self) -> Result<(Vec<Layer>, Vec<StagedPack>), BuildError> {
        self.progress.phase(Phase::Layers);
        let count = self.plan.layers.len();
        let budget = Budget::new(self.builder.limits);
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<Read>>> = (0..count).map(|_| Mutex::new(None)).collect();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = slots.get(at) else { return };
                let read = self.one(at, &self.plan.layers[at], &budget);
                if read.is_err() {
                    budget.cancel();
                }
                *slot.lock().expect("nobody panics with a slot") = Some(read);
            }
        };
        thread::scope(|scope| {
            let others = self.builder.parallel.clamp(1, count.max(1)) - 1;
            for _ in 0..others {
                let thread = thread::Builder::new().name("layer".to_owned());
                // With fewer threads it only takes longer.
                drop(thread.spawn_scoped(scope, work));
            }
            work();
        });
        let read = slots.into_iter().map(|slot| slot.into_inner().expect("nobody panics"));
        collect(read.flatten())
    }

    fn one(&self, at: usize, source: &LayerSource, budget: &Budget<'_>) -> Read {
        if budget.is_cancelled() {
            return Err(LayerError::Cancelled { layer: source.name.clone() }.into());
        }
        self.progress.layer_started(at, &source.name, source.size);
        let Some(diff_id) = &source.diff_id else {
            let pack = PackWriter::unnamed(&self.builder.cache.root().join("staging"), PACK_MEMORY);
            let layer = self.read(at, source, budget, pack)?;
            self.progress.layer_done(at, false);
            return Ok((layer, None));
        };
        let cache = self.builder.cache;
        if let Some(layer) = cache.layer(diff_id) {
            return self.cached(at, source, budget, layer);
        }
        let lock = cache.lock_layer(diff_id, &|_| ())?;
        // Whoever held the lock may have been busy with the same layer.
        if let Some(layer) = cache.layer(diff_id) {
            return self.cached(at, source, budget, layer);
        }
        let (mut staged, pack) = cache.stage_layer(diff_id, lock)?;
        let pack = if laid::layer(self.plan) == Some(at) { pack.with_sums() } else { pack };
        let mut layer = self.read(at, source, budget, pack)?;
        staged.write_index(&mut layer)?;
        self.progress.layer_done(at, false);
        Ok((layer, Some(staged)))
    }

    fn cached(&self, at: usize, source: &LayerSource, budget: &Budget<'_>, layer: Layer) -> Read {
        let (name, entry) = (|| source.name.clone(), None);
        budget.take(&layer).map_err(|limit| LayerError::Limit { layer: name(), entry, limit })?;
        self.progress.layer_done(at, true);
        Ok((layer, None))
    }

    fn read(
        &self,
        at: usize,
        source: &LayerSource,
        budget: &Budget<'_>,
        pack: PackWriter,
    ) -> Result<Layer, BuildError> {
        let bytes = self.layers.open(at);
        let bytes = bytes
            .map_err(|error| LayerError::Open { layer: source.name.clone(), source: error })?;
        let progress = |bytes| self.progress.layer_bytes(at, bytes);
        Ok(layer::read(bytes, source, budget, pack, &progress)?)
    }
}

/// All of them, or the error that was not a consequence of another one.
fn collect(read: impl Iterator<Item = Read>) -> Result<(Vec<Layer>, Vec<StagedPack>), BuildError> {
    let (mut layers, mut staged) = (Vec::new(), Vec::new());
    let mut cancelled = None;
    for read in read {
        match read {
            Ok((layer, pack)) => {
                layers.push(layer);
                staged.extend(pack);
            }
            Err(error @ BuildError::Layer(LayerError::Cancelled { .. })) => {
                cancelled = cancelled.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    cancelled.map_or(Ok((layers, staged)), Err)
}
