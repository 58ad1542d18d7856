//! The two disks of a machine that are ours: the one that it writes on, and the one that says what its first process shall do. A machine
//! that starts once has one for both: each disk costs it 2 % of its start.
//!
//! Invariant: nothing of an image is on them. Both are written whole, with exact owners and modes, and need no sync: the first is empty, the
//! second is made anew for each start.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use openshell_ext4::tree::{ContentId, Contents, FileData, Kind, Metadata, Tree};
use openshell_ext4::{Identity, Options, Profile, write};
use sha2::{Digest, Sha256};

use crate::config::units::parse_size;

/// Size of the disk that a machine writes on: 32 MiB to 15 TiB. What is not used takes no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(u64);

impl DiskSize {
    /// A journal and one inode for each 8 KiB leave half of it for files.
    const MIN: u64 = 32 << 20;
    /// An ext4 file system of 32-bit block numbers has less than 16 TiB.
    const MAX: u64 = 15 << 40;

    /// Reads a whole number with K, M, G or T.
    ///
    /// # Errors
    /// What is wrong with `text`, to follow a colon.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match parse_size(text, None)? {
            bytes if (Self::MIN..=Self::MAX).contains(&bytes) => Ok(Self(bytes)),
            _ => Err("a machine's disk has 32M to 15T"),
        }
    }
}

impl Default for DiskSize {
    fn default() -> Self {
        Self(64 << 30)
    }
}

/// Inodes of a disk that is large enough, however few files its image has.
const INODES: u64 = 65_536;
/// A smaller one has an inode for so many bytes, however many files its image has: most of them are never written to.
const BYTES_PER_INODE: u64 = 8 << 10;

/// The trees of these disks keep all bytes of their own.
struct Nothing;

impl Contents for Nothing {
    fn read_at(&self, _: ContentId, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Makes the disk that a machine writes on, above an image of `nodes` files, at `path`. One that is gone with the first run needs no journal,
/// and is given the `config.json` of that run.
///
/// # Errors
/// What the host said.
pub fn writable(
    path: &Path,
    size: DiskSize,
    nodes: u64,
    id: &str,
    volatile: Option<&[u8]>,
) -> io::Result<()> {
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    for name in [b"upper", b"work\0"] {
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let directory = Metadata::new(0o755, 0, 0);
        tree.insert(Tree::ROOT, name, Kind::Directory, directory).map_err(io::Error::other)?;
    }
    if let Some(config) = volatile {
        add_config(&mut tree, config)?;
    }
    let DiskSize(size_bytes) = size;
    let inodes = nodes.saturating_mul(2).max(INODES).min(size_bytes / BYTES_PER_INODE);
    let inodes = u32::try_from(inodes).unwrap_or(u32::MAX);
    let journal = volatile.is_none();
    make(path, &tree, Profile::ReadWrite { size_bytes, inodes, journal }, id)
}

/// Makes the disk with `config.json` at `path`.
///
/// # Errors
/// What the host said.
pub fn config(path: &Path, config: &[u8], id: &str) -> io::Result<()> {
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    add_config(&mut tree, config)?;
    make(path, &tree, Profile::Base, id)
}

fn add_config(tree: &mut Tree, config: &[u8]) -> io::Result<()> {
    let file = Kind::File(FileData::bytes(config.to_vec()));
    let added = tree.insert(Tree::ROOT, b"config.json", file, Metadata::new(0o600, 0, 0));
    added.map(|_| ()).map_err(io::Error::other)
}

/// What a guest's kernel calls disk number `index` of a machine, which has fewer than 26.
#[must_use]
pub fn device_name(index: usize) -> String {
    format!("vd{}", ('a'..='z').nth(index).unwrap_or('z'))
}

fn make(path: &Path, tree: &Tree, profile: Profile, id: &str) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let digest = Sha256::digest(format!("{}\n{id}", path.display()).as_bytes());
    let identity = Identity::from_digest(&digest.into());
    // So little is written that a second thread would only cost its start.
    let options = Options { profile, identity, threads: 1 };
    write(tree, &Nothing, &file, &options).map(|_| ()).map_err(|error| {
        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
        // The reason is the host's, and in the chain.
        io::Error::other(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn both_are_sound_small_and_readable_by_their_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let (disk, told) = (home.path().join("disk"), home.path().join("config"));
        let volatile = home.path().join("volatile");
        writable(&disk, DiskSize::default(), 1000, "id", None).unwrap();
        let text = b"{\"version\":1}";
        writable(&volatile, DiskSize::default(), 1000, "id", Some(text)).unwrap();
        config(&told, text, "id").unwrap();
        for (path, limit) in [(&disk, 400 << 10), (&volatile, 400 << 10), (&told, 64 << 10)] {
            let image = openshell_ext4::Image::open(File::open(path).unwrap()).unwrap();
            assert!(image.check().unwrap().is_clean());
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.mode() & 0o7777, 0o600);
            assert!(metadata.blocks() * 512 <= limit, "{}", metadata.blocks() * 512);
        }
        for path in [&disk, &volatile] {
            let image = openshell_ext4::Image::open(File::open(path).unwrap()).unwrap();
            for name in [&b"upper"[..], b"work"] {
                assert!(image.find(name).unwrap().is_some());
            }
        }
        for path in [&told, &volatile] {
            let image = openshell_ext4::Image::open(File::open(path).unwrap()).unwrap();
            let file = image.find(b"config.json").unwrap().unwrap();
            let mut bytes = [0; 13];
            assert_eq!(image.read(&file, 0, &mut bytes).unwrap(), 13);
            assert_eq!(&bytes, text);
        }
    }

    #[test]
    fn a_disk_of_any_size_holds_its_own_structures() {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("disk");
        for text in ["32M", "33M", "64M", "127M", "128M", "129M", "300M", "1G", "1T", "15T"] {
            for nodes in [0, 10_000, 10_000_000] {
                let made = writable(&disk, DiskSize::parse(text).unwrap(), nodes, "id", None);
                made.unwrap_or_else(|error| panic!("{text}, {nodes} nodes: {error}"));
                if disk.metadata().unwrap().len() <= 1 << 30 {
                    let image = openshell_ext4::Image::open(File::open(&disk).unwrap()).unwrap();
                    assert!(image.check().unwrap().is_clean(), "{text}, {nodes} nodes");
                }
            }
        }
    }

    #[test]
    fn disks_have_the_names_that_kernels_give() {
        assert_eq!([0, 3, 7].map(device_name), ["vda", "vdd", "vdh"]);
    }

    #[test]
    fn sizes_are_checked_where_they_are_read() {
        assert_eq!(DiskSize::parse("32M"), Ok(DiskSize(32 << 20)));
        assert_eq!(DiskSize::parse("15T"), Ok(DiskSize(15 << 40)));
        for text in ["", "1", "31M", "16T", "1.5G", "-1G", "99999999T"] {
            assert!(DiskSize::parse(text).is_err(), "{text}");
        }
    }
}
