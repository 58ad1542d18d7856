//! The Unix socket of the driver.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

use super::Peer;
use crate::state::{StateError, owned_directory};

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The directory it would lie in is not safe.
    #[error(transparent)]
    Directory(#[from] StateError),
    /// Something else is there.
    #[error("{} {why}", .path.display())]
    Taken {
        /// Where.
        path: PathBuf,
        /// What is there.
        why: &'static str,
    },
    /// The host said no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What did not happen.
        action: &'static str,
        /// To which socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that is listened on, removed when it is dropped if it is still ours.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`, in the place of a socket of ours that nobody listens on any more.
    ///
    /// # Errors
    ///
    /// When the directory is not safe, or something else is at `path`.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        owned_directory(parent.unwrap_or(Path::new(".")))?;
        unlink_stale(path)?;
        let io = |action| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        let listener = UnixListener::bind(path).map_err(io("listen on"))?;
        // Whoever connected before this line is judged by the kernel's word on them all the same.
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, mode).map_err(io("set the mode of"))?;
        let found = fs::symlink_metadata(path).map_err(io("look at"))?;
        let identity = (found.dev(), found.ino());
        Ok((Self { path: path.to_owned(), identity }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn unlink_stale(path: &Path) -> Result<(), SocketError> {
    let taken = |why| Err(SocketError::Taken { path: path.to_owned(), why });
    let io = |action| {
        let path = path.to_owned();
        move |source| SocketError::Io { action, path, source }
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at")(error)),
    };
    if !found.file_type().is_socket() {
        return taken("is not a socket; it is left alone");
    }
    if found.uid() != geteuid().as_raw() {
        return taken("is another user's socket");
    }
    // Nobody listens when the kernel refuses; anything else, a full backlog too, is somebody.
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io("remove"))
        }
        _ => taken("is listened on by another process"),
    }
}

/// The connections of peers that are to be heard. Others are closed at once.
#[derive(Debug)]
pub struct Incoming {
    listener: UnixListener,
    peer: Peer,
}

impl Incoming {
    /// Takes connections of `peer` only.
    pub fn new(listener: UnixListener, peer: Peer) -> Self {
        Self { listener, peer }
    }
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let stream = match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => stream,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let judged = match stream.peer_cred() {
                Ok(credentials) => self.peer.authorize(&credentials).map_err(|why| why.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match judged {
                Ok(()) => return Poll::Ready(Some(Ok(stream))),
                Err(why) => tracing::warn!(%why, "connection refused"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio_stream::StreamExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_owner() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("new/run/driver.sock");
        let (socket, listener) = Socket::bind(&path).expect("bound");
        assert_eq!((mode(&path), mode(path.parent().expect("a parent"))), (0o600, 0o700));
        let error = Socket::bind(&path).expect_err("in use");
        assert!(error.to_string().ends_with("is listened on by another process"), "{error}");
        drop((socket, listener));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let (socket, _listener) = Socket::bind(&path).expect("replaced");
        drop(socket);
        fs::write(&path, "precious").expect("written");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken { .. })));
        assert_eq!(fs::read(&path).expect("read"), b"precious");
        fs::remove_file(&path).expect("removed");
        symlink(place.path().join("elsewhere"), &path).expect("linked");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken { .. })));
    }

    #[tokio::test]
    async fn a_linked_directory_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let (real, link) = (place.path().join("real"), place.path().join("link"));
        fs::create_dir(&real).expect("made");
        symlink(&real, &link).expect("linked");
        assert!(matches!(Socket::bind(&link.join("s")), Err(SocketError::Directory(_))));
    }

    #[tokio::test]
    async fn a_socket_that_took_our_place_is_left_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("s");
        let (socket, _listener) = Socket::bind(&path).expect("bound");
        fs::remove_file(&path).expect("removed");
        let _other = UnixListener::bind(&path).expect("bound");
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn strangers_are_closed_and_others_are_heard() {
        let place = tempfile::tempdir().expect("a directory");
        let own = i32::try_from(std::process::id()).expect("a process id");
        for (peer, heard) in
            [(Peer::SameUser, true), (Peer::Process(own), true), (Peer::Process(own + 1), false)]
        {
            let path = place.path().join(format!("{peer:?}"));
            let (_socket, listener) = Socket::bind(&path).expect("bound");
            let mut incoming = Incoming::new(listener, peer);
            let client = UnixStream::connect(&path).await.expect("connected");
            if heard {
                incoming.next().await.expect("one").expect("a stream");
                continue;
            }
            let closed = async {
                let mut byte = [0];
                client.readable().await.expect("readable");
                client.try_read(&mut byte)
            };
            tokio::select! {
                _ = incoming.next() => panic!("a stranger was heard"),
                read = closed => assert_eq!(read.ok(), Some(0)),
            }
        }
    }
}
