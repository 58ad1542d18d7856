//! Writes down a directory tree.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use openshell_tests::walk;

/// Writes the tree below `directory` to the file or disk `to`, and makes that durable.
pub(crate) fn walk_to(directory: &str, to: &str) -> Result<String> {
    let text = walk::walk(Path::new(directory))?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(to)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {to}"))?;
    file.sync_all()?;
    Ok(format!("walked {} paths", text.lines().count()))
}
