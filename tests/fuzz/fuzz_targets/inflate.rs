//! The inflater beside flate2: blocks of a member whose sums are made right, or a whole file.
#![no_main]

use std::io::{BufReader, Read};

use flate2::bufread::{DeflateDecoder, MultiGzDecoder};
use libfuzzer_sys::fuzz_target;
use openshell_rootfs::layer::inflate::Gunzip;

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// Output to look at: a few bytes may stand for a thousand times as many.
const MOST: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    if mode & 1 == 0 {
        same(data, all(MultiGzDecoder::new(data)));
        return;
    }
    let mut decoder = DeflateDecoder::new(data);
    let expected = all(&mut decoder);
    let mut sum = flate2::Crc::new();
    sum.update(expected.as_deref().unwrap_or_default());
    let used = usize::try_from(decoder.total_in()).expect("of memory");
    let sums = [sum.sum().to_le_bytes(), sum.amount().to_le_bytes()].concat();
    same(&[&HEADER[..], &data[..used], &sums].concat(), expected);
});

/// Ours, in one piece and in small ones, gives what the other decoder gives, or refuses what it refuses.
fn same(packed: &[u8], expected: Option<Vec<u8>>) {
    if expected.as_ref().is_some_and(|bytes| bytes.len() as u64 == MOST) {
        return;
    }
    assert!(all(Gunzip::new(BufReader::with_capacity(3, packed))) == expected);
    let (mut decoder, mut buffer, mut found) = (Gunzip::new(packed), Vec::new(), Vec::new());
    let ended = loop {
        match decoder.fill(&mut buffer) {
            Ok(new) if new.is_empty() => break Some(found),
            Ok(new) => found.extend_from_slice(&buffer[new]),
            Err(_) => break None,
        }
        if found.len() as u64 > MOST {
            break None;
        }
    };
    assert!(ended == expected);
}

fn all(decoder: impl Read) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    decoder.take(MOST).read_to_end(&mut found).ok()?;
    Some(found)
}
