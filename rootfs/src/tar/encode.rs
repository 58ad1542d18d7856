//! Headers of entries, in the pax format: ustar where the values fit, records where they do not.
//!
//! Invariant: what [`encode`] writes, [`Reader`](super::Reader) reads back as the same entry.

use std::io::Write as _;

use openshell_ext4::tree::{Device, Metadata};

use super::header::BLOCK;
use super::{Entry, Extent, Kind};

/// The end of an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// What fits into the octal digits of the fields.
const ID_MAX: u32 = 0o777_7777;
const SIZE_MAX: u64 = 0o777_7777_7777;

/// The headers of an entry, and for a sparse file the map in front of its data. The data comes next, and then
/// [`padding`].
pub fn encode(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut map = Vec::new();
    let mut path = entry.path.clone();
    if path.is_empty() {
        path.push(b'.');
    }
    if entry.kind == Kind::Directory {
        path.push(b'/');
    }
    let (flag, link, stored) = match &entry.kind {
        Kind::Directory => (b'5', &[][..], 0),
        Kind::File { size, sparse: None } => (b'0', &[][..], *size),
        Kind::File { size, sparse: Some(extents) } => {
            map = sparse_map(extents);
            for (key, value) in [("major", 1), ("minor", 0), ("realsize", *size)] {
                record(
                    &mut records,
                    format!("GNU.sparse.{key}").as_bytes(),
                    value.to_string().as_bytes(),
                );
            }
            record(&mut records, b"GNU.sparse.name", &path);
            (
                b'0',
                &[][..],
                map.len() as u64 + extents.iter().map(|extent| extent.length).sum::<u64>(),
            )
        }
        Kind::HardLink(target) => (b'1', &target[..], 0),
        Kind::Symlink(target) => (b'2', &target[..], 0),
        Kind::CharDevice(_) => (b'3', &[][..], 0),
        Kind::BlockDevice(_) => (b'4', &[][..], 0),
        Kind::Fifo => (b'6', &[][..], 0),
    };
    // A sparse file has its name in a record of its own already.
    if path.len() > 100 && map.is_empty() {
        record(&mut records, b"path", &path);
    }
    if link.len() > 100 {
        record(&mut records, b"linkpath", link);
    }
    if stored > SIZE_MAX {
        record(&mut records, b"size", stored.to_string().as_bytes());
    }
    metadata_records(&mut records, &entry.metadata);
    let mut out = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        out.extend_from_slice(&block(
            b'x',
            b"pax",
            &[],
            records.len() as u64,
            &Metadata::new(0o644, 0, 0),
            None,
        ));
        out.extend_from_slice(&records);
        pad(&mut out);
    }
    let device = match entry.kind {
        Kind::CharDevice(device) | Kind::BlockDevice(device) => Some(device),
        _ => None,
    };
    out.extend_from_slice(&block(flag, &path, link, stored, &entry.metadata, device));
    out.extend_from_slice(&map);
    out
}

/// How many zeros follow data of this length.
pub fn padding(length: u64) -> usize {
    usize::try_from(length.wrapping_neg() % BLOCK as u64).expect("less than a block")
}

fn metadata_records(records: &mut Vec<u8>, metadata: &Metadata) {
    for (key, id) in [("uid", metadata.uid), ("gid", metadata.gid)] {
        if id > ID_MAX {
            record(records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    let time = metadata.modified;
    if !fits(time.seconds()) || time.nanoseconds() != 0 {
        record(records, b"mtime", decimal(time.seconds(), time.nanoseconds()).as_bytes());
    }
    for (name, value) in &metadata.xattrs {
        record(records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
}

fn fits(seconds: i64) -> bool {
    u64::try_from(seconds).is_ok_and(|seconds| seconds <= SIZE_MAX)
}

/// Seconds with a fraction; the fraction of a negative time counts away from zero.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let whole = seconds.unsigned_abs() - 1;
        return format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// Adds `LENGTH KEY=VALUE` and a newline. The length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len()).into_bytes();
    for extent in extents {
        write!(map, "{}\n{}\n", extent.offset, extent.length).expect("a vector takes every write");
    }
    pad(&mut map);
    map
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

fn block(
    flag: u8,
    path: &[u8],
    link: &[u8],
    stored: u64,
    metadata: &Metadata,
    device: Option<Device>,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(100, format!("{:07o}", metadata.mode & 0o7777).as_bytes());
    let id = |id: u32| format!("{:07o}", if id > ID_MAX { 0 } else { id });
    put(108, id(metadata.uid).as_bytes());
    put(116, id(metadata.gid).as_bytes());
    put(124, format!("{:011o}", if stored > SIZE_MAX { 0 } else { stored }).as_bytes());
    let seconds = metadata.modified.seconds();
    put(136, format!("{:011o}", if fits(seconds) { seconds } else { 0 }).as_bytes());
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    if let Some(device) = device {
        put(329, format!("{:07o}", device.major).as_bytes());
        put(337, format!("{:07o}", device.minor).as_bytes());
    }
    put(148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[154] = 0;
    block
}
