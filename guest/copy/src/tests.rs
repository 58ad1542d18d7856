//! Trees come back as they were; archives that mean harm do none.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(path, false, &mut bytes).unwrap();
    bytes
}

/// Everything about a tree: one line for each file, in order.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list(root, root, &mut lines);
    lines.sort();
    lines
}

fn list(root: &Path, path: &Path, lines: &mut Vec<String>) {
    let found = fs::symlink_metadata(path).unwrap();
    let content = if found.is_symlink() {
        format!("{:?}", fs::read_link(path).unwrap())
    } else if found.is_file() {
        let bytes = fs::read(path).unwrap();
        let sum = bytes.iter().enumerate().fold(0_u64, |sum, (at, byte)| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*byte) + at as u64)
        });
        format!("{} bytes {sum:x}, links {}", bytes.len(), found.nlink())
    } else {
        format!("{:?} {}", found.file_type().is_fifo(), found.rdev())
    };
    let xattrs: Vec<_> = xattr::list(path)
        .unwrap()
        .map(|name| (name.clone(), xattr::get(path, &name).unwrap()))
        .collect();
    lines.push(format!(
        "{:?} {:o} {}:{} {}.{:09} {content} {xattrs:?}",
        path.strip_prefix(root).unwrap(),
        found.mode(),
        found.uid(),
        found.gid(),
        found.mtime(),
        found.mtime_nsec(),
    ));
    if found.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            list(root, &entry.unwrap().path(), lines);
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A tree with one of everything.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("a/deep/er")).unwrap();
    let long = "n".repeat(200);
    fs::create_dir(root.join(&long)).unwrap();
    fs::write(root.join(&long).join(&long), "long names").unwrap();
    fs::write(root.join("a/file"), vec![7; 100_001]).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::hard_link(root.join("a/file"), root.join("other")).unwrap();
    symlink("a/file", root.join("link")).unwrap();
    symlink("/no/where/".repeat(30), root.join("dangling")).unwrap();
    let mut sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::io::Seek::seek(&mut sparse, std::io::SeekFrom::Start(10 << 20)).unwrap();
    sparse.write_all(b"in the middle").unwrap();
    fs::File::create(root.join("hole")).unwrap().set_len(1 << 20).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a/file", 0o4751);
    mode("empty", 0o400);
    mode("a/deep", 0o1777);
    mode("a", 0o750);
    // File systems in memory have them as well by now; one without would be no test.
    xattr::set(root.join("empty").parent().unwrap(), "user.of.directory", b"\0binary\n").unwrap();
    xattr::set(root.join("sparse"), "user.note", b"value").unwrap();
    let path = root.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o640.into(), 0)
        .unwrap();
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = from.path().join("tree");
    tree(&source);
    let bytes = packed(&source);
    assert!(bytes.len() < 1 << 20, "holes were packed: {} bytes", bytes.len());
    // Under its own name, under another, and its contents into a directory that is there.
    let totals = unpack(to.path(), false, Keep::All, bytes.as_slice()).unwrap();
    assert_eq!(usize::try_from(totals.files).unwrap(), listing(&source).len());
    let expected = listing(&source);
    assert_eq!(listing(&to.path().join("tree")), expected);
    unpack(&to.path().join("renamed"), false, Keep::All, bytes.as_slice()).unwrap();
    assert_eq!(listing(&to.path().join("renamed")), expected);
    let contents = packed(&source.join("."));
    unpack(&to.path().join("contents"), false, Keep::All, contents.as_slice()).unwrap();
    assert_eq!(listing(&to.path().join("contents")), expected);
    let allocated = fs::metadata(to.path().join("tree/sparse")).unwrap().blocks() * 512;
    assert!(allocated < 1 << 20, "holes were written: {allocated} bytes");
    // And once more over what is there.
    unpack(to.path(), false, Keep::All, bytes.as_slice()).unwrap();
    assert_eq!(listing(&to.path().join("tree")), expected);
}

#[test]
fn the_tar_crate_reads_what_we_pack_and_we_what_it_packs() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = from.path().join("tree");
    tree(&source);
    let mut names: Vec<_> = ::tar::Archive::new(packed(&source).as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    names.sort();
    // It does not look into the records of sparse files.
    assert_eq!(names.len(), listing(&source).len());
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    let long = "n".repeat(200);
    for name in ["a/file".to_owned(), "link".to_owned(), format!("{long}/{long}")] {
        builder.append_path_with_name(source.join(&name), format!("top/{name}")).unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    unpack(&to.path().join("new"), false, Keep::Plain, bytes.as_slice()).unwrap();
    assert_eq!(fs::read(to.path().join(format!("new/{long}/{long}"))).unwrap(), b"long names");
    assert_eq!(fs::metadata(to.path().join("new/a/file")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(to.path().join("new/link")).unwrap(), Path::new("a/file"));
}

#[test]
fn a_destination_is_a_directory_or_a_new_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "new").unwrap();
    fs::create_dir_all(at("tree/in")).unwrap();
    fs::create_dir(at("there")).unwrap();
    let (file, tree) = (packed(&at("file")), packed(&at("tree")));
    let put = |bytes: &[u8], to: &str, into| unpack(&at(to), into, Keep::Plain, bytes);
    put(&file, "there", false).unwrap();
    put(&file, "there/other", false).unwrap();
    put(&tree, "there", true).unwrap();
    put(&tree, "made/", false).unwrap();
    for path in ["there/file", "there/other", "there/tree/in", "made/in"] {
        assert!(at(path).exists(), "{path}");
    }
    fs::write(at("there/other"), "old").unwrap();
    put(&file, "there/other", false).unwrap();
    assert_eq!(fs::read(at("there/other")).unwrap(), b"new");
    for (bytes, to, into, expected) in [
        (&file, "no/where", false, "No such file"),
        (&file, "none/", false, "no such directory"),
        (&file, "none", true, "No such file"),
        (&tree, "there/other", false, "not a directory"),
        (&file, "file/x", false, "Not a directory"),
    ] {
        let error = put(bytes, to, into).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains(to.split('/').next().unwrap()),
            "{error}"
        );
    }
    fs::create_dir(at("there/file2")).unwrap();
    fs::write(at("file2"), "").unwrap();
    let error = put(&packed(&at("file2")), "there", false).unwrap_err().to_string();
    assert!(error.contains("a directory is in its place"), "{error}");
}

fn entry(path: &str, kind: Kind) -> Entry {
    let path = path.as_bytes().to_vec();
    Entry { path, kind, mode: 0o644, uid: 0, gid: 0, modified: (1, 5), xattrs: Vec::new() }
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        archive::write_entry(&mut bytes, entry).unwrap();
    }
    archive::write_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn nothing_is_written_outside() {
    let empty = || Kind::File { size: 0, extents: None };
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    let target = outside.path().to_str().unwrap();
    let link = |to: &str| Kind::Symlink(to.as_bytes().to_vec());
    let hard = |to: &str| Kind::HardLink(to.as_bytes().to_vec());
    let before = listing(outside.path());
    for entries in [
        vec![entry("../x", empty())],
        vec![entry("a/../../x", empty())],
        vec![entry("l", link(target)), entry("l/x", empty())],
        vec![entry("l", link(target)), entry("l/d/x", empty())],
        vec![entry("l", link("..")), entry("l/x", empty())],
        vec![entry("d", Kind::Directory), entry("d/l", link("../..")), entry("d/l/x", empty())],
        vec![entry("l", link(target)), entry("l", Kind::Directory)],
        vec![entry("l", link(target)), entry("h", hard("l/kept"))],
        vec![entry("h", hard("../kept"))],
        vec![entry("h", hard(&format!("{target}/kept")))],
    ] {
        let to = tempfile::tempdir_in(outside.path()).unwrap();
        let into = to.path().join("into");
        fs::create_dir(&into).unwrap();
        let result = unpack(&into, true, Keep::Plain, archive(&entries).as_slice());
        assert!(result.is_err(), "{entries:?}");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "{entries:?}");
        to.close().unwrap();
        let now: Vec<String> = listing(outside.path()).split_off(1);
        assert_eq!(now, before[1..], "{entries:?}");
    }
    // A link to a file is replaced and not written through; one that stays inside is followed on the way.
    let to = tempfile::tempdir().unwrap();
    let kept = format!("{target}/kept");
    let fine = [
        entry("l", link(&kept)),
        entry("l", empty()),
        entry("d", Kind::Directory),
        entry("inside", link("d")),
        entry("inside/x", empty()),
    ];
    unpack(to.path(), true, Keep::Plain, archive(&fine).as_slice()).unwrap();
    assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"kept");
    assert!(to.path().join("d/x").is_file() && to.path().join("l").is_file());
}

#[test]
fn plain_copies_bring_no_privileges() {
    let to = tempfile::tempdir().unwrap();
    let mut set_id = entry("set-id", Kind::File { size: 0, extents: None });
    set_id.mode = 0o6777;
    unpack(to.path(), true, Keep::Plain, archive(&[set_id]).as_slice()).unwrap();
    let found = fs::metadata(to.path().join("set-id")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o777);
    let device = archive(&[entry("null", Kind::Character(1, 3))]);
    let error = unpack(to.path(), true, Keep::Plain, device.as_slice()).unwrap_err();
    assert!(error.to_string().contains("archive mode"), "{error}");
    assert!(!to.path().join("null").exists());
    if is_root() {
        unpack(to.path(), true, Keep::All, device.as_slice()).unwrap();
        let found = fs::metadata(to.path().join("null")).unwrap();
        assert!(found.file_type().is_char_device() && found.rdev() == 0x103);
    }
}

#[test]
fn a_cut_archive_is_not_a_copy() {
    let from = tempfile::tempdir().unwrap();
    let source = from.path().join("tree");
    tree(&source);
    let bytes = packed(&source);
    for len in (0..bytes.len() - 1024).step_by(bytes.len() / 40) {
        let to = tempfile::tempdir().unwrap();
        assert!(unpack(to.path(), true, Keep::Plain, &bytes[..len]).is_err(), "{len}");
        // What was made read-only is to be removed as well.
        drop(fs::set_permissions(to.path().join("tree/a"), fs::Permissions::from_mode(0o700)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut reader = Reader::new(bytes.as_slice());
        while let Ok(Some(_)) = reader.next_entry() {}
    }

    #[test]
    fn what_is_written_is_read(
        path in "[a-z/]{1,150}x",
        mode in 0_u32..0o10000,
        ids in any::<(u32, u32)>(),
        seconds in -5_000_000_000_i64..20_000_000_000,
        nanos in 0_u32..1_000_000_000,
        xattrs in prop::collection::btree_map(prop::collection::vec(b'a'..=b'z', 1..9), prop::collection::vec(any::<u8>(), 0..50), 0..3),
        size in prop::option::of(0_u64..1 << 40),
        target in "[ -~]{1,200}",
    ) {
        let kind = match size {
            Some(_) => Kind::File { size: 0, extents: None },
            None => Kind::Symlink(target.into_bytes()),
        };
        let xattrs = xattrs.into_iter().collect();
        let (uid, gid) = ids;
        let written = Entry { path: path.into_bytes(), kind, mode, uid, gid, modified: (seconds, nanos), xattrs };
        let bytes = archive(std::slice::from_ref(&written));
        let mut reader = Reader::new(bytes.as_slice());
        prop_assert_eq!(reader.next_entry().unwrap(), Some(written));
        prop_assert_eq!(reader.next_entry().unwrap(), None);
    }
}
