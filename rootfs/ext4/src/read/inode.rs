//! An inode of an image that is read.

use super::Fault;
use crate::bytes::{get16, get32};
use crate::checksum::{self, Checksums, Seed};
use crate::format::{INODE, inode};
use crate::tree::{Device, Time};

/// An inode in use. Its checksum holds, its type is one of the seven.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u16,
    /// In blocks.
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
    pub(crate) xattr_block: u64,
    pub(crate) modified: Time,
    pub(crate) map: [u8; inode::MAP_LENGTH],
    /// All of it.
    pub(crate) bytes: [u8; INODE],
}

impl Inode {
    /// Fails when it is not in use, damaged or of an unknown type. `seed` is the file system's.
    pub(crate) fn read(
        number: u32,
        bytes: &[u8; INODE],
        seed: Seed,
        checksums: Checksums,
    ) -> Result<Self, Fault> {
        let wrong = |what| Err(Fault::inode(number, what));
        let half = |at| u32::from(get16(bytes, at));
        let generation = get32(bytes, inode::GENERATION);
        let sum = checksum::of_inode(seed.of_inode(number, generation), bytes);
        if checksums.differ(sum, stored_checksum(bytes)) {
            return wrong("checksum does not match");
        }
        let mode = get16(bytes, inode::MODE);
        let kinds = [
            inode::SOCKET,
            inode::SYMLINK,
            inode::FILE,
            inode::BLOCK_DEVICE,
            inode::DIRECTORY,
            inode::CHAR_DEVICE,
            inode::FIFO,
        ];
        if !kinds.contains(&(mode & inode::TYPE)) {
            return wrong("has no type");
        }
        let links = get16(bytes, inode::LINKS);
        if links == 0 {
            return wrong("is not in use");
        }
        if get16(bytes, inode::EXTRA_SIZE) != inode::EXTRA {
            return wrong("the size of its extra fields is not 32");
        }
        let sectors =
            u64::from(get32(bytes, inode::BLOCKS)) | (u64::from(half(inode::BLOCKS_HIGH)) << 32);
        let flags = get32(bytes, inode::FLAGS);
        if flags & inode::FLAG_HUGE != 0 || !sectors.is_multiple_of(8) {
            return wrong("does not count whole blocks");
        }
        let extra = get32(bytes, inode::MODIFIED_EXTRA);
        let Ok(modified) = Time::new(seconds(bytes, extra), extra >> 2) else {
            return wrong("has a time with more than a second of nanoseconds");
        };
        let mut map = [0; inode::MAP_LENGTH];
        map.copy_from_slice(&bytes[inode::MAP..][..inode::MAP_LENGTH]);
        Ok(Self {
            number,
            mode,
            uid: half(inode::UID) | (half(inode::UID_HIGH) << 16),
            gid: half(inode::GID) | (half(inode::GID_HIGH) << 16),
            size: u64::from(get32(bytes, inode::SIZE))
                | (u64::from(get32(bytes, inode::SIZE_HIGH)) << 32),
            links,
            blocks: sectors / 8,
            flags,
            generation,
            xattr_block: u64::from(get32(bytes, inode::XATTR_BLOCK))
                | (u64::from(half(inode::XATTR_BLOCK_HIGH)) << 32),
            modified,
            map,
            bytes: *bytes,
        })
    }

    /// Whether its type is this one.
    pub(crate) const fn is(&self, kind: u16) -> bool {
        self.mode & inode::TYPE == kind
    }

    /// Whether it maps blocks.
    pub(crate) const fn has_extents(&self) -> bool {
        self.flags & inode::FLAG_EXTENTS != 0
    }

    /// The device number of a device.
    pub(crate) fn device(&self) -> Device {
        let (old, new) = (get32(&self.map, 0), get32(&self.map, 4));
        if old != 0 {
            return Device { major: (old >> 8) & 0xff, minor: old & 0xff };
        }
        Device { major: (new >> 8) & 0xfff, minor: (new & 0xff) | ((new >> 12) & 0xf_ff00) }
    }
}

/// The checksum that the inode has.
pub(crate) fn stored_checksum(bytes: &[u8; INODE]) -> u32 {
    let low = u32::from(get16(bytes, inode::CHECKSUM_LOW));
    low | (u32::from(get16(bytes, inode::CHECKSUM_HIGH)) << 16)
}

fn seconds(bytes: &[u8; INODE], extra: u32) -> i64 {
    let low = i64::from(get32(bytes, inode::MODIFIED).cast_signed());
    low + (i64::from(extra & 3) << 32)
}
