//! Where unsafe code may be, and that ARCHITECTURE.md says so.
//!
//! A file opens unsafe code with `#![expect(unsafe_code, ...)]`. The table below the heading
//! "Unsafe" of ARCHITECTURE.md lists these files or directories in its first column.

use std::path::Path;

use anyhow::{Result, bail};

use super::sources;
use crate::cmd;

/// Directories and files outside of which no file may open unsafe code.
const ALLOWED: [&str; 8] = [
    "vmm/src/sys/",
    "vmm/src/kvm/",
    "vmm/src/memory/",
    "vmm/src/disk/io/",
    "vmm/src/jail/",
    "guest/",
    "tests/",
    "benches/",
];

/// Packages whose root forbids unsafe code, so that no module can open it.
const FORBIDDING: [&str; 6] = ["vmm/usernet", "rootfs", "rootfs/ext4", "gateway", "proto", "xtask"];

const OPENS: [&str; 2] = ["#![expect(unsafe_code", "#![allow(unsafe_code"];

/// Compares the tree, the list above and ARCHITECTURE.md.
pub(crate) fn check() -> Result<()> {
    let root = cmd::workspace();
    let mut opened = Vec::new();
    for file in sources::rust_files(root)? {
        let text = sources::read(&file)?;
        if opens(&text) {
            opened.push(file.strip_prefix(root)?.to_string_lossy().into_owned());
        }
    }
    let listed = listed(&sources::read(&root.join("ARCHITECTURE.md"))?);
    let mut wrong = compare(&opened, &listed);
    for package in FORBIDDING {
        wrong.extend(unforbidden(&root.join(package), package)?);
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// Whether the file opens unsafe code, also when the attribute is broken over lines.
fn opens(text: &str) -> bool {
    text.match_indices("#![").any(|(at, _)| {
        let starts_line = text[..at].chars().next_back().is_none_or(|c| c == '\n');
        let attribute: String =
            text[at..].chars().filter(|c| !c.is_whitespace()).take(40).collect();
        starts_line && OPENS.iter().any(|open| attribute.starts_with(open))
    })
}

fn compare(opened: &[String], listed: &[String]) -> Vec<String> {
    let covers = |place: &str, file: &str| {
        file == place || (place.ends_with('/') && file.starts_with(place))
    };
    let mut wrong = Vec::new();
    for file in opened {
        if !ALLOWED.iter().any(|place| covers(place, file)) {
            wrong.push(format!("{file} opens unsafe code outside the directories for it"));
        }
        if !listed.iter().any(|place| covers(place, file)) {
            wrong.push(format!("{file} opens unsafe code and is not in ARCHITECTURE.md's table"));
        }
    }
    for place in listed {
        if !opened.iter().any(|file| covers(place, file)) {
            wrong.push(format!("ARCHITECTURE.md lists {place}, which opens no unsafe code"));
        }
    }
    wrong
}

/// First cells of the table rows below the heading "Unsafe", without their backticks.
fn listed(architecture: &str) -> Vec<String> {
    let mut inside = false;
    let mut places = Vec::new();
    for line in architecture.lines() {
        if line.starts_with('#') {
            inside = line.to_lowercase().contains("unsafe");
        } else if inside
            && let Some(cell) = line.trim().strip_prefix('|').and_then(|row| row.split('|').next())
            && let Some(place) =
                cell.trim().strip_prefix('`').and_then(|cell| cell.strip_suffix('`'))
        {
            places.push(place.to_owned());
        }
    }
    places
}

fn unforbidden(directory: &Path, package: &str) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for root in ["src/lib.rs", "src/main.rs"] {
        let file = directory.join(root);
        if file.is_file() && !sources::read(&file)?.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{package}/{root} does not forbid unsafe code"));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn an_attribute_is_seen_over_lines_and_not_in_comments() {
        for (text, expected) in [
            ("//! x\n\n#![expect(unsafe_code, reason = \"r\")]\n", true),
            ("#![expect(\n    unsafe_code,\n    reason = \"r\"\n)]\n", true),
            ("#![expect(missing_docs, reason = \"unsafe_code\")]\n", false),
            ("//! `#![expect(unsafe_code, ...)]`\n", false),
            ("", false),
        ] {
            assert_eq!(opens(text), expected, "{text}");
        }
    }

    #[test]
    fn the_table_is_read() {
        let text = "# A\n| `x/` | no |\n## Unsafe code\n| module | why |\n|---|---|\n| `vmm/src/sys/` | syscalls |\n\n## Next\n| `y/` | no |\n";
        assert_eq!(listed(text), ["vmm/src/sys/"]);
    }

    #[test]
    fn tree_list_and_table_must_agree() {
        for (opened, table, expected) in [
            (&["vmm/src/sys/a.rs"][..], &["vmm/src/sys/"][..], None),
            (&["vmm/src/sys/a.rs"], &["vmm/src/sys/a.rs"], None),
            (&["vmm/src/boot/a.rs"], &["vmm/src/boot/"], Some("outside the directories")),
            (&["vmm/src/sys/a.rs"], &[], Some("not in ARCHITECTURE.md")),
            (&["vmm/src/system.rs"], &["vmm/src/sys"], Some("not in ARCHITECTURE.md")),
            (&[], &["vmm/src/kvm/"], Some("opens no unsafe code")),
        ] {
            let wrong = compare(&strings(opened), &strings(table));
            match expected {
                None => assert!(wrong.is_empty(), "{wrong:?}"),
                Some(text) => assert!(wrong.iter().any(|line| line.contains(text)), "{wrong:?}"),
            }
        }
    }
}
