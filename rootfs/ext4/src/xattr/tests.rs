use super::{Layout, XattrError, acl, read_block, read_inode};
use crate::format::INODE;
use crate::tree::Xattrs;

fn xattrs(set: &[(&str, usize)]) -> Xattrs {
    set.iter().map(|(name, length)| (name.as_bytes().to_vec(), vec![7; *length])).collect()
}

/// How many attributes stand in the inode, and that all of them are read back.
fn in_inode(set: &[(&str, usize)]) -> usize {
    let all = xattrs(set);
    let layout = Layout::new(&all).unwrap();
    let mut bytes = [0; INODE];
    layout.put_inode(&mut bytes);
    let mut read = Xattrs::new();
    read_inode(&bytes, &mut read).unwrap();
    let inside = read.len();
    if layout.needs_block() {
        assert_eq!(read_block(&layout.block(), &mut read), Ok(1));
    }
    assert_eq!(read, all);
    inside
}

#[test]
fn attributes_stand_in_the_inode_while_there_is_room() {
    // 88 bytes without header and end: 16 for an entry, 4 for its name, the rest for its value.
    assert_eq!(in_inode(&[]), 0);
    assert_eq!(in_inode(&[("user.a", 68)]), 1);
    assert_eq!(in_inode(&[("user.a", 69)]), 0);
    assert_eq!(in_inode(&[("user.a", 24), ("user.b", 24)]), 2);
    assert_eq!(in_inode(&[("user.a", 24), ("user.b", 25)]), 1);
    assert_eq!(in_inode(&[("user.a", 4000), ("user.b", 25)]), 1);
}

#[test]
fn a_block_holds_4060_bytes() {
    assert_eq!(in_inode(&[("user.a", 4040)]), 0);
    for too_large in
        [&[("user.a", 4041)][..], &[("user.a", 2020), ("user.b", 2020), ("user.c", 100)]]
    {
        let error = Layout::new(&xattrs(too_large)).unwrap_err();
        assert!(matches!(error, XattrError::TooLarge(_)), "{error}");
    }
}

#[test]
fn entries_are_in_the_order_of_index_length_and_bytes() {
    let set = [
        ("security.a", 500),
        ("user.b", 501),
        ("user.a", 502),
        ("user.aa", 503),
        ("trusted.z", 504),
    ];
    let block = Layout::new(&xattrs(&set)).unwrap().block();
    let mut at = 32;
    let mut lengths = Vec::new();
    while block[at] != 0 {
        lengths.push(u32::from_le_bytes(*block[at + 8..].first_chunk().unwrap()));
        at += 16 + usize::from(block[at]).next_multiple_of(4);
    }
    assert_eq!(lengths, [502, 501, 503, 504, 500]);
}

#[test]
fn access_control_lists_are_translated_both_ways() {
    let entry = |tag: u8, permissions: u8, id: u32| {
        [&[tag, 0, permissions, 0][..], &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let spoken = [
        vec![2, 0, 0, 0],
        entry(1, 6, none),
        entry(2, 4, 1000),
        entry(4, 4, none),
        entry(8, 5, 70_000),
        entry(16, 7, none),
        entry(32, 0, none),
    ]
    .concat();
    let disk = acl::to_disk(&spoken).unwrap();
    assert_eq!(disk.len(), 4 + 4 * 4 + 2 * 8);
    assert_eq!(acl::from_disk(&disk), Some(spoken.clone()));
    for wrong in [
        &spoken[..3],
        &spoken[..5],
        &[&[1][..], &spoken[1..]].concat(),
        &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(acl::to_disk(wrong), None);
    }
    for wrong in [&disk[..2], &disk[..disk.len() - 2], &[2, 0, 0, 0], &[1, 0, 0, 0, 2, 0, 0, 0]] {
        assert_eq!(acl::from_disk(wrong), None);
    }
}

#[test]
fn any_bytes_are_read_or_refused() {
    let whole = Layout::new(&xattrs(&[("user.abc", 100), ("trusted.x", 3)])).unwrap().block();
    for at in 0..200 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut block = whole;
            block[at] = value;
            let mut read = Xattrs::new();
            if read_block(&block, &mut read).is_ok() {
                assert!(read.len() <= 2);
            }
            let mut read = Xattrs::new();
            let _refused = read_inode(&block[..INODE], &mut read);
        }
    }
}
