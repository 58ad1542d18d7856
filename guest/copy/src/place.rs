//! Names: what a source is called in an archive, and where an archive's names lead at a destination.
//!
//! Invariant: what [`Mapping::map`] returns has no empty part, no `.` and no `..`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A source: the directory that it lies in and its name there; without a name, the contents of the directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) parent: PathBuf,
    pub(crate) name: Option<Vec<u8>>,
    /// It was written as a directory.
    pub(crate) is_directory: bool,
}

impl Source {
    pub(crate) fn of(path: &Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        let trimmed = trim(bytes);
        let at = trimmed.iter().rposition(|byte| *byte == b'/');
        let name = at.map_or(trimmed, |at| &trimmed[at + 1..]);
        if matches!(name, b"" | b"." | b"..") {
            return Self { parent: path.to_owned(), name: None, is_directory: true };
        }
        let parent = match at {
            None => Path::new("."),
            Some(0) => Path::new("/"),
            Some(at) => Path::new(OsStr::from_bytes(&trimmed[..at])),
        };
        Self {
            parent: parent.to_owned(),
            name: Some(name.to_vec()),
            is_directory: trimmed.len() < bytes.len(),
        }
    }
}

/// Without slashes at the end, but for the root's.
fn trim(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    &path[..end]
}

/// How names of an archive become names below the directory that is unpacked into.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What takes the place of the first part, or stands in front when the archive's first entry is `.`.
    rename: Option<Vec<u8>>,
    is_prefix: bool,
}

impl Mapping {
    /// `first` is the path of the archive's first entry.
    pub(crate) fn new(rename: Option<Vec<u8>>, first: &[u8]) -> Option<Self> {
        Some(Self { rename, is_prefix: parts(first)?.is_empty() })
    }

    /// The parts of the path to unpack to; none when it leads out of the destination.
    pub(crate) fn map<'a>(&'a self, path: &'a [u8]) -> Option<Vec<&'a [u8]>> {
        let mut found = parts(path)?;
        if let Some(name) = &self.rename {
            if self.is_prefix {
                found.insert(0, name);
            } else if let Some(first) = found.first_mut() {
                *first = name;
            }
        }
        Some(found)
    }
}

fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            part if part.len() > 255 => return None,
            part => found.push(part),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_source_has_a_name_or_contents() {
        for (path, parent, name, is_directory) in [
            ("/a/b", "/a", Some("b"), false),
            ("/a/b/", "/a", Some("b"), true),
            ("/a", "/", Some("a"), false),
            ("a", ".", Some("a"), false),
            ("a/b//", "a", Some("b"), true),
            ("/", "/", None, true),
            ("a/.", "a/.", None, true),
            ("a/..", "a/..", None, true),
            (".", ".", None, true),
        ] {
            let name = name.map(|name| name.as_bytes().to_vec());
            let expected = Source { parent: parent.into(), name, is_directory };
            assert_eq!(Source::of(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn names_are_kept_renamed_or_put_below() {
        let check = |rename: Option<&str>, first: &str, path: &str, expected: Option<&str>| {
            let rename = rename.map(|name| name.as_bytes().to_vec());
            let mapping = Mapping::new(rename, first.as_bytes()).unwrap();
            let found = mapping.map(path.as_bytes()).map(|parts| parts.join(&b'/'));
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
        };
        check(None, "a/", "a/b", Some("a/b"));
        check(None, "./", "./b", Some("b"));
        check(Some("n"), "a/", "a/", Some("n"));
        check(Some("n"), "a/", "a/b/c", Some("n/b/c"));
        check(Some("n"), "./", "./", Some("n"));
        check(Some("n"), "./", "./b", Some("n/b"));
        check(None, "a", "/etc/passwd", Some("etc/passwd"));
        check(None, "a", "a/../../b", None);
    }

    proptest! {
        #[test]
        fn nothing_leads_out(first in ".{0,9}", path in "[./a]{0,20}", rename in prop::option::of("[a-z]{1,3}")) {
            if let Some(mapping) = Mapping::new(rename.map(String::into_bytes), first.as_bytes())
                && let Some(parts) = mapping.map(path.as_bytes())
            {
                prop_assert!(parts.iter().all(|part| !matches!(*part, b"" | b"." | b"..")));
            }
        }
    }
}
