//! Blocks of codes: literals, and matches with what came before.

use std::io;

use super::table::{END, EXCEPTION, LITERAL, LITERALS, LONGER, Missing, Table, low};
use super::{BEHIND, CHUNK, HISTORY, Input, PADDING, invalid, truncated};

/// Literals and lengths: the entries of 288 codes are fewer than 8,192.
type Symbols = Table<12, 8192>;
/// Distances, of which 32 codes have 402 entries at most.
type Distances = Table<8, 512>;

const SYMBOLS: usize = 288;
const DISTANCES: usize = 32;
/// What ends a block.
const END_OF_BLOCK: u32 = 256;

/// Bytes that are copied at a time, if a match lies as far back.
const WIDE: usize = 32;
/// And otherwise, if it lies at least that far.
const NARROW: usize = 8;

/// The codes of a block.
#[derive(Debug)]
pub(super) struct Codes {
    symbols: Symbols,
    distances: Distances,
    lengths: Table<7, 128>,
    /// Whether the codes are those that need no description.
    is_fixed: bool,
}

impl Codes {
    pub(super) fn new() -> Self {
        let (symbols, distances, lengths) = (Table::new(), Table::new(), Table::new());
        Self { symbols, distances, lengths, is_fixed: false }
    }

    /// The codes that the format names.
    pub(super) fn fixed(&mut self) -> io::Result<()> {
        if self.is_fixed {
            return Ok(());
        }
        let mut lengths = [8; SYMBOLS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.fill(&lengths, &[5; DISTANCES])?;
        self.is_fixed = true;
        Ok(())
    }

    /// The codes that the block describes; `take` gives so many of its bits.
    pub(super) fn dynamic(
        &mut self,
        mut take: impl FnMut(u32) -> io::Result<u32>,
    ) -> io::Result<()> {
        const ORDER: [usize; 19] =
            [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        const FEW: &str = "the lengths of a block's codes are damaged";
        self.is_fixed = false;
        let mut number = |bits, least: usize| Ok::<_, io::Error>(take(bits)? as usize + least);
        let (symbols, distances, count) = (number(5, 257)?, number(5, 1)?, number(4, 4)?);
        if symbols > 286 || distances > 30 {
            return Err(invalid("a block has too many codes"));
        }
        let mut own = [0; 19];
        for place in &ORDER[..count] {
            own[*place] = u8::try_from(take(3)?).map_err(io::Error::other)?;
        }
        let filled = self.lengths.fill(&own, Missing::Nothing, |symbol| symbol << 16);
        filled.map_err(|_| invalid(FEW))?;
        let mut lengths = [0_u8; SYMBOLS + DISTANCES];
        let all = symbols + distances;
        let mut at = 0;
        while at < all {
            let (value, times) = match self.length(&mut take)? {
                16 => (*lengths[..at].last().ok_or_else(|| invalid(FEW))?, 3 + take(2)?),
                17 => (0, 3 + take(3)?),
                18 => (0, 11 + take(7)?),
                value => (value, 1),
            };
            let places = lengths[..all].get_mut(at..at + times as usize);
            places.ok_or_else(|| invalid(FEW))?.fill(value);
            at += times as usize;
        }
        if lengths[END_OF_BLOCK as usize] == 0 {
            return Err(invalid("a block has no end"));
        }
        let (symbols, distances) = lengths[..all].split_at(symbols);
        self.fill(symbols, distances)
    }

    /// The next length of a code, or how it is repeated. Codes of lengths have seven bits at most, so they are read one by one.
    fn length(&self, take: &mut impl FnMut(u32) -> io::Result<u32>) -> io::Result<u8> {
        let (mut bits, mut count) = (0_u32, 0);
        loop {
            bits |= take(1)? << count;
            count += 1;
            let entry = self.lengths.first(u64::from(bits));
            if entry & 63 == count {
                return u8::try_from(entry >> 16).map_err(io::Error::other);
            }
            if count == 7 {
                return Err(invalid("a block has a code that is none"));
            }
        }
    }

    fn fill(&mut self, symbols: &[u8], distances: &[u8]) -> io::Result<()> {
        let few = |_| invalid("a block's codes are damaged");
        self.symbols.fill(symbols, Missing::AllButOne, symbol).map_err(few)?;
        self.symbols.join();
        self.distances.fill(distances, Missing::AllButOne, distance).map_err(few)
    }

    /// Inflates until the block ends, the window is full, or the input has to be read on; whether the block ended.
    pub(super) fn inflate(
        &self,
        input: &mut Input,
        window: &mut [u8],
        filled: &mut usize,
        floor: usize,
    ) -> io::Result<bool> {
        let window: &mut Window = window.try_into().map_err(io::Error::other)?;
        let mut bits = Bits { bits: input.bits, count: input.count, at: input.at };
        // Behind the end of the input eight zeros may be taken: more shows that it is too short.
        let last = if input.is_end { input.end + 8 } else { input.end.saturating_sub(PADDING) };
        let mut to = *filled;
        let ended = loop {
            if bits.at > last || to >= HISTORY + CHUNK {
                break Ok(false);
            }
            bits.refill(&input.buffer);
            let mut entry = self.symbols.first(bits.bits);
            if entry & LITERALS != 0 {
                to += bits.literals(entry, window, to);
                entry = self.symbols.first(bits.bits);
                if entry & LITERALS != 0 {
                    to += bits.literals(entry, window, to);
                    entry = self.symbols.first(bits.bits);
                    if entry & LITERALS != 0 {
                        to += bits.literals(entry, window, to);
                        continue;
                    }
                }
                bits.refill(&input.buffer);
            }
            if entry & EXCEPTION != 0 {
                if entry & LONGER != 0 {
                    bits.drop(entry);
                    entry = self.symbols.longer(entry, bits.bits);
                    if entry & LITERALS != 0 {
                        to += bits.literals(entry, window, to);
                        continue;
                    }
                }
                if entry & END != 0 {
                    bits.drop(entry);
                    break Ok(true);
                }
                if entry & EXCEPTION != 0 {
                    break Err(invalid("a block has a code that is none"));
                }
            }
            let length = bits.value(entry);
            let mut entry = self.distances.first(bits.bits);
            if entry & EXCEPTION != 0 {
                if entry & LONGER != 0 {
                    bits.drop(entry);
                    entry = self.distances.longer(entry, bits.bits);
                }
                if entry & EXCEPTION != 0 {
                    break Err(invalid("a block has a distance that is none"));
                }
            }
            let distance = bits.value(entry);
            if distance > to - floor {
                break Err(invalid("a match reaches back behind the beginning"));
            }
            copy(window, to, distance, length);
            to += length;
        };
        *filled = to;
        // That there was too little explains what was found behind it.
        bits.give_back(input)?;
        ended
    }
}

/// Why a place in a buffer is there: it is looked at before a step how much room is left, and a step has its bounds.
const BOUNDED: &str = "steps keep within the padding";

pub(super) const WINDOW: usize = HISTORY + CHUNK + BEHIND;
pub(super) type Window = [u8; WINDOW];

/// Copies `length` bytes to `to` from `distance` bytes before; what stands behind them may be overwritten.
#[inline(always)]
pub(super) fn copy(window: &mut Window, to: usize, distance: usize, length: usize) {
    if distance < WIDE {
        return repeat(window, to, distance, length);
    }
    // Most matches fit: a branch that is taken like all others costs less than a copy that is as short as it can be.
    let mut done = 0;
    loop {
        let wide: [u8; WIDE] = chunk(window, to - distance + done);
        *window[to + done..].first_chunk_mut().expect(BOUNDED) = wide;
        done += WIDE;
        if done >= length {
            return;
        }
    }
}

/// The same, from less than `WIDE` bytes before.
#[inline(never)]
fn repeat(window: &mut Window, to: usize, distance: usize, length: usize) {
    let mut done = 0;
    if distance == 1 {
        let wide = [window[to - 1]; WIDE];
        while done < length {
            *window[to + done..].first_chunk_mut().expect(BOUNDED) = wide;
            done += WIDE;
        }
        return;
    }
    if distance >= NARROW {
        while done < length {
            let narrow: [u8; NARROW] = chunk(window, to - distance + done);
            *window[to + done..].first_chunk_mut().expect(BOUNDED) = narrow;
            done += NARROW;
        }
        return;
    }
    // As many repetitions as there is room for in a number, the last of which may be cut.
    let bits = 8 * u32::try_from(distance).unwrap_or(1);
    let one = u64::from_le_bytes(chunk(window, to - distance)) & ((1 << bits) - 1);
    let two = one | one << bits;
    let more = if 2 * bits < u64::BITS { two << (2 * bits) } else { 0 };
    let pattern = (two | more).to_le_bytes();
    while done < length {
        *window[to + done..].first_chunk_mut().expect(BOUNDED) = pattern;
        done += NARROW - NARROW % distance;
    }
}

#[inline(always)]
fn chunk<const COUNT: usize>(bytes: &[u8], at: usize) -> [u8; COUNT] {
    *bytes[at..].first_chunk().expect(BOUNDED)
}

/// The bits of the input, while a block is inflated.
struct Bits {
    /// At least `count` bits; those above are of the input too.
    bits: u64,
    count: u32,
    at: usize,
}

impl Bits {
    /// Takes as many bytes as fit: 56 bits at least.
    #[inline(always)]
    fn refill(&mut self, input: &[u8]) {
        self.bits |= u64::from_le_bytes(chunk(input, self.at)) << self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[inline(always)]
    fn drop(&mut self, entry: u32) {
        self.bits >>= entry & 63;
        self.count -= entry & 63;
    }

    /// Writes the literals of an entry, and says how many they are.
    #[inline(always)]
    fn literals(&mut self, entry: u32, window: &mut Window, to: usize) -> usize {
        self.drop(entry);
        let bytes = (entry >> 8).to_le_bytes();
        *window[to..].first_chunk_mut().expect(BOUNDED) = bytes;
        (entry >> 6 & 3) as usize
    }

    /// What an entry with extra bits stands for.
    #[inline(always)]
    fn value(&mut self, entry: u32) -> usize {
        let code = entry >> 8 & 15;
        let extra = low(self.bits, entry & 63) >> code;
        self.drop(entry);
        (entry >> 16) as usize + extra
    }

    /// Leaves the input where the block stopped, but for the rest of a byte.
    fn give_back(self, input: &mut Input) -> io::Result<()> {
        input.at = self.at - (self.count / 8) as usize;
        input.count = self.count % 8;
        input.bits = self.bits & ((1 << input.count) - 1);
        if input.at > input.end { Err(truncated()) } else { Ok(()) }
    }
}

/// What a symbol stands for: a byte, the end, or the length of a match and how many bits say more of it.
fn symbol(symbol: u32) -> u32 {
    const EXTRA: [u8; 29] =
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
    const BASE: [u16; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115,
        131, 163, 195, 227, 258,
    ];
    match symbol {
        0..256 => LITERAL | symbol << 8,
        END_OF_BLOCK => EXCEPTION | END,
        257..286 => {
            let at = (symbol - 257) as usize;
            u32::from(BASE[at]) << 16 | u32::from(EXTRA[at])
        }
        _ => EXCEPTION,
    }
}

/// The distance that a code stands for, and how many bits say more of it.
fn distance(code: u32) -> u32 {
    let extra = (code / 2).saturating_sub(1);
    match code {
        0..4 => (code + 1) << 16,
        4..30 => (((2 + code % 2) << extra) + 1) << 16 | extra,
        _ => EXCEPTION,
    }
}
