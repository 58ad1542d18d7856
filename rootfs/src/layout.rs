//! What every image gets before it is sealed, so that a sandbox can run on it: a user, its home, mount points, files of
//! the caller's.
//!
//! Invariant: every path is resolved inside the tree, and nothing but a regular file of at most 1 MiB is edited. What the
//! image has already wins.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use openshell_ext4::tree::{
    ContentId, Contents, FileData, Kind, Metadata, NodeId, Time, Tree, TreeError,
};

use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::path::{self, PathError};
use crate::resolve::{Missing, ResolveError, Resolver};

/// The largest account file that is edited, in bytes.
const ACCOUNTS_MAX: u64 = 1 << 20;

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// Whether most images get a version of their own of a layer's file at this path.
pub(crate) fn edits(path: &[u8]) -> bool {
    [PASSWD, GROUP].iter().any(|edited| edited.as_bytes() == path)
}

/// The user that sandboxes run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name, and its group's.
    pub name: String,
    /// Its id, unless the image has a user of this name.
    pub uid: u32,
    /// Its group's id, unless the image has a group of this name.
    pub gid: u32,
    /// Its home, which it owns.
    pub home: String,
}

/// A directory that others are mounted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Where.
    pub path: String,
    /// Its mode, if the image does not have it.
    pub mode: u16,
}

/// What images get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The user, if there shall be one.
    pub user: Option<User>,
    /// The mount points.
    pub mount_points: Vec<MountPoint>,
}

impl Default for Layout {
    /// The user `sandbox` with the home `/sandbox`, and what the guest's first process mounts.
    fn default() -> Self {
        let point = |(path, mode): (&str, u16)| MountPoint { path: path.to_owned(), mode };
        let points = [
            ("dev", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("run", 0o755),
            ("tmp", 0o1777),
            ("opt/openshell", 0o755),
        ];
        let (name, home) = ("sandbox".to_owned(), "/sandbox".to_owned());
        Self {
            user: Some(User { name, uid: 10001, gid: 10001, home }),
            mount_points: points.map(point).to_vec(),
        }
    }
}

impl Layout {
    /// Nothing.
    pub fn none() -> Self {
        Self { user: None, mount_points: Vec::new() }
    }

    /// A text that differs when the result does.
    pub fn version(&self) -> String {
        format!("{self:?}")
    }
}

/// A file of the caller's that goes into an image.
#[derive(Debug)]
pub struct Addition {
    /// Its path on the host, for messages.
    pub source: PathBuf,
    /// The file, open.
    pub file: File,
    /// Its bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Where it goes.
    pub target: Vec<u8>,
    /// Its mode.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Addition {
    /// Opens and hashes a file. `target` is a path in the image.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn open(source: PathBuf, target: &[u8], mode: u16, uid: u32, gid: u32) -> io::Result<Self> {
        let mut file = File::open(&source)?;
        let mut hasher = Hasher::new(crate::digest::Algorithm::Sha256);
        let mut buffer = vec![0; 256 << 10];
        let mut length = 0;
        loop {
            let read = io::Read::read(&mut file, &mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            length += read as u64;
        }
        let (digest, target) = (hasher.finish(), target.to_vec());
        Ok(Self { source, file, length, digest, target, mode, uid, gid })
    }
}

/// Why an image cannot have its layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A path in the image cannot be followed.
    #[error("{path} of the image cannot be followed")]
    Path {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// Something else stands where a file or directory is needed.
    #[error("{path} of the image is not {expected}")]
    Kind {
        /// The path.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An account file is too large to be one.
    #[error("{path} of the image has more than {ACCOUNTS_MAX} bytes")]
    TooLarge {
        /// The path.
        path: String,
    },
    /// An account file cannot be read.
    #[error("{path} of the image cannot be read")]
    Read {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A target is not a path of an image.
    #[error("{path:?} cannot be a path in the image")]
    Target {
        /// The target.
        path: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The tree refuses an edit.
    #[error("{path} of the image cannot be changed")]
    Tree {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: TreeError,
    },
}

/// Edits trees.
#[derive(Debug)]
pub struct Editor<'a> {
    tree: &'a mut Tree,
    limits: &'a Limits,
    resolver: Resolver<'a>,
}

impl<'a> Editor<'a> {
    /// Edits `tree`.
    pub fn new(tree: &'a mut Tree, limits: &'a Limits) -> Self {
        Self { tree, limits, resolver: Resolver::new(limits) }
    }

    /// Gives the tree a layout. `contents` has the data of its files.
    ///
    /// # Errors
    ///
    /// When the image has something in the way.
    pub fn apply(&mut self, layout: &Layout, contents: &dyn Contents) -> Result<(), LayoutError> {
        if let Some(user) = &layout.user {
            self.add_user(user, contents)?;
        }
        for point in &layout.mount_points {
            self.directory(&point.path, point.mode)?;
        }
        Ok(())
    }

    /// Puts a file of the caller's into the tree; its data is in the source `id`. What was there is replaced.
    ///
    /// # Errors
    ///
    /// When its target is not a path, leads nowhere, or is a directory.
    pub fn add(&mut self, addition: &Addition, id: ContentId) -> Result<(), LayoutError> {
        let shown = path::display(&addition.target);
        let target = path::normal(&addition.target, self.limits)
            .map_err(|source| LayoutError::Target { path: shown.clone(), source })?;
        let (directory, name) = self.place(&target, &shown)?;
        let taken = self.tree.child(directory, &name).and_then(|id| self.tree.find(id));
        if taken.is_some_and(|node| node.is_directory()) {
            return Err(LayoutError::Kind { path: shown, expected: "a file" });
        }
        self.tree.remove(directory, &name);
        let data = FileData::stored(id, 0, addition.length);
        let metadata = Metadata::new(addition.mode, addition.uid, addition.gid);
        let inserted = self.tree.insert(directory, &name, Kind::File(data), metadata);
        inserted.map(drop).map_err(|source| LayoutError::Tree { path: shown, source })
    }

    fn add_user(&mut self, user: &User, contents: &dyn Contents) -> Result<(), LayoutError> {
        let User { name, uid, gid, home } = user;
        let group = self
            .account(GROUP, name, contents, Some("root:x:0:\n"), || format!("{name}:x:{gid}:\n"))?;
        let gid = group.and_then(|line| number_in(&line, 2)).unwrap_or(*gid);
        let root = Some("root:x:0:0:root:/root:/bin/sh\n");
        let account = self.account(PASSWD, name, contents, root, || {
            format!("{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh\n")
        })?;
        let own = account.as_ref();
        let uid = own.and_then(|line| number_in(line, 2)).unwrap_or(*uid);
        let gid = own.and_then(|line| number_in(line, 3)).unwrap_or(gid);
        self.account("etc/shadow", name, contents, None, || format!("{name}:!:::::::\n"))?;
        self.account("etc/gshadow", name, contents, None, || format!("{name}:!::\n"))?;
        let home = self.directory(home.trim_start_matches('/'), 0o755)?;
        let metadata = self.tree.metadata_mut(home);
        let metadata =
            metadata.map_err(|source| LayoutError::Tree { path: user.home.clone(), source })?;
        (metadata.uid, metadata.gid) = (uid, gid);
        Ok(())
    }

    /// Adds a line to a file of accounts, unless it has one of this name: then that one is given back. A missing file is
    /// made only when there is something to begin it with.
    fn account(
        &mut self,
        file: &str,
        name: &str,
        contents: &dyn Contents,
        begin: Option<&str>,
        line: impl Fn() -> String,
    ) -> Result<Option<String>, LayoutError> {
        let shown = format!("/{file}");
        let found = self.resolver.node(self.tree, file.as_bytes());
        let found = found.map_err(|source| LayoutError::Path { path: shown.clone(), source })?;
        let tree_error = |source| LayoutError::Tree { path: shown.clone(), source };
        let Some(node) = found else {
            let Some(begin) = begin else { return Ok(None) };
            let (directory, leaf) = self.place(file.as_bytes(), &shown)?;
            if self.tree.child(directory, &leaf).is_some() {
                return Err(LayoutError::Kind {
                    path: shown,
                    expected: "a file: it leads nowhere",
                });
            }
            let data = FileData::bytes(format!("{begin}{}", line()).into_bytes());
            let metadata = Metadata::new(0o644, 0, 0);
            let made = self.tree.insert(directory, &leaf, Kind::File(data), metadata);
            return made.map(|_| None).map_err(tree_error);
        };
        let mut text = self.read(node, &shown, contents)?;
        let prefix = [name.as_bytes(), b":"].concat();
        if let Some(own) = text.split(|byte| *byte == b'\n').find(|line| line.starts_with(&prefix))
        {
            return Ok(Some(String::from_utf8_lossy(own).into_owned()));
        }
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        text.extend_from_slice(line().as_bytes());
        self.tree.set_data(node, FileData::bytes(text)).map_err(tree_error)?;
        Ok(None)
    }

    fn read(
        &self,
        node: NodeId,
        shown: &str,
        contents: &dyn Contents,
    ) -> Result<Vec<u8>, LayoutError> {
        let path = shown.to_owned();
        let Some(Kind::File(data)) = self.tree.find(node).map(|node| node.kind()) else {
            return Err(LayoutError::Kind { path, expected: "a regular file" });
        };
        if data.size() > ACCOUNTS_MAX {
            return Err(LayoutError::TooLarge { path });
        }
        let mut text = vec![0; usize::try_from(data.size()).expect("at most 1 MiB")];
        data.read_at(contents, 0, &mut text)
            .map_err(|source| LayoutError::Read { path, source })?;
        Ok(text)
    }

    /// The directory at a path, made with this mode if it is missing.
    fn directory(&mut self, path: &str, mode: u16) -> Result<NodeId, LayoutError> {
        let shown = || format!("/{path}");
        let error = |source| LayoutError::Path { path: shown(), source };
        let found = self.resolver.directory(self.tree, path.as_bytes(), Missing::Stop);
        if let Some(node) = found.map_err(error)? {
            return Ok(node);
        }
        let made = self.resolver.directory(self.tree, path.as_bytes(), Missing::Make);
        let node = made.map_err(error)?.expect("missing directories are made");
        let metadata = self.tree.metadata_mut(node);
        let metadata = metadata.map_err(|source| LayoutError::Tree { path: shown(), source })?;
        (metadata.mode, metadata.modified) = (mode, Time::EPOCH);
        Ok(node)
    }

    fn place(&mut self, path: &[u8], shown: &str) -> Result<(NodeId, Vec<u8>), LayoutError> {
        let place = self.resolver.place(self.tree, path, Missing::Make);
        let place = place.map_err(|source| LayoutError::Path { path: shown.to_owned(), source })?;
        place.ok_or_else(|| LayoutError::Kind { path: shown.to_owned(), expected: "a file" })
    }
}

/// The n-th field of a line of accounts, counted from 0, as a number.
fn number_in(line: &str, field: usize) -> Option<u32> {
    line.split(':').nth(field)?.parse().ok()
}
