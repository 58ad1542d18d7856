//! Archives: read or refused, never guessed.
#![no_main]

use std::io::BufReader;

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_rootfs::limits::Limits;
use openshell_rootfs::tar::{Entry, Reader, encode, padding};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&how, archive)) = data.split_first() else { return Corpus::Reject };
    let mut archive = archive.to_vec();
    if how & 1 == 1 {
        make_sums_right(&mut archive);
    }
    let limits = Limits { file_bytes: 1 << 30, entries: 10_000, ..Limits::default() };
    let whole = read(&archive, 1 << 16, &limits);
    let parts = read(&archive, 7, &limits);
    assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
    for (entry, data) in whole.into_iter().flatten() {
        let mut again = encode(&entry);
        again.extend(&data);
        again.resize(again.len() + padding(data.len() as u64), 0);
        let found = read(&again, 512, &limits).expect("what is written is read");
        assert_eq!(found, [(entry, data)]);
    }
    Corpus::Keep
});

/// The entries and their stored bytes.
fn read(archive: &[u8], capacity: usize, limits: &Limits) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let mut reader = Reader::new(BufReader::with_capacity(capacity, archive), limits);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
        let mut data = Vec::new();
        let take = |_, bytes: &[u8]| {
            data.extend_from_slice(bytes);
            Ok(())
        };
        reader.data(&entry, take).map_err(|error| error.to_string())?;
        found.push((entry, data));
    }
    Ok(found)
}

fn make_sums_right(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
