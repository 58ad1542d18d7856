//! Disks of sandboxes, read back.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use openshell_ext4::Image;

use super::*;

fn given(path: &str, mode: u16, uid: u32, bytes: &[u8]) -> GivenFile {
    GivenFile { path: path.into(), mode, uid, gid: uid + 1, bytes: bytes.to_vec() }
}

fn identity() -> Identity {
    Identity::from_digest(&[7; 32])
}

fn new_file() -> (tempfile::TempDir, File) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let file = File::options().read(true).write(true).create_new(true).open(path).expect("new");
    (directory, file)
}

fn text(image: &Image<&File>, path: &str) -> Vec<u8> {
    let found = image.find(path.as_bytes()).expect("read").expect("there");
    let mut bytes = vec![0; usize::try_from(found.size_bytes()).expect("small")];
    image.read(&found, 0, &mut bytes).expect("read");
    bytes
}

#[test]
fn a_writable_disk_has_an_upper_like_the_root_and_the_given_files() {
    let (_directory, file) = new_file();
    let root = Metadata::new(0o751, 3, 4);
    let disk = WritableDisk { size_bytes: 64 << 30, inodes: 20_000, root: root.clone() };
    let files =
        [given("/opt/openshell/auth/token", 0o600, 0, b"secret"), given("a", 0o4755, 9, b"")];
    writable_disk(&file, &disk, &files, identity()).expect("made");
    let image = Image::open(&file).expect("opened");
    assert!(image.check().expect("read").is_clean());
    let tree = image.read_tree().expect("read");
    let metadata = |path: &str| {
        let id = tree.at(path.as_bytes()).expect(path);
        tree.find(id).expect(path).metadata.clone()
    };
    assert_eq!(metadata("upper"), root);
    assert_eq!(metadata("upper/a"), Metadata::new(0o4755, 9, 10));
    assert_eq!(metadata("upper/opt/openshell/auth/token"), Metadata::new(0o600, 0, 1));
    assert!(tree.at(b"work").is_some());
    assert_eq!(text(&image, "upper/opt/openshell/auth/token"), b"secret");
    let metadata = file.metadata().expect("there");
    assert_eq!(metadata.len(), 64 << 30);
    let taken = metadata.blocks() * 512;
    assert!(taken <= 400 << 10, "{taken} bytes on the host");
}

#[test]
fn a_config_disk_has_exactly_the_given_files() {
    let (_directory, file) = new_file();
    let files = [given("env", 0o400, 10001, b"A=1\0"), given("tls/tls.key", 0o600, 0, b"key")];
    config_disk(&file, &files, identity()).expect("made");
    let image = Image::open(&file).expect("opened");
    assert!(image.check().expect("read").is_clean());
    assert_eq!(text(&image, "env"), b"A=1\0");
    assert_eq!(text(&image, "tls/tls.key"), b"key");
}

#[test]
fn files_that_cannot_be_placed_are_named() {
    let refused = |files: &[GivenFile]| {
        let (_directory, file) = new_file();
        config_disk(&file, files, identity()).expect_err("refused").to_string()
    };
    assert!(refused(&[given("a/../b", 0o600, 0, b"")]).contains("\"a/../b\" cannot be a path"));
    assert!(refused(&[given("/", 0o600, 0, b"")]).contains("cannot be a path"));
    let twice = [given("a", 0o600, 0, b""), given("a", 0o600, 0, b"")];
    assert!(refused(&twice).contains("\"a\" cannot be placed"));
    let below = [given("a", 0o600, 0, b""), given("a/b", 0o600, 0, b"")];
    assert!(refused(&below).contains("\"a/b\" cannot be placed"));
}
