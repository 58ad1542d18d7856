//! Trees of every shape become images that e2fsck finds nothing wrong with.

use openshell_ext4::FileData;
use openshell_ext4::tree::{
    Device, Holes, Kind, MemoryContents, Metadata, NodeId, Piece, Source, Time, Tree,
};

use crate::support::{BASE, debugfs, image, plain, read_write, refused, tree, without_journal};

fn file(bytes: impl Into<Vec<u8>>) -> Kind {
    Kind::File(FileData::bytes(bytes.into()))
}

fn metadata() -> Metadata {
    Metadata::new(0o644, 1000, 100_000)
}

fn add(tree: &mut Tree, name: impl AsRef<[u8]>, kind: Kind) -> NodeId {
    tree.insert(Tree::ROOT, name.as_ref(), kind, metadata()).unwrap()
}

#[test]
fn an_empty_tree() {
    for options in [BASE, read_write(64 << 20), read_write(1 << 30), read_write(64 << 30)] {
        plain(&tree(), &options);
    }
    for size in [2 << 20, 64 << 20, 64 << 30] {
        plain(&tree(), &without_journal(size));
    }
}

#[test]
fn one_of_each_kind() {
    let mut tree = tree();
    let device = |major, minor| Device { major, minor };
    for (name, kind) in [
        ("directory", Kind::Directory),
        ("file", file(*b"hello")),
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
        add(&mut tree, name, kind);
    }
    for options in [BASE, read_write(1 << 30)] {
        let image = plain(&tree, &options);
        let stat = |name: &str| debugfs(image.path(), &format!("stat /{name}"));
        assert!(stat("59").contains("Fast link dest: \"xxx"), "{}", stat("59"));
        assert!(!stat("60").contains("Fast link"), "{}", stat("60"));
        assert!(stat("wide").contains("Device major/minor number: 4095:1048575"));
        assert!(stat("block").contains("Device major/minor number: 08:256"), "{}", stat("block"));
        assert!(stat("char").contains("Device major/minor number: 01:03"), "{}", stat("char"));
        assert!(stat("socket").contains("Type: socket"), "{}", stat("socket"));
        assert_eq!(debugfs(image.path(), "cat /file"), "hello");
    }
}

#[test]
fn owners_have_32_bits() {
    let mut tree = tree();
    let metadata = Metadata::new(0o7777, 0x1234_5678, 0xffff_fffe);
    tree.insert(Tree::ROOT, b"f", file(*b"x"), metadata).unwrap();
    let stat = debugfs(plain(&tree, &BASE).path(), "stat /f");
    assert!(stat.contains("Mode:  07777"), "{stat}");
    assert!(stat.contains(&format!("User: {}", 0x1234_5678)), "{stat}");
    assert!(stat.contains(&format!("Group: {:>5}", 0xffff_fffe_u32.cast_signed())), "{stat}");
}

#[test]
fn times_before_1970_and_after_2038() {
    let mut tree = tree();
    let times = [
        (0, 0, "0x00000000:00000000"),
        (1_700_000_000, 123_456_789, "0x6553f100:1d6f3454"),
        (-1, 999_999_999, "0xffffffff:ee6b27fc"),
        (-(1 << 31), 0, "0x80000000:00000000"),
        (1 << 31, 1, "0x80000000:00000005"),
        (1 << 32, 0, "0x00000000:00000001"),
        (10_737_418_239, 0, "0x7fffffff:00000002"),
        (i64::MAX, 5, "0x7fffffff:00000002"),
        (i64::MIN, 5, "0x80000000:00000000"),
    ];
    for (at, (seconds, nanoseconds, _)) in times.iter().enumerate() {
        let modified = Time::new(*seconds, *nanoseconds).unwrap();
        let metadata = Metadata { modified, ..metadata() };
        tree.insert(Tree::ROOT, at.to_string().as_bytes(), file(*b"x"), metadata).unwrap();
    }
    let image = plain(&tree, &BASE);
    for (at, (_, _, expected)) in times.iter().enumerate() {
        let stat = debugfs(image.path(), &format!("stat /{at}"));
        for time in ["ctime", "atime", "mtime", "crtime"] {
            assert!(stat.contains(&format!("{time}: {expected}")), "{stat}");
        }
    }
}

#[test]
fn hard_links_share_an_inode() {
    let mut tree = tree();
    let directory = add(&mut tree, "d", Kind::Directory);
    let shared = tree.insert(directory, b"a", file(*b"shared"), metadata()).unwrap();
    tree.link(Tree::ROOT, b"b", shared).unwrap();
    let link = add(&mut tree, "l", Kind::Symlink(b"nowhere".to_vec()));
    tree.link(directory, b"m", link).unwrap();
    let fifo = add(&mut tree, "p", Kind::Fifo);
    tree.link(directory, b"p", fifo).unwrap();
    let image = plain(&tree, &BASE);
    for (left, right) in [("/d/a", "/b"), ("/l", "/d/m"), ("/p", "/d/p")] {
        let stat = debugfs(image.path(), &format!("stat {left}"));
        assert!(stat.contains("Links: 2"), "{stat}");
        assert_eq!(stat, debugfs(image.path(), &format!("stat {right}")));
    }
}

#[test]
fn a_node_has_65000_names_and_no_more() {
    let mut tree = tree();
    let directory = add(&mut tree, "d", Kind::Directory);
    let file = add(&mut tree, "f", file(*b"x"));
    for at in 1..65_000 {
        tree.link(directory, format!("{at}").as_bytes(), file).unwrap();
    }
    let image = plain(&tree, &BASE);
    assert!(debugfs(image.path(), "stat /f").contains("Links: 65000"));
    tree.link(directory, b"one more", file).unwrap();
    let error = refused(&tree, &BASE);
    assert_eq!(error.to_string(), "`d/1` has 65001 names, more than the 65,000 of ext4");
}

#[test]
fn a_directory_of_70000_directories_does_not_count_them() {
    let mut tree = tree();
    let many = add(&mut tree, "many", Kind::Directory);
    for at in 0..70_000 {
        tree.insert(many, format!("{at}").as_bytes(), Kind::Directory, metadata()).unwrap();
    }
    let image = plain(&tree, &BASE);
    assert!(debugfs(image.path(), "stat /many").contains("Links: 1 "));
}

#[test]
fn a_directory_counts_up_to_64998_directories() {
    let mut tree = tree();
    for at in 0..64_997 {
        add(&mut tree, at.to_string(), Kind::Directory);
    }
    // With `lost+found`.
    assert!(debugfs(plain(&tree, &BASE).path(), "stat /").contains("Links: 65000"));
    add(&mut tree, "one more", Kind::Directory);
    assert!(debugfs(plain(&tree, &BASE).path(), "stat /").contains("Links: 1 "));
}

#[test]
fn names_of_one_and_of_255_bytes_and_of_any_byte() {
    let mut tree = tree();
    for byte in (1..=255).filter(|byte| !b"/.".contains(byte)) {
        add(&mut tree, [byte], Kind::Fifo);
        add(&mut tree, [byte; 255], Kind::Fifo);
        add(&mut tree, [byte, 0xff, b'.'], Kind::Fifo);
    }
    plain(&tree, &BASE);
    plain(&tree, &read_write(64 << 20));
}

#[test]
fn directories_around_the_sizes_where_their_form_changes() {
    // One block holds 4,084 bytes; a record of these names has 16; two dots and `lost+found` take 44.
    for count in [252, 253, 254, 255, 256, 507, 508, 509, 510, 511] {
        let mut tree = tree();
        for at in 0..count {
            add(&mut tree, format!("{at:05}"), Kind::Fifo);
        }
        plain(&tree, &BASE);
    }
    // One leaf for each 15 names of 255 bytes: 507 leaves are the most that a root points to.
    for leaves in [506, 507, 508, 1020] {
        let mut tree = tree();
        let directory = add(&mut tree, "d", Kind::Directory);
        for at in 0..leaves * 15 {
            tree.insert(directory, format!("{at:0255}").as_bytes(), Kind::Fifo, metadata())
                .unwrap();
        }
        let image = plain(&tree, &BASE);
        let levels = u32::from(leaves > 507);
        let dump = debugfs(image.path(), "htree_dump /d");
        assert!(dump.contains(&format!("Indirect levels: {levels}")), "{dump}");
    }
}

#[test]
fn a_directory_of_120000_names() {
    let mut tree = tree();
    let directory = add(&mut tree, "d", Kind::Directory);
    for at in 0..120_000 {
        let name = format!("some-name-{at}");
        tree.insert(directory, name.as_bytes(), Kind::Symlink(b"x".to_vec()), metadata()).unwrap();
    }
    plain(&tree, &BASE);
    plain(&tree, &read_write(4 << 30));
}

#[test]
fn a_directory_of_70000_names_of_255_bytes() {
    // 15 names a leaf: 4,667 leaves below ten nodes below the root. One level more has a test of its own, `largest`.
    let mut tree = tree();
    let directory = add(&mut tree, "d", Kind::Directory);
    for at in 0..70_000 {
        tree.insert(directory, format!("{at:0255}").as_bytes(), Kind::Fifo, metadata()).unwrap();
    }
    let image = plain(&tree, &BASE);
    let dump = debugfs(image.path(), "htree_dump /d");
    assert!(dump.contains("Indirect levels: 1"), "{}", dump.lines().next().unwrap_or_default());
    let opened = openshell_ext4::Image::open(std::fs::File::open(image.path()).unwrap()).unwrap();
    for at in [0, 1, 34_999, 69_999] {
        assert!(opened.find(format!("d/{at:0255}").as_bytes()).unwrap().is_some());
    }
    assert!(opened.find(format!("d/{:0255}", 70_000).as_bytes()).unwrap().is_none());
}

#[test]
fn a_path_of_2000_directories() {
    let mut tree = tree();
    let mut at = Tree::ROOT;
    for _ in 0..2000 {
        at = tree.insert(at, b"d", Kind::Directory, metadata()).unwrap();
    }
    plain(&tree, &BASE);
}

#[test]
fn sizes_around_blocks() {
    let mut tree = tree();
    for size in [1, 4095, 4096, 4097, 8191, 8192, 8193, (2 << 20) - 1, 2 << 20, (2 << 20) + 1] {
        add(&mut tree, size.to_string(), file(vec![7; size]));
    }
    let image = plain(&tree, &BASE);
    for size in [2 << 20, (2 << 20) + 1] {
        let extents = debugfs(image.path(), &format!("ex /{size}"));
        let physical = extents.lines().nth(1).and_then(|line| line.split_whitespace().nth(7));
        let physical: u64 = physical.unwrap_or_else(|| panic!("{extents}")).parse().unwrap();
        assert_eq!(physical % 512, 0, "{extents}");
    }
}

#[test]
fn blocks_of_zeros_are_holes() {
    let mut tree = tree();
    let mut bytes = vec![0; 10 * 4096 + 100];
    bytes[4096] = 1;
    bytes[7 * 4096 - 1] = 1;
    add(&mut tree, "f", file(bytes));
    add(&mut tree, "zeros", file(vec![0; 100_000]));
    let image = plain(&tree, &BASE);
    let blocks = |name: &str| debugfs(image.path(), &format!("blocks {name}"));
    assert_eq!(blocks("/f").split_whitespace().count(), 2);
    assert_eq!(blocks("/zeros").trim(), "");
}

#[test]
fn a_file_with_data_in_every_other_block_has_a_deep_tree() {
    let mut contents = MemoryContents::new();
    let id = contents.add(vec![9; 4096]);
    // A leaf has 340 extents, so five leaves and more, and one more level above 1,360.
    for count in [4, 5, 340, 341, 1360, 1361, 3000] {
        let piece = |at| Piece { at: at * 8192, length: 4096, source: Source::Stored(id, 0) };
        let pieces: Vec<Piece> = (0..count).map(piece).collect();
        let mut tree = tree();
        let data = FileData::new(count * 8192, pieces, Holes::Known).unwrap();
        add(&mut tree, "f", Kind::File(data));
        for options in [BASE, read_write(1 << 30)] {
            let image = image(&tree, &contents, &options);
            let extents = debugfs(image.path(), "ex /f");
            let depth = match count {
                0..=4 => 0,
                5..=1360 => 1,
                _ => 2,
            };
            assert!(
                extents.lines().any(|line| line.starts_with(&format!(" {depth}/ {depth}"))),
                "{extents}"
            );
        }
    }
}

#[test]
fn files_of_more_than_4_gib_and_up_to_16_tib() {
    let mut contents = MemoryContents::new();
    let id = contents.add(b"data".to_vec());
    let mut tree = tree();
    for (name, size) in [("4", 1 << 32), ("5", 5 << 30), ("16", u64::from(u32::MAX) * 4096)] {
        let piece = Piece { at: size - 4, length: 4, source: Source::Stored(id, 0) };
        let data = FileData::new(size, vec![piece], Holes::Known).unwrap();
        add(&mut tree, name, Kind::File(data));
    }
    let image = image(&tree, &contents, &BASE);
    assert_eq!(image.summary.data_bytes, 3 * 4096);
    assert!(debugfs(image.path(), "stat /5").contains("Size: 5368709120"));
    let data = FileData::new(u64::from(u32::MAX) * 4096 + 1, vec![], Holes::Known).unwrap();
    add(&mut tree, "more", Kind::File(data));
    let error = refused(&tree, &BASE);
    assert_eq!(
        error.to_string(),
        "`more` has 17592186040321 bytes, more than a file of ext4 holds"
    );
}

#[test]
fn extended_attributes_in_the_inode_and_in_a_block() {
    let mut tree = tree();
    let value = |length: usize| (0..length).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255,
        255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let sets: [&[(&str, Vec<u8>)]; 7] = [
        &[("user.a", value(0))],
        &[("user.a", value(60)), ("user.b", value(10))],
        &[("security.capability", capability.to_vec())],
        &[("system.posix_acl_access", acl.to_vec()), ("user.\u{e9}\u{e8}", b"\n\0x".to_vec())],
        &[
            ("user.zz", value(1)),
            ("user.b", value(2)),
            ("trusted.overlay.opaque", b"y".to_vec()),
            ("user.aaa", value(100)),
            ("security.x", value(70)),
        ],
        &[("user.big", value(4036))],
        &[("user.big", value(4000)), ("user.small", value(20))],
    ];
    for (at, set) in sets.iter().enumerate() {
        for (name, kind) in [
            ("file", file(*b"x")),
            ("directory", Kind::Directory),
            ("link", Kind::Symlink(b"x".to_vec())),
        ] {
            let xattrs =
                set.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone())).collect();
            let metadata = Metadata { xattrs, ..metadata() };
            tree.insert(Tree::ROOT, format!("{name}-{at}").as_bytes(), kind, metadata).unwrap();
        }
    }
    for options in [BASE, read_write(64 << 20)] {
        let image = plain(&tree, &options);
        for (at, set) in sets.iter().enumerate() {
            let list = debugfs(image.path(), &format!("ea_list /file-{at}"));
            for (name, value) in *set {
                if name.is_ascii() && !name.starts_with("system") {
                    assert!(list.contains(&format!("{name} ({})", value.len())), "{list}");
                }
            }
        }
    }
}

#[test]
fn extended_attributes_that_ext4_does_not_hold_are_refused() {
    for (name, length, expected) in [
        (
            "user.big",
            5000,
            "extended attributes of 5020 bytes are more than an inode and a block hold",
        ),
        ("user.", 1, "extended attribute `user.` has a name that ext4 does not hold"),
        ("other.x", 1, "extended attribute `other.x` has a name that ext4 does not hold"),
        (
            "system.posix_acl_access",
            5,
            "extended attribute `system.posix_acl_access` is not an access control list",
        ),
    ] {
        let mut tree = tree();
        let xattrs = [(name.as_bytes().to_vec(), vec![1; length])].into();
        tree.insert(Tree::ROOT, b"f", Kind::Fifo, Metadata { xattrs, ..metadata() }).unwrap();
        let error = refused(&tree, &BASE);
        assert_eq!(error.to_string(), "cannot store the extended attributes of `f`");
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), expected);
    }
}

#[test]
fn an_image_that_fills_its_last_group_exactly() {
    for groups in [1_u64, 2] {
        for (more, expected) in
            [(-1, groups * 32_768 - 1), (0, groups * 32_768), (1, groups * 32_768 + 1)]
        {
            let mut contents = MemoryContents::new();
            let id = contents.add(vec![1]);
            let mut tree = tree();
            // A large file starts at block 512, behind the structures, and is the last thing in the image.
            let blocks = (groups * 32_768 - 512).strict_add_signed(more);
            let piece = |at: u64| Piece { at: at * 4096, length: 1, source: Source::Stored(id, 0) };
            let data = FileData::new(blocks * 4096, (0..blocks).map(piece).collect(), Holes::Known);
            add(&mut tree, "f", Kind::File(data.unwrap()));
            let image = image(&tree, &contents, &BASE);
            assert_eq!(image.summary.size_bytes, expected * 4096);
        }
    }
}

#[test]
fn more_inodes_than_one_group_has() {
    let mut tree = tree();
    for directory in 0..40 {
        let directory = add(&mut tree, directory.to_string(), Kind::Directory);
        for at in 0..1000 {
            tree.insert(
                directory,
                at.to_string().as_bytes(),
                Kind::File(FileData::empty()),
                metadata(),
            )
            .unwrap();
        }
    }
    plain(&tree, &BASE);
    plain(&tree, &read_write(200 << 20));
}

#[test]
fn disks_of_odd_sizes() {
    let mut tree = tree();
    add(&mut tree, "f", file(vec![5; 3 << 20]));
    for size in [
        32 << 20,
        (128 << 20) + 4096,
        (128 << 20) + (3 << 20),
        (256 << 20) - 4096,
        (256 << 20) + 1,
        (2 << 30) + (100 << 20),
        (17 << 30) + 12_345,
        1 << 40,
    ] {
        plain(&tree, &read_write(size));
    }
    for size in [0, 4096, 1 << 20, 5 << 20] {
        let error = refused(&tree, &read_write(size));
        let text = format!("a disk of {size} bytes is too small for what is to be on it");
        assert_eq!(error.to_string(), text);
    }
}
