//! What the tests share: images in memory and in temporary files, and who checks them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use openshell_ext4::tree::{Contents, Kind, MemoryContents, Metadata, NodeId, Time};
use openshell_ext4::{
    Identity, Image, Input, Options, Output, Profile, Summary, Tree, WriteError, write,
};
use tempfile::NamedTempFile;

pub(crate) const BASE: Options = options(Profile::Base);

pub(crate) const fn read_write(size_bytes: u64) -> Options {
    options(Profile::ReadWrite { size_bytes, inodes: 0, journal: true })
}

pub(crate) const fn without_journal(size_bytes: u64) -> Options {
    options(Profile::ReadWrite { size_bytes, inodes: 0, journal: false })
}

const fn options(profile: Profile) -> Options {
    let label = *b"label of a test\0";
    let identity = Identity { uuid: *b"an uuid of tests", label, hash_seed: [1, 2, 3, 4] };
    Options { profile, identity, threads: 2 }
}

/// A tree of one directory.
pub(crate) fn tree() -> Tree {
    Tree::new(Metadata::new(0o755, 0, 0))
}

/// An image in memory: blocks that are not zero, by number.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    size: Mutex<u64>,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Output for Sparse {
    fn reset(&self, size_bytes: u64) -> io::Result<()> {
        *self.size.lock().unwrap() = size_bytes;
        self.blocks.lock().unwrap().clear();
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!((offset % 4096, bytes.len() % 4096), (0, 0), "whole blocks are written");
        assert!(offset + bytes.len() as u64 <= *self.size.lock().unwrap());
        let mut blocks = self.blocks.lock().unwrap();
        for (block, number) in bytes.chunks(4096).zip(offset / 4096..) {
            let old = blocks.insert(number, block.to_vec());
            assert_eq!(old, None, "block {number} is written twice");
        }
        Ok(())
    }
}

impl Input for Sparse {
    fn size(&self) -> io::Result<u64> {
        Ok(*self.size.lock().unwrap())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + into.len() as u64 > *self.size.lock().unwrap() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let blocks = self.blocks.lock().unwrap();
        into.fill(0);
        let end = offset + into.len() as u64;
        for (number, block) in blocks.range(offset / 4096..end.div_ceil(4096)) {
            let (from, to) = ((number * 4096).max(offset), (number * 4096 + 4096).min(end));
            let bytes = &block[(from - number * 4096) as usize..(to - number * 4096) as usize];
            into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl Sparse {
    /// The bytes of the blocks that are not zero.
    pub(crate) fn blocks(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut blocks = self.blocks.lock().unwrap().clone();
        blocks.retain(|_, block| block.iter().any(|byte| *byte != 0));
        blocks
    }
}

/// An image that everybody finds nothing wrong with.
pub(crate) struct Made {
    pub(crate) file: NamedTempFile,
    pub(crate) summary: Summary,
}

impl Made {
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Writes an image, and checks that e2fsck and our checker find nothing in it, and that the tree that is read from it is the same
/// and becomes the same image.
pub(crate) fn image(tree: &Tree, contents: &dyn Contents, options: &Options) -> Made {
    let sparse = Sparse::default();
    let summary = write(tree, contents, &sparse, options).unwrap();
    assert_eq!(sparse.size().unwrap(), summary.size_bytes);
    let file = NamedTempFile::new().unwrap();
    let output = File::options().write(true).open(file.path()).unwrap();
    output.set_len(summary.size_bytes).unwrap();
    for (number, block) in sparse.blocks() {
        output.write_all_at(&block, number * 4096).unwrap();
    }
    fsck(file.path());
    let image = Image::open(&sparse).unwrap();
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.faults());
    let read = image.read_tree().unwrap();
    assert_same(tree, contents, &read, &image);
    assert_eq!(image.root().unwrap(), read.node(Tree::ROOT).unwrap().metadata);
    let again = Sparse::default();
    write(&read, &image, &again, &Options { threads: 1, ..*options }).unwrap();
    assert!(again.blocks() == sparse.blocks(), "the tree that was read becomes another image");
    Made { file, summary }
}

/// An image of a tree whose files' bytes are its own.
pub(crate) fn plain(tree: &Tree, options: &Options) -> Made {
    image(tree, &MemoryContents::new(), options)
}

/// Why there is no image of a tree.
pub(crate) fn refused(tree: &Tree, options: &Options) -> WriteError {
    write(tree, &MemoryContents::new(), &Sparse::default(), options).unwrap_err()
}

/// Fails unless two trees are the same, but for a `lost+found` that only the second has.
pub(crate) fn assert_same(
    left: &Tree,
    left_contents: &dyn Contents,
    right: &Tree,
    right_contents: &dyn Contents,
) {
    let added = left.at(b"lost+found").is_none();
    let rights = right
        .walk(Tree::ROOT)
        .filter(|entry| !(added && entry.directory == Tree::ROOT && entry.name == b"lost+found"));
    let mut pairs: BTreeMap<NodeId, NodeId> = [(Tree::ROOT, Tree::ROOT)].into();
    let mut rights = rights.peekable();
    for entry in left.walk(Tree::ROOT) {
        let other = rights.next().unwrap();
        let name = entry.name.escape_ascii().to_string();
        assert_eq!(entry.name, other.name);
        assert_eq!(pairs[&entry.directory], other.directory, "{name}");
        let known = *pairs.entry(entry.node).or_insert(other.node);
        assert_eq!(known, other.node, "{name} is a link to another node");
    }
    assert_eq!(rights.next(), None);
    for (one, other) in pairs {
        let (one, other) = (left.node(one).unwrap(), right.node(other).unwrap());
        assert_eq!(one.names(), other.names());
        let mut metadata = one.metadata.clone();
        metadata.modified = clamped(metadata.modified);
        metadata.mode &= 0o7777;
        assert_eq!(metadata, other.metadata);
        match (one.kind(), other.kind()) {
            (Kind::File(one), Kind::File(other)) => {
                assert_eq!(one.size(), other.size());
                for at in (0..one.size().min(8 << 20)).step_by(1 << 20) {
                    let (mut left, mut right) = (vec![1; 1 << 20], vec![2; 1 << 20]);
                    one.read_at(left_contents, at, &mut left).unwrap();
                    other.read_at(right_contents, at, &mut right).unwrap();
                    assert!(left == right, "the contents differ");
                }
            }
            (one, other) => assert_eq!(one, other),
        }
    }
}

fn clamped(time: Time) -> Time {
    match time.seconds() {
        ..-0x8000_0000 => Time::from_seconds(-0x8000_0000),
        10_737_418_240.. => Time::from_seconds(10_737_418_239),
        _ => time,
    }
}

/// Fails unless e2fsck finds nothing.
pub(crate) fn fsck(image: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{said}", output.status);
}

/// What debugfs answers to a request.
pub(crate) fn debugfs(image: &Path, request: &str) -> String {
    let mut command = Command::new("debugfs");
    let output = command.args(["-R", request]).arg(image).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}
