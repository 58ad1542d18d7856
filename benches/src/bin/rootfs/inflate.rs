//! Our inflater beside flate2 on zlib-rs, the library that it stands in for: one thread, the same gzip file in memory, in turns.
//!
//! Invariant: both check the sums, and both have given the same bytes before anything is timed. This case comes last: a file in memory
//! is part of the peak of every process that is started afterwards.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use openshell_benches::results::Document;
use openshell_rootfs::layer::inflate::Gunzip;
use sha2::{Digest as _, Sha256};

use crate::OURS;
use crate::input::{Input, Packing, Shape};

const LIBRARY: &str = "flate2 on zlib-rs";
/// What a layer is read by.
const BUFFER: usize = 256 << 10;

/// Measures on the layers of two shapes, and on a file that the caller names.
pub(crate) fn measure(
    document: &mut Document,
    scratch: &Path,
    layer: Option<&Path>,
    turns: u32,
) -> Result<()> {
    for (case, shape) in [("libraries", Shape::Libraries), ("small-files", Shape::SmallFiles)] {
        let input = Input::make(shape, Packing::Gzip, &scratch.join(case))?;
        compare(document, case, &fs::read(&input.blob)?, turns)?;
    }
    layer.map_or(Ok(()), |path| compare(document, "given file", &fs::read(path)?, turns))
}

fn compare(document: &mut Document, case: &str, packed: &[u8], turns: u32) -> Result<()> {
    ensure!(digest(ours, packed)? == digest(library, packed)?, "{case}: not the same bytes");
    for turn in 0..turns {
        // Who goes first changes.
        for ours_now in [turn % 2 == 0, turn % 2 != 0] {
            let begin = Instant::now();
            let mut bytes = 0_u64;
            let mut count = |part: &[u8]| bytes += part.len() as u64;
            let system = if ours_now {
                ours(packed, &mut count)?;
                OURS
            } else {
                library(packed, &mut count)?;
                LIBRARY
            };
            let seconds = begin.elapsed().as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "layers are smaller than 2^52 bytes")]
            let megabytes = bytes as f64 / 1e6;
            document.sample(case, system, "inflated", "MB/s", megabytes / seconds);
        }
    }
    Ok(())
}

/// Gives the bytes to somebody as they come.
type Decoder = fn(&[u8], &mut dyn FnMut(&[u8])) -> Result<()>;

fn ours(packed: &[u8], give: &mut dyn FnMut(&[u8])) -> Result<()> {
    let (mut decoder, mut buffer) = (Gunzip::new(packed), Vec::new());
    loop {
        let new = decoder.fill(&mut buffer)?;
        if new.is_empty() {
            return Ok(());
        }
        give(&buffer[new]);
    }
}

fn library(packed: &[u8], give: &mut dyn FnMut(&[u8])) -> Result<()> {
    let (mut decoder, mut buffer) = (flate2::bufread::MultiGzDecoder::new(packed), vec![0; BUFFER]);
    loop {
        let read = decoder.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        give(&buffer[..read]);
    }
}

fn digest(decoder: Decoder, packed: &[u8]) -> Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    decoder(packed, &mut |part| hasher.update(part))?;
    Ok(hasher.finalize().into())
}
