//! The state directory: what the driver must know after it was killed.
//!
//! ```text
//! driver.lock                     held with flock(2) by the driver that serves this directory
//! images/                         the cache of `openshell-rootfs`
//! run/                            sockets
//! trash/                          sandboxes being removed
//! sandboxes/ID/sandbox.pb         the request, with its secrets; a directory without it is no sandbox
//! sandboxes/ID/overlay.ext4       what the sandbox wrote
//! sandboxes/ID/stopped            somebody asked for the stop
//! sandboxes/ID/main-process-exited  the machine ended by itself; why
//! ```
//!
//! Invariant: directories are 0700 and files 0600, all owned by this user; a file is there whole, synced, or not at all; a
//! sandbox is removed by one rename. Every call blocks on the disk: none is made from an asynchronous task.

mod file;
mod sandbox;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use sandbox::{KeptImage, SandboxDir};

use crate::id::SandboxId;

/// Only its owner enters a directory of ours.
const DIRECTORY_MODE: u32 = 0o700;

/// Something failed on the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The host said no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What did not happen.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A place that is not what it has to be.
    #[error("{} {why}", .path.display())]
    Refused {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl StateError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    fn refused(path: &Path, why: &'static str) -> Self {
        Self::Refused { path: path.to_owned(), why }
    }
}

/// The state directory of one driver.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    discarded: AtomicU64,
    /// Held as long as the driver lives.
    _lock: File,
}

impl StateDir {
    /// Opens a state directory, made if it is missing, and removes what a dead driver was removing.
    ///
    /// # Errors
    ///
    /// When it cannot be made, is not this user's, or is served by another driver.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        private_directory(root)?;
        let root = fs::canonicalize(root).map_err(StateError::io("find", root))?;
        let path = root.join("driver.lock");
        let lock = file::open_private(&path).map_err(StateError::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::refused(&root, "is served by another driver"));
            }
            Err(TryLockError::Error(source)) => {
                return Err(StateError::Io { action: "lock", path, source });
            }
        }
        for part in ["images", "run", "sandboxes", "trash"] {
            private_directory(&root.join(part))?;
        }
        let state = Self { root, discarded: AtomicU64::new(0), _lock: lock };
        state.empty_trash();
        Ok(state)
    }

    /// Where it is, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cache of images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The directory of a sandbox, whether it is there or not.
    pub fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir::new(self.root.join("sandboxes").join(id.as_str()))
    }

    /// Makes the directory of a new sandbox with its request in it.
    ///
    /// # Errors
    ///
    /// When there is one already, or it cannot be made.
    pub fn create(&self, id: &SandboxId, request: &[u8]) -> Result<SandboxDir, StateError> {
        let sandbox = self.sandbox(id);
        let path = sandbox.path();
        let make = || DirBuilder::new().mode(DIRECTORY_MODE).create(path);
        match make() {
            // What a driver left that was killed before the request was written. Nobody was told that it exists.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && !sandbox.has_request() =>
            {
                self.remove(id)?;
                make()
            }
            made => made,
        }
        .map_err(StateError::io("make", path))?;
        let written = sandbox.write_request(request).and_then(|()| {
            let all = self.root.join("sandboxes");
            file::sync_directory(&all).map_err(StateError::io("sync", &all))
        });
        if let Err(error) = written {
            drop(self.remove(id));
            return Err(error);
        }
        Ok(sandbox)
    }

    /// The sandboxes that are there, in the order of their ids. What cannot be one is passed over and told.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn sandboxes(&self) -> Result<Vec<(SandboxId, SandboxDir)>, StateError> {
        let all = self.root.join("sandboxes");
        let read = || StateError::io("read", &all);
        let mut found = Vec::new();
        for entry in fs::read_dir(&all).map_err(read())? {
            let entry = entry.map_err(read())?;
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let id = entry.file_name().to_str().and_then(|name| SandboxId::parse(name).ok());
            match id.filter(|_| directory) {
                Some(id) => {
                    let sandbox = self.sandbox(&id);
                    if sandbox.has_request() {
                        found.push((id, sandbox));
                    }
                }
                None => tracing::warn!(path = %entry.path().display(), "not a sandbox"),
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    /// Removes the directory of a sandbox. One that is not there is removed already.
    ///
    /// # Errors
    ///
    /// When it is no directory of ours, or cannot be moved away. It is then as it was.
    pub fn remove(&self, id: &SandboxId) -> Result<(), StateError> {
        self.remove_sandbox_state_dir(self.sandbox(id).path())
    }

    /// Removes a directory that lies directly below `sandboxes` and is no symbolic link.
    fn remove_sandbox_state_dir(&self, path: &Path) -> Result<(), StateError> {
        let all = self.root.join("sandboxes");
        let inside = path.parent() == Some(all.as_path());
        let Some(name) = path.file_name().filter(|_| inside) else {
            return Err(StateError::refused(path, "is no directory of a sandbox"));
        };
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StateError::io("look at", path)(error)),
        };
        if !found.is_dir() {
            return Err(StateError::refused(path, "is a link or file, not a directory of ours"));
        }
        let number = self.discarded.fetch_add(1, Ordering::Relaxed);
        let trash = self.root.join("trash");
        let place = trash.join(format!("{number}-{}", name.to_string_lossy()));
        fs::rename(path, &place).map_err(StateError::io("remove", path))?;
        file::sync_directory(&all).map_err(StateError::io("sync", &all))?;
        // It is gone; the room it takes is given back now, or when the driver starts again.
        if let Err(error) = fs::remove_dir_all(&place) {
            tracing::warn!(path = %place.display(), %error, "cannot empty the trash");
        }
        Ok(())
    }

    fn empty_trash(&self) {
        let trash = self.root.join("trash");
        for entry in fs::read_dir(&trash).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot empty the trash");
            }
        }
    }
}

/// Makes a directory that is only for this user, or makes sure that it is.
///
/// # Errors
///
/// When it is a symbolic link, another user's, or cannot be made.
pub(crate) fn private_directory(path: &Path) -> Result<(), StateError> {
    owned_directory(path)?;
    let mode = fs::Permissions::from_mode(DIRECTORY_MODE);
    fs::set_permissions(path, mode).map_err(StateError::io("set the mode of", path))
}

/// Makes a directory that is only for this user, or makes sure that it is this user's.
///
/// # Errors
///
/// When it is a symbolic link, another user's, or cannot be made.
pub(crate) fn owned_directory(path: &Path) -> Result<(), StateError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE);
    // A link to a directory counts as one here, and is refused below.
    builder.create(path).map_err(StateError::io("make", path))?;
    let found = fs::symlink_metadata(path).map_err(StateError::io("look at", path))?;
    if !found.is_dir() {
        return Err(StateError::refused(path, "is not a directory"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateError::refused(path, "belongs to another user"));
    }
    Ok(())
}
