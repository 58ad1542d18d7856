//! What the kernel sees when it mounts our images, and what we see after it wrote to them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use openshell_ext4::Image;
use openshell_ext4::tree::{
    Device, FileData, Holes, Kind, MemoryContents, Metadata, NodeId, Piece, Source, Time, Tree,
};
use tempfile::TempDir;

use crate::support::{BASE, assert_same, fsck, image, plain, read_write, tree};

/// A mounted image; unmounted when it goes.
struct Mount(TempDir);

impl Mount {
    /// None, with a word on it, where this user may not mount. In CI that is a failure.
    fn new(image: &Path, options: &str) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", &format!("loop,{options}")]);
        let output = command.arg(image).arg(directory.path()).output().unwrap();
        if output.status.success() {
            return Some(Self(directory));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let may = fs::metadata("/proc/self").unwrap().uid() == 0
            && Path::new("/dev/loop-control").exists();
        assert!(!may && std::env::var_os("CI").is_none(), "cannot mount: {said}");
        eprintln!("skipped: this user may not mount images");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// The tree below a directory of the host.
fn tree_of(root: &Path) -> Tree {
    let mut tree = Tree::new(metadata_of(root));
    let mut open = vec![(root.to_path_buf(), Tree::ROOT)];
    let mut links: std::collections::HashMap<u64, NodeId> = std::collections::HashMap::new();
    while let Some((path, at)) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            let stat = fs::symlink_metadata(&path).unwrap();
            if let Some(node) = links.get(&stat.ino()) {
                tree.link(at, name.as_bytes(), *node).unwrap();
                continue;
            }
            let node = tree.insert(at, name.as_bytes(), kind_of(&path, &stat), metadata_of(&path));
            if stat.is_dir() {
                open.push((path, node.unwrap()));
            } else {
                links.insert(stat.ino(), node.unwrap());
            }
        }
    }
    tree
}

fn kind_of(path: &Path, stat: &fs::Metadata) -> Kind {
    let rdev = stat.rdev();
    let device = Device {
        major: ((rdev >> 8) & 0xfff) as u32,
        minor: ((rdev & 0xff) | ((rdev >> 12) & 0xf_ff00)) as u32,
    };
    let kind = stat.file_type();
    if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_char_device() {
        Kind::CharDevice(device)
    } else if kind.is_block_device() {
        Kind::BlockDevice(device)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else if stat.len() > 16 << 20 {
        // Sparse: only its size is compared.
        Kind::File(FileData::new(stat.len(), vec![], Holes::Known).unwrap())
    } else {
        Kind::File(FileData::bytes(fs::read(path).unwrap()))
    }
}

fn metadata_of(path: &Path) -> Metadata {
    let stat = fs::symlink_metadata(path).unwrap();
    for (seconds, nanoseconds) in
        [(stat.atime(), stat.atime_nsec()), (stat.ctime(), stat.ctime_nsec())]
    {
        assert!((0..1_000_000_000).contains(&nanoseconds), "{seconds}");
    }
    let names = xattr::list(path).unwrap();
    let xattrs = names.map(|name| {
        let value = xattr::get(path, &name).unwrap().unwrap();
        (name.as_bytes().to_vec(), value)
    });
    Metadata {
        mode: (stat.mode() & 0o7777) as u16,
        uid: stat.uid(),
        gid: stat.gid(),
        modified: Time::new(stat.mtime(), stat.mtime_nsec() as u32).unwrap(),
        xattrs: xattrs.collect(),
    }
}

/// A tree with one of everything that a kernel shows.
fn everything(contents: &mut MemoryContents) -> Tree {
    let mut tree = tree();
    let mut number = 0_i64;
    let mut metadata = || {
        number += 1;
        let owner = u32::try_from(number).unwrap() * 70_001;
        let modified = Time::new(number * 5_000_000_000 / 20 - 1_000_000_000, 123_456_789).unwrap();
        Metadata {
            modified,
            ..Metadata::new((0o4000 | (number % 0o1000)) as u16, owner, owner / 3)
        }
    };
    let device = |major, minor| Device { major, minor };
    let id = contents.add(vec![0xa5; 70_000]);
    let spread =
        (0..2000).map(|at| Piece { at: at * 9000, length: 100, source: Source::Stored(id, at) });
    let spread = FileData::new(2000 * 9000, spread.collect(), Holes::Known).unwrap();
    let deep =
        (0..500).map(|at| Piece { at: at * 9000, length: 100, source: Source::Stored(id, at) });
    let deep = FileData::new(1 << 33, deep.collect(), Holes::Known).unwrap();
    for (name, kind) in [
        (&b"file"[..], Kind::File(FileData::stored(id, 5, 69_000))),
        (b"empty", Kind::File(FileData::empty())),
        (b"spread", Kind::File(spread)),
        (b"sparse", Kind::File(deep)),
        (b"link59", Kind::Symlink(vec![b'x'; 59])),
        (b"link60", Kind::Symlink(vec![b'x'; 60])),
        (b"link4095", Kind::Symlink(vec![b'x'; 4095])),
        (b"null", Kind::CharDevice(device(1, 3))),
        (b"wide", Kind::BlockDevice(device(0xabc, 0x12345))),
        (b"fifo", Kind::Fifo),
        (b"socket", Kind::Socket),
        (b"\xff\x01 name", Kind::Directory),
        (&[b'n'; 255], Kind::Directory),
    ] {
        tree.insert(Tree::ROOT, name, kind, metadata()).unwrap();
    }
    let file = tree.at(b"file").unwrap();
    let large = tree.insert(Tree::ROOT, b"large", Kind::Directory, metadata()).unwrap();
    for at in 0..20_000 {
        let name = format!("a-longer-name-for-more-blocks-{at}");
        if at % 100 == 0 {
            tree.link(large, name.as_bytes(), file).unwrap();
        } else {
            tree.insert(large, name.as_bytes(), Kind::Fifo, metadata()).unwrap();
        }
    }
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1, 6, u32::MAX), (2, 4, 70_000), (4, 4, u32::MAX), (16, 5, u32::MAX), (32, 1, u32::MAX)]
    {
        acl.extend_from_slice(&[tag, 0, permissions, 0]);
        acl.extend_from_slice(&id.to_le_bytes());
    }
    for (path, name, value) in [
        (&b"file"[..], &b"security.capability"[..], capability.to_vec()),
        (b"file", b"user.large", vec![b'\n'; 3000]),
        (b"file", b"trusted.binary", (0..=255).collect()),
        (b"file", b"user.empty", vec![]),
        (b"large", b"user.on-a-directory", vec![1; 100]),
        (b"empty", b"system.posix_acl_access", acl),
        (b"null", b"trusted.on-a-device", vec![7]),
    ] {
        let node = tree.at(path).unwrap();
        let metadata = tree.metadata_mut(node).unwrap();
        metadata.xattrs.insert(name.to_vec(), value);
        // The list of this node says so.
        metadata.mode = if path == b"empty" { 0o651 } else { metadata.mode };
    }
    tree
}

#[test]
fn the_kernel_sees_the_tree() {
    let mut contents = MemoryContents::new();
    let tree = everything(&mut contents);
    for (options, how) in [(BASE, "ro"), (read_write(2 << 30), "ro")] {
        let made = image(&tree, &contents, &options);
        let Some(mount) = Mount::new(made.path(), how) else { return };
        let mut seen = tree_of(mount.path());
        // Too large to be read whole: their first bytes come from the mount now.
        for name in ["sparse", "spread"] {
            let node = seen.at(name.as_bytes()).unwrap();
            let size = fs::metadata(mount.path().join(name)).unwrap().len();
            let mut bytes = vec![0; size.min(1 << 23) as usize];
            let file = File::open(mount.path().join(name)).unwrap();
            file.read_exact_at(&mut bytes, 0).unwrap();
            let length = bytes.len() as u64;
            let source = Source::Bytes(bytes.into());
            let data = FileData::new(size, vec![Piece { at: 0, length, source }], Holes::Known);
            seen.set_data(node, data.unwrap()).unwrap();
        }
        assert_same(&tree, &contents, &seen, &MemoryContents::new());
    }
}

#[test]
fn the_kernel_refuses_to_write_to_a_base() {
    let made = plain(&tree(), &BASE);
    let Some(mount) = Mount::new(made.path(), "rw") else { return };
    let error = fs::write(mount.path().join("x"), b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn what_the_kernel_wrote_is_read_back() {
    let mut contents = MemoryContents::new();
    let before = everything(&mut contents);
    let made = image(&before, &contents, &read_write(64 << 30));
    let Some(mount) = Mount::new(made.path(), "rw") else { return };
    let root = mount.path();
    for directory in 0..40 {
        let directory = root.join(format!("new-{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..50 {
            fs::write(directory.join(format!("file-{file}")), vec![file; 3000 * file as usize])
                .unwrap();
        }
    }
    for at in 0..5000 {
        symlink("somewhere", root.join("large").join(format!("more-{at}"))).unwrap();
    }
    for at in (1..20_000).step_by(3).filter(|at| at % 100 != 0) {
        fs::remove_file(root.join(format!("large/a-longer-name-for-more-blocks-{at}"))).unwrap();
    }
    fs::remove_dir_all(root.join("new-7")).unwrap();
    fs::hard_link(root.join("new-1/file-1"), root.join("new-2/linked")).unwrap();
    xattr::set(root.join("new-3"), "user.kernel", b"wrote this").unwrap();
    xattr::set(root.join("new-4"), "user.kernel", &[3; 1000]).unwrap();
    xattr::set(root.join("new-5"), "user.kernel", &[3; 1000]).unwrap();
    let mut log = File::options().append(true).open(root.join("file")).unwrap();
    log.write_all(b"appended").unwrap();
    log.sync_all().unwrap();
    drop(log);
    let mut after = tree_of(root);
    drop(mount);
    fsck(made.path());
    let image = Image::open(File::open(made.path()).unwrap()).unwrap();
    let report = image.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.faults());
    let read = image.read_tree().unwrap();
    // Their contents were not read from the mount.
    for name in [&b"sparse"[..], b"spread"] {
        let (node, other) = (after.at(name).unwrap(), read.at(name).unwrap());
        let Kind::File(data) = read.node(other).unwrap().kind() else { panic!("not a file") };
        let Kind::File(old) = after.node(node).unwrap().kind() else { panic!("not a file") };
        assert_eq!(data.size(), old.size());
        after.set_data(node, data.clone()).unwrap();
    }
    assert_same(&after, &image, &read, &image);
    assert_eq!(image.find(b"new-9/file-1").unwrap().unwrap().size_bytes(), 3000);
}
