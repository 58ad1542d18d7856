//! The delta file, version 1. All numbers are little-endian.
//!
//! ```text
//! 0          header, 4096 bytes:
//!              0  magic "OSHDELTA"      24  base length in bytes, u64
//!              8  version, u32: 1       32  base fingerprint, u64
//!             12  block bytes, u32      40  FNV-1a of bytes 0..40, u64; zeroes follow
//!             16  map offset, u64: 4096
//! 4096       map: bit N % 8 of byte N / 8 says that the delta holds block N; padded to 4096 with zeroes
//! after it   data: byte N of the disk at the same distance from here; a hole reads as zeroes
//! ```
//!
//! Blocks are 4 KiB, the block size of nearly every guest filesystem: its writes never need a copy of the base first, and the map is 32
//! KiB per GiB, of which only touched pages cost memory. Data lies at its own place, so that there is no allocation to keep consistent
//! and a discard is a hole.
//!
//! The fingerprint covers the base's first 16 KiB and last 4 KiB. It travels with a copied or moved base, and it differs for another
//! image as well as for one whose filesystem was mounted read-write since (superblocks record that); times and inode numbers do
//! neither. Invariant: a file is opened only when its header and length are exactly what this page says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::map::{Map, PAGE_BYTES};

/// Unit of copy-on-write.
pub const BLOCK_BYTES: u64 = BLOCK_LEN as u64;
/// The same, as a length in memory.
pub(super) const BLOCK_LEN: usize = 4096;

const MAGIC: [u8; 8] = *b"OSHDELTA";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 4096;
const HEADER_BYTES: u64 = HEADER_LEN as u64;
const FIELDS_BYTES: usize = 40;
const FINGERPRINT_START: u64 = 16 << 10;
const FINGERPRINT_END: u64 = 4 << 10;
/// One page of map covers this much disk.
const PAGE_SPAN: u64 = PAGE_BYTES as u64 * 8 * BLOCK_BYTES;
/// 64 TiB, whose map is 2 GiB: a length beyond it is a mistake.
const MAX_LEN_BYTES: u64 = 64 << 40;

/// Why a delta could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The disk is larger than a delta can be made for.
    #[error("a disk of {len_bytes} bytes is too large for an overlay")]
    TooLarge {
        /// Size of the base.
        len_bytes: u64,
    },
    /// The host failed to read or write one of the files.
    #[error("cannot access the overlay or its base")]
    Access(#[source] io::Error),
    /// The file is not empty and not a delta.
    #[error("the file is not an overlay")]
    NotDelta,
    /// Another version of the format.
    #[error("the overlay has version {0}, this program knows version 1")]
    Version(u32),
    /// The header or the length is not what was written.
    #[error("the overlay is damaged: {0}")]
    Damaged(&'static str),
    /// The delta belongs to another base, or the base was changed.
    #[error("the overlay was made for another base image, or the base has changed since")]
    OtherBase,
}

/// Where things lie in the delta of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub(super) len_bytes: u64,
    map_bytes: u64,
}

impl Layout {
    pub(super) fn new(len_bytes: u64) -> Result<Self, OverlayError> {
        if len_bytes > MAX_LEN_BYTES {
            return Err(OverlayError::TooLarge { len_bytes });
        }
        Ok(Self { len_bytes, map_bytes: len_bytes.div_ceil(PAGE_SPAN) * PAGE_BYTES as u64 })
    }

    pub(super) fn map_at(&self, page: usize) -> u64 {
        HEADER_BYTES + page as u64 * PAGE_BYTES as u64
    }

    pub(super) fn data_at(&self, offset: u64) -> u64 {
        HEADER_BYTES + self.map_bytes + offset
    }

    fn file_bytes(&self) -> u64 {
        self.data_at(self.len_bytes)
    }
}

/// Checks the delta, or makes a new one of an empty file; the map it has.
pub(super) fn open(base: &File, delta: &File, layout: Layout) -> Result<Map, OverlayError> {
    let fingerprint = fingerprint(base, layout.len_bytes).map_err(OverlayError::Access)?;
    let wanted = header(layout, fingerprint);
    let found_bytes = delta.metadata().map_err(OverlayError::Access)?.len();
    let map_len = usize::try_from(layout.map_bytes)
        .map_err(|_| OverlayError::TooLarge { len_bytes: layout.len_bytes })?;
    let mut bits = vec![0; map_len];
    if found_bytes == 0 {
        delta.write_all_at(&wanted, 0).map_err(OverlayError::Access)?;
        delta.set_len(layout.file_bytes()).map_err(OverlayError::Access)?;
        return Ok(Map::new(bits));
    }
    let mut found = [0; HEADER_LEN];
    if found_bytes < HEADER_BYTES {
        let _short = delta.read_at(&mut found, 0).map_err(OverlayError::Access)?;
        let ours = found.starts_with(&MAGIC);
        return Err(if ours {
            OverlayError::Damaged("it is cut off")
        } else {
            OverlayError::NotDelta
        });
    }
    delta.read_exact_at(&mut found, 0).map_err(OverlayError::Access)?;
    compare(&found, &wanted)?;
    if found_bytes != layout.file_bytes() {
        return Err(OverlayError::Damaged("its length is not what its header says"));
    }
    delta.read_exact_at(&mut bits, HEADER_BYTES).map_err(OverlayError::Access)?;
    if has_bits_past(&bits, layout.len_bytes.div_ceil(BLOCK_BYTES)) {
        return Err(OverlayError::Damaged("its map names blocks past the end"));
    }
    Ok(Map::new(bits))
}

fn compare(found: &[u8], wanted: &[u8]) -> Result<(), OverlayError> {
    if found.get(..8) != Some(&MAGIC) {
        return Err(OverlayError::NotDelta);
    }
    let version = found.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if version != Some(VERSION) {
        return Err(OverlayError::Version(version.unwrap_or(0)));
    }
    let sum = found.get(..FIELDS_BYTES).map(|fields| fnv(FNV_START, fields).to_le_bytes());
    if found.get(FIELDS_BYTES..FIELDS_BYTES + 8) != sum.as_ref().map(<[u8; 8]>::as_slice) {
        return Err(OverlayError::Damaged("its header's checksum is wrong"));
    }
    if found.get(..24) != wanted.get(..24) || found.get(48..) != wanted.get(48..) {
        return Err(OverlayError::Damaged("its header does not fit version 1"));
    }
    if found == wanted { Ok(()) } else { Err(OverlayError::OtherBase) }
}

fn header(layout: Layout, fingerprint: u64) -> [u8; HEADER_LEN] {
    let mut fields = Vec::with_capacity(FIELDS_BYTES + 8);
    fields.extend(MAGIC);
    fields.extend(VERSION.to_le_bytes());
    fields.extend(4096_u32.to_le_bytes());
    fields.extend(HEADER_BYTES.to_le_bytes());
    fields.extend(layout.len_bytes.to_le_bytes());
    fields.extend(fingerprint.to_le_bytes());
    fields.extend(fnv(FNV_START, &fields).to_le_bytes());
    let mut header = [0; HEADER_LEN];
    for (to, from) in header.iter_mut().zip(fields) {
        *to = from;
    }
    header
}

fn has_bits_past(bits: &[u8], blocks: u64) -> bool {
    let whole = usize::try_from(blocks / 8).unwrap_or(usize::MAX);
    let mut tail = bits.get(whole..).unwrap_or_default().iter();
    let partial = tail.next().is_some_and(|byte| u32::from(*byte) >> (blocks % 8) != 0);
    partial || tail.any(|byte| *byte != 0)
}

fn fingerprint(base: &File, len_bytes: u64) -> io::Result<u64> {
    let mut start = vec![0; usize::try_from(len_bytes.min(FINGERPRINT_START)).unwrap_or(0)];
    base.read_exact_at(&mut start, 0)?;
    let end_len = len_bytes.min(FINGERPRINT_END);
    let mut end = vec![0; usize::try_from(end_len).unwrap_or(0)];
    base.read_exact_at(&mut end, len_bytes - end_len)?;
    Ok(fnv(fnv(FNV_START, &start), &end))
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
