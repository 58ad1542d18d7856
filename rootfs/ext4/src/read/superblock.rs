//! The superblock and the group descriptors of an image that is read.

use super::{Fault, seed};
use crate::bytes::{get16, get32};
use crate::checksum::{self, Checksums, Seed};
use crate::format::{
    BLOCK, DESCRIPTOR, DESCRIPTORS_PER_BLOCK, GROUP_BLOCKS, INODE, INODES_PER_BLOCK, SUPERBLOCK,
    compat, group, incompat, number, ro_compat, superblock,
};

/// What an image says of itself. Every block number in it lies in the image.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) checksums: Checksums,
    pub(crate) blocks: u64,
    pub(crate) groups: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) descriptor_blocks: u32,
    pub(crate) backups: [u32; 2],
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: [u8; 16],
    pub(crate) hash_seed: [u32; 4],
    pub(crate) seed: Seed,
    pub(crate) is_base: bool,
    pub(crate) has_journal: bool,
    /// Whether indexes may have a third level.
    pub(crate) large_directories: bool,
    pub(crate) descriptors: Vec<Descriptor>,
}

/// What an image says of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    pub(crate) flags: u16,
    pub(crate) block_bitmap_checksum: u16,
    pub(crate) inode_bitmap_checksum: u16,
    /// Inodes at the end of the table that were never used: at most all.
    pub(crate) unused_inodes: u32,
}

impl Shape {
    /// From a superblock and the size of the input; without the descriptors.
    pub(crate) fn read(
        head: &[u8; SUPERBLOCK],
        input_bytes: u64,
        checksums: Checksums,
    ) -> Result<Self, Fault> {
        let wrong = |what| Err(Fault::superblock(what));
        let get = |at| get32(head, at);
        if get16(head, superblock::SIGNATURE) != superblock::MAGIC {
            return wrong("no ext4 signature");
        }
        let [compatible, incompatible, read_only] = features(head)?;
        if checksums.differ(checksum::of_superblock(head), get(superblock::CHECKSUM)) {
            return wrong("checksum does not match");
        }
        if !has_fixed_fields(head) {
            return wrong("blocks, inodes or groups are of other sizes than ours");
        }
        if get16(head, superblock::STATE) != 1 || incompatible & incompat::RECOVER != 0 {
            return wrong("not clean: it was not unmounted, or errors were found in it");
        }
        let blocks = u64::from(get(superblock::BLOCKS));
        if blocks == 0 || blocks > input_bytes / BLOCK as u64 {
            return wrong("the image ends before the file system does");
        }
        let groups = u32::try_from(blocks.div_ceil(u64::from(GROUP_BLOCKS)));
        let groups = groups.expect("fewer than the blocks, which have 32 bits");
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let inodes_per_group = get(superblock::INODES_PER_GROUP);
        let inodes = groups.checked_mul(inodes_per_group);
        if inodes_per_group == 0
            || inodes_per_group > GROUP_BLOCKS
            || !inodes_per_group.is_multiple_of(INODES_PER_BLOCK)
            || inodes != Some(get(superblock::INODES))
            || u64::from(descriptor_blocks) >= blocks
        {
            return wrong("the numbers of blocks, groups and inodes do not fit each other");
        }
        let has_journal = compatible & compat::HAS_JOURNAL != 0;
        if get(superblock::JOURNAL_INODE) != if has_journal { number::JOURNAL } else { 0 } {
            return wrong("the journal is not inode 8");
        }
        let backups = [get(superblock::BACKUP_GROUPS), get(superblock::BACKUP_GROUPS + 4)];
        if backups.iter().any(|group| *group >= groups) {
            return wrong("a copy lies past the end");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&head[superblock::UUID..][..16]);
        let mut label = [0; 16];
        label.copy_from_slice(&head[superblock::LABEL..][..16]);
        Ok(Self {
            checksums,
            blocks,
            groups,
            inodes_per_group,
            descriptor_blocks,
            backups,
            free_blocks: get(superblock::FREE_BLOCKS),
            free_inodes: get(superblock::FREE_INODES),
            uuid,
            label,
            hash_seed: std::array::from_fn(|word| get(superblock::HASH_SEED + word * 4)),
            seed: seed(head, incompatible & incompat::CSUM_SEED != 0, &uuid),
            is_base: read_only & ro_compat::READONLY != 0,
            has_journal,
            large_directories: incompatible & incompat::LARGEDIR != 0,
            descriptors: Vec::new(),
        })
    }

    /// Takes the descriptors of all groups.
    pub(crate) fn read_groups(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.descriptors.reserve_exact(self.groups as usize);
        for (bytes, number) in bytes.chunks_exact(DESCRIPTOR).zip(0..) {
            let wrong = |what| Err(Fault::group(number, what));
            let get = |at| u64::from(get32(bytes, at));
            let small = |at| get16(bytes, at);
            let sum = checksum::of_group(self.seed, number, bytes);
            if self.checksums.differ(sum, small(group::CHECKSUM)) {
                return wrong("checksum of the descriptor does not match");
            }
            let descriptor = Descriptor {
                block_bitmap: get(group::BLOCK_BITMAP),
                inode_bitmap: get(group::INODE_BITMAP),
                inode_table: get(group::INODE_TABLE),
                free_blocks: small(group::FREE_BLOCKS).into(),
                free_inodes: small(group::FREE_INODES).into(),
                directories: small(group::DIRECTORIES).into(),
                flags: small(group::FLAGS),
                block_bitmap_checksum: small(group::BLOCK_BITMAP_CHECKSUM),
                inode_bitmap_checksum: small(group::INODE_BITMAP_CHECKSUM),
                unused_inodes: small(group::UNUSED_INODES).into(),
            };
            let table_end = descriptor.inode_table + u64::from(self.table_blocks());
            let ends = [descriptor.block_bitmap + 1, descriptor.inode_bitmap + 1, table_end];
            if ends.iter().any(|end| *end > self.blocks) {
                return wrong("a bitmap or the inode table lies past the end");
            }
            if descriptor.unused_inodes > self.inodes_per_group {
                return wrong("more inodes unused than there are");
            }
            self.descriptors.push(descriptor);
        }
        Ok(())
    }

    /// Blocks of a group's inode table.
    pub(crate) const fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// All inodes.
    pub(crate) const fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    /// Blocks of a group: fewer in the last one.
    pub(crate) fn group_blocks(&self, group: u32) -> u32 {
        let start = u64::from(group) * u64::from(GROUP_BLOCKS);
        let left = self.blocks.saturating_sub(start).min(GROUP_BLOCKS.into());
        u32::try_from(left).expect("at most those of a whole group")
    }

    /// Blocks of the superblock and descriptors in a group.
    pub(crate) fn head_blocks(&self, group: u32) -> u32 {
        let has = group == 0 || self.backups.contains(&group);
        if has { 1 + self.descriptor_blocks } else { 0 }
    }
}

/// The three sets of features. Fails unless they are what the writer sets.
fn features(head: &[u8; SUPERBLOCK]) -> Result<[u32; 3], Fault> {
    const COMPAT: u32 = compat::EXT_ATTR | compat::DIR_INDEX | compat::SPARSE_SUPER2;
    const INCOMPAT: u32 = incompat::FILETYPE | incompat::EXTENTS | incompat::FLEX_BG;
    const RO_COMPAT: u32 = ro_compat::SPARSE_SUPER
        | ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::METADATA_CSUM;
    let sets = [
        (superblock::COMPAT, COMPAT, compat::HAS_JOURNAL),
        (
            superblock::INCOMPAT,
            INCOMPAT,
            incompat::CSUM_SEED | incompat::RECOVER | incompat::LARGEDIR,
        ),
        (superblock::RO_COMPAT, RO_COMPAT, ro_compat::READONLY),
    ];
    let mut found = [0; 3];
    for (found, (at, always, sometimes)) in found.iter_mut().zip(sets) {
        *found = get32(head, at);
        if *found & !sometimes != always {
            return Err(Fault::superblock("features are not those of our images"));
        }
    }
    Ok(found)
}

/// Whether fields that are the same in all our images are.
fn has_fixed_fields(head: &[u8; SUPERBLOCK]) -> bool {
    let words = [
        (superblock::FIRST_BLOCK, 0),
        (superblock::LOG_BLOCK, 2),
        (superblock::LOG_CLUSTER, 2),
        (superblock::BLOCKS_PER_GROUP, GROUP_BLOCKS),
        (superblock::CLUSTERS_PER_GROUP, GROUP_BLOCKS),
        (superblock::REVISION, 1),
        (superblock::FIRST_INODE, number::FIRST),
        (superblock::FLAGS, superblock::UNSIGNED_HASH),
    ];
    words.iter().all(|(at, value)| get32(head, *at) == *value)
        && usize::from(get16(head, superblock::INODE_SIZE)) == INODE
        && head[superblock::HASH_VERSION] == superblock::HALF_MD4
        && head[superblock::CHECKSUM_TYPE] == 1
}
