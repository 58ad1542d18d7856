//! An image that anybody may have written: it is refused, or it is a tree that can be written again.
#![no_main]

use std::io;
use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use openshell_ext4::tree::{
    Device, FileData, Holes, Kind, MemoryContents, Metadata, Piece, Source,
};
use openshell_ext4::{
    Checksums, Identity, Image, Options, Output, Profile, ReadError, Tree, write,
};
use openshell_fuzz::Script;

/// A base image and a disk with one of every structure.
static SAMPLES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let disk = Profile::ReadWrite { size_bytes: 8 << 20, inodes: 0, journal: true };
    [written(&sample(), Profile::Base), written(&sample(), disk)]
});

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let kind = script.byte();
    // The disk is mostly zeros, so its structures are what patches are aimed at.
    let (mut image, checksums) = match kind % 4 {
        0 => (script.0.to_vec(), Checksums::Compared),
        1 => (SAMPLES[0].clone(), Checksums::Compared),
        2 => (SAMPLES[0].clone(), Checksums::Ignored),
        _ => (SAMPLES[1].clone(), Checksums::Ignored),
    };
    if kind % 4 != 0 {
        while script.goes_on() {
            let block = usize::from(script.u16()) % (image.len() / 4096).min(600);
            let at = usize::from(script.u16()) % 4096;
            image[block * 4096 + at] = script.byte();
        }
    }
    let Ok(opened) = Image::open_with(&image[..], checksums) else { return };
    let report = opened.check().expect("bytes in memory are read");
    assert_eq!(opened.read_tree().is_ok(), report.is_clean());
    for path in [&b"f"[..], b"large/again", b"large/599", b"lost+found"] {
        if let Ok(Some(found)) = opened.find(path) {
            let mut buffer = vec![0; 10_000];
            let _ends_early = opened.read(&found, 0, &mut buffer);
        }
    }
    match opened.read_tree() {
        // What is left of a checked tree fits into an image again, unless a file of it is sparse and huge.
        Ok(tree) => {
            let again = Sink::default();
            let options = options(Profile::Base);
            write(&tree, &opened, &again, &options).expect("a checked tree is written");
        }
        Err(ReadError::Fault(_)) => {}
        Err(error) => panic!("{error}"),
    }
});

/// Bytes of an image, as many as there are data.
#[derive(Default)]
struct Sink(Mutex<Vec<u8>>);

impl Output for Sink {
    fn reset(&self, size_bytes: u64) -> io::Result<()> {
        let size = usize::try_from(size_bytes).expect("a small image");
        *self.0.lock().expect("one thread") = vec![0; size];
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).expect("a small image");
        self.0.lock().expect("one thread")[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fn options(profile: Profile) -> Options {
    Options { profile, identity: Identity::from_digest(&[7; 32]), threads: 1 }
}

fn written(tree: &Tree, profile: Profile) -> Vec<u8> {
    let sink = Sink::default();
    let mut contents = MemoryContents::new();
    contents.add(vec![0xd5; 4096]);
    write(tree, &contents, &sink, &options(profile)).expect("the sample is written");
    sink.0.into_inner().expect("one thread")
}

fn sample() -> Tree {
    let metadata = |value: usize| Metadata {
        xattrs: [(b"user.x".to_vec(), vec![9; value])].into(),
        ..Metadata::new(0o644, 1, 1)
    };
    let mut tree = Tree::new(metadata(0));
    let source = Source::Stored(openshell_ext4::tree::ContentId(0), 0);
    let piece = |at: u64| Piece { at: at * 8192, length: 4096, source: source.clone() };
    let data = FileData::new(8192 * 20, (0..20).map(piece).collect(), Holes::Known);
    let mut add = |above, name: &[u8], kind| {
        tree.insert(above, name, kind, metadata(name.len() * 100)).expect("a good node")
    };
    let large = add(Tree::ROOT, b"large", Kind::Directory);
    let file = add(Tree::ROOT, b"f", Kind::File(data.expect("good pieces")));
    add(Tree::ROOT, b"s", Kind::Symlink(vec![b'x'; 20]));
    add(Tree::ROOT, b"l", Kind::Symlink(vec![b'x'; 200]));
    add(Tree::ROOT, b"c", Kind::CharDevice(Device { major: 1, minor: 3 }));
    for at in 0..600 {
        let name = format!("{at}");
        tree.insert(large, name.as_bytes(), Kind::Fifo, Metadata::default()).expect("a good node");
    }
    tree.link(large, b"again", file).expect("a good name");
    tree
}
