//! Patterns of names.
//!
//! Invariant: a pattern is lower-case and made of whole labels, so that `*.example.org` never matches `badexample.org`. Pure.

use std::fmt;

/// A name, `*.` and a name, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// Without a leading `*.` and a trailing dot; empty for `*`.
    name: Box<str>,
    /// Whether names below are meant instead of the name.
    below: bool,
}

/// Why a text is no pattern of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Something else than letters, digits, `-` and `_`.
    #[error("a label has letters, digits, `-` and `_`")]
    Character,
    /// Above 127.
    #[error("write it in its ASCII form, `xn--...`")]
    NotAscii,
    /// `*` somewhere else than alone at the beginning.
    #[error("`*` stands alone before the first dot")]
    Star,
    /// A label of no or more than 63 characters.
    #[error("a label has 1 to 63 characters")]
    Label,
    /// Longer than 253 characters.
    #[error("a name has at most 253 characters")]
    Long,
}

impl NamePattern {
    /// Reads a pattern; upper case and a trailing dot do not matter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text == "*" {
            return Ok(Self { name: "".into(), below: true });
        }
        let (below, name) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        if name.len() > 253 {
            return Err(PatternError::Long);
        }
        for label in name.split('.') {
            if label.contains('*') {
                return Err(PatternError::Star);
            }
            if !label.is_ascii() {
                return Err(PatternError::NotAscii);
            }
            if label.is_empty() || label.len() > 63 {
                return Err(PatternError::Label);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
                return Err(PatternError::Character);
            }
        }
        Ok(Self { name: name.to_ascii_lowercase().into(), below })
    }

    /// Whether `name` is meant; it is lower-case and without a trailing dot.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.below { below(name, &self.name) } else { name == &*self.name }
    }

    /// Larger for a pattern that means fewer of the same names.
    pub(super) fn specificity(&self) -> usize {
        2 * self.name.len() + usize::from(!self.below)
    }

    /// Whether this means all that `other` means.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self == other || self.below && below(&other.name, &self.name)
    }
}

/// Whether `name` lies below `zone`; below the root lie all names but the root.
fn below(name: &str, zone: &str) -> bool {
    if zone.is_empty() {
        return !name.is_empty();
    }
    name.strip_suffix(zone).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.below, &*self.name) {
            (true, "") => f.write_str("*"),
            (true, name) => write!(f, "*.{name}"),
            (false, name) => f.write_str(name),
        }
    }
}
