//! Names that say nothing are refused: a module is called after what it is.

use std::path::Path;

use anyhow::{Result, bail};

use super::sources;
use crate::cmd;

const REFUSED: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "misc", "manager", "wrapper"];

/// Checks the files and directories of the whole workspace.
pub(crate) fn check() -> Result<()> {
    let root = cmd::workspace();
    let mut wrong = Vec::new();
    for file in sources::rust_files(root)? {
        let inside = file.strip_prefix(root)?;
        if let Some(name) = refused(inside) {
            wrong.push(format!("{}: no module is called `{name}`", inside.display()));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn refused(inside: &Path) -> Option<String> {
    inside
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .map(|part| part.strip_suffix(".rs").unwrap_or(&part).to_lowercase())
        .find(|part| REFUSED.contains(&part.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_names_are_found() {
        for (path, expected) in [
            ("vmm/src/utils.rs", true),
            ("vmm/src/common/mod.rs", true),
            ("vmm/src/disk/Helpers.rs", true),
            ("vmm/src/disk/raw.rs", false),
            ("vmm/src/commonality.rs", false),
        ] {
            assert_eq!(refused(Path::new(path)).is_some(), expected, "{path}");
        }
    }
}
