//! The directory of one sandbox.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{StateError, file};

/// A request is never longer: it came in one message.
const MAX_REQUEST_BYTES: u64 = 16 << 20;
/// The most that is kept of why a machine ended.
const MAX_REASON_BYTES: usize = 8 << 10;

/// The directory of one sandbox.
#[derive(Debug, Clone)]
pub struct SandboxDir {
    path: PathBuf,
}

/// The image that a sandbox was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptImage {
    /// The key of the cache.
    pub key: String,
    /// What the user named.
    pub reference: String,
}

impl SandboxDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The disk that the sandbox writes on.
    pub fn overlay(&self) -> PathBuf {
        self.file("overlay.ext4")
    }

    pub(super) fn has_request(&self) -> bool {
        fs::symlink_metadata(self.file("sandbox.pb")).is_ok_and(|found| found.is_file())
    }

    pub(super) fn write_request(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.write("sandbox.pb", bytes)
    }

    /// The request that made the sandbox.
    ///
    /// # Errors
    ///
    /// When it is not there, or larger than any request.
    pub fn request(&self) -> Result<Vec<u8>, StateError> {
        let path = self.file("sandbox.pb");
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(&path)?.take(MAX_REQUEST_BYTES + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_REQUEST_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(bytes)
        };
        read().map_err(StateError::io("read", &path))
    }

    /// Whether somebody asked for the stop.
    pub fn is_stopped(&self) -> bool {
        fs::symlink_metadata(self.file("stopped")).is_ok()
    }

    /// Remembers that somebody asked for the stop, or that nobody does any more.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn set_stopped(&self, stopped: bool) -> Result<(), StateError> {
        match stopped {
            true if self.is_stopped() => Ok(()),
            true => self.write("stopped", b""),
            false => self.remove("stopped"),
        }
    }

    /// Why the machine ended, if it did so by itself.
    pub fn exited(&self) -> Option<String> {
        let bytes = fs::read(self.file("main-process-exited")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_end().chars().take(MAX_REASON_BYTES).collect())
    }

    /// Remembers why the machine ended.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn set_exited(&self, why: &str) -> Result<(), StateError> {
        let end = why.floor_char_boundary(MAX_REASON_BYTES);
        self.write("main-process-exited", format!("{}\n", &why[..end]).as_bytes())
    }

    /// Forgets why the machine ended: it is to run again.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn clear_exited(&self) -> Result<(), StateError> {
        self.remove("main-process-exited")
    }

    /// The image that the read-write disk lies above, if it is known yet.
    pub fn image(&self) -> Option<KeptImage> {
        let read = |name| fs::read_to_string(self.file(name)).ok();
        let line = |text: String| text.trim_end().to_owned();
        let (key, reference) = (read("image-identity")?, read("image-reference")?);
        Some(KeptImage { key: line(key), reference: line(reference) })
    }

    /// Remembers the image.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn set_image(&self, image: &KeptImage) -> Result<(), StateError> {
        self.write("image-reference", format!("{}\n", image.reference).as_bytes())?;
        self.write("image-identity", format!("{}\n", image.key).as_bytes())
    }

    /// The size of the read-write disk in bytes, or `None` when there is none yet.
    ///
    /// # Errors
    ///
    /// When it is there and is no file.
    pub fn overlay_bytes(&self) -> Result<Option<u64>, StateError> {
        let path = self.overlay();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => Ok(Some(found.len())),
            Ok(_) => Err(StateError::refused(&path, "is not a disk image")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io("look at", &path)(error)),
        }
    }

    /// Waits until no machine has the read-write disk open: one that is being killed still holds it for a moment.
    ///
    /// # Errors
    ///
    /// When it is held for longer than `patience`, or cannot be looked at.
    pub fn wait_for_overlay(&self, patience: Duration) -> Result<(), StateError> {
        const STEP: Duration = Duration::from_millis(20);
        let path = self.overlay();
        let disk = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(StateError::io("open", &path))?,
        };
        let mut left = patience;
        loop {
            match disk.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if left.is_zero() => {
                    return Err(StateError::refused(&path, "is in use by another machine"));
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(StateError::io("lock", &path)(error));
                }
            }
            std::thread::sleep(STEP);
            left = left.saturating_sub(STEP);
        }
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.file(name);
        file::replace(&path, bytes).map_err(StateError::io("write", &path))
    }

    fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        file::remove(&path).map_err(StateError::io("remove", &path))
    }
}
