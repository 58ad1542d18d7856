//! The disks of a sandbox whose image is in the cache, and the answer of a cache that has the image.
//!
//! Invariant: a disk is made as a sandbox gets it: formatted at its full size of 64 GiB, with files of its own in it, and of an
//! identity that no other disk has.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use openshell_benches::results::Document;
use openshell_ext4::Identity;
use openshell_ext4::tree::Metadata;
use openshell_rootfs::digest::Digest;
use openshell_rootfs::sandbox::{GivenFile, WritableDisk, config_disk, writable_disk};

use crate::input::{Input, Packing, Shape};
use crate::systems::{self, Ours};
use crate::{OURS, millis};

const SIZE_BYTES: u64 = 64 << 30;
const UPPER: &str = "disk of 64 GiB to write on";
const CONFIG: &str = "disk with the configuration";
const BOTH: &str = "both disks of a sandbox";
const CACHED: &str = "cached image";

/// Measures by the library, as a machine is started, and by the command.
pub(crate) fn measure(
    document: &mut Document,
    ours: &Ours,
    scratch: &Path,
    turns: u32,
) -> Result<()> {
    let input = Input::make(Shape::SmallFiles, Packing::Gzip, &scratch.join("layout"))?;
    let cache = scratch.join("cache");
    let reference = systems::reference(&input);
    systems::run(ours.call(&cache).args(["pull", &reference]))?;
    systems::settle();
    let [upper, config] = ["upper.ext4", "config.ext4"].map(|name| scratch.join(name));
    let files = files();
    for turn in 0..turns {
        let identity = Identity::from_digest(&Digest::sha256(&turn.to_le_bytes()).bytes32());
        let begin = Instant::now();
        let disk = WritableDisk {
            size_bytes: SIZE_BYTES,
            inodes: 60_000,
            root: Metadata::new(0o755, 0, 0),
        };
        let file = File::create_new(&upper).context("cannot make a disk")?;
        writable_disk(&file, &disk, &files, identity)?;
        let between = Instant::now();
        let file = File::create_new(&config).context("cannot make a disk")?;
        config_disk(&file, &files, identity)?;
        let end = Instant::now();
        let mut take = |case, took| document.sample(case, OURS, "library call", "ms", millis(took));
        take(UPPER, between - begin);
        take(CONFIG, end - between);
        take(BOTH, end - begin);
        size(document, UPPER, &upper)?;
        size(document, CONFIG, &config)?;
        if turn == 0 {
            systems::check(&upper)?;
            systems::check(&config)?;
        }
        fs::remove_file(&upper)?;
        fs::remove_file(&config)?;
    }
    let added = scratch.join("added");
    fs::write(&added, &files[0].bytes)?;
    let add = format!("{}:/etc/sandbox.env:0600:0:0", added.display());
    for _ in 0..turns.min(50) {
        let mut command = ours.call(&cache);
        command.args(["make-upper", "--size", "64G", "--base", &reference, "--add", &add, "-o"]);
        let spent = systems::run(command.arg(&upper))?;
        let mut take = |figure, took| document.sample(UPPER, OURS, figure, "ms", millis(took));
        take("command, synced", spent.wall);
        take("command, processor time", spent.cpu);
        fs::remove_file(&upper)?;
        let spent = systems::run(ours.call(&cache).args(["pull", &reference]))?;
        let mut take = |figure, took| document.sample(CACHED, OURS, figure, "ms", millis(took));
        take("command", spent.wall);
        take("command, processor time", spent.cpu);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "disks are smaller than 2^52 bytes")]
fn size(document: &mut Document, case: &str, disk: &Path) -> Result<()> {
    let kib = systems::allocated(disk)? as f64 / 1024.0;
    document.sample(case, OURS, "on the host's disk", "KiB", kib);
    Ok(())
}

/// What a sandbox is given: an environment, a token, a certificate.
fn files() -> Vec<GivenFile> {
    let file = |path: &str, length| GivenFile {
        path: path.as_bytes().to_vec(),
        mode: 0o600,
        uid: 1000,
        gid: 1000,
        bytes: vec![b'x'; length],
    };
    vec![
        file("etc/sandbox/environment", 2000),
        file("etc/sandbox/token", 300),
        file("etc/sandbox/tls/ca.pem", 4000),
    ]
}
