//! What a build tells its user while it goes on.

use crate::digest::Digest;

/// A step of a build, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Another process or thread builds the same image.
    Waiting,
    /// Layers are read, verified and stored.
    Layers,
    /// Layers are laid over each other.
    Merge,
    /// The image is written.
    Write,
    /// The image is checked and hashed.
    Verify,
    /// The image is put in its place.
    Publish,
}

impl Phase {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Layers => "layers",
            Self::Merge => "merge",
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Publish => "publish",
        }
    }
}

/// Takes the news of a build. Called from several threads; must not block.
pub trait Progress: Sync {
    /// A step begins.
    fn phase(&self, _phase: Phase) {}

    /// A layer is about to be read; `bytes` is how much, when that is known.
    fn layer_started(&self, _layer: usize, _name: &str, _bytes: Option<u64>) {}

    /// So many more compressed bytes of a layer were read.
    fn layer_bytes(&self, _layer: usize, _bytes: u64) {}

    /// A layer is complete; `cached` if nothing had to be read.
    fn layer_done(&self, _layer: usize, _cached: bool) {}

    /// Somebody else builds the same image and has come so far, in their own words.
    fn leader(&self, _news: &str) {}

    /// The image has an identity.
    fn identified(&self, _identity: &Digest) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
