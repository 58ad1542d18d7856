//! Access control lists: `setxattr` has entries of eight bytes, the disk leaves out the number where there is none.

use crate::bytes::{get16, get32};

const SPOKEN_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const NOBODY: u32 = u32::MAX;

const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Whether entries with this tag name a user or group. None for tags that do not exist.
fn has_number(tag: u16) -> Option<bool> {
    match tag {
        USER | GROUP => Some(true),
        // The owner, the owning group, the mask, and others.
        0x01 | 0x04 | 0x10 | 0x20 => Some(false),
        _ => None,
    }
}

/// None when it is not a list.
pub(super) fn to_disk(spoken: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = spoken.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != SPOKEN_VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let short = if has_number(get16(entry, 0))? { entry } else { &entry[..4] };
        disk.extend_from_slice(short);
    }
    Some(disk)
}

/// None when it is not a list.
pub(super) fn from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    if disk.len() < 4 || get32(disk, 0) != DISK_VERSION {
        return None;
    }
    let mut spoken = SPOKEN_VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let numbered = has_number(get16(rest, 0))?;
        let (entry, next) = rest.split_at_checked(if numbered { 8 } else { 4 })?;
        spoken.extend_from_slice(entry);
        if !numbered {
            spoken.extend_from_slice(&NOBODY.to_le_bytes());
        }
        rest = next;
    }
    Some(spoken)
}
