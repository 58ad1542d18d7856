//! Trees of every shape become images that e2fsck finds nothing wrong with.

mod support;

use openshell_ext4::FileData;
use openshell_ext4::tree::{Device, Kind, Metadata, Tree};
use support::{BASE, plain, read_write, tree};

#[test]
fn an_empty_tree() {
    for options in [BASE, read_write(64 << 20), read_write(1 << 30), read_write(64 << 30)] {
        plain(&tree(), &options);
    }
}

#[test]
fn one_of_each_kind() {
    let mut tree = tree();
    let metadata = || Metadata::new(0o644, 1000, 100_000);
    let device = |major, minor| Device { major, minor };
    for (name, kind) in [
        ("directory", Kind::Directory),
        ("file", Kind::File(FileData::bytes(*b"hello"))),
        ("empty", Kind::File(FileData::empty())),
        ("short", Kind::Symlink(b"target".to_vec())),
        ("59", Kind::Symlink(vec![b'x'; 59])),
        ("60", Kind::Symlink(vec![b'x'; 60])),
        ("4095", Kind::Symlink(vec![b'x'; 4095])),
        ("char", Kind::CharDevice(device(1, 3))),
        ("wide", Kind::CharDevice(device(0xfff, 0xf_ffff))),
        ("block", Kind::BlockDevice(device(8, 256))),
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
    ] {
        tree.insert(Tree::ROOT, name.as_bytes(), kind, metadata()).unwrap();
    }
    for options in [BASE, read_write(1 << 30)] {
        plain(&tree, &options);
    }
}
