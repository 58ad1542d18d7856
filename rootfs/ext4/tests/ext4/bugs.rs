//! What other writers of ext4 images got wrong, and which test says that ours does not.
//!
//! | Bug | Test |
//! |---|---|
//! | owners cut to 16 bits | `shapes::owners_have_32_bits` |
//! | the offset of an extent counted twice in large files | here |
//! | halves of checksums at the wrong place | here |
//! | attributes out of order | `xattr::tests::entries_are_in_the_order_of_index_length_and_bytes` |
//! | names that are not ASCII | `shapes::names_of_one_and_of_255_bytes_and_of_any_byte` |
//! | a journal with a UUID | here |
//! | a hard link whose parent is missing | `openshell-rootfs`, `merge::tests::hard_links_bind_to_what_is_there_at_that_moment` |
//! | counts of links off by one | here, `shapes::hard_links_share_an_inode` |
//! | circles of hard links | `openshell-rootfs`, `merge::tests::hard_links_to_nothing_are_refused` |
//! | recursion on depth | here, `shapes::a_path_of_2000_directories` |
//! | a truncated layer that is read forever | `openshell-rootfs`, `layer::tests::a_truncated_archive_ends_with_an_error` |
//! | children looked up one after the other | `shapes::a_directory_of_120000_names` |
//! | inodes that were deleted and have no time of it | here |
//! | hard links to symbolic links | `shapes::hard_links_share_an_inode` |
//! | whiteouts that stand behind what they hide | `openshell-rootfs`, `merge::tests::whiteouts_do_not_depend_on_their_place_in_the_layer` |
//! | missing parents that make images differ | `openshell-rootfs`, `merge::tests::missing_parents_are_always_the_same` |
//! | hard-linked data stored twice, or damaged | here |
//! | sockets, times before 1970 and after 2038 | `shapes::one_of_each_kind`, `shapes::times_before_1970_and_after_2038` |
//! | more than 65,000 links | `shapes::a_node_has_65000_names_and_no_more` |
//! | names of 255 bytes | `shapes::names_of_one_and_of_255_bytes_and_of_any_byte` |
//! | targets of 59 and 60 bytes | `shapes::one_of_each_kind` |
//! | indexes of more than two levels | `shapes::a_directory_of_70000_names_of_255_bytes`, `largest` |
//! | attributes larger than the inode's room | `shapes::extended_attributes_in_the_inode_and_in_a_block` |
//! | files of more than four extents | `shapes::a_file_with_data_in_every_other_block_has_a_deep_tree` |
//! | an image that fills its last group exactly | `shapes::an_image_that_fills_its_last_group_exactly` |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use openshell_ext4::tree::{ContentId, Contents, FileData, Kind, MemoryContents, Metadata, Tree};
use openshell_ext4::{Image, write};

use crate::support::{BASE, debugfs, fsck, image, plain, read_write, tree};

/// Eight bytes of each block say which block of the source it is.
struct Numbered;

impl Contents for Numbered {
    fn read_at(&self, _: ContentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        for (place, at) in into.chunks_mut(8).zip((offset..).step_by(8)) {
            place.copy_from_slice(&(at / 4096 + 1).to_le_bytes()[..place.len()]);
        }
        Ok(())
    }
}

#[test]
fn the_offset_of_a_late_extent_counts_once() {
    // An extent has at most 128 MiB: this file has three, and ends inside the last.
    let size = (300 << 20) + 4096;
    let mut tree = tree();
    let kind = Kind::File(FileData::stored(ContentId(0), 0, size));
    tree.insert(Tree::ROOT, b"large", kind, Metadata::new(0o644, 0, 0)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&tree, &Numbered, file.as_file(), &BASE).unwrap();
    fsck(file.path());
    let opened = Image::open(File::open(file.path()).unwrap()).unwrap();
    let read = opened.read_tree().unwrap();
    let Kind::File(data) = read.node(read.at(b"large").unwrap()).unwrap().kind() else {
        panic!("not a file");
    };
    let block_of = |block: u64| {
        let physical = debugfs(file.path(), &format!("bmap /large {block}"));
        physical.trim().parse::<u64>().unwrap()
    };
    for block in [0, 1, 32_767, 32_768, 32_769, 65_535, 65_536, size / 4096 - 1] {
        let mut own = [0; 8];
        data.read_at(&opened, block * 4096, &mut own).unwrap();
        assert_eq!(u64::from_le_bytes(own), block + 1);
        let mut there = [0; 8];
        file.as_file().read_exact_at(&mut there, block_of(block) * 4096).unwrap();
        assert_eq!(u64::from_le_bytes(there), block + 1, "block {block}, as debugfs finds it");
    }
}

#[test]
fn checksums_have_both_halves_in_their_places() {
    let mut tree = tree();
    for at in 0..200 {
        let name = format!("{at}");
        tree.insert(Tree::ROOT, name.as_bytes(), Kind::Fifo, Metadata::new(0o644, at, at)).unwrap();
    }
    for options in [BASE, read_write(1 << 30)] {
        // e2fsck compares them all; here it is seen that there is something to compare.
        let made = plain(&tree, &options);
        let sums: Vec<u32> = (0..200)
            .map(|at| {
                let stat = debugfs(made.path(), &format!("stat /{at}"));
                let sum = stat.split_once("Inode checksum: 0x").unwrap().1;
                u32::from_str_radix(sum.lines().next().unwrap().trim(), 16).unwrap()
            })
            .collect();
        assert!(sums.iter().any(|sum| sum >> 16 != 0) && sums.iter().any(|sum| sum & 0xffff != 0));
        let mut unique = sums.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), sums.len());
    }
}

#[test]
fn the_journal_of_a_disk_has_no_uuid() {
    let made = plain(&tree(), &read_write(1 << 30));
    let mut uuid = [1; 16];
    made.file.as_file().read_exact_at(&mut uuid, 1024 + 0xd0).unwrap();
    assert_eq!(uuid, [0; 16]);
}

#[test]
fn links_are_counted_when_some_are_gone() {
    let mut tree = tree();
    let metadata = Metadata::new(0o644, 0, 0);
    let kind = Kind::File(FileData::bytes(b"shared".to_vec()));
    let node = tree.insert(Tree::ROOT, b"0", kind, metadata.clone()).unwrap();
    let below = tree.insert(Tree::ROOT, b"d", Kind::Directory, metadata).unwrap();
    for at in 1..10 {
        let directory = if at % 2 == 0 { Tree::ROOT } else { below };
        tree.link(directory, format!("{at}").as_bytes(), node).unwrap();
    }
    assert!(tree.remove(Tree::ROOT, b"0") && tree.remove(Tree::ROOT, b"d"));
    let made = plain(&tree, &BASE);
    assert!(debugfs(made.path(), "stat /2").contains("Links: 4 "));
}

#[test]
fn removing_a_deep_directory_does_not_recurse() {
    let mut tree = tree();
    let mut at = Tree::ROOT;
    for _ in 0..300_000 {
        at = tree.insert(at, b"d", Kind::Directory, Metadata::new(0o755, 0, 0)).unwrap();
    }
    assert!(tree.remove(Tree::ROOT, b"d"));
    assert_eq!(tree.len(), 1);
}

#[test]
fn what_was_removed_leaves_no_inode() {
    let metadata = || Metadata::new(0o644, 1, 1);
    let mut with = tree();
    for at in 0..100 {
        let kind = Kind::File(FileData::bytes(vec![1; 10_000]));
        with.insert(Tree::ROOT, format!("gone-{at}").as_bytes(), kind, metadata()).unwrap();
    }
    let mut without = tree();
    for tree in [&mut with, &mut without] {
        tree.insert(Tree::ROOT, b"kept", Kind::Fifo, metadata()).unwrap();
    }
    for at in 0..100 {
        with.remove(Tree::ROOT, format!("gone-{at}").as_bytes());
    }
    for options in [BASE, read_write(1 << 30)] {
        let [with, without] = [&with, &without].map(|tree| plain(tree, &options));
        assert_eq!(with.summary, without.summary);
        let bytes = |made: &crate::support::Made| {
            let mut bytes = vec![0; 16 << 20];
            let length = usize::try_from(made.summary.size_bytes).unwrap().min(bytes.len());
            made.file.as_file().read_exact_at(&mut bytes[..length], 0).unwrap();
            bytes
        };
        assert!(bytes(&with) == bytes(&without));
    }
}

#[test]
fn hard_linked_data_is_stored_once_and_whole() {
    let mut contents = MemoryContents::new();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| (at / 4096 + 1) as u8).collect();
    let id = contents.add(bytes.clone());
    let mut tree = tree();
    let kind = Kind::File(FileData::stored(id, 0, 1_000_000));
    let node = tree.insert(Tree::ROOT, b"0", kind, Metadata::new(0o644, 0, 0)).unwrap();
    for at in 1..50 {
        tree.link(Tree::ROOT, format!("{at}").as_bytes(), node).unwrap();
    }
    let made = image(&tree, &contents, &BASE);
    assert_eq!(made.summary.data_bytes, 1_000_000_u64.next_multiple_of(4096));
    let dumped = tempfile::NamedTempFile::new().unwrap();
    for at in [0, 7, 49] {
        debugfs(made.path(), &format!("dump /{at} {}", dumped.path().display()));
        assert!(std::fs::read(dumped.path()).unwrap() == bytes, "{at}");
    }
}
