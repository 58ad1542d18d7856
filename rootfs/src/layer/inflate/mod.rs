//! Inflates gzip (RFC 1951, RFC 1952), one member after the other.
//!
//! What it writes is at once what matches are copied from, in one window, which is given away when it is full: only what matches may
//! refer to is copied to the next one. Invariant: every index is checked, and a check that fails is an error of the input's. The
//! caller's thread reads, inflates and checks the sums of each member.

mod codes;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, Read};
use std::ops::Range;

use codes::{Codes, WINDOW};

/// How far back a match reaches.
const HISTORY: usize = 32 << 10;
/// Bytes that are inflated at a time.
const CHUNK: usize = 256 << 10;
/// What one step may write past the end of those: nine literals, a match and the rest of a copy.
const BEHIND: usize = 512;
/// Bytes of the input that are held.
const INPUT: usize = 64 << 10;
/// Zeros behind the input's end, which a step may read before it is seen that they are none of it.
const PADDING: usize = 32;
/// No header of a block has as many bytes.
const HEADER: usize = 1024;

/// Uncompressed bytes of a gzip file.
#[derive(Debug)]
pub struct Gunzip<R> {
    source: R,
    input: Input,
    window: Vec<u8>,
    /// The window's bytes up to here were read, and up to there inflated.
    taken: usize,
    filled: usize,
    /// Where the member begins in the window, or what is left of it.
    floor: usize,
    state: State,
    codes: Box<Codes>,
    sum: crc32fast::Hasher,
    /// Bytes of the member, modulo 2^32.
    length: u32,
}

/// Compressed bytes, by bits.
#[derive(Debug)]
struct Input {
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
    is_end: bool,
    /// The next `count` bits, lowest first, and zeros above them: fewer than eight whenever bytes are asked for.
    bits: u64,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before a member; whether there was one.
    Member(bool),
    /// Before a block.
    Block,
    /// In a block that is stored: bytes left, and whether it is the last.
    Stored(usize, bool),
    /// In a block of codes, and whether it is the last.
    Coded(bool),
    /// Behind the last block of a member.
    Sums,
    /// Behind the last member.
    Done,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the gzip data ends too early")
}

impl<R: BufRead> Gunzip<R> {
    /// Those of the file that `source` has, to its end.
    pub fn new(source: R) -> Self {
        let buffer = vec![0; INPUT + PADDING].into_boxed_slice();
        Self {
            source,
            input: Input { buffer, at: 0, end: 0, is_end: false, bits: 0, count: 0 },
            window: vec![0; WINDOW],
            taken: 0,
            filled: 0,
            floor: 0,
            state: State::Member(false),
            codes: Box::new(Codes::new()),
            sum: crc32fast::Hasher::new(),
            length: 0,
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Inflates until `buffer`, or rather the one that it is exchanged for, is full or nothing is left. Which bytes of it they are: none
    /// at the end.
    ///
    /// # Errors
    ///
    /// What reading `source` gives, [`InvalidData`](io::ErrorKind::InvalidData) where it is not gzip, and
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where it is cut off.
    pub fn fill(&mut self, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
        while !self.is_full() && !self.is_done() {
            self.advance()?;
        }
        let new = self.taken..self.filled;
        buffer.resize(WINDOW, 0);
        let kept = self.filled.min(HISTORY);
        buffer[..kept].copy_from_slice(&self.window[self.filled - kept..self.filled]);
        std::mem::swap(&mut self.window, buffer);
        self.forget(self.filled - kept);
        self.taken = self.filled;
        Ok(new)
    }

    /// Inflates until there is something to be read, or all of it is.
    fn more(&mut self) -> io::Result<()> {
        while self.filled == self.taken && !self.is_done() {
            if self.is_full() {
                self.window.copy_within(self.filled - HISTORY..self.filled, 0);
                self.taken = HISTORY;
                self.forget(self.filled - HISTORY);
            }
            self.advance()?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.filled >= HISTORY + CHUNK
    }

    fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Notes that the first `count` bytes of the window are gone.
    fn forget(&mut self, count: usize) {
        self.filled -= count;
        self.floor = self.floor.saturating_sub(count);
    }

    fn advance(&mut self) -> io::Result<()> {
        let before = self.filled;
        self.state = self.step()?;
        let new = &self.window[before..self.filled];
        self.sum.update(new);
        self.length = self.length.wrapping_add(u32::try_from(new.len()).unwrap_or(0));
        Ok(())
    }

    fn step(&mut self) -> io::Result<State> {
        match self.state {
            State::Member(is_there) => self.member(is_there),
            State::Block => self.block(),
            State::Stored(left, is_last) => self.stored(left, is_last),
            State::Coded(is_last) => {
                self.input.ensure(&mut self.source, HEADER)?;
                let Self { codes, input, window, filled, floor, .. } = self;
                let is_end = codes.inflate(input, window, filled, *floor)?;
                Ok(if is_end { behind(is_last) } else { self.state })
            }
            State::Sums => self.sums(),
            State::Done => Ok(State::Done),
        }
    }

    /// The header of a member, if there is one.
    fn member(&mut self, is_there: bool) -> io::Result<State> {
        const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
        const SUM: u8 = 2;
        const EXTRA: u8 = 4;
        const NAME: u8 = 8;
        const COMMENT: u8 = 16;
        const RESERVED: u8 = 0xe0;
        let Self { input, source, .. } = self;
        if is_there && input.is_at_end(source)? {
            return Ok(State::Done);
        }
        let mut sum = crc32fast::Hasher::new();
        let mut byte = || {
            let byte = input.take(source, 8)?.to_le_bytes()[0];
            sum.update(&[byte]);
            Ok::<_, io::Error>(byte)
        };
        if [byte()?, byte()?, byte()?] != MAGIC {
            return Err(invalid("there is something that is not gzip"));
        }
        let flags = byte()?;
        if flags & RESERVED != 0 {
            return Err(invalid("its gzip header has unknown flags"));
        }
        // Its time, how it was compressed, and where.
        for _ in 0..6 {
            byte()?;
        }
        if flags & EXTRA != 0 {
            for _ in 0..u16::from_le_bytes([byte()?, byte()?]) {
                byte()?;
            }
        }
        for text in [NAME, COMMENT] {
            while flags & text != 0 && byte()? != 0 {}
        }
        if flags & SUM != 0 {
            let stated = input.take(source, 16)?;
            if stated != sum.finalize() & 0xffff {
                return Err(invalid("the checksum of the gzip header is not that of its bytes"));
            }
        }
        (self.floor, self.length) = (self.filled, 0);
        self.sum = crc32fast::Hasher::new();
        Ok(State::Block)
    }

    /// The header of a block.
    fn block(&mut self) -> io::Result<State> {
        let Self { input, source, .. } = self;
        let is_last = input.take(source, 1)? == 1;
        match input.take(source, 2)? {
            0 => {
                input.align();
                let (length, not) = (input.take(source, 16)?, input.take(source, 16)?);
                if length != !not & 0xffff {
                    return Err(invalid("the length of a stored block is damaged"));
                }
                Ok(State::Stored(usize::try_from(length).map_err(io::Error::other)?, is_last))
            }
            1 => {
                self.codes.fixed()?;
                Ok(State::Coded(is_last))
            }
            2 => {
                self.codes.dynamic(|count| input.take(source, count))?;
                Ok(State::Coded(is_last))
            }
            _ => Err(invalid("a block is of no known type")),
        }
    }

    /// Bytes of a stored block.
    fn stored(&mut self, left: usize, is_last: bool) -> io::Result<State> {
        if left == 0 {
            return Ok(behind(is_last));
        }
        self.input.ensure(&mut self.source, 1)?;
        let Input { buffer, at, end, .. } = &mut self.input;
        let count = left.min(*end - *at).min(HISTORY + CHUNK - self.filled);
        if count == 0 {
            return Err(truncated());
        }
        self.window[self.filled..][..count].copy_from_slice(&buffer[*at..][..count]);
        *at += count;
        self.filled += count;
        Ok(State::Stored(left - count, is_last))
    }

    /// The sums behind a member.
    fn sums(&mut self) -> io::Result<State> {
        let Self { input, source, .. } = self;
        input.align();
        let mut word =
            || Ok::<_, io::Error>(input.take(source, 16)? | input.take(source, 16)? << 16);
        if word()? != self.sum.clone().finalize() {
            return Err(invalid("the checksum of the gzip data is not that of its bytes"));
        }
        if word()? != self.length {
            return Err(invalid("the gzip data has another length than it says"));
        }
        Ok(State::Member(true))
    }
}

fn behind(is_last: bool) -> State {
    if is_last { State::Sums } else { State::Block }
}

impl Input {
    /// Reads on until there are `wanted` bytes, or all that the source has.
    fn ensure(&mut self, source: &mut impl BufRead, wanted: usize) -> io::Result<()> {
        if self.end - self.at >= wanted || self.is_end {
            return Ok(());
        }
        self.buffer.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        while self.end < INPUT {
            match source.read(&mut self.buffer[self.end..INPUT]) {
                Ok(0) => {
                    self.is_end = true;
                    self.buffer[self.end..][..PADDING].fill(0);
                    break;
                }
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_at_end(&mut self, source: &mut impl BufRead) -> io::Result<bool> {
        self.ensure(source, 1)?;
        Ok(self.at == self.end)
    }

    /// The next `count` bits, at most 16.
    fn take(&mut self, source: &mut impl BufRead, count: u32) -> io::Result<u32> {
        while self.count < count {
            self.ensure(source, 1)?;
            if self.at == self.end {
                return Err(truncated());
            }
            self.bits |= u64::from(self.buffer[self.at]) << self.count;
            self.at += 1;
            self.count += 8;
        }
        let taken = table::low(self.bits, count);
        self.bits >>= count;
        self.count -= count;
        u32::try_from(taken).map_err(io::Error::other)
    }

    /// Leaves out the rest of a byte.
    fn align(&mut self) {
        (self.bits, self.count) = (0, 0);
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        self.more()?;
        let available = &self.window[self.taken..self.filled];
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.taken += count;
        Ok(count)
    }
}
