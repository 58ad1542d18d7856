//! Against another decoder, whose own encoder makes the input, and against what breaks it.

use std::io::{self, BufReader, Read, Write as _};

use flate2::{Compression, GzBuilder};
use proptest::collection::vec;
use proptest::prelude::*;

use super::codes::{WINDOW, Window, copy};
use super::{CHUNK, Gunzip, HISTORY};

/// Everything that is inflated before the end or an error, read by so many bytes at a time from buffers of so many.
fn ours(bytes: &[u8], capacity: usize, step: usize) -> (Vec<u8>, io::Result<()>) {
    all(Gunzip::new(BufReader::with_capacity(capacity, bytes)), step)
}

fn theirs(bytes: &[u8]) -> (Vec<u8>, io::Result<()>) {
    all(flate2::bufread::MultiGzDecoder::new(bytes), 1 << 16)
}

fn all(mut decoder: impl Read, step: usize) -> (Vec<u8>, io::Result<()>) {
    let (mut found, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return (found, Ok(())),
            Ok(read) => found.extend_from_slice(&buffer[..read]),
            Err(error) => return (found, Err(error)),
        }
    }
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Bytes with matches of every length and distance, runs, and parts that do not compress.
fn mixed(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).expect("48 bits")
    };
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let count = 1 + random() % 300;
        match random() % 5 {
            0 => bytes.resize(bytes.len() + count, random().to_le_bytes()[0]),
            1 => bytes.extend((0..count).map(|_| random().to_le_bytes()[0])),
            2 => bytes.extend((0..count).map(|_| b"etaoin shrdlu"[random() % 13])),
            _ if bytes.is_empty() => {}
            _ => {
                let back = 1 + random() % bytes.len().min(40_000);
                let from = bytes.len() - back;
                for at in 0..count {
                    bytes.push(bytes[from + at]);
                }
            }
        }
    }
    bytes
}

#[test]
fn every_level_and_every_way_to_read_gives_the_same_bytes() {
    let bytes = mixed(1_500_000);
    for level in [0, 1, 2, 5, 6, 9] {
        let packed = gzip(&bytes, level);
        for (capacity, step) in [(1 << 17, 1 << 18), (1, 100_000), (4096, 1), (70_000, 33_333)] {
            let (found, result) = ours(&packed, capacity, step);
            result.expect("sound");
            assert!(found == bytes, "level {level}, {capacity} bytes, {step} at a time");
        }
    }
}

#[test]
fn windows_that_are_given_away_hold_the_same_bytes() {
    let bytes = mixed(1_500_000);
    let packed = [gzip(&bytes, 6), gzip(&bytes[..70_000], 1)].concat();
    let expected = [&bytes[..], &bytes[..70_000]].concat();
    let mut decoder = Gunzip::new(&packed[..]);
    let (mut found, mut buffer) = (Vec::new(), Vec::new());
    loop {
        let new = decoder.fill(&mut buffer).expect("sound");
        if new.is_empty() {
            break;
        }
        found.extend_from_slice(&buffer[new]);
        // Nothing of what was given away is needed.
        buffer.fill(0xee);
    }
    assert!(found == expected);
    assert!(decoder.fill(&mut buffer).expect("nothing more").is_empty());
}

#[test]
fn matches_of_every_distance_and_length_are_copied() {
    let noise: Vec<u8> = mixed(WINDOW);
    let mut window: Box<Window> = noise[..WINDOW].to_vec().try_into().expect("as long");
    for distance in (1..70).chain([HISTORY - 1, HISTORY]) {
        for length in 3..=258 {
            // As far back and as far in front as a step gets.
            for to in [distance, HISTORY + CHUNK + 8] {
                let mut expected = noise[to - distance..to + length].to_vec();
                (0..length).for_each(|at| expected[distance + at] = expected[at]);
                window[to - distance..to].copy_from_slice(&noise[to - distance..to]);
                copy(&mut window, to, distance, length);
                let found = &window[to - distance..to + length];
                assert!(found == expected, "{length} bytes from {distance} bytes before {to}");
            }
        }
    }
}

#[test]
fn headers_and_members_are_passed_over_as_the_format_says() {
    let header = GzBuilder::new().extra(vec![7; 70]).filename("name").comment("what it is");
    let mut encoder = header.write(Vec::new(), Compression::best());
    encoder.write_all(b"first ").expect("in memory");
    let first = encoder.finish().expect("in memory");
    let packed = [&first[..], &gzip(b"", 6), &gzip(b"second", 1)].concat();
    let (found, result) = ours(&packed, 3, 2);
    result.expect("sound");
    assert_eq!(found, b"first second");
    // A match does not reach into the member before.
    let reaching = [&gzip(b"abcdefgh", 6)[..], &REACHING].concat();
    let (found, result) = ours(&reaching, 64, 64);
    assert_eq!(found, b"abcdefgh");
    assert_eq!(result.map_err(|it| it.kind()), Err(io::ErrorKind::InvalidData));
}

/// A member of one block of fixed codes, which begins with a match of three bytes, one byte back.
const REACHING: [u8; 14] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x03, 0x02, 0, 0];

#[test]
fn a_file_that_ends_anywhere_is_an_error() {
    let packed = gzip(&mixed(3000), 6);
    let packed = [&packed[..], &gzip(&mixed(300), 1)].concat();
    let first = packed.len() - gzip(&mixed(300), 1).len();
    for end in (0..packed.len()).filter(|end| *end != first) {
        let (_, result) = ours(&packed[..end], 1 << 16, 1 << 16);
        let error = result.expect_err("it is not whole");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}: {error}");
    }
    let garbage = [&packed[..], b"something"].concat();
    ours(&garbage, 1 << 16, 1 << 16).1.expect_err("that is no member");
}

#[test]
fn whatever_bit_is_wrong_both_decoders_think_the_same_of_it() {
    for level in [0, 1, 6] {
        let packed = gzip(&mixed(900), level);
        for bit in 0..packed.len() * 8 {
            let mut damaged = packed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            same(&damaged);
        }
    }
}

#[track_caller]
fn same(bytes: &[u8]) {
    let (found, result) = ours(bytes, 1 << 16, 1 << 16);
    let (expected, other) = theirs(bytes);
    assert_eq!(result.is_ok(), other.is_ok(), "{result:?}, {other:?}: {bytes:02x?}");
    if other.is_ok() {
        assert_eq!(found, expected);
    }
}

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// Of blocks: what comes out of them, with the sums made right, or that they are refused.
#[track_caller]
fn same_blocks(blocks: &[u8]) {
    let mut decoder = flate2::bufread::DeflateDecoder::new(blocks);
    let (mut expected, other) = all(&mut decoder, 1 << 16);
    if other.is_err() {
        // Zeros behind blocks that are cut off do not make them whole.
        expected.clear();
    }
    let used = usize::try_from(decoder.total_in()).expect("of memory");
    let mut sum = flate2::Crc::new();
    sum.update(&expected);
    let sums = [sum.sum().to_le_bytes(), sum.amount().to_le_bytes()].concat();
    let whole = [&HEADER[..], &blocks[..used], &sums].concat();
    let (found, result) = ours(&whole, 1 << 16, 1 << 16);
    assert_eq!(result.is_ok(), other.is_ok(), "{result:?}, {other:?}: {blocks:02x?}");
    if other.is_ok() {
        assert!(found == expected, "{blocks:02x?}");
    }
}

proptest! {
    #[test]
    fn what_is_packed_comes_back(
        parts in vec((vec(0..8_u8, 1..40), 1..200_usize), 0..40),
        level in 0..10_u32,
        capacity in 1..5000_usize,
    ) {
        let bytes: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
        let (found, result) = ours(&gzip(&bytes, level), capacity, 4096);
        prop_assert!(result.is_ok());
        prop_assert!(found == bytes);
    }

    #[test]
    fn any_blocks_are_taken_or_refused_alike(blocks in vec(any::<u8>(), 0..300)) {
        same_blocks(&blocks);
    }

    #[test]
    fn damaged_blocks_are_taken_or_refused_alike(
        parts in vec((vec(0..8_u8, 1..40), 1..30_usize), 0..20),
        level in 0..10_u32,
        damage in vec((any::<usize>(), any::<u8>()), 0..4),
    ) {
        let bytes: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
        let packed = gzip(&bytes, level);
        let mut blocks = packed[HEADER.len()..packed.len() - 8].to_vec();
        for (at, value) in damage {
            let length = blocks.len();
            blocks[at % length] ^= value;
        }
        same_blocks(&blocks);
    }
}
