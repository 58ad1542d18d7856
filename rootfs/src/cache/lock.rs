//! One maker for each thing, among threads and processes alike.
//!
//! The lock is flock(2) on a file, so that it ends with the process that holds it. Its holder writes its news into the
//! file, and those who wait read them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::{Cache, CacheError, failed};

/// How often those who wait look again.
const LOOK: Duration = Duration::from_millis(20);
const NEWS: u64 = 200;

/// A held lock. It is free again when this is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Cache {
    /// Takes the lock `name`, once whoever holds it is done or gone. `waiting` hears the holder's news meanwhile.
    ///
    /// # Errors
    ///
    /// When the lock's file cannot be made or locked.
    pub fn lock(&self, name: &str, waiting: &dyn Fn(&str)) -> Result<Lock, CacheError> {
        let path = self.part("locks").join(name);
        loop {
            if let Some(lock) = try_lock(&path)? {
                return Ok(lock);
            }
            waiting(&news(&path));
            thread::sleep(LOOK);
        }
    }

    /// Takes the lock `name` unless somebody holds it.
    ///
    /// # Errors
    ///
    /// When the lock's file cannot be made or locked.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, CacheError> {
        try_lock(&self.part("locks").join(name))
    }

    /// Takes the files of locks away that nobody holds. A lock that is taken meanwhile is taken anew.
    pub(super) fn sweep_locks(&self) {
        for path in files_of(&self.part("locks")) {
            if let Ok(Some(lock)) = try_lock(&path) {
                // Removed while it is held: others see that the name is gone and make a new file.
                drop(fs::remove_file(&path));
                drop(lock);
            }
        }
    }
}

impl Lock {
    /// Tells those who wait. It does not matter if they cannot be told.
    pub fn tell(&mut self, news: &str) {
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(news.as_bytes())
        };
        drop(write(&mut self.file));
    }
}

fn try_lock(path: &Path) -> Result<Option<Lock>, CacheError> {
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed("open the lock", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
        // The file may have been swept between opening and locking.
        if is_at(&file, path) {
            return Ok(Some(Lock { file }));
        }
    }
}

/// Whether an open file or directory still has this name.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let same = |held: fs::Metadata, named: fs::Metadata| {
        (held.dev(), held.ino()) == (named.dev(), named.ino())
    };
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => same(held, named),
        _ => false,
    }
}

fn news(path: &Path) -> String {
    let mut news = Vec::new();
    if let Ok(file) = File::open(path) {
        drop(file.take(NEWS).read_to_end(&mut news));
    }
    String::from_utf8_lossy(&news).into_owned()
}

/// The entries of a directory of the cache; none when it cannot be read.
pub(super) fn files_of(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}
