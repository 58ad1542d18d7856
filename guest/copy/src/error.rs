//! Why a copy failed.

use std::io;
use std::path::{Path, PathBuf};

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file that cannot be read, made or changed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that is not what it would have to be.
    #[error("{}: {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it is not, or is.
        what: &'static str,
    },
    /// The archive is malformed, or has what is not taken from it.
    #[error("archive entry {entry:?}: {what}")]
    Archive {
        /// The entry, as far as it was understood.
        entry: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The stream broke.
    #[error("{0}")]
    Stream(#[source] io::Error),
}

impl CopyError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self + use<> {
        let path = path.to_owned();
        move |errno| Self::File { path, source: errno.into() }
    }

    pub(crate) fn unfit(path: &Path, what: &'static str) -> Self {
        Self::Unfit { path: path.to_owned(), what }
    }

    pub(crate) fn archive(entry: &[u8], what: &'static str) -> Self {
        let shown: String = String::from_utf8_lossy(entry).chars().take(200).collect();
        Self::Archive { entry: shown, what }
    }
}
