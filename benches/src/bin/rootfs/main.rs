//! `cargo xtask bench rootfs`: from an image in a layout to a verified ext4 image, beside packaged programs; and the disks of a sandbox.
//!
//! Ours and the peers take turns on the same input. Nothing here passes or fails by its figures; only work that was not done is an
//! error. This process stays small: its own peak counts as that of every child.

#![expect(clippy::print_stdout, reason = "the table is what was asked for")]
#![expect(
    clippy::print_stderr,
    reason = "a case takes minutes: people want to see that it goes on"
)]

mod content;
mod disks;
mod inflate;
mod input;
mod systems;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use openshell_benches::call::{self, Word};
use openshell_benches::results::{Document, TABLE_HEAD};

use crate::input::{Input, Packing, Shape};
use crate::systems::{Made, Ours, Packaged};

const OURS: &str = "openshell-rootfs";
const PLACE: &str = "host";

/// The images. The name is that of the results' file.
const CASES: [(&str, Shape, Packing); 4] = [
    ("libraries-gzip", Shape::Libraries, Packing::Gzip),
    ("libraries-zstd", Shape::Libraries, Packing::Zstd),
    ("small-files-gzip", Shape::SmallFiles, Packing::Gzip),
    ("one-directory-gzip", Shape::OneDirectory, Packing::Gzip),
];
const DISKS: &str = "disks";
const INFLATE: &str = "inflate";

/// Measures what images and the disks of sandboxes cost.
#[derive(Debug, Parser)]
struct Arguments {
    word: Word,
    /// Another program; there are none
    #[arg(long, value_parser = call::peer, value_name = "NAME=PATH", hide = true)]
    peer: Vec<(String, PathBuf)>,
    /// Turns of each image
    #[arg(long, default_value_t = 5)]
    turns: u32,
    /// Turns in which the peers take part; one that takes minutes is worth fewer
    #[arg(long)]
    peer_turns: Option<u32>,
    /// Disks of sandboxes that are made
    #[arg(long, default_value_t = 200)]
    disks: u32,
    /// Only cases whose name contains this: libraries-gzip, libraries-zstd, small-files-gzip, one-directory-gzip, disks, inflate
    #[arg(long, default_value = "")]
    case: String,
    /// Also inflate this file of gzip
    #[arg(long, value_name = "FILE")]
    layer: Option<PathBuf>,
    /// Directory to work in [default: that for temporary files]
    #[arg(long, value_name = "DIR")]
    on: Option<PathBuf>,
    /// Only make the images, below this directory, for other programs to work on
    #[arg(long, value_name = "DIR")]
    inputs: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.word {
        Word::Host if arguments.inputs.is_some() => inputs(&arguments),
        Word::Host => host(&arguments),
        // Everything is bound to the disk and to two processors; the lab has neither.
        Word::Lab => Ok(()),
        Word::Report => report(),
    }
}

fn inputs(arguments: &Arguments) -> Result<()> {
    let directory = arguments.inputs.as_deref().context("no directory for the images")?;
    for (name, shape, packing) in CASES {
        if name.contains(&arguments.case) {
            let input = Input::make(shape, packing, &directory.join(name))?;
            println!("{} {} bytes", systems::reference(&input), input.tar_bytes);
        }
    }
    Ok(())
}

fn host(arguments: &Arguments) -> Result<()> {
    let ours = Ours { command: call::fixture(OURS)? };
    let peer = Packaged::find()?;
    let parent = arguments.on.clone().unwrap_or_else(std::env::temp_dir);
    for (name, shape, packing) in CASES {
        if !name.contains(&arguments.case) {
            continue;
        }
        let scratch = tempfile::tempdir_in(&parent)?;
        eprintln!("{name}: making the image");
        let input = Input::make(shape, packing, &scratch.path().join("layout"))?;
        let mut document = Document::new(&benchmark(name), PLACE);
        sizes(&mut document, name, &input);
        systems::settle();
        checked(&ours, &input, scratch.path())?;
        let peer_turns = arguments.peer_turns.unwrap_or(arguments.turns);
        for turn in 0..arguments.turns {
            eprintln!("{name}: turn {}", turn + 1);
            // Who goes first changes.
            for ours_now in [turn % 2 == 0, turn % 2 != 0] {
                if ours_now {
                    let made = ours.make(&input, scratch.path())?;
                    note(&mut document, name, OURS, &input, &made);
                } else if turn < peer_turns {
                    let made = peer.make(&input, packing, scratch.path())?;
                    note(&mut document, name, Packaged::name(packing), &input, &made);
                }
            }
            document.complete(OURS);
            document.write()?;
        }
    }
    if DISKS.contains(&arguments.case) {
        eprintln!("{DISKS}");
        let scratch = tempfile::tempdir_in(&parent)?;
        let mut document = Document::new(&benchmark(DISKS), PLACE);
        disks::measure(&mut document, &ours, scratch.path(), arguments.disks)?;
        document.complete(OURS);
        document.write()?;
    }
    if INFLATE.contains(&arguments.case) {
        eprintln!("{INFLATE}");
        let scratch = tempfile::tempdir_in(&parent)?;
        let mut document = Document::new(&benchmark(INFLATE), PLACE);
        let layer = arguments.layer.as_deref();
        inflate::measure(&mut document, scratch.path(), layer, arguments.turns)?;
        document.complete(OURS);
        document.write()?;
    }
    Ok(())
}

/// What the file system's own checker says of the image that is measured.
fn checked(ours: &Ours, input: &Input, scratch: &std::path::Path) -> Result<()> {
    let cache = scratch.join("checked");
    systems::run(ours.call(&cache).args(["pull", &systems::reference(input)]))?;
    systems::check(&systems::image_in(&cache)?)?;
    Ok(fs::remove_dir_all(cache)?)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of images are below 2^52")]
fn sizes(document: &mut Document, case: &str, input: &Input) {
    let mut take = |figure, unit, value| document.sample(case, "input", figure, unit, value);
    take("files", "1", input.files as f64);
    take("archive", "MB", input.tar_bytes as f64 / 1e6);
    take("layer", "MB", input.packed_bytes as f64 / 1e6);
}

#[expect(clippy::cast_precision_loss, reason = "sizes of images are below 2^52")]
fn note(document: &mut Document, case: &str, system: &str, input: &Input, made: &Made) {
    let mut take = |figure: &str, unit, value| document.sample(case, system, figure, unit, value);
    take("wall time", "s", made.wall.as_secs_f64());
    take("cpu time", "s", made.cpu.as_secs_f64());
    take("speed", "MB/s", input.tar_bytes as f64 / 1e6 / made.wall.as_secs_f64());
    take("peak memory", "MiB", made.peak_kib as f64 / 1024.0);
    take("image on disk", "MiB", made.disk_bytes as f64 / 1_048_576.0);
    for (step, took) in &made.steps {
        take(step, "s", took.as_secs_f64());
    }
}

fn benchmark(case: &str) -> String {
    format!("rootfs-{case}")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn report() -> Result<()> {
    println!("{TABLE_HEAD}");
    for case in CASES.iter().map(|(name, ..)| *name).chain([DISKS, INFLATE]) {
        let Some(document) = Document::read(&benchmark(case), PLACE)? else { continue };
        for row in document.table_rows() {
            println!("{row}");
        }
    }
    Ok(())
}
