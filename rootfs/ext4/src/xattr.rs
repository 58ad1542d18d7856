//! Extended attributes on the disk: in the inode, where it has room, and in one block.
//!
//! Entries are sorted as the kernel sorts them, by the index of the name's prefix, the length of the rest and its bytes; values fill
//! the space from its end. Access control lists have a form of their own on the disk, so they are translated both ways.

mod acl;
#[cfg(test)]
mod tests;

use crate::bytes::{get16, get32, put16, put32, small};
use crate::format::{BLOCK, INODE, inode, xattr};
use crate::tree::Xattrs;

/// Extended attributes that ext4 cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// The name has no prefix that ext4 knows, nothing after it, or too much.
    #[error("extended attribute `{}` has a name that ext4 does not hold", .0.escape_ascii())]
    Name(Vec<u8>),
    /// An access control list that is not one.
    #[error("extended attribute `{}` is not an access control list", .0.escape_ascii())]
    Acl(Vec<u8>),
    /// More than the inode and one block hold.
    #[error("extended attributes of {0} bytes are more than an inode and a block hold")]
    TooLarge(usize),
}

/// Bytes for attributes in an inode, after the header.
const IN_INODE: usize = INODE - inode::XATTRS - xattr::INODE_HEADER;
/// Bytes for attributes in a block, after the header.
const IN_BLOCK: usize = BLOCK - xattr::BLOCK_HEADER;
/// Zeros after the last entry.
const END: usize = 4;

const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
/// Prefixes and their indexes. The two access control lists are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", ACL_ACCESS),
    (b"system.posix_acl_default", ACL_DEFAULT),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An attribute as it stands on the disk. The derived order is the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    index: u8,
    name_length: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn new(name: &[u8], value: &[u8]) -> Result<Self, XattrError> {
        let wrong = || XattrError::Name(name.to_vec());
        let found = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let (prefix, index) = found.ok_or_else(wrong)?;
        let rest = &name[prefix.len()..];
        let is_acl = matches!(*index, ACL_ACCESS | ACL_DEFAULT);
        if rest.is_empty() != is_acl || rest.len() > 255 || rest.contains(&0) {
            return Err(wrong());
        }
        let value = if is_acl {
            acl::to_disk(value).ok_or_else(|| XattrError::Acl(name.to_vec()))?
        } else {
            value.to_vec()
        };
        Ok(Self { index: *index, name_length: rest.len(), name: rest.to_vec(), value })
    }

    /// Bytes of the entry and the value.
    fn space(&self) -> usize {
        xattr::ENTRY + padded(self.name.len()) + padded(self.value.len())
    }

    /// The hash that goes into the entry: checkers compare it, with the bytes of the name as signed numbers.
    fn hash(&self) -> u32 {
        self.hash_of(|byte| i32::from(byte.cast_signed()).cast_unsigned())
    }

    fn hash_of(&self, widened: impl Fn(u8) -> u32) -> u32 {
        let name = self.name.iter();
        let mut hash = name.fold(0_u32, |hash, byte| hash.rotate_left(5) ^ widened(*byte));
        for word in self.value.chunks(4) {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
        }
        hash
    }
}

const fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The attributes of an inode, laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    inode: Vec<Attribute>,
    block: Vec<Attribute>,
}

impl Layout {
    /// Divides attributes between the inode and a block: in order, each into the inode when there is room.
    pub(crate) fn new(xattrs: &Xattrs) -> Result<Self, XattrError> {
        let mut all = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs {
            all.push(Attribute::new(name, value)?);
        }
        all.sort();
        let whole: usize = all.iter().map(Attribute::space).sum();
        let mut layout = Self::default();
        let (mut in_inode, mut in_block) = (IN_INODE - END, IN_BLOCK - END);
        for attribute in all {
            let space = attribute.space();
            if let Some(left) = in_inode.checked_sub(space) {
                in_inode = left;
                layout.inode.push(attribute);
            } else {
                let left = in_block.checked_sub(space).ok_or(XattrError::TooLarge(whole))?;
                in_block = left;
                layout.block.push(attribute);
            }
        }
        Ok(layout)
    }

    /// Whether there is a block.
    pub(crate) const fn needs_block(&self) -> bool {
        !self.block.is_empty()
    }

    /// Writes the part of the inode into its 256 bytes.
    pub(crate) fn put_inode(&self, bytes: &mut [u8]) {
        if self.inode.is_empty() {
            return;
        }
        put32(bytes, inode::XATTRS, xattr::MAGIC);
        // Values are found from the first entry on.
        put_entries(&mut bytes[inode::XATTRS + xattr::INODE_HEADER..INODE], 0, &self.inode);
    }

    /// The block, all but its checksum.
    pub(crate) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put32(&mut block, 0, xattr::MAGIC);
        put32(&mut block, 4, 1);
        put32(&mut block, 8, 1);
        put_entries(&mut block, xattr::BLOCK_HEADER, &self.block);
        let hash = block_hash(self.block.iter().map(Attribute::hash));
        put32(&mut block, 12, hash);
        block
    }
}

/// The hash of a block from those of its entries; zero says that it must not be shared.
fn block_hash(hashes: impl Iterator<Item = u32>) -> u32 {
    let mut hash = 0_u32;
    for entry in hashes {
        if entry == 0 {
            return 0;
        }
        hash = hash.rotate_left(16) ^ entry;
    }
    hash
}

fn put_entries(area: &mut [u8], first: usize, attributes: &[Attribute]) {
    let mut at = first;
    let mut end = area.len();
    for attribute in attributes {
        let (name, value) = (&attribute.name, &attribute.value);
        end -= padded(value.len());
        let offset = if value.is_empty() { 0 } else { end };
        area[end..end + value.len()].copy_from_slice(value);
        area[at] = u8::try_from(name.len()).expect("checked when it was made");
        area[at + 1] = attribute.index;
        put16(area, at + 2, u16::try_from(offset).expect("an offset in a block"));
        put32(area, at + 8, small(value.len() as u64));
        put32(area, at + 12, attribute.hash());
        area[at + xattr::ENTRY..][..name.len()].copy_from_slice(name);
        at += xattr::ENTRY + padded(name.len());
    }
}

/// Adds the attributes of an inode of 256 bytes. An error says what is wrong with them.
pub(crate) fn read_inode(bytes: &[u8], into: &mut Xattrs) -> Result<(), &'static str> {
    let area = bytes.get(inode::XATTRS..).unwrap_or_default();
    match get32(area, 0) {
        xattr::MAGIC => {
            let area = area.get(xattr::INODE_HEADER..).unwrap_or_default();
            read_entries(area, 0, false, into).map(|_| ())
        }
        0 if area.iter().all(|byte| *byte == 0) => Ok(()),
        _ => Err("extended attributes in the inode have no signature"),
    }
}

/// Adds the attributes of a block, and answers how many inodes share it. An error says what is wrong with it; the checksum is the
/// caller's.
pub(crate) fn read_block(block: &[u8; BLOCK], into: &mut Xattrs) -> Result<u32, &'static str> {
    let shared = get32(block, 4);
    if get32(block, 0) != xattr::MAGIC || shared == 0 || get32(block, 8) != 1 {
        return Err("a block of extended attributes has a wrong header");
    }
    let hashes = read_entries(block, xattr::BLOCK_HEADER, true, into)?;
    if get32(block, 12) != block_hash(hashes.into_iter()) {
        return Err("a block of extended attributes has a wrong hash");
    }
    Ok(shared)
}

/// Reads entries from `first` on, which are in order in blocks, where kernels look for them by it. Answers their hashes.
fn read_entries(
    area: &[u8],
    first: usize,
    in_block: bool,
    into: &mut Xattrs,
) -> Result<Vec<u32>, &'static str> {
    const CUT: &str = "an extended attribute lies outside its space";
    let mut at = first;
    let mut hashes = Vec::new();
    let mut last: Option<(u8, usize, Vec<u8>)> = None;
    // Entries have 16 bytes and more: the loop ends with the area.
    while get32(area, at) != 0 {
        let entry = area.get(at..at + xattr::ENTRY).ok_or(CUT)?;
        let name = area.get(at + xattr::ENTRY..).and_then(|rest| rest.get(..entry[0].into()));
        let name = name.ok_or(CUT)?;
        let (offset, length) = (usize::from(get16(entry, 2)), get32(entry, 8) as usize);
        let value = match length {
            0 => &[],
            _ => area.get(offset..).and_then(|rest| rest.get(..length)).ok_or(CUT)?,
        };
        let attribute = Attribute {
            index: entry[1],
            name_length: name.len(),
            name: name.into(),
            value: value.into(),
        };
        let hash = get32(entry, 12);
        // Kernels from 6.3 on take the bytes of names as unsigned; in inodes some leave the hash out.
        let known = [attribute.hash(), attribute.hash_of(u32::from)];
        if get32(entry, 4) != 0 || !(known.contains(&hash) || (hash == 0 && !in_block)) {
            return Err("an extended attribute has a wrong hash");
        }
        let (full, value) = spoken(&attribute).ok_or("an extended attribute has a wrong name")?;
        if into.insert(full, value).is_some() {
            return Err("an extended attribute is there twice");
        }
        let key = (attribute.index, attribute.name_length, attribute.name);
        if in_block && last.is_some_and(|last| last >= key) {
            return Err("extended attributes are out of order");
        }
        hashes.push(hash);
        at += xattr::ENTRY + padded(name.len());
        last = Some(key);
    }
    if area.len() < at + END { Err(CUT) } else { Ok(hashes) }
}

/// The attribute as the kernel hands it out.
fn spoken(attribute: &Attribute) -> Option<(Vec<u8>, Vec<u8>)> {
    let (prefix, index) = PREFIXES.iter().find(|(_, index)| *index == attribute.index)?;
    let is_acl = matches!(*index, ACL_ACCESS | ACL_DEFAULT);
    if attribute.name.is_empty() != is_acl || attribute.name.contains(&0) {
        return None;
    }
    let value = if is_acl { acl::from_disk(&attribute.value)? } else { attribute.value.clone() };
    Some(([prefix, &attribute.name[..]].concat(), value))
}
