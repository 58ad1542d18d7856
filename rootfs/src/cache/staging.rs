//! Directories in which things are made before they get their name.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::lock::{files_of, is_at};
use super::{Cache, CacheError, failed, sync_directory};

/// A directory of our own. It goes away with this, unless it is published.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    /// Its lock says that its maker lives.
    _lock: File,
    published: bool,
}

impl Cache {
    /// Makes a staging directory.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn stage(&self) -> Result<Staging, CacheError> {
        let parent = self.part("staging");
        loop {
            let made = tempfile::Builder::new().prefix("").rand_bytes(16).tempdir_in(&parent);
            let path = made.map_err(failed("make a directory in", &parent))?.keep();
            // A sweeper may take it for a dead maker's before it is locked.
            let Ok(directory) = File::open(&path) else { continue };
            if directory.try_lock().is_ok() && is_at(&directory, &path) {
                return Ok(Staging { path, _lock: directory, published: false });
            }
        }
    }

    /// Takes away what dead makers left.
    pub(super) fn sweep(&self) {
        for path in files_of(&self.part("staging")) {
            let Ok(directory) = File::open(&path) else { continue };
            if directory.try_lock().is_ok() {
                drop(fs::remove_dir_all(&path));
            }
        }
    }
}

impl Staging {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes and syncs a small file in it.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_data()
        };
        write().map_err(failed("write", &path))
    }

    /// Gives it its name, all of it at once. Its files are synced already.
    pub(super) fn publish(mut self, target: &Path) -> Result<(), CacheError> {
        for path in files_of(&self.path) {
            let read_only = fs::set_permissions(&path, Permissions::from_mode(0o444));
            read_only.map_err(failed("make read-only", &path))?;
        }
        // Others of the same user group may read images, as they may run them.
        let open = fs::set_permissions(&self.path, Permissions::from_mode(0o755));
        open.map_err(failed("open up", &self.path))?;
        sync_directory(&self.path)?;
        fs::rename(&self.path, target).map_err(failed("publish", target))?;
        self.published = true;
        let parent = target.parent().expect("targets lie in directories of the cache");
        sync_directory(parent)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}
