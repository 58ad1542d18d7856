//! A block request: bytes of a descriptor chain to what must be done (VIRTIO 1.2 section 5.2.6).
//!
//! Invariant: a parsed request names only sectors the disk has, and at most the limits that the configuration space states; the
//! header is copied once and only the copy is looked at. Pure apart from reading guest memory.

use std::io;

use crate::memory::{GuestRam, IoBuf, MemoryError};
use crate::virtio::{Chain, ChainError, Segment};

/// Unit of addresses and of the configured block size.
pub const SECTOR_BYTES: u32 = 512;
/// Most ranges in one discard or zeroing request.
pub const MAX_RANGES: u32 = 64;
/// Most sectors in one discarded range: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// Most sectors in one zeroed range: 64 MiB, which is what may have to be written where the host can't zero a range.
pub const MAX_ZERO_SECTORS: u32 = 128 << 10;
/// Length of the identity string.
pub const ID_BYTES: usize = 20;

/// The request header, and also one range of a list.
type Words = [u8; 16];
const HEADER_BYTES: u64 = size_of::<Words>() as u64;
const RANGE_BYTES: u64 = size_of::<Words>() as u64;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const FLAG_UNMAP: u32 = 1;

/// Status: it was done.
pub const STATUS_OK: u8 = 0;
/// Status: it failed.
pub const STATUS_IOERR: u8 = 1;
/// Status: the device does not serve this.
pub const STATUS_UNSUPP: u8 = 2;

/// What the parser must know of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Requests that change the disk are refused.
    pub read_only: bool,
}

/// A byte range of the disk, inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub len_bytes: u64,
    /// The space may be given back (always so for a discard).
    pub unmap: bool,
}

/// What the driver asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Fill the writable part but its last byte.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Length.
        len_bytes: u32,
    },
    /// Store the readable part after the header.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Length.
        len_bytes: u32,
    },
    /// Make completed writes durable.
    Flush,
    /// Tell the identity string.
    Identify,
    /// Give ranges back.
    Discard(Vec<Extent>),
    /// Zero ranges.
    Zero(Vec<Extent>),
}

/// The driver's mistakes and the disk's failures: each has its answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no writable byte, so the driver cannot be told.
    #[error("descriptor chain has no room for the status")]
    NoStatus,
    /// The header is not all there.
    #[error("descriptor chain too short")]
    ShortChain(#[source] ChainError),
    /// The data is not a whole number of sectors, or more than a used length can say.
    #[error("data of {len_bytes} bytes is not a number of sectors")]
    DataLength {
        /// Length of the data.
        len_bytes: u64,
    },
    /// The disk ends first.
    #[error("sector {sector} plus {len_bytes} bytes lies past the end")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length of the data.
        len_bytes: u64,
    },
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The type is not known, or needs a feature that is not offered.
    #[error("request type {0} is not served")]
    Unsupported(u32),
    /// The ranges are not a whole number of them, none, or too many.
    #[error("range list of {len_bytes} bytes is refused")]
    RangeList {
        /// Length of the list.
        len_bytes: u64,
    },
    /// One range is longer than the limit.
    #[error("range of {sectors} sectors is over the limit")]
    RangeLength {
        /// Its length.
        sectors: u32,
    },
    /// A range has flags that are reserved, or not for this request.
    #[error("range flags {0:#x} are refused")]
    RangeFlags(u32),
    /// The data names memory that is not there.
    #[error("data lies outside guest memory")]
    Memory(#[source] MemoryError),
    /// The disk failed.
    #[error("disk operation failed")]
    Disk(#[source] io::Error),
}

impl RequestError {
    /// The status byte that tells the driver.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Unsupported(_) | Self::RangeFlags(_) => STATUS_UNSUPP,
            Self::Disk(error) if error.kind() == io::ErrorKind::Unsupported => STATUS_UNSUPP,
            Self::NoStatus
            | Self::ShortChain(_)
            | Self::DataLength { .. }
            | Self::OutOfRange { .. }
            | Self::ReadOnly
            | Self::RangeList { .. }
            | Self::RangeLength { .. }
            | Self::Memory(_)
            | Self::Disk(_) => STATUS_IOERR,
        }
    }
}

impl Request {
    /// Reads what `chain` asks of a disk.
    ///
    /// # Errors
    /// [`RequestError`] for everything a driver can do wrong.
    pub fn parse(chain: &Chain, ram: &GuestRam, disk: Geometry) -> Result<Self, RequestError> {
        let room = chain.writable_len().checked_sub(1).ok_or(RequestError::NoStatus)?;
        let header: Words = chain.read_start(ram).map_err(RequestError::ShortChain)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let payload = chain.readable_len().saturating_sub(HEADER_BYTES);
        match kind {
            TYPE_IN => {
                let (offset, len_bytes) = data_range(sector, room, disk)?;
                Ok(Self::Read { offset, len_bytes })
            }
            TYPE_OUT => {
                let (offset, len_bytes) = data_range(sector, payload, disk)?;
                refuse_if_read_only(disk)?;
                Ok(Self::Write { offset, len_bytes })
            }
            TYPE_FLUSH => Ok(Self::Flush),
            TYPE_GET_ID => Ok(Self::Identify),
            TYPE_DISCARD | TYPE_WRITE_ZEROES => {
                refuse_if_read_only(disk)?;
                if kind == TYPE_DISCARD {
                    let extents = extents(chain, ram, disk, MAX_DISCARD_SECTORS, 0)?;
                    Ok(Self::Discard(extents))
                } else {
                    Ok(Self::Zero(extents(chain, ram, disk, MAX_ZERO_SECTORS, FLAG_UNMAP)?))
                }
            }
            other => Err(RequestError::Unsupported(other)),
        }
    }

    /// Appends the guest memory of a [`Self::Read`] or [`Self::Write`] to `out`; nothing for others.
    ///
    /// # Errors
    /// [`RequestError::Memory`].
    pub fn buffers(
        &self,
        chain: &Chain,
        ram: &GuestRam,
        out: &mut Vec<IoBuf>,
    ) -> Result<(), RequestError> {
        match *self {
            Self::Read { len_bytes, .. } => collect(chain.writable(), 0, len_bytes, ram, out),
            Self::Write { len_bytes, .. } => {
                collect(chain.readable(), HEADER_BYTES, len_bytes, ram, out)
            }
            _ => Ok(()),
        }
    }

    /// Bytes that count towards a bandwidth limit.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Read { len_bytes, .. } | Self::Write { len_bytes, .. } => u64::from(*len_bytes),
            Self::Flush | Self::Identify | Self::Discard(_) | Self::Zero(_) => 0,
        }
    }
}

fn refuse_if_read_only(disk: Geometry) -> Result<(), RequestError> {
    if disk.read_only { Err(RequestError::ReadOnly) } else { Ok(()) }
}

fn data_range(sector: u64, len_bytes: u64, disk: Geometry) -> Result<(u64, u32), RequestError> {
    // The status byte follows the data in a used length of 32 bits.
    let length = u32::try_from(len_bytes)
        .ok()
        .filter(|len| len.is_multiple_of(SECTOR_BYTES))
        .ok_or(RequestError::DataLength { len_bytes })?;
    let offset = inside(sector, u64::from(length / SECTOR_BYTES), disk)?;
    Ok((offset, length))
}

/// The first byte of a range of sectors that the disk has.
fn inside(sector: u64, count: u64, disk: Geometry) -> Result<u64, RequestError> {
    let len_bytes = count.saturating_mul(u64::from(SECTOR_BYTES));
    sector
        .checked_add(count)
        .filter(|&end| end <= disk.sectors)
        .and_then(|_| sector.checked_mul(u64::from(SECTOR_BYTES)))
        .ok_or(RequestError::OutOfRange { sector, len_bytes })
}

fn extents(
    chain: &Chain,
    ram: &GuestRam,
    disk: Geometry,
    max_sectors: u32,
    allowed_flags: u32,
) -> Result<Vec<Extent>, RequestError> {
    let len_bytes = chain.readable_len().saturating_sub(HEADER_BYTES);
    let count = len_bytes / RANGE_BYTES;
    if count == 0 || count > u64::from(MAX_RANGES) || !len_bytes.is_multiple_of(RANGE_BYTES) {
        return Err(RequestError::RangeList { len_bytes });
    }
    (0..count)
        .map(|index| {
            let mut range = Words::default();
            chain
                .read(ram, HEADER_BYTES + index * RANGE_BYTES, &mut range)
                .map_err(RequestError::ShortChain)?;
            let [sector @ .., c0, c1, c2, c3, f0, f1, f2, f3] = range;
            let sectors = u32::from_le_bytes([c0, c1, c2, c3]);
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            if flags & !allowed_flags != 0 {
                return Err(RequestError::RangeFlags(flags));
            }
            if sectors > max_sectors {
                return Err(RequestError::RangeLength { sectors });
            }
            let offset = inside(u64::from_le_bytes(sector), u64::from(sectors), disk)?;
            let len_bytes = u64::from(sectors) * u64::from(SECTOR_BYTES);
            Ok(Extent { offset, len_bytes, unmap: flags & FLAG_UNMAP != 0 })
        })
        .collect()
}

fn collect(
    segments: &[Segment],
    skip: u64,
    len_bytes: u32,
    ram: &GuestRam,
    out: &mut Vec<IoBuf>,
) -> Result<(), RequestError> {
    let mut skip = skip;
    let mut left = len_bytes;
    for segment in segments {
        let Some(usable) = u64::from(segment.len_bytes).checked_sub(skip).filter(|&len| len > 0)
        else {
            skip -= u64::from(segment.len_bytes);
            continue;
        };
        if left == 0 {
            break;
        }
        let take = u32::try_from(usable).unwrap_or(u32::MAX).min(left);
        let addr = crate::memory::GuestAddress(segment.addr.0.wrapping_add(skip));
        out.push(ram.io_buf(addr, take).map_err(RequestError::Memory)?);
        left -= take;
        skip = 0;
    }
    Ok(())
}
