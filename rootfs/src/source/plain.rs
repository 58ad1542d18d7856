//! `rootfs-tar:FILE`: a root file system in one archive, known by the hash of its bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Layers, Local, Plan, SourceError};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::image::BlobError;
use crate::layer::LayerSource;

/// An archive in a file, or on the standard input when the path is `-`.
///
/// # Errors
///
/// When the file cannot be read.
pub fn rootfs_tar(path: &Path) -> Result<Local, SourceError> {
    if path == Path::new("-") {
        let name = "standard input".to_owned();
        let layer = LayerSource { name, ..LayerSource::default() };
        let plan = Plan { identity: None, layers: vec![layer], manifest: None, config: None };
        let once = Once(Mutex::new(Some(Box::new(io::stdin()))));
        return Ok(Local { plan, layers: Box::new(once) });
    }
    let (digest, size) =
        hash(path).map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
    let layer = LayerSource {
        name: path.display().to_string(),
        size: Some(size),
        digest: Some(digest.clone()),
        ..LayerSource::default()
    };
    let plan = Plan { identity: Some(digest), layers: vec![layer], manifest: None, config: None };
    Ok(Local { plan, layers: Box::new(OneFile(path.to_owned())) })
}

fn hash(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

struct OneFile(PathBuf);

impl Layers for OneFile {
    fn open(&self, _layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        let error = |source| SourceError::Read { path: self.0.clone(), source };
        Ok(Box::new(File::open(&self.0).map_err(error)?))
    }
}

/// A stream that can be read once.
pub(super) struct Once(pub(super) Mutex<Option<Box<dyn Read + Send>>>);

impl Layers for Once {
    fn open(&self, _layer: usize) -> Result<Box<dyn Read + Send + '_>, BlobError> {
        let stream = self.0.lock().ok().and_then(|mut stream| stream.take());
        stream.ok_or_else(|| "a stream can be read only once".into())
    }
}
