//! The superblock, and that of the journal.

use super::groups::Geometry;
use super::{Identity, Profile};
use crate::bytes::{low16, low32, put16, put32, put32_be, small};
use crate::checksum::{self, Seed};
use crate::format::{
    BLOCK, GROUP_BLOCKS, INODE, SUPERBLOCK, compat, incompat, inode, number, ro_compat, superblock,
};

/// What the superblock says besides the geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) profile: Profile,
    pub(super) identity: &'a Identity,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
    /// Whether a directory has an index of three levels.
    pub(super) large_directory: bool,
    /// The map of the journal's inode and its size in bytes.
    pub(super) journal: Option<([u8; inode::MAP_LENGTH], u64)>,
}

/// Features of a base image: compatible, incompatible, read-only compatible.
const BASE: [u32; 3] = [
    compat::EXT_ATTR | compat::DIR_INDEX | compat::SPARSE_SUPER2,
    incompat::FILETYPE | incompat::EXTENTS | incompat::FLEX_BG,
    ro_compat::SPARSE_SUPER
        | ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::METADATA_CSUM,
];

/// The superblock for the copy in `group`.
pub(super) fn superblock(fields: &Fields<'_>, geometry: &Geometry, group: u32) -> [u8; SUPERBLOCK] {
    let mut bytes = [0; SUPERBLOCK];
    let b = &mut bytes[..];
    put32(b, superblock::INODES, geometry.inodes());
    put32(b, superblock::BLOCKS, small(geometry.blocks));
    put32(b, superblock::FREE_BLOCKS, small(fields.free_blocks));
    put32(b, superblock::FREE_INODES, fields.free_inodes);
    // 4 KiB is 1 KiB shifted by two.
    put32(b, superblock::LOG_BLOCK, 2);
    put32(b, superblock::LOG_CLUSTER, 2);
    put32(b, superblock::BLOCKS_PER_GROUP, GROUP_BLOCKS);
    put32(b, superblock::CLUSTERS_PER_GROUP, GROUP_BLOCKS);
    put32(b, superblock::INODES_PER_GROUP, geometry.inodes_per_group);
    // Mounts are not counted.
    put16(b, superblock::MAX_MOUNTS, u16::MAX);
    put16(b, superblock::SIGNATURE, superblock::MAGIC);
    // Clean; errors do not stop it.
    put16(b, superblock::STATE, 1);
    put16(b, superblock::ERRORS, 1);
    put32(b, superblock::REVISION, 1);
    put32(b, superblock::FIRST_INODE, number::FIRST);
    put16(b, superblock::INODE_SIZE, low16(small(INODE as u64)));
    put16(b, superblock::GROUP_OF_COPY, low16(group));
    let [mut compatible, mut incompatible, mut read_only] = BASE;
    if fields.large_directory {
        incompatible |= incompat::LARGEDIR;
    }
    match fields.profile {
        Profile::Base | Profile::Around(_) => read_only |= ro_compat::READONLY,
        Profile::ReadWrite { .. } => {
            incompatible |= incompat::CSUM_SEED;
            put32(b, superblock::CHECKSUM_SEED, Seed::of_uuid(&fields.identity.uuid).0);
        }
    }
    put32(b, superblock::INCOMPAT, incompatible);
    put32(b, superblock::RO_COMPAT, read_only);
    b[superblock::UUID..][..16].copy_from_slice(&fields.identity.uuid);
    b[superblock::LABEL..][..16].copy_from_slice(&fields.identity.label);
    for (at, word) in fields.identity.hash_seed.iter().enumerate() {
        put32(b, superblock::HASH_SEED + at * 4, *word);
    }
    b[superblock::HASH_VERSION] = superblock::HALF_MD4;
    // Extended attributes of users and access control lists.
    put32(b, superblock::MOUNT_OPTIONS, 0xc);
    put16(b, superblock::MIN_EXTRA, inode::EXTRA);
    put16(b, superblock::WANT_EXTRA, inode::EXTRA);
    put32(b, superblock::FLAGS, superblock::UNSIGNED_HASH);
    b[superblock::LOG_FLEX] = geometry.log_flex;
    b[superblock::CHECKSUM_TYPE] = 1;
    put32(b, superblock::BACKUP_GROUPS, geometry.backups[0]);
    put32(b, superblock::BACKUP_GROUPS + 4, geometry.backups[1]);
    if let Some((map, size_bytes)) = &fields.journal {
        compatible |= compat::HAS_JOURNAL;
        put32(b, superblock::JOURNAL_INODE, number::JOURNAL);
        b[superblock::JOURNAL_BACKUP_TYPE] = 1;
        let copy = &mut b[superblock::JOURNAL_BACKUP..][..inode::MAP_LENGTH + 8];
        copy[..inode::MAP_LENGTH].copy_from_slice(map);
        put32(copy, inode::MAP_LENGTH, low32(size_bytes >> 32));
        put32(copy, inode::MAP_LENGTH + 4, low32(*size_bytes));
    }
    put32(b, superblock::COMPAT, compatible);
    checksum::seal_superblock(&mut bytes);
    bytes
}

/// The first block of a journal that has nothing in it: a superblock of version 2. Numbers have the high byte first.
pub(super) fn journal(blocks: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put32_be(&mut block, 0x0, 0xc03b_3998);
    put32_be(&mut block, 0x4, 4);
    put32_be(&mut block, 0xc, small(BLOCK as u64));
    put32_be(&mut block, 0x10, blocks);
    // The first block of the log, and the first number of a transaction.
    put32_be(&mut block, 0x14, 1);
    put32_be(&mut block, 0x18, 1);
    // One file system uses it.
    put32_be(&mut block, 0x40, 1);
    block
}
