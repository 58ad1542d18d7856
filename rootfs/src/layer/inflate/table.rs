//! Tables from the bits at hand to what they stand for.
//!
//! An entry is found by the next bits of the input, of which those behind a short code are any. Codes longer than the table's index
//! lead to a part of the table behind it. Invariant: every index that bits can make holds an entry, of what there is or of what is
//! not valid, so that no input leads outside.

/// One literal byte, in bits 8 to 15. Up to three stand in one entry: bits 6 and 7 say how many, and are zero in all others. Bits 0
/// to 5 of every entry say how many bits it uses up.
pub(super) const LITERAL: u32 = 1 << 6;
/// What is not zero in an entry with literals.
pub(super) const LITERALS: u32 = 3 << 6;
/// Neither a literal nor a length or distance.
pub(super) const EXCEPTION: u32 = 1 << 15;
/// An exception: the rest of a long code is looked up from the index in bits 16 to 30 on, by as many bits as bits 8 to 11 say.
pub(super) const LONGER: u32 = 1 << 14;
/// An exception: the block ends.
pub(super) const END: u32 = 1 << 13;

/// Bits of the code of one symbol at most.
pub(super) const CODE_BITS: u32 = 15;
/// How many lengths there are, with none.
const LENGTHS: usize = CODE_BITS as usize + 1;

/// A table whose first part is looked up by `BITS` bits. `SIZE`, a power of two, has room for all parts that there can be.
#[derive(Debug)]
pub(super) struct Table<const BITS: u32, const SIZE: usize> {
    entries: Box<[u32; SIZE]>,
}

/// Lengths of codes that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

/// What may be missing from a set of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing.
    Nothing,
    /// All but one code of one bit, or all.
    AllButOne,
}

impl<const BITS: u32, const SIZE: usize> Table<BITS, SIZE> {
    pub(super) fn new() -> Self {
        Self { entries: Box::new([EXCEPTION; SIZE]) }
    }

    /// The entry that the next bits lead to.
    #[inline(always)]
    pub(super) fn first(&self, bits: u64) -> u32 {
        self.entries[low(bits, BITS)]
    }

    /// The entry of a long code. `bits` are those behind the first ones.
    #[inline(always)]
    pub(super) fn longer(&self, entry: u32, bits: u64) -> u32 {
        let start = (entry >> 16 & 0x7fff) as usize;
        self.entries[(start + low(bits, entry >> 8 & 15)) & (SIZE - 1)]
    }

    /// Makes the table of codes of these lengths. `entry` says what a symbol stands for, without its code.
    pub(super) fn fill(
        &mut self,
        lengths: &[u8],
        missing: Missing,
        entry: impl Fn(u32) -> u32,
    ) -> Result<(), Invalid> {
        let mut counts = [0_u32; LENGTHS];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        complete(&counts, missing)?;
        let mut next = [0_u32; LENGTHS];
        for length in 1..LENGTHS - 1 {
            next[length + 1] = next[length] + counts[length];
        }
        let mut sorted = [0_u16; 320];
        for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let place = &mut next[usize::from(*length)];
            sorted[*place as usize] = u16::try_from(symbol).map_err(|_| Invalid)?;
            *place += 1;
        }
        if missing == Missing::AllButOne {
            self.entries[..1 << BITS].fill(EXCEPTION);
        }
        self.put(&sorted, &mut counts, entry)
    }

    /// Puts literals that follow each other within the table's index into one entry, up to three.
    pub(super) fn join(&mut self) {
        // An entry leads to smaller indices, which still have one literal each.
        for index in (0..1_usize << BITS).rev() {
            let mut entry = self.entries[index];
            if entry & LITERALS == 0 {
                continue;
            }
            for shift in [16, 24] {
                let used = entry & 63;
                let next = self.entries[index >> used];
                if next & LITERALS == 0 || used + (next & 63) > BITS {
                    break;
                }
                let literal = (next >> 8 & 0xff) << shift;
                entry = (entry + LITERAL + (next & 63)) | literal;
            }
            self.entries[index] = entry;
        }
    }

    fn put(
        &mut self,
        sorted: &[u16],
        counts: &mut [u32; LENGTHS],
        entry: impl Fn(u32) -> u32,
    ) -> Result<(), Invalid> {
        let (mut code, mut at) = (0_u32, 0);
        // The part that long codes of one beginning share: that beginning, where it starts, by how many bits it is looked up.
        let mut part = (u32::MAX, 0_usize, 0_u32);
        let mut end = 1_usize << BITS;
        for length in 1..=CODE_BITS {
            while counts[length as usize] > 0 {
                let symbol = entry(u32::from(sorted[at]));
                let reversed = code.reverse_bits() >> (32 - length);
                let (start, size, used) = if length <= BITS {
                    (reversed as usize, 1 << BITS, length)
                } else {
                    let beginning = reversed & ((1 << BITS) - 1);
                    if part.0 != beginning {
                        let bits = part_bits(length - BITS, &counts[length as usize..]);
                        part = (beginning, end, bits);
                        let start = u32::try_from(end).map_err(|_| Invalid)?;
                        let link = EXCEPTION | LONGER | start << 16 | bits << 8 | BITS;
                        self.entries[beginning as usize] = link;
                        end += 1 << bits;
                    }
                    (part.1 + (reversed >> BITS) as usize, part.1 + (1 << part.2), length - BITS)
                };
                let filled = self.entries.get_mut(start..size).ok_or(Invalid)?;
                // The lengths of a code and of what follows it are added up where both are used at once.
                let value = symbol + used + if symbol & LITERALS == 0 { used << 8 } else { 0 };
                filled.iter_mut().step_by(1 << used).for_each(|place| *place = value);
                counts[length as usize] -= 1;
                at += 1;
                code += 1;
            }
            code <<= 1;
        }
        Ok(())
    }
}

/// By how many bits the codes of one beginning are looked up, the first of which has `length` bits more. `counts` are of the codes
/// that are left, from that length on.
fn part_bits(length: u32, counts: &[u32]) -> u32 {
    let mut bits = length;
    let mut used = counts[0];
    for more in &counts[1..] {
        if used >= 1 << bits {
            break;
        }
        bits += 1;
        used = (used << 1) + more;
    }
    bits
}

/// Whether every sequence of bits begins with exactly one code.
fn complete(counts: &[u32; LENGTHS], missing: Missing) -> Result<(), Invalid> {
    let mut free = 1_u32;
    for count in &counts[1..] {
        free = (free << 1).checked_sub(*count).ok_or(Invalid)?;
    }
    let few = counts[1] <= 1 && counts[2..].iter().all(|count| *count == 0);
    if free == 0 || (missing == Missing::AllButOne && few) { Ok(()) } else { Err(Invalid) }
}

/// The low `count` bits.
#[inline(always)]
pub(super) fn low(bits: u64, count: u32) -> usize {
    usize::try_from(bits & ((1 << count) - 1)).unwrap_or(usize::MAX)
}
