//! The progress of whoever makes an image, for itself and for those who wait for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::Lock;
use crate::digest::Digest;
use crate::progress::{Phase, Progress};

/// How many bytes come between two pieces of news.
const STEP: u64 = 4 << 20;

/// Passes progress on and writes it into the lock.
pub(super) struct News<'a> {
    progress: &'a dyn Progress,
    lock: Mutex<Lock>,
    bytes: AtomicU64,
}

impl<'a> News<'a> {
    pub(super) fn new(progress: &'a dyn Progress, lock: Lock) -> Self {
        Self { progress, lock: Mutex::new(lock), bytes: AtomicU64::new(0) }
    }

    fn tell(&self, news: &str) {
        if let Ok(mut lock) = self.lock.lock() {
            lock.tell(news);
        }
    }
}

impl Progress for News<'_> {
    fn phase(&self, phase: Phase) {
        self.tell(phase.name());
        self.progress.phase(phase);
    }

    fn layer_started(&self, layer: usize, name: &str, bytes: Option<u64>) {
        self.progress.layer_started(layer, name, bytes);
    }

    fn layer_bytes(&self, layer: usize, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let now = before + bytes;
        if now / STEP != before / STEP {
            self.tell(&format!("layers, {} MiB read", now >> 20));
        }
        self.progress.layer_bytes(layer, bytes);
    }

    fn layer_done(&self, layer: usize, cached: bool) {
        self.progress.layer_done(layer, cached);
    }

    fn identified(&self, identity: &Digest) {
        self.progress.identified(identity);
    }
}
