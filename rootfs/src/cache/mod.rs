//! Images and layers that were made before, on disk, shared by all processes of a user.
//!
//! ```text
//! images/KEY/{rootfs.ext4,image.json,config.json,manifest.json}   complete, synced, read-only
//! layers/DIGEST/{pack,index}                                      data and entries of a layer, by its diff_id
//! tags/HASH.json     from a reference and a platform to a key: a pointer, never the truth
//! pins/HASH.json     keys that are kept, and for whom
//! locks/NAME         held with flock(2) while KEY is made; holds the maker's news
//! staging/NAME/      what is being made, held with flock(2) by its maker
//! ```
//!
//! Invariant: what is below `images` and `layers` was complete and synced before it got its name, and is never changed
//! afterwards. Reading needs no lock. A maker that dies leaves only a directory in `staging`, whose lock is free then.

mod codec;
mod gc;
mod images;
mod lock;
mod packs;
mod record;
mod staging;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use gc::{Freed, Prune};
pub use images::Cached;
pub use lock::Lock;
pub use packs::StagedPack;
pub use record::{LayerRecord, Pin, Process, Record, SCHEMA, Tag};
pub use staging::Staging;

/// A part of the cache failed on the host.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct CacheError {
    /// What did not happen.
    pub action: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A cache in a directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache in a directory, which is made if it is missing, and sweeps what dead makers left.
    ///
    /// # Errors
    ///
    /// When its directories cannot be made.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        let cache = Self { root: root.to_owned() };
        for part in ["images", "layers", "tags", "pins", "locks", "staging"] {
            let path = root.join(part);
            if !path.is_dir() {
                fs::create_dir_all(&path).map_err(failed("make", &path))?;
            }
        }
        cache.sweep();
        Ok(cache)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn part(&self, part: &str) -> PathBuf {
        self.root.join(part)
    }
}

/// Wraps an error of the host with what was attempted.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError { action, path, source }
}

/// Makes a directory's entries last.
fn sync_directory(path: &Path) -> Result<(), CacheError> {
    let directory = File::open(path).map_err(failed("open", path))?;
    directory.sync_all().map_err(failed("sync", path))
}

/// Replaces a small file in one step. The old or the new one is there whatever happens.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let directory = path.parent().expect("files of the cache lie in its directories");
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::with_prefix_in(".new-", directory)?;
        io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_data()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(failed("write", path))
}
