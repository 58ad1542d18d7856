//! The file `index` of a layer: its entries, in bytes, with a hash at the end.
//!
//! Written and read on the same host, so that its numbers are little-endian and nothing is compatible with anything.
//! Invariant: what is read back is what was written, or nothing.

use openshell_ext4::tree::{Device, Metadata, Time, Xattrs};

use crate::digest::Digest;
use crate::layer::{Entry, Kind, Run};

const MAGIC: &[u8; 8] = b"OSLAYER2";

/// What an index holds besides the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) raw_bytes: u64,
    pub(super) pack_bytes: u64,
}

/// `aside` is the data that is kept beside the pack.
pub(super) fn encode(facts: Facts, aside: &[u8], entries: &[Entry]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    number(&mut out, facts.raw_bytes);
    number(&mut out, facts.pack_bytes);
    bytes(&mut out, aside);
    number(&mut out, entries.len() as u64);
    for entry in entries {
        put_entry(&mut out, entry);
    }
    let digest = Digest::sha256(&out);
    out.extend_from_slice(digest.hex().as_bytes());
    out
}

pub(super) fn decode(bytes: &[u8]) -> Option<(Facts, Vec<u8>, Vec<Entry>)> {
    let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(64)?)?;
    if Digest::sha256(body).hex().as_bytes() != digest {
        return None;
    }
    let mut from = Bytes(body.strip_prefix(MAGIC)?);
    let facts = Facts { raw_bytes: from.number()?, pack_bytes: from.number()? };
    let aside = from.bytes()?;
    let count = from.count()?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(from.entry()?);
    }
    from.0.is_empty().then_some((facts, aside, entries))
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    number(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    bytes(out, &entry.path);
    let metadata = &entry.metadata;
    number(out, u64::from(metadata.mode));
    number(out, u64::from(metadata.uid) << 32 | u64::from(metadata.gid));
    number(out, metadata.modified.seconds().cast_unsigned());
    number(out, u64::from(metadata.modified.nanoseconds()));
    number(out, metadata.xattrs.len() as u64);
    for (name, value) in &metadata.xattrs {
        bytes(out, name);
        bytes(out, value);
    }
    match &entry.kind {
        Kind::Directory => out.push(0),
        Kind::File { size, runs } => {
            out.push(1);
            number(out, *size);
            number(out, runs.len() as u64);
            for run in runs {
                number(out, run.at);
                number(out, run.length);
                number(out, run.pack);
            }
        }
        Kind::HardLink(target) => {
            out.push(2);
            bytes(out, target);
        }
        Kind::Symlink(target) => {
            out.push(3);
            bytes(out, target);
        }
        Kind::CharDevice(device) => {
            out.push(4);
            number(out, u64::from(device.major) << 32 | u64::from(device.minor));
        }
        Kind::BlockDevice(device) => {
            out.push(5);
            number(out, u64::from(device.major) << 32 | u64::from(device.minor));
        }
        Kind::Fifo => out.push(6),
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A number of things, each of which takes a byte at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.number()?).ok()?;
        (count <= self.0.len()).then_some(count)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.count()?;
        self.take(length).map(<[u8]>::to_vec)
    }

    fn halves(&mut self) -> Option<(u32, u32)> {
        let number = self.number()?;
        Some((u32::try_from(number >> 32).ok()?, u32::try_from(number & 0xffff_ffff).ok()?))
    }

    fn device(&mut self) -> Option<Device> {
        let (major, minor) = self.halves()?;
        Some(Device { major, minor })
    }

    fn entry(&mut self) -> Option<Entry> {
        let path = self.bytes()?;
        let mode = u16::try_from(self.number()?).ok()?;
        let (uid, gid) = self.halves()?;
        let seconds = self.number()?.cast_signed();
        let modified = Time::new(seconds, u32::try_from(self.number()?).ok()?).ok()?;
        let mut xattrs = Xattrs::new();
        for _ in 0..self.count()? {
            xattrs.insert(self.bytes()?, self.bytes()?);
        }
        let metadata = Metadata { mode, uid, gid, modified, xattrs };
        let kind = match *self.take(1)?.first()? {
            0 => Kind::Directory,
            1 => self.file()?,
            2 => Kind::HardLink(self.bytes()?),
            3 => Kind::Symlink(self.bytes()?),
            4 => Kind::CharDevice(self.device()?),
            5 => Kind::BlockDevice(self.device()?),
            6 => Kind::Fifo,
            _ => return None,
        };
        Some(Entry { path, metadata, kind })
    }

    fn file(&mut self) -> Option<Kind> {
        let size = self.number()?;
        let count = self.count()?;
        let mut runs = Vec::with_capacity(count.min(self.0.len() / 24));
        for _ in 0..count {
            runs.push(Run { at: self.number()?, length: self.number()?, pack: self.number()? });
        }
        Some(Kind::File { size, runs })
    }
}
