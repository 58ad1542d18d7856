//! Blocks of codes: literals, and matches with what came before.

use std::io;

use super::table::{END, EXCEPTION, LITERAL, LONGER, Missing, Table, low};
use super::{BEHIND, CHUNK, HISTORY, Input, PADDING, invalid, truncated};

/// Literals and lengths, of which 288 codes have 2,342 entries at most.
type Symbols = Table<11, 4096>;
/// Distances, of which 32 codes have 402 entries at most.
type Distances = Table<8, 512>;

const SYMBOLS: usize = 288;
const DISTANCES: usize = 32;
/// What ends a block.
const END_OF_BLOCK: u32 = 256;

/// Bytes that are copied at a time, if a match lies as far back.
const WIDE: usize = 16;

/// The codes of a block.
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
            if entry & LITERAL != 0 {
                bits.drop(entry);
                window[to] = entry.to_le_bytes()[2];
                to += 1;
                entry = self.symbols.first(bits.bits);
                if entry & LITERAL != 0 {
                    bits.drop(entry);
                    window[to] = entry.to_le_bytes()[2];
                    to += 1;
                    entry = self.symbols.first(bits.bits);
                    if entry & LITERAL != 0 {
                        bits.drop(entry);
                        window[to] = entry.to_le_bytes()[2];
                        to += 1;
                        continue;
                    }
                }
                bits.refill(&input.buffer);
            }
            if entry & EXCEPTION != 0 {
                if entry & LONGER != 0 {
                    bits.drop(entry);
                    entry = self.symbols.longer(entry, bits.bits);
                    if entry & LITERAL != 0 {
                        bits.drop(entry);
                        window[to] = entry.to_le_bytes()[2];
                        to += 1;
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

const WINDOW: usize = HISTORY + CHUNK + BEHIND;
type Window = [u8; WINDOW];

/// Copies `length` bytes to `to` from `distance` bytes before; what stands behind them may be overwritten.
#[inline(always)]
fn copy(window: &mut Window, to: usize, distance: usize, length: usize) {
    let from = to - distance;
    if distance >= WIDE {
        // Most matches are shorter than two chunks: a branch that is taken like all others costs more than a copy.
        let mut done = 0;
        loop {
            for _ in 0..2 {
                let chunk: [u8; WIDE] = chunk(window, from + done);
                *window[to + done..].first_chunk_mut().expect(BOUNDED) = chunk;
                done += WIDE;
            }
            if done >= length {
                return;
            }
        }
    }
    if distance == 1 {
        let byte = window[from];
        window[to..to + length].fill(byte);
        return;
    }
    // What was copied is copied on, twice as much each time.
    let (mut there, end) = (distance, distance + length);
    while there < end {
        let count = there.min(end - there);
        window.copy_within(from..from + count, from + there);
        there += count;
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
        0..256 => LITERAL | symbol << 16,
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
