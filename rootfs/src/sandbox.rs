//! The disks of one sandbox: a small one to write on, and one with its configuration.
//!
//! Both are made whole from what the caller gives, with exact owners and modes, without root and without a mount.
//! Invariant: nothing of a sandbox's files goes into a base image or its key.

#[cfg(test)]
mod tests;

use openshell_ext4::tree::{ContentId, Contents, FileData, Kind, Metadata, Tree};
use openshell_ext4::{Identity, Options, Output, Profile, Summary, WriteError};

use crate::limits::Limits;
use crate::path::{self, PathError};
use crate::resolve::{Missing, ResolveError, Resolver};

/// A file of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenFile {
    /// Where it goes, from the root of what the sandbox sees.
    pub path: Vec<u8>,
    /// Its mode.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// A disk to write on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritableDisk {
    /// Its size in bytes. What is not used takes no place on the host.
    pub size_bytes: u64,
    /// Inodes that it has at least: twice those of the image is a good number.
    pub inodes: u32,
    /// Owner, group and mode of the base's root, which `upper` gets.
    pub root: Metadata,
}

/// Why a disk of a sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A path cannot be one.
    #[error("{path:?} cannot be a path in the sandbox")]
    Path {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// A file lies where there is one already, or below one.
    #[error("{path:?} cannot be placed")]
    Place {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// The file system could not be written.
    #[error("the disk could not be written")]
    Write(#[source] WriteError),
}

/// Nothing: the trees of these disks keep all bytes of their own.
struct Nothing;

impl Contents for Nothing {
    fn read_at(&self, _: ContentId, _: u64, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// Makes the disk that a sandbox writes on: `upper`, with the given files in it, and `work`.
///
/// # Errors
///
/// When a path cannot be one, two files have the same, or the disk cannot be written.
pub fn writable_disk(
    output: &dyn Output,
    disk: &WritableDisk,
    files: &[GivenFile],
    identity: Identity,
) -> Result<Summary, SandboxError> {
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    let mut make = |name: &[u8], metadata: Metadata| {
        tree.insert(Tree::ROOT, name, Kind::Directory, metadata).expect("the tree is new")
    };
    make(b"upper", disk.root.clone());
    make(b"work", Metadata::new(0o755, 0, 0));
    place(&mut tree, b"upper", files)?;
    let WritableDisk { size_bytes, inodes, .. } = *disk;
    let profile = Profile::ReadWrite { size_bytes, inodes, journal: true };
    write(&tree, output, profile, identity)
}

/// Makes a read-only disk with the given files.
///
/// # Errors
///
/// When a path cannot be one, two files have the same, or the disk cannot be written.
pub fn config_disk(
    output: &dyn Output,
    files: &[GivenFile],
    identity: Identity,
) -> Result<Summary, SandboxError> {
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    place(&mut tree, b"", files)?;
    write(&tree, output, Profile::Base, identity)
}

fn place(tree: &mut Tree, below: &[u8], files: &[GivenFile]) -> Result<(), SandboxError> {
    let limits = Limits::default();
    let mut resolver = Resolver::new(&limits);
    for file in files {
        let shown = || path::display(&file.path);
        let normal = path::normal(&file.path, &limits)
            .map_err(|source| SandboxError::Path { path: shown(), source })?;
        let full = [below, &normal[..]].join(&b'/');
        let error = |source| SandboxError::Place { path: shown(), source };
        let place = resolver.place(tree, &full, Missing::Make).map_err(error)?;
        let Some((directory, name)) = place.filter(|_| !normal.is_empty()) else {
            return Err(SandboxError::Path { path: shown(), source: PathError::Empty });
        };
        let data = FileData::bytes(file.bytes.clone());
        let metadata = Metadata::new(file.mode, file.uid, file.gid);
        let inserted = tree.insert(directory, &name, Kind::File(data), metadata);
        inserted.map_err(ResolveError::Tree).map_err(error)?;
    }
    Ok(())
}

fn write(
    tree: &Tree,
    output: &dyn Output,
    profile: Profile,
    identity: Identity,
) -> Result<Summary, SandboxError> {
    // So little is written that a second thread would only cost its start.
    let options = Options { profile, identity, threads: 1 };
    openshell_ext4::write(tree, &Nothing, output, &options).map_err(SandboxError::Write)
}
