//! Reads a [`Spec`] from TOML.
//!
//! Invariant: an unknown key is an error that says where it is and which known key is close. Pure but for [`read`].

use std::path::Path;

use super::failure::SpecError;
use super::spec::Spec;

/// Reads the file at `path`.
///
/// # Errors
/// [`SpecError::Read`], [`SpecError::File`].
pub fn read(path: &Path) -> Result<Spec, SpecError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads `text`; `path` is for messages.
///
/// # Errors
/// [`SpecError::File`].
pub fn parse(text: &str, path: &Path) -> Result<Spec, SpecError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        SpecError::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
            nearest: nearest_name(&message),
            message,
        }
    })
}

/// The known name that is closest to the unknown one in serde's message: "unknown field `a`, expected one of `b`, `c`".
fn nearest_name(message: &str) -> Option<String> {
    message.starts_with("unknown ").then_some(())?;
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    names
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|&(distance, name)| distance <= 1 + name.len() / 3)
        .min()
        .map(|(_, name)| name.to_owned())
}
