//! What goes to the standard output.

use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::{Value, json};

use openshell_rootfs::cache::{Cached, Tag};

/// Prints lines, or one JSON value.
pub(crate) fn print(json: bool, value: &Value, lines: &[String]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let printed = if json {
        writeln!(out, "{value:#}")
    } else {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    };
    printed.and_then(|()| out.flush()).context("cannot print")
}

/// An image as JSON.
pub(crate) fn image(cached: &Cached, tags: &[Tag]) -> Value {
    let record = &cached.record;
    let used = cached.used().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    json!({
        "schema": "v1",
        "key": record.key,
        "identity": record.identity,
        "references": names(cached, tags),
        "path": cached.image(),
        "size_bytes": record.bytes,
        "pieces_sha256": record.pieces_sha256,
        "nodes": record.nodes,
        "raw_bytes": record.raw_bytes,
        "layers": record.layers,
        "created_unix_s": record.created,
        "used_unix_s": used,
        "process": record.process,
    })
}

/// The references that lead to an image.
pub(crate) fn names(cached: &Cached, tags: &[Tag]) -> Vec<String> {
    let own = tags.iter().filter(|tag| tag.key == cached.record.key);
    own.map(|tag| tag.reference.clone()).collect()
}

/// Bytes, rounded for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// How long ago a moment was, for people.
pub(crate) fn ago(moment: SystemTime) -> String {
    let age = SystemTime::now().duration_since(moment).unwrap_or_default();
    format!("{} ago", indicatif::HumanDuration(age))
}
