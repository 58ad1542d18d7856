//! Where things stand on the disk: sizes, offsets, flags. Numbers only.
//!
//! Reference: the kernel's `Documentation/filesystems/ext4`. Blocks have 4 KiB, inodes 256 bytes, group descriptors 32.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of an inode.
pub(crate) const INODE: usize = 256;
/// Inodes in a block.
pub(crate) const INODES_PER_BLOCK: u32 = 16;
/// Bytes of a group descriptor.
pub(crate) const DESCRIPTOR: usize = 32;
/// Group descriptors in a block.
pub(crate) const DESCRIPTORS_PER_BLOCK: u32 = 128;
/// Bytes of the superblock, and where the first one stands.
pub(crate) const SUPERBLOCK: usize = 1024;
/// Blocks of a group, inodes that it has at most: bits of a block.
pub(crate) const GROUP_BLOCKS: u32 = 32_768;
/// Blocks that 32-bit block numbers reach.
pub(crate) const BLOCKS_MAX: u64 = u32::MAX as u64;
/// The longest extent of written blocks.
pub(crate) const EXTENT_MAX: u32 = 32_768;
/// Names of a node.
pub(crate) const LINKS_MAX: u32 = 65_000;
/// Bytes of a file: logical block numbers have 32 bits, and the last is not used.
pub(crate) const FILE_MAX: u64 = u32::MAX as u64 * BLOCK as u64;
/// Bytes at the end of a directory block that hold its checksum.
pub(crate) const DIR_TAIL: usize = 12;
/// Bytes of a target that stands in the inode; one more with the NUL.
pub(crate) const FAST_SYMLINK_MAX: usize = 59;
/// The largest time, in seconds since 1970: later ones are taken by checkers for times before 1970.
pub(crate) const TIME_MAX: i64 = 10_737_418_239;
/// The smallest time.
pub(crate) const TIME_MIN: i64 = -(1 << 31);

/// Inode numbers with a meaning.
pub(crate) mod number {
    pub(crate) const ROOT: u32 = 2;
    pub(crate) const JOURNAL: u32 = 8;
    /// The first that is not reserved: `lost+found`.
    pub(crate) const FIRST: u32 = 11;
}

/// Features that may be ignored by who does not know them.
pub(crate) mod compat {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const EXT_ATTR: u32 = 0x8;
    pub(crate) const DIR_INDEX: u32 = 0x20;
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
}

/// Features that must be known to read.
pub(crate) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
}

/// Features that must be known to write.
pub(crate) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const DIR_NLINK: u32 = 0x20;
    pub(crate) const EXTRA_ISIZE: u32 = 0x40;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    pub(crate) const READONLY: u32 = 0x1000;
}

/// Offsets in the superblock.
pub(crate) mod superblock {
    pub(crate) const MAGIC: u16 = 0xef53;
    pub(crate) const INODES: usize = 0x0;
    pub(crate) const BLOCKS: usize = 0x4;
    pub(crate) const FREE_BLOCKS: usize = 0xc;
    pub(crate) const FREE_INODES: usize = 0x10;
    pub(crate) const FIRST_BLOCK: usize = 0x14;
    pub(crate) const LOG_BLOCK: usize = 0x18;
    pub(crate) const LOG_CLUSTER: usize = 0x1c;
    pub(crate) const BLOCKS_PER_GROUP: usize = 0x20;
    pub(crate) const CLUSTERS_PER_GROUP: usize = 0x24;
    pub(crate) const INODES_PER_GROUP: usize = 0x28;
    pub(crate) const MAX_MOUNTS: usize = 0x36;
    pub(crate) const SIGNATURE: usize = 0x38;
    pub(crate) const STATE: usize = 0x3a;
    pub(crate) const ERRORS: usize = 0x3c;
    pub(crate) const REVISION: usize = 0x4c;
    pub(crate) const FIRST_INODE: usize = 0x54;
    pub(crate) const INODE_SIZE: usize = 0x58;
    pub(crate) const GROUP_OF_COPY: usize = 0x5a;
    pub(crate) const COMPAT: usize = 0x5c;
    pub(crate) const INCOMPAT: usize = 0x60;
    pub(crate) const RO_COMPAT: usize = 0x64;
    pub(crate) const UUID: usize = 0x68;
    pub(crate) const LABEL: usize = 0x78;
    pub(crate) const JOURNAL_INODE: usize = 0xe0;
    pub(crate) const HASH_SEED: usize = 0xec;
    pub(crate) const HASH_VERSION: usize = 0xfc;
    pub(crate) const JOURNAL_BACKUP_TYPE: usize = 0xfd;
    pub(crate) const MOUNT_OPTIONS: usize = 0x100;
    pub(crate) const JOURNAL_BACKUP: usize = 0x10c;
    pub(crate) const MIN_EXTRA: usize = 0x15c;
    pub(crate) const WANT_EXTRA: usize = 0x15e;
    pub(crate) const FLAGS: usize = 0x160;
    pub(crate) const LOG_FLEX: usize = 0x174;
    pub(crate) const CHECKSUM_TYPE: usize = 0x175;
    pub(crate) const BACKUP_GROUPS: usize = 0x24c;
    pub(crate) const CHECKSUM_SEED: usize = 0x270;
    pub(crate) const CHECKSUM: usize = 0x3fc;

    /// Names are hashed as unsigned bytes.
    pub(crate) const UNSIGNED_HASH: u32 = 0x2;
    /// The half-MD4 hash of directories.
    pub(crate) const HALF_MD4: u8 = 1;
}

/// Offsets and flags of a group descriptor.
pub(crate) mod group {
    pub(crate) const BLOCK_BITMAP: usize = 0x0;
    pub(crate) const INODE_BITMAP: usize = 0x4;
    pub(crate) const INODE_TABLE: usize = 0x8;
    pub(crate) const FREE_BLOCKS: usize = 0xc;
    pub(crate) const FREE_INODES: usize = 0xe;
    pub(crate) const DIRECTORIES: usize = 0x10;
    pub(crate) const FLAGS: usize = 0x12;
    pub(crate) const BLOCK_BITMAP_CHECKSUM: usize = 0x18;
    pub(crate) const INODE_BITMAP_CHECKSUM: usize = 0x1a;
    pub(crate) const UNUSED_INODES: usize = 0x1c;
    pub(crate) const CHECKSUM: usize = 0x1e;

    /// The inode bitmap and table are not written.
    pub(crate) const INODE_UNINIT: u16 = 0x1;
    /// The block bitmap is not written.
    pub(crate) const BLOCK_UNINIT: u16 = 0x2;
    /// The inode table is zero where it is unused.
    pub(crate) const INODE_ZEROED: u16 = 0x4;
}

/// Offsets, types and flags of an inode.
pub(crate) mod inode {
    pub(crate) const MODE: usize = 0x0;
    pub(crate) const UID: usize = 0x2;
    pub(crate) const SIZE: usize = 0x4;
    pub(crate) const ACCESSED: usize = 0x8;
    pub(crate) const CHANGED: usize = 0xc;
    pub(crate) const MODIFIED: usize = 0x10;
    pub(crate) const GID: usize = 0x18;
    pub(crate) const LINKS: usize = 0x1a;
    pub(crate) const BLOCKS: usize = 0x1c;
    pub(crate) const FLAGS: usize = 0x20;
    pub(crate) const MAP: usize = 0x28;
    pub(crate) const MAP_LENGTH: usize = 60;
    pub(crate) const GENERATION: usize = 0x64;
    pub(crate) const XATTR_BLOCK: usize = 0x68;
    pub(crate) const SIZE_HIGH: usize = 0x6c;
    pub(crate) const BLOCKS_HIGH: usize = 0x74;
    pub(crate) const XATTR_BLOCK_HIGH: usize = 0x76;
    pub(crate) const UID_HIGH: usize = 0x78;
    pub(crate) const GID_HIGH: usize = 0x7a;
    pub(crate) const CHECKSUM_LOW: usize = 0x7c;
    pub(crate) const EXTRA_SIZE: usize = 0x80;
    pub(crate) const CHECKSUM_HIGH: usize = 0x82;
    pub(crate) const CHANGED_EXTRA: usize = 0x84;
    pub(crate) const MODIFIED_EXTRA: usize = 0x88;
    pub(crate) const ACCESSED_EXTRA: usize = 0x8c;
    pub(crate) const CREATED: usize = 0x90;
    pub(crate) const CREATED_EXTRA: usize = 0x94;
    /// Where the extended attributes in the inode begin.
    pub(crate) const XATTRS: usize = 0xa0;

    /// What [`EXTRA_SIZE`] says.
    pub(crate) const EXTRA: u16 = 32;

    pub(crate) const FLAG_INDEX: u32 = 0x1000;
    pub(crate) const FLAG_HUGE: u32 = 0x4_0000;
    pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;

    pub(crate) const TYPE: u16 = 0xf000;
    pub(crate) const SOCKET: u16 = 0xc000;
    pub(crate) const SYMLINK: u16 = 0xa000;
    pub(crate) const FILE: u16 = 0x8000;
    pub(crate) const BLOCK_DEVICE: u16 = 0x6000;
    pub(crate) const DIRECTORY: u16 = 0x4000;
    pub(crate) const CHAR_DEVICE: u16 = 0x2000;
    pub(crate) const FIFO: u16 = 0x1000;
}

/// Extent trees.
pub(crate) mod extent {
    pub(crate) const MAGIC: u16 = 0xf30a;
    /// Bytes of the header, and of an entry.
    pub(crate) const ENTRY: usize = 12;
    /// Entries in an inode.
    pub(crate) const IN_INODE: usize = 4;
    /// Entries in a block.
    pub(crate) const IN_BLOCK: usize = 340;
    /// Where the checksum of a block stands.
    pub(crate) const TAIL: usize = ENTRY + IN_BLOCK * ENTRY;
    /// The deepest tree.
    pub(crate) const DEPTH_MAX: u16 = 5;
}

/// Indexed directories.
pub(crate) mod dx {
    /// Bytes of an entry: hash and block.
    pub(crate) const ENTRY: usize = 8;
    /// Where limit and count stand in the root, after the two dot entries and the information.
    pub(crate) const ROOT_COUNT: usize = 32;
    /// Where limit and count stand in a node, after an empty name.
    pub(crate) const NODE_COUNT: usize = 8;
    /// Entries of the root.
    pub(crate) const ROOT_LIMIT: usize = 507;
    /// Entries of a node.
    pub(crate) const NODE_LIMIT: usize = 510;
}

/// Extended attributes.
pub(crate) mod xattr {
    pub(crate) const MAGIC: u32 = 0xea02_0000;
    /// Bytes of the header in an inode.
    pub(crate) const INODE_HEADER: usize = 4;
    /// Bytes of the header in a block.
    pub(crate) const BLOCK_HEADER: usize = 32;
    /// Where the checksum stands in that header.
    pub(crate) const BLOCK_CHECKSUM: usize = 16;
    /// Bytes of an entry without its name.
    pub(crate) const ENTRY: usize = 16;
}
