//! Verbs about the disks of one sandbox: `make-upper` and `make-config`.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use openshell_ext4::Identity;
use openshell_ext4::tree::Metadata;
use openshell_rootfs::digest::Digest;
use openshell_rootfs::sandbox::{GivenFile, WritableDisk, config_disk, writable_disk};
use serde_json::json;

use super::args::{ConfigArgs, Global, UpperArgs};
use super::build::{Added, open_cache, write_output};
use super::{images, output};

/// Inodes of a disk that goes above no known image.
const INODES: u32 = 65_536;

/// Secrets may be on it: nobody else reads it.
const MODE: u32 = 0o600;

/// Makes the disk that a sandbox writes on.
pub(crate) fn make_upper(args: &UpperArgs, global: &Global) -> Result<()> {
    let files = given(&args.add)?;
    let mut disk =
        WritableDisk { size_bytes: args.size, inodes: INODES, root: Metadata::new(0o755, 0, 0) };
    if let Some(base) = &args.base {
        let cache = open_cache(global)?;
        let cached = images::find(&cache, base)?;
        disk.root = images::open(&cached)?.root().context("cannot read the image")?;
        disk.inodes = u32::try_from(cached.record.nodes.saturating_mul(2)).unwrap_or(u32::MAX);
    }
    let summary = write_output(&args.output, MODE, |file| {
        Ok(writable_disk(file, &disk, &files, identity(&args.output))?)
    })?;
    report(&args.output, summary.size_bytes, global)
}

/// Makes a disk with files.
pub(crate) fn make_config(args: &ConfigArgs, global: &Global) -> Result<()> {
    let files = given(&args.add)?;
    let summary = write_output(&args.output, MODE, |file| {
        Ok(config_disk(file, &files, identity(&args.output))?)
    })?;
    report(&args.output, summary.size_bytes, global)
}

fn given(texts: &[String]) -> Result<Vec<GivenFile>> {
    let read = |text: &String| {
        let Added { source, target, mode, uid, gid } = Added::parse(text)?;
        let bytes = fs::read(source).with_context(|| format!("cannot read {source}"))?;
        Ok(GivenFile { path: target.as_bytes().to_vec(), mode, uid, gid, bytes })
    };
    texts.iter().map(read).collect()
}

/// Disks of sandboxes differ from each other: they are named by where and when they were made. For releases, which are to be the same
/// whenever they are made, `SOURCE_DATE_EPOCH` takes the place of the time.
fn identity(output: &std::path::Path) -> Identity {
    let now = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_nanos().to_string()
    });
    let digest = Digest::sha256(format!("{}\n{now}", output.display()).as_bytes());
    Identity::from_digest(&digest.bytes32())
}

fn report(output: &std::path::Path, size_bytes: u64, global: &Global) -> Result<()> {
    let value = json!({ "schema": "v1", "output": output, "size_bytes": size_bytes });
    output::print(global.json, &value, &[output.display().to_string()])
}
