//! Writes and checks patterns on files and disks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use openshell_tests::pattern::Pattern;

const CHUNK: u64 = 1 << 20;
const BLOCK_LEN: usize = 4096;
const BLOCK: u64 = BLOCK_LEN as u64;
/// Odd, so that going through any power of two of blocks in such steps meets each of them once.
const STRIDE: u64 = 0x9e37_79b1;

/// Memory that direct I/O accepts.
#[repr(align(4096))]
struct Block([u8; BLOCK_LEN]);

/// Writes the pattern of `seed` over the first `bytes` of `path` and makes it durable.
pub(crate) fn write(path: &str, bytes: u64, seed: u64) -> Result<String> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
    let pattern = Pattern::new(seed);
    for_chunks(bytes, |offset, chunk| {
        pattern.fill(offset, chunk);
        Ok(file.write_all_at(chunk, offset)?)
    })?;
    file.sync_all()?;
    Ok(format!("wrote {bytes} bytes of seed {seed}"))
}

/// Checks what [`write`] wrote.
pub(crate) fn verify(path: &str, bytes: u64, seed: u64) -> Result<String> {
    let file = File::open(path)?;
    let pattern = Pattern::new(seed);
    for_chunks(bytes, |offset, chunk| {
        file.read_exact_at(chunk, offset)?;
        pattern.check(offset, chunk).map_err(|wrong| anyhow!(wrong))
    })?;
    Ok(format!("verified {bytes} bytes of seed {seed}"))
}

fn for_chunks(bytes: u64, mut each: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; usize::try_from(CHUNK)?];
    let mut offset = 0;
    while offset < bytes {
        let len = usize::try_from(CHUNK.min(bytes - offset))?;
        each(offset, &mut chunk[..len]).with_context(|| format!("at byte {offset}"))?;
        offset += CHUNK;
    }
    Ok(())
}

/// `threads` at once write 4 KiB blocks directly, each all over its own part of `bytes` bytes, and read them back.
pub(crate) fn hammer(path: &str, threads: u64, bytes: u64) -> Result<String> {
    let blocks = bytes / BLOCK;
    ensure!(blocks.is_power_of_two(), "{bytes} bytes are not a power of two of blocks");
    let done: Result<Vec<()>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || hammer_part(path, number, blocks)))
            .collect();
        let joined = workers.into_iter().map(|worker| {
            worker.join().map_err(|_panic| anyhow!("a thread panicked")).and_then(|result| result)
        });
        joined.collect()
    });
    done?;
    Ok(format!("hammered {} blocks from {threads} threads", blocks * threads))
}

fn hammer_part(path: &str, number: u64, blocks: u64) -> Result<()> {
    let file = direct(path)?;
    let pattern = Pattern::new(number);
    let begin = number * blocks * BLOCK;
    let mut block = Box::new(Block([0; BLOCK_LEN]));
    let offset_of = |step: u64| begin + (step.wrapping_mul(STRIDE) & (blocks - 1)) * BLOCK;
    for step in 0..blocks {
        pattern.fill(offset_of(step), &mut block.0);
        file.write_all_at(&block.0, offset_of(step))?;
    }
    for step in (0..blocks).rev() {
        file.read_exact_at(&mut block.0, offset_of(step))?;
        pattern.check(offset_of(step), &block.0).map_err(|wrong| anyhow!(wrong))?;
    }
    Ok(())
}

/// Reads `operations` blocks directly, one after the other, and tells how long that took.
pub(crate) fn pace(path: &str, operations: u64) -> Result<String> {
    let file = direct(path)?;
    let mut block = Box::new(Block([0; BLOCK_LEN]));
    let begin = Instant::now();
    for number in 0..operations {
        file.read_exact_at(&mut block.0, number % 64 * BLOCK)?;
    }
    Ok(format!("{operations} operations in {} ms", begin.elapsed().as_millis()))
}

fn direct(path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).with_context(|| format!("cannot open {path}"))
}
