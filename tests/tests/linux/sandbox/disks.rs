//! The disks of a sandbox, made as a driver makes them: tools, base, read-write, config.

use std::fs::File;
use std::path::{Path, PathBuf};

use openshell_ext4::tree::{ContentId, Contents, FileData, Kind, Metadata, Tree};
use openshell_ext4::{Identity, Options, Profile};
use openshell_rootfs::sandbox::{GivenFile, WritableDisk, config_disk, writable_disk};
use openshell_tests::machine::fixture;
use serde_json::Value;

use crate::guest::Guest;

const READ_WRITE_BYTES: u64 = 64 << 20;

/// The words that make the kernel run our first process.
pub(super) const INIT: &str = "rootfstype=ext4 init=/bin/openshell-init ";

struct Nothing;

impl Contents for Nothing {
    fn read_at(&self, _: ContentId, _: u64, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// A sandbox whose disks lie in a directory of its own; it can be started any number of times.
#[derive(Debug)]
pub(super) struct Sandbox {
    directory: tempfile::TempDir,
}

impl Sandbox {
    /// An image that holds nothing but busybox and two account files, and whose root belongs to somebody odd.
    pub(super) fn new() -> Self {
        let sandbox = Self { directory: tempfile::tempdir().unwrap() };
        let tools = [
            file("/bin/openshell-init", 0o755, (0, 0), &read(&fixture("openshell-init"))),
            file("/dev/.keep", 0o644, (0, 0), b""),
            file("/run/.keep", 0o644, (0, 0), b""),
        ];
        config_disk(&sandbox.create("tools"), &tools, identity(1)).unwrap();
        let options = Options { profile: Profile::Base, identity: identity(2), threads: 1 };
        openshell_ext4::write(&image(), &Nothing, &sandbox.create("base"), &options).unwrap();
        // Nobody told whoever made this one who owns the image's root.
        let root = Metadata::new(0o700, 0, 0);
        let disk = WritableDisk { size_bytes: READ_WRITE_BYTES, inodes: 4096, root };
        writable_disk(&sandbox.create("rw"), &disk, &[], identity(3)).unwrap();
        sandbox
    }

    /// A path in the sandbox's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn create(&self, name: &str) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name))
            .unwrap()
    }

    /// Makes the config disk anew and starts a guest from all disks.
    pub(super) fn guest(&self, config: &Value, files: &[GivenFile]) -> Guest {
        self.guest_with(config.to_string().as_bytes(), files)
    }

    /// As [`Self::guest`], with any bytes as the config.
    pub(super) fn guest_with(&self, config: &[u8], files: &[GivenFile]) -> Guest {
        let mut all = vec![file("/config.json", 0o600, (0, 0), config)];
        all.extend(files.iter().map(|given| GivenFile {
            path: [b"/files", &given.path[..]].concat(),
            ..given.clone()
        }));
        config_disk(&self.create("config"), &all, identity(4)).unwrap();
        Guest::new()
            .root(&self.path("tools"), ",ro")
            .disk(&self.path("base"), ",ro")
            .disk(&self.path("rw"), "")
            .disk(&self.path("config"), ",ro")
            .append(INIT)
    }
}

/// A file for a disk.
pub(super) fn file(path: &str, mode: u16, (uid, gid): (u32, u32), bytes: &[u8]) -> GivenFile {
    GivenFile { path: path.as_bytes().to_vec(), mode, uid, gid, bytes: bytes.to_vec() }
}

fn image() -> Tree {
    let mut tree = Tree::new(Metadata::new(0o751, 7, 8));
    let mut directory = |name: &[u8]| {
        tree.insert(Tree::ROOT, name, Kind::Directory, Metadata::new(0o755, 0, 0)).unwrap()
    };
    let (bin, etc) = (directory(b"bin"), directory(b"etc"));
    let mut put = |parent, name: &[u8], mode, bytes: Vec<u8>| {
        let kind = Kind::File(FileData::bytes(bytes));
        tree.insert(parent, name, kind, Metadata::new(mode, 0, 0)).unwrap();
    };
    put(bin, b"busybox", 0o755, read(&fixture("busybox")));
    put(bin, b"plain", 0o644, b"no program".to_vec());
    put(bin, b"lost", 0o755, b"#!/bin/no-interpreter\n".to_vec());
    let passwd = "root:x:0:0::/root:/bin/sh\nsandbox:x:10001:10002::/sandbox:/bin/sh\n";
    put(etc, b"passwd", 0o644, passwd.into());
    put(etc, b"group", 0o644, b"root:x:0:\nsandbox:x:10002:\nextra:x:77:sandbox\n".to_vec());
    tree
}

fn identity(number: u8) -> Identity {
    Identity::from_digest(&[number; 32])
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
