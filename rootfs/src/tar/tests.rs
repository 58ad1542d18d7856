//! Archives as programs write them, and as attackers do.

use std::io::{BufReader, Read as _};

use openshell_ext4::tree::{Device, Metadata, Time, Xattrs};
use proptest::prelude::*;

use super::header::BLOCK;
use super::*;
use crate::limits::Limits;

/// A header block by hand; fields can be changed before it is summed.
fn header(kind: u8, name: &str, size: u64, change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.to_vec()
}

fn plain(kind: u8, name: &str) -> Vec<u8> {
    header(kind, name, 0, |_| ())
}

fn link(kind: u8, name: &str, target: &str, size: u64) -> Vec<u8> {
    header(kind, name, size, |block| {
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    })
}

/// Data in whole blocks.
fn blocks(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    [header(b'0', name, data.len() as u64, |_| ()), blocks(data)].concat()
}

fn gnu_long(kind: u8, text: &[u8]) -> Vec<u8> {
    let body = [text, b"\0"].concat();
    [header(kind, "././@LongLink", body.len() as u64, |_| ()), blocks(&body)].concat()
}

/// A pax header of records.
fn pax(kind: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|length| rest + length.to_string().len() == *length);
        body.extend(format!("{} {key}=", length.expect("there is one")).into_bytes());
        body.extend(*value);
        body.push(b'\n');
    }
    [header(kind, "PaxHeaders/x", body.len() as u64, |_| ()), blocks(&body)].concat()
}

fn end() -> Vec<u8> {
    END.to_vec()
}

/// Entries and their files' data, read through a buffer of `capacity` bytes.
fn read_through(
    archive: &[u8],
    capacity: usize,
    limits: &Limits,
) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(BufReader::with_capacity(capacity, archive), limits);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.data(&entry, |offset, bytes| {
            data.resize(usize::try_from(offset).expect("small"), 0);
            data.extend_from_slice(bytes);
            Ok(())
        })?;
        if let Kind::File { size, .. } = entry.kind {
            data.resize(usize::try_from(size).expect("small"), 0);
        }
        found.push((entry, data));
    }
    Ok(found)
}

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let limits = Limits::default();
    let found = read_through(archive, 1 << 16, &limits);
    // Where buffers end makes no difference.
    let again = read_through(archive, 7, &limits);
    assert_eq!(format!("{found:?}"), format!("{again:?}"));
    found
}

fn read_one(parts: &[Vec<u8>]) -> (Entry, Vec<u8>) {
    let found = read(&[parts.concat(), file("behind", b"data"), end()].concat());
    let mut found = found.expect("an archive");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1].0.path, b"behind");
    assert_eq!(found[1].1, b"data");
    found.swap_remove(0)
}

fn refused(parts: &[Vec<u8>]) -> Fault {
    match read(&parts.concat()).expect_err("refused") {
        TarError::Entry { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn binary_pax_values_with_newlines_do_not_cut_records() {
    let capability = b"\x01\0\0\x02\n\n5 =\n\0\0\0\0\0\0\0\0\0\0\0\0";
    let (entry, _) = read_one(&[
        pax(b'x', &[("SCHILY.xattr.security.capability", capability), ("uid", b"70000")]),
        file("ping", b"elf"),
    ]);
    assert_eq!(entry.metadata.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(entry.metadata.uid, 70_000);
}

#[test]
fn both_spellings_of_extended_attributes_are_read() {
    let (entry, _) = read_one(&[
        pax(b'x', &[("LIBARCHIVE.xattr.user.a%3Db", b"AAEC"), ("SCHILY.xattr.user.c", b"\0\n")]),
        file("a", b""),
    ]);
    let expected: Xattrs =
        [(b"user.a=b".to_vec(), vec![0, 1, 2]), (b"user.c".to_vec(), vec![0, b'\n'])].into();
    assert_eq!(entry.metadata.xattrs, expected);
}

#[test]
fn the_pax_size_is_used_for_data_and_for_the_way_on() {
    let data = [7; 1000];
    for stated in [0, 8, 4096] {
        let parts =
            [pax(b'x', &[("size", b"1000")]), header(b'0', "a", stated, |_| ()), blocks(&data)];
        let (entry, found) = read_one(&parts);
        assert_eq!(entry.kind, Kind::File { size: 1000, sparse: None });
        assert_eq!(found, data);
    }
}

#[test]
fn a_pax_header_is_about_the_entry_and_not_about_a_long_name_between() {
    let long = "n".repeat(150);
    let parts = [
        pax(b'x', &[("size", b"5"), ("uid", b"9")]),
        gnu_long(b'L', long.as_bytes()),
        file("n", b"hello"),
    ];
    let (entry, data) = read_one(&parts);
    assert_eq!((entry.path, entry.metadata.uid), (long.into_bytes(), 9));
    assert_eq!(data, b"hello");
}

#[test]
fn pax_goes_before_global_before_long_name_before_header() {
    let name = |parts: &[Vec<u8>]| String::from_utf8(read_one(parts).0.path).expect("text");
    let prefixed = header(b'0', "c", 0, |block| block[345..348].copy_from_slice(b"a/b"));
    assert_eq!(name(std::slice::from_ref(&prefixed)), "a/b/c");
    assert_eq!(name(&[gnu_long(b'L', b"long"), prefixed.clone()]), "long");
    let both = [gnu_long(b'L', b"long"), pax(b'x', &[("path", b"pax")]), prefixed.clone()];
    assert_eq!(name(&both), "pax");
    let gnu = header(b'0', "c", 0, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..348].copy_from_slice(b"123");
    });
    assert_eq!(name(&[gnu]), "c");
}

#[test]
fn global_records_hold_until_they_are_taken_back() {
    let archive = [
        pax(b'g', &[("uid", b"5"), ("gid", b"6"), ("comment", b"of git")]),
        plain(b'0', "a"),
        pax(b'x', &[("uid", b"7"), ("gid", b"")]),
        plain(b'0', "b"),
        pax(b'g', &[("uid", b"")]),
        plain(b'0', "c"),
        end(),
    ];
    let ids: Vec<_> = read(&archive.concat())
        .expect("an archive")
        .iter()
        .map(|(entry, _)| (entry.metadata.uid, entry.metadata.gid))
        .collect();
    assert_eq!(ids, [(5, 6), (7, 0), (0, 6)]);
    let fault = refused(&[pax(b'g', &[("path", b"x")]), plain(b'0', "a"), end()]);
    assert_eq!(fault, Fault::Global("path".to_owned()));
    let fault = refused(&[pax(b'g', &[("GNU.sparse.major", b"1")]), plain(b'0', "a")]);
    assert!(matches!(fault, Fault::Global(_)));
}

#[test]
fn every_kind_of_entry_is_told_apart() {
    let kind = |part: Vec<u8>| read_one(&[part]).0.kind;
    let device = |kind| {
        header(kind, "d", 0, |block| {
            block[329..336].copy_from_slice(b"0000010");
            block[337..344].copy_from_slice(b"0000003");
        })
    };
    let expected = Device { major: 8, minor: 3 };
    assert_eq!(kind(plain(b'5', "d/")), Kind::Directory);
    assert_eq!(kind(plain(b'0', "d/")), Kind::Directory);
    assert_eq!(kind(plain(0, "d/")), Kind::Directory);
    assert_eq!(kind(plain(0, "f")), Kind::File { size: 0, sparse: None });
    assert_eq!(kind(plain(b'7', "f")), Kind::File { size: 0, sparse: None });
    assert_eq!(kind(device(b'3')), Kind::CharDevice(expected));
    assert_eq!(kind(device(b'4')), Kind::BlockDevice(expected));
    assert_eq!(kind(plain(b'6', "p")), Kind::Fifo);
    assert_eq!(kind(link(b'2', "l", "../../x", 0)), Kind::Symlink(b"../../x".to_vec()));
    assert_eq!(kind(link(b'1', "h", "./a//b", 0)), Kind::HardLink(b"a/b".to_vec()));
    assert_eq!(kind(header(b'5', "d", 999, |_| ())), Kind::Directory);
}

#[test]
fn an_old_archive_has_no_magic_and_no_prefix() {
    let v7 = header(0, "dir/name", 0, |block| {
        block[257..265].fill(0);
        block[345..348].copy_from_slice(b"xyz");
    });
    assert_eq!(read_one(&[v7]).0.path, b"dir/name");
}

#[test]
fn a_hard_link_with_a_size_may_have_data_or_not() {
    let with = [link(b'1', "h", "a", 5), blocks(b"hello")];
    assert_eq!(read_one(&with).0.kind, Kind::HardLink(b"a".to_vec()));
    assert_eq!(read_one(&[link(b'1', "h", "a", 5)]).0.kind, Kind::HardLink(b"a".to_vec()));
    let large = [link(b'1', "h", "a", 1200), blocks(&[9; 1200])];
    assert_eq!(read_one(&large).0.kind, Kind::HardLink(b"a".to_vec()));
    let last = read(&link(b'1', "h", "a", 5)).expect("an archive");
    assert_eq!(last.len(), 1);
}

#[test]
fn numbers_beyond_octal_are_read() {
    let (entry, _) = read_one(&[header(b'0', "a", 0, |block| {
        block[108..116].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xfe");
        block[136..148].copy_from_slice(&[0xff; 12]);
    })]);
    assert_eq!(entry.metadata.uid, u32::MAX - 1);
    assert_eq!(entry.metadata.modified, Time::from_seconds(-1));
    let fault = refused(&[header(b'0', "a", 0, |block| {
        block[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0");
    })]);
    assert_eq!(fault, Fault::Number("uid"));
    let fault = refused(&[header(b'0', "a", 0, |block| block[124..136].fill(0xff))]);
    assert_eq!(fault, Fault::Number("size"));
    let fault = refused(&[pax(b'x', &[("uid", b"4294967296")]), plain(b'0', "a")]);
    assert_eq!(fault, Fault::Number("uid"));
}

#[test]
fn setuid_times_and_signed_sums_are_kept() {
    let mut signed =
        header(b'0', "a\u{e9}", 0, |block| block[100..107].copy_from_slice(b"0106755"));
    let sum: i64 = signed
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(byte.cast_signed()) })
        .sum();
    signed[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let (entry, _) = read_one(&[pax(b'x', &[("mtime", b"12.000000034")]), signed]);
    assert_eq!(entry.metadata.mode, 0o6755);
    assert_eq!(entry.metadata.modified, Time::new(12, 34).expect("a time"));
}

/// `ab` at 4096 and `cd` at 10000 of a file of 12000 bytes.
fn check_sparse(parts: &[Vec<u8>]) {
    let (entry, data) = read_one(parts);
    assert_eq!(entry.path, b"real");
    let extents = [Extent { offset: 4096, length: 2 }, Extent { offset: 10_000, length: 2 }];
    assert_eq!(entry.kind, Kind::File { size: 12_000, sparse: Some(extents.to_vec()) });
    assert_eq!((&data[4096..4098], &data[10_000..10_002]), (&b"ab"[..], &b"cd"[..]));
    assert_eq!(data.iter().filter(|byte| **byte != 0).count(), 4);
}

#[test]
fn pax_sparse_files_of_all_versions_are_read() {
    let map = blocks(b"3\n4096\n2\n10000\n2\n12000\n0\n");
    let size = map.len() as u64 + 4;
    check_sparse(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.realsize", b"12000"),
            ],
        ),
        header(b'0', "GNUSparseFile.1/real", size, |_| ()),
        map,
        blocks(b"abcd"),
    ]);
    check_sparse(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.size", b"12000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.name", b"real"),
                ("GNU.sparse.map", b"4096,2,10000,2"),
            ],
        ),
        file("GNUSparseFile.1/real", b"abcd"),
    ]);
    check_sparse(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.size", b"12000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"4096"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"10000"),
                ("GNU.sparse.numbytes", b"2"),
            ],
        ),
        file("real", b"abcd"),
    ]);
}

fn old_sparse(entries: &[(u64, u64)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(offset, length)| format!("{offset:011o}\0{length:011o}\0").into_bytes())
        .collect()
}

fn old_header(map: &[u8], stored: u64, real: u64, more: bool) -> Vec<u8> {
    header(b'S', "real", stored, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[386..386 + map.len()].copy_from_slice(map);
        block[482] = u8::from(more);
        block[483..494].copy_from_slice(format!("{real:011o}").as_bytes());
    })
}

#[test]
fn old_sparse_files_are_read_with_and_without_further_blocks() {
    let map = old_sparse(&[(4096, 2), (10_000, 2), (12_000, 0)]);
    check_sparse(&[old_header(&map, 4, 12_000, false), blocks(b"abcd")]);
    let all: Vec<(u64, u64)> = (0..50).map(|at| (at * 1000, 1)).collect();
    let mut second = old_sparse(&all[4..25]);
    second.resize(512, 0);
    second[504] = 1;
    let mut third = old_sparse(&all[25..46]);
    third.resize(512, 0);
    third[504] = 1;
    let mut fourth = old_sparse(&all[46..]);
    fourth.resize(512, 0);
    let first = old_header(&old_sparse(&all[..4]), 50, 60_000, true);
    let (entry, data) = read_one(&[first, second, third, fourth, blocks(&[5; 50])]);
    assert!(
        matches!(entry.kind, Kind::File { size: 60_000, sparse: Some(map) } if map.len() == 50)
    );
    assert!(
        data.iter().enumerate().all(|(at, byte)| (*byte == 5) == (at % 1000 == 0 && at < 50_000))
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in
        ["10,2,5,2", "0,3", "0,5", "12000,4", "0,2,1,2", "0", "a,b", "18446744073709551615,4"]
    {
        let records = [
            ("GNU.sparse.size", &b"12000"[..]),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        assert_eq!(
            refused(&[pax(b'x', &records), file("real", b"abcd"), end()]),
            Fault::Sparse,
            "{map}"
        );
    }
    for map in
        ["x\n", "99999999\n0\n1\n", "1\n0\n", "1\n0\n123456789012345678901\n", "2\n0\n2\n1\n2\n"]
    {
        let records = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"100"),
        ];
        let map = blocks(map.as_bytes());
        let parts = [
            pax(b'x', &records),
            header(b'0', "a", map.len() as u64 + 4, |_| ()),
            map,
            blocks(b"abcd"),
            end(),
        ];
        assert_eq!(refused(&parts), Fault::Sparse);
    }
    let records = [
        ("GNU.sparse.major", &b"2"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"1"),
    ];
    assert_eq!(refused(&[pax(b'x', &records), file("a", b"a")]), Fault::Sparse);
    let records = [("GNU.sparse.size", &b"99999999999"[..]), ("GNU.sparse.map", b"0,1")];
    assert!(matches!(refused(&[pax(b'x', &records), file("a", b"a")]), Fault::Limit(_)));
}

#[test]
fn archives_end_in_several_ways() {
    let body = file("a", b"x");
    for tail in [
        vec![],
        vec![0; 512],
        end(),
        [end(), vec![0; 9000]].concat(),
        [end(), b"junk".to_vec()].concat(),
    ] {
        assert_eq!(read(&[body.clone(), tail].concat()).expect("an archive").len(), 1);
    }
    assert_eq!(read(b"").expect("an archive").len(), 0);
    assert_eq!(refused(&[body.clone(), vec![0; 512], body.clone()]), Fault::LoneZeroBlock);
    assert_eq!(refused(&[body.clone(), body[..100].to_vec()]), Fault::Truncated);
    assert_eq!(refused(&[header(b'0', "a", 1 << 30, |_| ()), vec![1; 700]]), Fault::Truncated);
    assert_eq!(refused(&[pax(b'x', &[("uid", b"1")]), end()]), Fault::Dangling);
    assert_eq!(refused(&[gnu_long(b'L', b"name"), end()]), Fault::Dangling);
    assert_eq!(refused(&[vec![b'x'; 512]]), Fault::Checksum);
}

#[test]
fn unknown_types_are_skipped_only_if_vendors_own_them() {
    let found =
        read(&[header(b'V', "label", 700, |_| ()), vec![1; 1024], file("a", b"x"), end()].concat());
    assert_eq!(found.expect("an archive").len(), 1);
    for kind in [b'8', b'a', b'M', 0xff] {
        assert_eq!(refused(&[plain(kind, "a"), end()]), Fault::Type(kind));
    }
}

#[test]
fn names_that_are_no_paths_are_refused_by_name() {
    for name in ["../etc/passwd", "a/../../b", "/.."] {
        let error = read(&[plain(b'0', name), end()].concat()).expect_err("refused").to_string();
        assert!(error.contains(name) && error.contains("climbs"), "{error}");
    }
    let climbing = refused(&[link(b'1', "a", "../../etc/shadow", 0), end()]);
    assert_eq!(climbing.to_string(), "the name climbs with \"..\"");
    assert!(matches!(refused(&[plain(b'0', ""), end()]), Fault::Path(_)));
    assert!(matches!(
        refused(&[pax(b'x', &[("path", b"a\0b")]), plain(b'0', "a")]),
        Fault::Path(_)
    ));
    assert!(matches!(refused(&[link(b'2', "a", "", 0), end()]), Fault::Path(_)));
    let long = "x".repeat(256);
    assert!(matches!(
        refused(&[gnu_long(b'L', long.as_bytes()), plain(b'0', "a")]),
        Fault::Limit(_)
    ));
    let deep = "d/".repeat(300);
    assert!(matches!(
        refused(&[gnu_long(b'L', deep.as_bytes()), plain(b'0', "a")]),
        Fault::Limit(_)
    ));
}

#[test]
fn headers_about_headers_are_bounded() {
    let huge = header(b'x', "x", 1 << 32, |_| ());
    assert!(matches!(refused(&[huge]), Fault::Limit(_)));
    let huge = header(b'L', "x", 2 << 20, |_| ());
    assert!(matches!(refused(&[huge]), Fault::Limit(_)));
    let value = vec![b'v'; 300 << 10];
    let keys = ["a", "b", "c", "d"].map(|key| pax(b'g', &[(key, &value)]));
    assert!(matches!(refused(&keys), Fault::Limit(_)));
    let mut again = pax(b'g', &[("a", &value)]).repeat(20);
    again.extend(file("f", b""));
    assert_eq!(read(&again).expect("an archive").len(), 1);
    let large = vec![1; 65 << 10];
    let fault = refused(&[pax(b'x', &[("SCHILY.xattr.user.a", &large)]), plain(b'0', "a")]);
    assert!(matches!(fault, Fault::Limit(_)));
}

#[test]
fn a_file_larger_than_the_limit_is_refused_before_it_is_read() {
    let limits = Limits { file_bytes: 1000, ..Limits::default() };
    let error =
        read_through(&header(b'0', "big", 1001, |_| ()), 512, &limits).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "archive entry \"big\" at byte 0: more than the limit of 1000 bytes in one file"
    );
}

prop_compose! {
    fn metadata()(
        mode in 0u16..0o10000, uid: u32, gid: u32, seconds in -(1i64 << 40)..(1i64 << 40),
        nanoseconds in prop_oneof![Just(0u32), 0u32..1_000_000_000],
        xattrs in prop::collection::btree_map("user\\.[a-z]{1,20}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..80), 0..3),
    ) -> Metadata {
        Metadata { mode, uid, gid, modified: Time::new(seconds, nanoseconds).expect("in range"), xattrs }
    }
}

/// Paths whose names have at most `longest` bytes.
fn path(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let name = prop::collection::vec(1u8.., 1..=longest).prop_map(|mut name| {
        name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
        if matches!(&name[..], b"." | b"..") { b"x".to_vec() } else { name }
    });
    prop::collection::vec(name, 1..6).prop_map(|names| names.join(&b'/'))
}

fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let device = || (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Device { major, minor });
    let file = prop::collection::vec(any::<u8>(), 0..2000)
        .prop_map(|data| (Kind::File { size: data.len() as u64, sparse: None }, data));
    let sparse = prop::collection::vec((1u64..5000, 1u64..300), 0..6).prop_map(|runs| {
        let mut end = 0;
        let extents: Vec<Extent> = runs
            .iter()
            .map(|(gap, length)| {
                let offset = end + gap;
                end = offset + length;
                Extent { offset, length: *length }
            })
            .collect();
        let stored: u64 = extents.iter().map(|extent| extent.length).sum();
        let data = vec![3; usize::try_from(stored).expect("small")];
        (Kind::File { size: end + 77, sparse: Some(extents) }, data)
    });
    let other = prop_oneof![
        Just(Kind::Directory),
        Just(Kind::Fifo),
        path(60).prop_map(Kind::HardLink),
        path(60).prop_map(Kind::Symlink),
        device().prop_map(Kind::CharDevice),
        device().prop_map(Kind::BlockDevice),
    ]
    .prop_map(|kind| (kind, Vec::new()));
    (path(60), metadata(), prop_oneof![file, sparse, other])
        .prop_map(|(path, metadata, (kind, data))| (Entry { path, kind, metadata }, data))
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(entries in prop::collection::vec(any_entry(), 0..8)) {
        let mut archive = Vec::new();
        for (entry, data) in &entries {
            archive.extend(encode(entry));
            archive.extend(data);
            archive.extend(vec![0; padding(data.len() as u64)]);
        }
        archive.extend(END);
        let limits = Limits::default();
        let mut reader = Reader::new(&archive[..], &limits);
        for (entry, data) in &entries {
            let found = reader.next_entry().expect("an archive").expect("an entry");
            prop_assert_eq!(&found, entry);
            let mut stored = Vec::new();
            reader.data(&found, |_, bytes| { stored.extend_from_slice(bytes); Ok(()) }).expect("data");
            prop_assert_eq!(&stored, data);
        }
        prop_assert!(reader.next_entry().expect("an archive").is_none());
    }

    // Names are short: that writer cannot shorten some of the longer ones.
    #[test]
    fn archives_of_another_writer_mean_the_same(entries in prop::collection::vec((path(15), 0u32..1 << 21, 0u64..1 << 33, prop::collection::vec(any::<u8>(), 0..1500)), 0..6)) {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (path, uid, mtime, data) in &entries {
            let mut header = ::tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_uid(u64::from(*uid));
            header.set_mtime(*mtime);
            header.set_size(data.len() as u64);
            let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path[..]);
            builder.append_data(&mut header, path, &data[..]).expect("in memory");
        }
        let archive = builder.into_inner().expect("in memory");
        let ours = read(&archive).expect("an archive");
        prop_assert_eq!(ours.len(), entries.len());
        let mut oracle = ::tar::Archive::new(&archive[..]);
        for ((entry, data), other) in ours.iter().zip(oracle.entries().expect("an archive")) {
            let mut other = other.expect("an entry");
            prop_assert_eq!(&entry.path[..], &other.path_bytes()[..]);
            prop_assert_eq!(u64::from(entry.metadata.uid), other.header().uid().expect("a number"));
            prop_assert_eq!(entry.metadata.modified.seconds().cast_unsigned(), other.header().mtime().expect("a number"));
            let mut expected = Vec::new();
            other.read_to_end(&mut expected).expect("data");
            prop_assert_eq!(data, &expected);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic_or_run_on(mut archive in prop::collection::vec(any_entry(), 1..4).prop_map(|entries| {
        let mut archive = Vec::new();
        for (entry, data) in &entries {
            archive.extend(encode(entry));
            archive.extend(data);
            archive.extend(vec![0; padding(data.len() as u64)]);
        }
        archive
    }), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), resum: bool) {
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if resum {
            // A wrong sum would end most of these archives at once.
            for block in archive.as_chunks_mut::<BLOCK>().0 {
                if block[257..262] == *b"ustar" {
                    block[148..156].copy_from_slice(b"        ");
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
                }
            }
        }
        let limits = Limits { file_bytes: 1 << 20, ..Limits::default() };
        drop(read_through(&archive, 100, &limits));
    }
}
