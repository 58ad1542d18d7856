//! `cargo xtask bench block`: what our block device makes of a disk, against the same load straight on the host's io_uring.
//!
//! No guest kernel runs: the benchmark drives the virtqueue itself, so that a figure holds the device's work and the disk's, and nothing
//! else. Nothing here passes or fails by its figures; only work that was not done is an error.

#![expect(clippy::print_stdout, reason = "the table is what was asked for")]

mod guest;
mod load;
mod peer;
mod sys;

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use openshell_benches::call::{self, Word};
use openshell_benches::results::Document;

use guest::Rig;
use load::{Shape, Turn, shapes};
use peer::Peer;

const BENCHMARK: &str = "block";
const OURS: &str = "openshell-vmm";
const HOST: &str = "host io_uring";

/// Measures our block device against the host's io_uring.
#[derive(Debug, Parser)]
struct Arguments {
    word: Word,
    /// Of no use here: other VMMs offer no queue to drive
    #[arg(long, value_parser = call::peer, value_name = "NAME=PATH", hide = true)]
    peer: Vec<(String, PathBuf)>,
    /// Turns of each case
    #[arg(long, default_value_t = 9)]
    turns: u64,
    /// Milliseconds of one turn
    #[arg(long, default_value_t = 250)]
    span: u64,
    /// Size of the disk in MiB
    #[arg(long, default_value_t = 512)]
    disk: u64,
    /// Directory for the disk: its filesystem is what is measured
    #[arg(long, value_name = "DIRECTORY")]
    on: Option<PathBuf>,
    /// Leave the worker unconfined, for tools that count its instructions
    #[arg(long)]
    no_seccomp: bool,
    /// Only cases whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.word {
        Word::Host => measure(&arguments),
        // The lab's disks are emulated: it shows that data is right, which the end-to-end tests do, not how fast it moves.
        Word::Lab => Ok(()),
        Word::Report => report(),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let directory = arguments.on.clone().unwrap_or_else(env::temp_dir);
    let disk = tempfile::NamedTempFile::new_in(&directory)
        .with_context(|| format!("cannot make a disk in {}", directory.display()))?;
    let len_bytes = fill(disk.as_file(), arguments.disk)?;
    let mut document = Document::new(BENCHMARK, "host");
    for shape in shapes().into_iter().filter(|shape| shape.case().contains(&arguments.only)) {
        let case = shape.case();
        if shape.direct && open(disk.path(), shape).is_err() {
            println!("{case}: not measured, the filesystem has no direct I/O");
            continue;
        }
        println!("{case}");
        compare(&mut document, arguments, shape, disk.path(), len_bytes)
            .with_context(|| format!("cannot measure {case}"))?;
    }
    document.complete(OURS);
    document.write()
}

fn compare(
    document: &mut Document,
    arguments: &Arguments,
    shape: Shape,
    disk: &Path,
    len_bytes: u64,
) -> Result<()> {
    if !shape.direct {
        // Direct writes of an earlier case threw pages out of the cache.
        io::copy(&mut open(disk, shape)?, &mut io::sink())?;
    }
    let mut ours = Rig::new(open(disk, shape)?, len_bytes, !arguments.no_seccomp)?;
    let mut host = Peer::new(open(disk, shape)?, len_bytes)?;
    let span = Duration::from_millis(arguments.span);
    // One turn each to warm caches up.
    let warm_up = Duration::from_millis(50);
    ours.turn(shape, 0, warm_up)?;
    host.turn(shape, 0, warm_up)?;
    for seed in 1..=arguments.turns {
        // Who goes first changes, so that neither always finds the other's writes to be flushed.
        for ours_now in [seed % 2 == 0, seed % 2 != 0] {
            let (system, turn) = if ours_now {
                (OURS, ours.turn(shape, seed, span)?)
            } else {
                (HOST, host.turn(shape, seed, span)?)
            };
            note(document, &shape.case(), system, turn);
        }
    }
    Ok(())
}

fn note(document: &mut Document, case: &str, system: &str, mut turn: Turn) {
    #[expect(clippy::cast_precision_loss, reason = "a turn has fewer operations")]
    let operations = turn.operations as f64;
    let mut sample = |figure, unit, value| document.sample(case, system, figure, unit, value);
    sample("operations", "1/s", operations / turn.wall.as_secs_f64());
    sample("processor time", "ns", turn.cpu.as_secs_f64() * 1e9 / operations);
    turn.latencies_ns.sort_unstable();
    for (figure, per_mille) in [("latency, median", 500), ("latency, p99", 990)] {
        let at = (turn.latencies_ns.len() * per_mille / 1000).min(turn.latencies_ns.len() - 1);
        sample(figure, "us", f64::from(turn.latencies_ns[at]) / 1000.0);
    }
    if let Some([doorbells, interrupts]) = turn.signals {
        #[expect(clippy::cast_precision_loss, reason = "a turn has fewer signals")]
        let each = |count: u64| count as f64 / operations;
        sample("doorbells", "1/operation", each(doorbells));
        sample("interrupts", "1/operation", each(interrupts));
    }
}

/// Writes every block, so that no read finds a hole.
fn fill(mut file: &File, mib: u64) -> Result<u64> {
    let block: Vec<u8> =
        (0..1 << 20).map(|at: u32| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(mib << 20)
}

fn open(path: &Path, shape: Shape) -> Result<File> {
    let flags = if shape.direct { libc::O_DIRECT } else { 0 };
    Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
}

fn report() -> Result<()> {
    let Some(document) = Document::read(BENCHMARK, "host")? else {
        return Ok(());
    };
    println!("Medians; ratios are of ours to the host's, taken turn by turn.\n");
    println!(
        "| case | 1/s | ratio | CPU ns | host CPU ns | p50 us | p99 us | host p50 | host p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for series in document.of_figure("operations").filter(|series| series.system == OURS) {
        let case = &series.case;
        let median = |figure: &str, system: &str| {
            let found =
                document.of_figure(figure).find(|it| it.case == *case && it.system == system);
            found.and_then(|it| it.summary).map_or(f64::NAN, |summary| summary.median)
        };
        let ratio = document
            .ratios
            .iter()
            .find(|ratio| ratio.case == *case && ratio.figure == "operations")
            .and_then(|ratio| ratio.paired)
            .unwrap_or(f64::NAN);
        println!(
            "| {case} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |",
            median("operations", OURS),
            median("processor time", OURS),
            median("processor time", HOST),
            median("latency, median", OURS),
            median("latency, p99", OURS),
            median("latency, median", HOST),
            median("latency, p99", HOST),
        );
    }
    Ok(())
}
