//! What the tests share: images in temporary files, and the checkers of e2fsprogs.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use openshell_ext4::tree::{Contents, MemoryContents, Metadata};
use openshell_ext4::{Identity, Options, Profile, Summary, Tree, WriteError, write};
use tempfile::NamedTempFile;

pub const BASE: Options = options(Profile::Base);

pub const fn read_write(size_bytes: u64) -> Options {
    options(Profile::ReadWrite { size_bytes, inodes: 0 })
}

const fn options(profile: Profile) -> Options {
    let identity = Identity {
        uuid: *b"an uuid of tests",
        label: *b"test\0\0\0\0\0\0\0\0\0\0\0\0",
        hash_seed: [1, 2, 3, 4],
    };
    Options { profile, identity, threads: 2 }
}

/// A tree of one directory.
pub fn tree() -> Tree {
    Tree::new(Metadata::new(0o755, 0, 0))
}

/// An image, and that e2fsck finds nothing.
pub fn image(tree: &Tree, contents: &dyn Contents, options: &Options) -> (NamedTempFile, Summary) {
    let (file, summary) = unchecked(tree, contents, options).unwrap();
    fsck(file.path());
    (file, summary)
}

/// An image of a tree whose files' bytes are its own.
pub fn plain(tree: &Tree, options: &Options) -> NamedTempFile {
    image(tree, &MemoryContents::new(), options).0
}

/// An image, or why there is none.
pub fn unchecked(
    tree: &Tree,
    contents: &dyn Contents,
    options: &Options,
) -> Result<(NamedTempFile, Summary), WriteError> {
    let file = NamedTempFile::new().unwrap();
    let output = File::options().write(true).open(file.path()).unwrap();
    let summary = write(tree, contents, &output, options)?;
    assert_eq!(output.metadata().unwrap().len(), summary.size_bytes);
    Ok((file, summary))
}

/// Fails unless e2fsck finds nothing.
pub fn fsck(image: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-n"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{said}", output.status);
}

/// What debugfs answers to a request.
pub fn debugfs(image: &Path, request: &str) -> String {
    let mut command = Command::new("debugfs");
    let output = command.args(["-R", request]).arg(image).output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}
