//! One directory of nearly four million names of 255 bytes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use openshell_ext4::tree::{Kind, MemoryContents, Metadata, Tree};
use openshell_ext4::{Identity, Image, Options, Profile, write};

/// Leaves that a root of 507 entries and nodes of 511 point to, times the 15 names of a leaf, and as many again as fill one more node.
const NAMES: usize = (507 * 511 + 511) * 15;
/// Names that one inode may have.
const LINKS: usize = 65_000;

fn name(at: usize) -> String {
    format!("{at:0255}")
}

fn tree() -> Tree {
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    let metadata = Metadata::new(0o644, 1, 2);
    let directory = tree.insert(Tree::ROOT, b"d", Kind::Directory, metadata.clone()).unwrap();
    let mut node = Tree::ROOT;
    for at in 0..NAMES {
        if at % LINKS == 0 {
            node =
                tree.insert(directory, name(at).as_bytes(), Kind::Fifo, metadata.clone()).unwrap();
        } else {
            tree.link(directory, name(at).as_bytes(), node).unwrap();
        }
    }
    tree
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn a_directory_of_four_levels() {
    let identity = Identity { uuid: [1; 16], label: [0; 16], hash_seed: [1, 2, 3, 4] };
    let options = Options { profile: Profile::Base, identity, threads: 2 };
    let image = tempfile::NamedTempFile::new().unwrap();
    write(&tree(), &MemoryContents::new(), image.as_file(), &options).unwrap();
    let path = image.path().to_str().unwrap();

    let checked = run("e2fsck", &["-f", "-n", path]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let opened = Image::open(File::open(image.path()).unwrap()).unwrap();
    let report = opened.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.faults());
    let root = run("debugfs", &["-R", "stat /d", path]);
    let root = String::from_utf8(root.stdout).unwrap();
    assert!(root.contains("Type: directory"), "{root}");

    // The kernel finds each name by way of all levels.
    let mount = tempfile::tempdir().unwrap();
    let at = mount.path().to_str().unwrap();
    let mounted = run("mount", &["-t", "ext4", "-o", "loop,ro", path, at]);
    if !mounted.status.success() {
        assert!(
            fs::metadata("/proc/self").unwrap().uid() != 0
                || !Path::new("/dev/loop-control").exists()
        );
        eprintln!("skipped: this user may not mount images");
        return;
    }
    let found = (0..NAMES).step_by(997).all(|number| {
        let inode = |number: usize| {
            fs::symlink_metadata(mount.path().join("d").join(name(number))).unwrap().ino()
        };
        inode(number) == inode(number / LINKS * LINKS)
    });
    let absent = fs::symlink_metadata(mount.path().join("d").join(name(NAMES))).is_err();
    let unmounted = run("umount", &[at]);
    assert!(found && absent && unmounted.status.success());
}
