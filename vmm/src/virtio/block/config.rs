//! Features and configuration space (VIRTIO 1.2 sections 5.2.3 and 5.2.4).
//!
//! Invariant: a limit that the configuration names is the one the request parser enforces.

use super::request::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, SECTOR_BYTES};

/// Descriptors of a queue. A driver makes a request for each of them, and the guest touches its memory for the first time: 0.4 % of a small
/// guest's boot for 256. A disk that is only read is read in large pieces through the guest's cache and does with fewer.
pub(super) const fn queue_size(read_only: bool) -> u16 {
    if read_only { 64 } else { 256 }
}

const SEG_MAX: u32 = 2;
const RO: u32 = 5;
const BLK_SIZE: u32 = 6;
/// The driver can ask for durability; without it every write is durable when it ends.
pub(super) const FLUSH: u32 = 9;
const MQ: u32 = 12;
const DISCARD: u32 = 13;
const WRITE_ZEROES: u32 = 14;
const INDIRECT_DESC: u32 = 28;
const EVENT_IDX: u32 = 29;

const CONFIG_BYTES: usize = 60;

/// Bits offered.
pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut bits = vec![SEG_MAX, BLK_SIZE, FLUSH, INDIRECT_DESC, EVENT_IDX];
    if read_only {
        bits.push(RO);
    } else {
        bits.extend([DISCARD, WRITE_ZEROES]);
    }
    if queues > 1 {
        bits.push(MQ);
    }
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

/// `struct virtio_blk_config`.
pub(super) fn space(sectors: u64, read_only: bool, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &sectors.to_le_bytes());
    // A chain of direct descriptors also holds the header and the status.
    put(12, &u32::from(queue_size(read_only) - 2).to_le_bytes());
    put(20, &SECTOR_BYTES.to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    // Discard alignment: the block size of nearly every host filesystem, in sectors.
    put(44, &8_u32.to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    space
}

/// Reads as the driver does; bytes past the end are 0.
pub(super) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}
