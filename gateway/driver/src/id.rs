//! Names of sandboxes that are safe as names of directories.

use std::fmt;

/// The longest id.
const MAX_LEN: usize = 128;

/// An id of a sandbox: `[A-Za-z0-9._-]`, 1 to 128 of them, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(String);

/// A text that cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the id of a sandbox; it takes 1 to 128 of letters, digits, '.', '_' and '-'"
)]
pub struct InvalidId(String);

impl SandboxId {
    /// Reads an id.
    ///
    /// # Errors
    ///
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let valid = (1..=MAX_LEN).contains(&text.len())
            && text.bytes().all(allowed)
            && !matches!(text, "." | "..");
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId(text.chars().take(40).collect()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_as_names_of_directories() {
        let long = "a".repeat(128);
        for text in ["a", "A.b_c-9", "...", "-", &long] {
            assert_eq!(SandboxId::parse(text).expect(text).as_str(), text);
        }
        let longer = "a".repeat(129);
        for text in ["", ".", "..", "a/b", "a b", "é", "a\0", "a\n", &longer] {
            assert!(SandboxId::parse(text).is_err(), "{text:?}");
        }
    }
}
