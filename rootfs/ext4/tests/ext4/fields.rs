//! Every field, as dumpe2fs and debugfs read it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;

use openshell_ext4::tree::{Device, FileData, Kind, MemoryContents, Metadata, Time, Tree};
use openshell_ext4::{Image, Options};

use crate::support::{BASE, Made, image, plain, read_write, tree, without_journal};

const FEATURES: &str = "ext_attr dir_index sparse_super2 filetype extent flex_bg \
                        sparse_super large_file huge_file dir_nlink extra_isize metadata_csum";

/// What a disk to write on has besides.
const DISK: &str = "has_journal metadata_csum_seed";

fn features(list: &str) -> Vec<&str> {
    let mut names: Vec<&str> = list.split_whitespace().collect();
    names.sort_unstable();
    names
}

/// What dumpe2fs says of the superblock.
fn superblock(made: &Made) -> BTreeMap<String, String> {
    let output = Command::new("dumpe2fs").arg("-h").arg(made.path()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn dumpe2fs_reads_the_superblock_as_it_was_meant() {
    let mut contents = MemoryContents::new();
    let tree = nodes(&mut contents);
    for (options, more, size) in [
        (BASE, "read-only", None),
        (read_write(1 << 30), DISK, Some(1_u64 << 30)),
        (read_write(300 << 30), DISK, Some(300 << 30)),
        (without_journal(1 << 30), "metadata_csum_seed", Some(1 << 30)),
    ] {
        let made = image(&tree, &contents, &options);
        let has_journal = more == DISK;
        let fields = superblock(&made);
        let field = |name: &str| fields.get(name).unwrap_or_else(|| panic!("no {name}")).as_str();
        let expected = format!("{FEATURES} {more}");
        assert_eq!(features(field("Filesystem features")), features(&expected));
        for (name, value) in [
            ("Filesystem volume name", "label of a test"),
            ("Filesystem UUID", "616e2075-7569-6420-6f66-207465737473"),
            ("Filesystem magic number", "0xEF53"),
            ("Filesystem revision #", "1 (dynamic)"),
            ("Filesystem flags", "unsigned_directory_hash"),
            ("Filesystem state", "clean"),
            ("Reserved block count", "0"),
            ("First block", "0"),
            ("Block size", "4096"),
            ("Fragment size", "4096"),
            ("Blocks per group", "32768"),
            ("Last mount time", "n/a"),
            ("Mount count", "0"),
            ("Check interval", "0 (<none>)"),
            ("First inode", "11"),
            ("Inode size", "256"),
            ("Required extra isize", "32"),
            ("Desired extra isize", "32"),
            ("Default directory hash", "half_md4"),
            ("Directory Hash Seed", "01000000-0200-0000-0300-000004000000"),
            ("Checksum type", "crc32c"),
        ] {
            assert_eq!(field(name), value, "{name}");
        }
        let number = |name: &str| field(name).parse::<u64>().unwrap();
        assert_eq!(number("Block count") * 4096, made.summary.size_bytes);
        assert_eq!(size.unwrap_or(made.summary.size_bytes), made.summary.size_bytes);
        let used = number("Block count") - number("Free blocks");
        let stored = made.summary.data_bytes + made.summary.metadata_bytes;
        if size.is_none() {
            assert_eq!(number("Free blocks"), 0);
            assert_eq!(used * 4096, made.summary.size_bytes);
        } else {
            assert!(used * 4096 >= stored, "{used} blocks, {stored} bytes");
            if has_journal {
                assert_eq!((number("Journal inode"), field("Journal sequence")), (8, "0x00000001"));
                assert!(!fields.contains_key("Journal UUID"));
            }
        }
        // Ten are reserved; the root and a journal's are among them.
        let inodes = number("Inode count") - number("Free inodes");
        let both = if has_journal { 2 } else { 1 };
        assert_eq!(inodes, u64::from(made.summary.inodes) + 10 - both);
    }
}

/// Nodes of every kind, each with owners, a mode and a time of its own. Their names are words for debugfs.
fn nodes(contents: &mut MemoryContents) -> Tree {
    let mut tree = tree();
    let id = contents.add(vec![0x5a; 1 << 20]);
    let device = |at: u32| Device { major: at * 67 % 4096, minor: at * 15_013 % (1 << 20) };
    let mut above = Tree::ROOT;
    for at in 0..140_u32 {
        let kind = match at % 7 {
            0 => Kind::Directory,
            1 => Kind::File(FileData::stored(id, 0, u64::from(at) * 5000)),
            2 => Kind::Symlink(vec![b't'; 1 + at as usize]),
            3 => Kind::CharDevice(device(at)),
            4 => Kind::BlockDevice(device(at)),
            5 => Kind::Fifo,
            _ => Kind::Socket,
        };
        let seconds = i64::from(at) * 80_000_000 - (1 << 31);
        let modified = Time::new(seconds, at * 7_000_003).unwrap();
        let mode = (at * 997 % 0o10000) as u16;
        let metadata = Metadata { modified, ..Metadata::new(mode, at * 30_000_001, !at) };
        let is_directory = kind == Kind::Directory;
        let node = tree.insert(above, format!("n{at}").as_bytes(), kind, metadata).unwrap();
        for link in 0..at % 3 {
            if !is_directory {
                tree.link(above, format!("n{at}-{link}").as_bytes(), node).unwrap();
            }
        }
        if is_directory && at % 2 == 0 {
            above = node;
        }
    }
    tree
}

/// What debugfs says of each path, in one run.
fn stats(made: &Made, paths: &[String]) -> Vec<String> {
    let mut requests = tempfile::NamedTempFile::new().unwrap();
    for path in paths {
        writeln!(requests, "stat {path}").unwrap();
    }
    let mut command = Command::new("debugfs");
    command.arg("-f").arg(requests.path()).arg(made.path()).env("DEBUGFS_PAGER", "cat");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stats: Vec<String> = text.split("debugfs: stat ").skip(1).map(str::to_owned).collect();
    assert_eq!(stats.len(), paths.len(), "{text}");
    stats
}

/// The number behind a word.
fn number(stat: &str, word: &str) -> i64 {
    let rest = stat.split_once(word).map(|(_, rest)| rest.trim_start()).expect(stat);
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(rest.len());
    rest[..digits].parse().expect(stat)
}

#[test]
fn debugfs_reads_every_field_of_every_node() {
    let mut contents = MemoryContents::new();
    let tree = nodes(&mut contents);
    for options in [BASE, read_write(1 << 30)] {
        let made = image(&tree, &contents, &options);
        let mut paths = Vec::new();
        let mut nodes = Vec::new();
        for entry in tree.walk(Tree::ROOT) {
            let directory = String::from_utf8(tree.path(entry.directory).unwrap()).unwrap();
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            paths.push(if directory.is_empty() {
                format!("/{name}")
            } else {
                format!("/{directory}/{name}")
            });
            nodes.push(tree.node(entry.node).unwrap());
        }
        for (stat, node) in stats(&made, &paths).iter().zip(nodes) {
            let metadata = &node.metadata;
            let (kind, size, names) = match node.kind() {
                Kind::Directory => ("directory", 4096, node.directories() + 2),
                Kind::File(data) => ("regular", data.size(), node.names()),
                Kind::Symlink(target) => ("symlink", target.len() as u64, node.names()),
                Kind::CharDevice(_) => ("character special", 0, node.names()),
                Kind::BlockDevice(_) => ("block special", 0, node.names()),
                Kind::Fifo => ("FIFO", 0, node.names()),
                Kind::Socket => ("socket", 0, node.names()),
            };
            assert!(stat.contains(&format!("Type: {kind} ")), "{stat}");
            assert!(stat.contains(&format!("Mode:  0{:03o}", metadata.mode)), "{stat}");
            assert_eq!(number(stat, "User:") as u32, metadata.uid, "{stat}");
            assert_eq!(number(stat, "Group:") as u32, metadata.gid, "{stat}");
            assert_eq!(number(stat, "Links:"), i64::from(names), "{stat}");
            assert_eq!(number(stat, "Size:"), size.cast_signed(), "{stat}");
            let (seconds, nanoseconds) =
                (metadata.modified.seconds(), metadata.modified.nanoseconds());
            let epoch = (seconds - i64::from(seconds as i32)) >> 32;
            let expected = format!(
                "0x{:08x}:{:08x}",
                seconds as u32,
                u64::from(nanoseconds) << 2 | epoch as u64
            );
            for time in ["ctime", "atime", "mtime", "crtime"] {
                assert!(stat.contains(&format!("{time}: {expected}")), "{time} {expected}: {stat}");
            }
            if let Kind::CharDevice(device) | Kind::BlockDevice(device) = node.kind() {
                let expected =
                    format!("major/minor number: {:02}:{:02}", device.major, device.minor);
                assert!(stat.contains(&expected), "{expected}: {stat}");
            }
            if let Kind::Symlink(target) = node.kind() {
                let fast = format!("Fast link dest: \"{}\"", String::from_utf8_lossy(target));
                assert_eq!(stat.contains(&fast), target.len() < 60, "{stat}");
            }
        }
    }
}

#[test]
fn free_blocks_and_inodes_of_each_group_are_those_that_dumpe2fs_counts() {
    let mut tree = tree();
    let bytes = vec![0x77; 900 << 10];
    for at in 0..200 {
        let kind = Kind::File(FileData::bytes(bytes.clone()));
        tree.insert(Tree::ROOT, format!("{at}").as_bytes(), kind, Metadata::new(0o644, 0, 0))
            .unwrap();
    }
    let options: [Options; 2] = [BASE, read_write(1 << 30)];
    for options in options {
        let made = plain(&tree, &options);
        let output = Command::new("dumpe2fs").arg(made.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (mut blocks, mut inodes) = (0, 0);
        for line in text.lines().filter(|line| line.contains(" free blocks, ")) {
            let numbers: Vec<u64> = line
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|digits| digits.parse().ok())
                .collect();
            blocks += numbers[0];
            inodes += numbers[1];
        }
        let fields = superblock(&made);
        assert_eq!(fields["Free blocks"], blocks.to_string());
        assert_eq!(fields["Free inodes"], inodes.to_string());
        let opened = Image::open(std::fs::File::open(made.path()).unwrap()).unwrap();
        assert!(opened.check().unwrap().is_clean());
    }
}
