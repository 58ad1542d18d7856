//! The host's way in: the listening socket at the path the user named.
//!
//! Invariant: the path is removed with the listener, and only while it is still ours. Made on the main thread, then used by the
//! vsock worker.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::plan::VsockPlan;
use crate::sys::unix;

/// Why the host socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No socket address holds the path, or no room for a port is left.
    #[error(
        "vsock path {} has {} bytes: the limit is {}, so that _PORT fits behind it",
        path.display(),
        path.as_os_str().len(),
        VsockPlan::MAX_PATH_BYTES
    )]
    PathLength {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// Another program listens there.
    #[error("vsock path {} is in use: another program listens on it", path.display())]
    InUse {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// Something that is not a socket is there, and is left alone.
    #[error("vsock path {} exists and is not a socket", path.display())]
    NotSocket {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// The host refused.
    #[error("cannot listen on vsock path {}", path.display())]
    Listen {
        /// As the user wrote it.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// A listening Unix socket that host programs connect to.
#[derive(Debug)]
pub struct HostSocket {
    listener: UnixListener,
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl HostSocket {
    /// Listens at `path`. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let owned = || path.to_path_buf();
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() > VsockPlan::MAX_PATH_BYTES {
            return Err(BindError::PathLength { path: owned() });
        }
        let listen_error = |source| BindError::Listen { path: owned(), source };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path).map_err(listen_error)?
            }
            other => other.map_err(listen_error)?,
        };
        listener.set_nonblocking(true).map_err(listen_error)?;
        let metadata = fs::symlink_metadata(path).map_err(listen_error)?;
        let device_and_inode = (metadata.dev(), metadata.ino());
        Ok(Self { listener, path: owned(), device_and_inode })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode);
        if ours {
            // It may be gone already, and nothing is left to tell anybody.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let owned = || path.to_path_buf();
    let listen_error = |source| BindError::Listen { path: owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(listen_error)?;
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotSocket { path: owned() });
    }
    match unix::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(listen_error)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(listen_error(error)),
        _ => Err(BindError::InUse { path: owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_lives_as_long_as_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let socket = HostSocket::bind(&path).unwrap();
        assert!(unix::connect(&path).is_ok());
        assert!(matches!(HostSocket::bind(&path), Err(BindError::InUse { .. })));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_another_owner_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        let ours = HostSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists(), "removed a socket of somebody else");
        drop(theirs);
    }

    #[test]
    fn what_cannot_be_bound_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"data").unwrap();
        assert!(matches!(HostSocket::bind(&file), Err(BindError::NotSocket { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"data");
        let long = PathBuf::from("p".repeat(VsockPlan::MAX_PATH_BYTES + 1));
        let message = HostSocket::bind(&long).unwrap_err().to_string();
        assert!(message.contains("97 bytes: the limit is 96"), "{message}");
        let missing = dir.path().join("no/such/dir");
        assert!(matches!(HostSocket::bind(&missing), Err(BindError::Listen { .. })));
    }
}
