//! Little-endian numbers in blocks.
//!
//! Writers own blocks of a known size, so that an offset past the end is a fault of ours. Readers of foreign bytes go through
//! [`get16`] and [`get32`], which read zeros past the end instead of panicking: what they read is then found wrong by its check.

/// Writes 16 bits at `at`.
///
/// # Panics
/// When the field does not lie in `block`.
pub(crate) fn put16(block: &mut [u8], at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes 32 bits at `at`; panics like [`put16`].
pub(crate) fn put32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Writes 32 bits with the high byte first, as journals have them; panics like [`put16`].
pub(crate) fn put32_be(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// The 16 bits at `at`; 0 when they do not lie in `block`.
pub(crate) fn get16(block: &[u8], at: usize) -> u16 {
    let bytes = block.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// The 32 bits at `at`; 0 when they do not lie in `block`.
pub(crate) fn get32(block: &[u8], at: usize) -> u32 {
    let bytes = block.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The low 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "the high half is stored elsewhere, or not")]
pub(crate) const fn low16(value: u32) -> u16 {
    value as u16
}

/// The high 16 bits.
pub(crate) const fn high16(value: u32) -> u16 {
    low16(value >> 16)
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the high half is stored elsewhere, or not")]
pub(crate) const fn low32(value: u64) -> u32 {
    value as u32
}

/// A number that the caller knows to be below 2^32.
///
/// # Panics
/// When it is not.
pub(crate) fn small(value: u64) -> u32 {
    u32::try_from(value).expect("bounded by the checks of the plan")
}

/// A number of bytes or things in memory, which is why it fits.
///
/// # Panics
/// When it does not.
pub(crate) fn size(value: u64) -> usize {
    usize::try_from(value).expect("bounded by what is in memory")
}
