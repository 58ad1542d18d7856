//! Paths of an image: bytes, relative to its root, never a path of the host.
//!
//! A normal path has no empty, `.` or `..` component and no leading or trailing slash; the root is the empty path.

use crate::limits::{Limit, Limits};

/// Why a name in an archive is not a path of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The name has no bytes.
    #[error("the name is empty")]
    Empty,
    /// The name has a zero byte.
    #[error("the name has a NUL byte")]
    Nul,
    /// The name climbs with `..`.
    #[error("the name climbs with \"..\"")]
    Parent,
    /// The name is longer or deeper than allowed.
    #[error("more than the limit of {0}")]
    Limit(Limit),
}

/// The normal form of a name in an archive.
///
/// # Errors
///
/// When the name is empty, climbs, has a NUL byte or passes a limit.
pub fn normal(name: &[u8], limits: &Limits) -> Result<Vec<u8>, PathError> {
    if name.is_empty() {
        return Err(PathError::Empty);
    }
    if name.len() > limits.path_bytes {
        return Err(PathError::Limit(Limit::PathBytes(limits.path_bytes)));
    }
    if name.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut path = Vec::with_capacity(name.len());
    let mut depth = 0;
    for component in components(name) {
        if component == b".." {
            return Err(PathError::Parent);
        }
        if component.len() > limits.component_bytes {
            return Err(PathError::Limit(Limit::ComponentBytes(limits.component_bytes)));
        }
        depth += 1;
        if depth > limits.depth {
            return Err(PathError::Limit(Limit::Depth(limits.depth)));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// The components of a path, without empty ones and `.`.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// A normal path cut into its parent and its name; the root has neither.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    let cut = path.iter().rposition(|byte| *byte == b'/');
    Some(cut.map_or((&[], path), |at| (&path[..at], &path[at + 1..])))
}

/// A name as messages show it: one line, printable, not longer than a line.
pub fn display(name: &[u8]) -> String {
    const SHOWN: usize = 160;
    let text = String::from_utf8_lossy(&name[..name.len().min(SHOWN)]);
    let mut shown: String = text.chars().flat_map(printable).collect();
    if name.len() > SHOWN {
        shown.push_str("...");
    }
    shown
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    let (escape, plain) = if escaped { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escape.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &[u8], expected: Result<&[u8], PathError>) {
        let found = normal(name, &Limits::default());
        assert_eq!(found.as_deref().map_err(|error| *error), expected, "{}", display(name));
    }

    #[test]
    fn names_become_normal_or_are_refused() {
        check(b"./a//b/./c/", Ok(b"a/b/c"));
        check(b"/etc/passwd", Ok(b"etc/passwd"));
        check(b"./", Ok(b""));
        check(b"\xff\xfe", Ok(b"\xff\xfe"));
        check(b"...", Ok(b"..."));
        check(b"", Err(PathError::Empty));
        check(b"a/../b", Err(PathError::Parent));
        check(b"..", Err(PathError::Parent));
        check(b"a\0b", Err(PathError::Nul));
        check(&[b'a'; 255], Ok(&[b'a'; 255]));
        check(&[b'a'; 256], Err(PathError::Limit(Limit::ComponentBytes(255))));
        check(&b"a/".repeat(257), Err(PathError::Limit(Limit::Depth(256))));
        check(&b"aaa/".repeat(1025), Err(PathError::Limit(Limit::PathBytes(4096))));
    }

    #[test]
    fn shown_names_are_one_printable_line() {
        assert_eq!(display(b"a\n\x1b[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(display(&[b'a'; 500]).len(), 163);
    }

    #[test]
    fn a_path_splits_into_parent_and_name() {
        assert_eq!(split(b""), None);
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
    }
}
