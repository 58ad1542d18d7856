//! Inodes of 256 bytes.

use crate::bytes::{high16, low16, low32, put16, put32, small};
use crate::format::{BLOCK, FAST_SYMLINK_MAX, INODE, LINKS_MAX, TIME_MAX, TIME_MIN, inode};
use crate::tree::{Device, Kind, Metadata, Time};

/// What an inode says besides the node's metadata.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    /// Type and permissions.
    pub(super) mode: u16,
    /// Names, or 1 where they cannot be counted.
    pub(super) links: u16,
    /// Bytes of a file, a target or a directory's blocks.
    pub(super) size: u64,
    /// Blocks of the image that it takes.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    /// Block of extended attributes, or 0.
    pub(super) xattr_block: u32,
    /// The extent tree, a short target, or a device number.
    pub(super) map: &'a [u8; inode::MAP_LENGTH],
}

/// An inode without its checksum and attributes.
pub(super) fn bytes(fields: &Fields<'_>, metadata: &Metadata) -> [u8; INODE] {
    let mut bytes = [0; INODE];
    let sectors = fields.blocks * (BLOCK as u64 / 512);
    put16(&mut bytes, inode::MODE, fields.mode);
    put16(&mut bytes, inode::UID, low16(metadata.uid));
    put16(&mut bytes, inode::UID_HIGH, high16(metadata.uid));
    put16(&mut bytes, inode::GID, low16(metadata.gid));
    put16(&mut bytes, inode::GID_HIGH, high16(metadata.gid));
    put32(&mut bytes, inode::SIZE, low32(fields.size));
    put32(&mut bytes, inode::SIZE_HIGH, low32(fields.size >> 32));
    put16(&mut bytes, inode::LINKS, fields.links);
    put32(&mut bytes, inode::BLOCKS, low32(sectors));
    put16(&mut bytes, inode::BLOCKS_HIGH, low16(small(sectors >> 32)));
    put32(&mut bytes, inode::FLAGS, fields.flags);
    put32(&mut bytes, inode::XATTR_BLOCK, fields.xattr_block);
    bytes[inode::MAP..][..inode::MAP_LENGTH].copy_from_slice(fields.map);
    put16(&mut bytes, inode::EXTRA_SIZE, inode::EXTRA);
    let (seconds, extra) = time(metadata.modified);
    for (at, extra_at) in [
        (inode::ACCESSED, inode::ACCESSED_EXTRA),
        (inode::CHANGED, inode::CHANGED_EXTRA),
        (inode::MODIFIED, inode::MODIFIED_EXTRA),
        (inode::CREATED, inode::CREATED_EXTRA),
    ] {
        put32(&mut bytes, at, seconds);
        put32(&mut bytes, extra_at, extra);
    }
    bytes
}

/// Seconds, and the nanoseconds above two bits that extend the seconds. Times that do not fit become the nearest that does.
fn time(time: Time) -> (u32, u32) {
    let seconds = time.seconds().clamp(TIME_MIN, TIME_MAX);
    let nanoseconds = match seconds == time.seconds() {
        true => time.nanoseconds(),
        false => 0,
    };
    let low = low32(seconds.cast_unsigned());
    // The low half counts as signed; the two bits add the rest.
    let above = (seconds - i64::from(low.cast_signed())) >> 32;
    (low, (nanoseconds << 2) | low32(above.cast_unsigned() & 3))
}

/// The type bits of a mode, and the type as directories say it.
pub(super) const fn types(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (inode::FILE, 1),
        Kind::Directory => (inode::DIRECTORY, super::directory::DIRECTORY),
        Kind::CharDevice(_) => (inode::CHAR_DEVICE, 3),
        Kind::BlockDevice(_) => (inode::BLOCK_DEVICE, 4),
        Kind::Fifo => (inode::FIFO, 5),
        Kind::Socket => (inode::SOCKET, 6),
        Kind::Symlink(_) => (inode::SYMLINK, 7),
    }
}

/// A device number: the old 16 bits where they do, else the new 32.
pub(super) fn device_map(device: Device) -> [u8; inode::MAP_LENGTH] {
    let mut map = [0; inode::MAP_LENGTH];
    let Device { major, minor } = device;
    if major < 256 && minor < 256 {
        put32(&mut map, 0, (major << 8) | minor);
    } else {
        put32(&mut map, 4, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    }
    map
}

/// The target of a short symbolic link. None when it needs a block.
pub(super) fn target_map(target: &[u8]) -> Option<[u8; inode::MAP_LENGTH]> {
    let mut map = [0; inode::MAP_LENGTH];
    map[..target.len().min(inode::MAP_LENGTH)]
        .copy_from_slice(&target[..target.len().min(inode::MAP_LENGTH)]);
    (target.len() <= FAST_SYMLINK_MAX).then_some(map)
}

/// The link count of a directory with so many directories in it: 1 when there are too many to count.
pub(super) fn directory_links(directories: u32) -> u16 {
    match directories.checked_add(2) {
        Some(links) if links <= LINKS_MAX => low16(links),
        _ => 1,
    }
}
