//! Archives that a guest sends: unpacked beneath their destination or refused.
#![no_main]

use std::fs;

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_copy::{Keep, unpack};

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut archive = data.to_vec();
    make_sums_right(&mut archive);
    if archive.len() > 1 << 16 {
        return Corpus::Reject;
    }
    let directory = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let into = directory.path().join("into");
    fs::create_dir(&into).expect("it is ours");
    fs::write(directory.path().join("kept"), "kept").expect("it is ours");
    drop(unpack(&into, true, Keep::Plain, archive.as_slice()));
    assert_eq!(fs::read(directory.path().join("kept")).expect("it was not touched"), b"kept");
    assert_eq!(fs::read_dir(directory.path()).expect("it is ours").count(), 2);
    Corpus::Keep
});

fn make_sums_right(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
