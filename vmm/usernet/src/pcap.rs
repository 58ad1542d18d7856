//! Captures of frames, as pcapng files.
//!
//! A capture is bounded by a ring of two files that take turns: when the current one has its half, the caller empties the other
//! and goes on there, so that the newest frames are always in one of them. Invariant: both together never exceed the limit, and each is whole after
//! every record. Pure: it encodes, the caller writes. Format: draft-ietf-opsawg-pcapng, sections 4.1 to 4.3.

use crate::Instant;

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the guest: "inbound" for its network card.
    ToGuest,
    /// From the guest: "outbound".
    FromGuest,
}

/// Where the bytes of a record belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind what was written before.
    Same,
    /// At the beginning of the other file, whose contents are the older ones.
    New,
}

/// An encoder of one capture.
#[derive(Debug, Clone)]
pub struct Capture {
    file_len: u64,
    snap_len: usize,
    /// The wall clock at zero of [`Instant`].
    epoch_nanos: u64,
    /// Bytes in the current file; `None` before the first record.
    written: Option<u64>,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// Type, both lengths, the fixed fields and the option of a packet.
const PACKET_OVERHEAD: usize = 12 + 20 + 12;

impl Capture {
    /// The smallest limit in bytes of both files together: each holds a few frames of the largest size.
    pub const MIN_LIMIT: u64 = 1 << 20;
    /// The largest frame.
    const MAX_SNAP_LEN: usize = 0x1_0100;

    /// Both files have at most `limit` bytes together, at least [`Self::MIN_LIMIT`]; of each frame `snap_len` bytes are kept. The
    /// wall clock is `epoch_nanos` after 1970 at zero of [`Instant`].
    #[must_use]
    pub fn new(limit: u64, snap_len: usize, epoch_nanos: u64) -> Self {
        let file_len = limit.max(Self::MIN_LIMIT) / 2;
        Self { file_len, snap_len: snap_len.min(Self::MAX_SNAP_LEN), epoch_nanos, written: None }
    }

    /// Appends to `out` the record of a frame of `len` bytes that begins with `parts`, and says where it belongs.
    pub fn record(
        &mut self,
        at: Instant,
        direction: Direction,
        len: usize,
        parts: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Place {
        let begin = out.len();
        let given = parts.iter().map(|part| part.len()).sum::<usize>();
        let kept = given.min(len).min(self.snap_len);
        let record_len = (PACKET_OVERHEAD + kept.next_multiple_of(4)) as u64;
        let fits = self.written.filter(|written| written + record_len <= self.file_len);
        if fits.is_none() {
            self.head(out);
        }
        self.packet(at, direction, (len, kept), parts, out);
        let added = (out.len() - begin) as u64;
        self.written = Some(fits.unwrap_or(0) + added);
        if fits.is_some() { Place::Same } else { Place::New }
    }

    /// The section and the one interface that each file begins with.
    fn head(&self, out: &mut Vec<u8>) {
        block(out, SECTION, |out| {
            out.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
            // Version 1.0; the length of the section is not known.
            out.extend_from_slice(&[1, 0, 0, 0]);
            out.extend_from_slice(&[0xff; 8]);
            option(out, 4, b"openshell-vmm");
            option(out, 0, &[]);
        });
        block(out, INTERFACE, |out| {
            // Ethernet.
            out.extend_from_slice(&[1, 0, 0, 0]);
            out.extend_from_slice(&number(self.snap_len).to_le_bytes());
            option(out, 2, b"guest");
            // Time in nanoseconds.
            option(out, 9, &[9]);
            option(out, 0, &[]);
        });
    }

    fn packet(
        &self,
        at: Instant,
        direction: Direction,
        (len, kept): (usize, usize),
        parts: &[&[u8]],
        out: &mut Vec<u8>,
    ) {
        block(out, PACKET, |out| {
            let nanos = self.epoch_nanos.saturating_add(at.as_nanos()).to_le_bytes();
            let [a, b, c, d, high @ ..] = nanos;
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&high);
            out.extend_from_slice(&[a, b, c, d]);
            out.extend_from_slice(&number(kept).to_le_bytes());
            out.extend_from_slice(&number(len.max(kept)).to_le_bytes());
            let mut left = kept;
            for part in parts {
                let part = part.get(..left).unwrap_or(part);
                out.extend_from_slice(part);
                left -= part.len();
            }
            pad(out, kept);
            let flags: u32 = match direction {
                Direction::ToGuest => 1,
                Direction::FromGuest => 2,
            };
            option(out, 2, &flags.to_le_bytes());
            option(out, 0, &[]);
        });
    }
}

/// A block: type, length, `body`, length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = number(out.len() - begin + 4).to_le_bytes();
    out.splice(begin + 4..begin + 8, len);
    out.extend_from_slice(&len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    // Values are of this file, and short.
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend(std::iter::repeat_n(0, len.next_multiple_of(4) - len));
}

/// Lengths are below [`Capture::MAX_SNAP_LEN`] but for those that a caller makes up.
fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reader of what the encoder writes: for each packet its time, direction, full length and bytes.
    fn read(mut file: &[u8]) -> Vec<(u64, u32, usize, Vec<u8>)> {
        let word = |of: &[u8], at: usize| u32::from_le_bytes(*of[at..].first_chunk().unwrap());
        let (mut packets, mut kinds) = (Vec::new(), Vec::new());
        while !file.is_empty() {
            let len = word(file, 4) as usize;
            let (block, rest) = file.split_at(len);
            assert_eq!((word(block, len - 4) as usize, len % 4), (len, 0));
            kinds.push(word(block, 0));
            if word(block, 0) == PACKET {
                let nanos = u64::from(word(block, 12)) << 32 | u64::from(word(block, 16));
                let (kept, full) = (word(block, 20) as usize, word(block, 24) as usize);
                let after = 28 + kept.next_multiple_of(4);
                assert_eq!(word(block, after), 4 << 16 | 2, "flags");
                assert_eq!((word(block, after + 8), len), (0, after + 16), "the end");
                packets.push((nanos, word(block, after + 4), full, block[28..28 + kept].to_vec()));
            }
            file = rest;
        }
        assert_eq!(kinds[..2], [SECTION, INTERFACE]);
        assert!(kinds[2..].iter().all(|kind| *kind == PACKET));
        packets
    }

    #[test]
    fn a_capture_begins_with_these_bytes() {
        let mut out = Vec::new();
        let mut capture = Capture::new(1 << 20, 96, 0x0102_0304_0506_0708);
        let at = Instant::from_nanos(1);
        let place = capture.record(at, Direction::FromGuest, 60, &[&[1, 2], &[3]], &mut out);
        assert_eq!(place, Place::New);
        let expected: [&[u8]; 3] = [
            b"\x0a\x0d\x0d\x0a\x34\0\0\0\x4d\x3c\x2b\x1a\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\
              \x04\0\x0d\0openshell-vmm\0\0\0\0\0\0\0\x34\0\0\0",
            b"\x01\0\0\0\x2c\0\0\0\x01\0\0\0\x60\0\0\0\x02\0\x05\0guest\0\0\0\x09\0\x01\0\x09\0\0\0\
              \0\0\0\0\x2c\0\0\0",
            b"\x06\0\0\0\x30\0\0\0\0\0\0\0\x04\x03\x02\x01\x09\x07\x06\x05\x03\0\0\0\x3c\0\0\0\x01\x02\x03\0\
              \x02\0\x04\0\x02\0\0\0\0\0\0\0\x30\0\0\0",
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn a_frame_is_cut_to_what_is_kept_and_given() {
        let mut capture = Capture::new(1 << 20, 4, 0);
        let mut out = Vec::new();
        capture.record(
            Instant::from_nanos(5),
            Direction::ToGuest,
            100,
            &[b"abc", b"def"],
            &mut out,
        );
        capture.record(Instant::from_nanos(6), Direction::FromGuest, 2, &[b"abc"], &mut out);
        capture.record(Instant::from_nanos(7), Direction::FromGuest, 9, &[], &mut out);
        assert_eq!(
            read(&out),
            [(5, 1, 100, b"abcd".to_vec()), (6, 2, 2, b"ab".to_vec()), (7, 2, 9, vec![])]
        );
    }

    proptest! {
        #[test]
        fn two_files_never_exceed_the_limit_and_each_is_whole(lens in prop::collection::vec(0_usize..70_000, 1..80)) {
            let mut capture = Capture::new(Capture::MIN_LIMIT, usize::MAX, 0);
            let (mut older, mut current, mut total) = (Vec::new(), Vec::new(), 0);
            let frame = vec![7; 70_000];
            for len in lens {
                let mut out = Vec::new();
                let at = Instant::from_nanos(total);
                match capture.record(at, Direction::ToGuest, len, &[&frame[..len]], &mut out) {
                    Place::Same => current.extend_from_slice(&out),
                    Place::New => older = std::mem::replace(&mut current, out),
                }
                total += 1;
                prop_assert!((older.len() + current.len()) as u64 <= Capture::MIN_LIMIT);
                let newest = read(&current);
                prop_assert_eq!(newest.last().unwrap().0, total - 1);
                prop_assert_eq!(newest.last().unwrap().2, len);
            }
            if !older.is_empty() {
                prop_assert_eq!(read(&older).last().unwrap().0 + 1, read(&current)[0].0);
            }
        }
    }
}
