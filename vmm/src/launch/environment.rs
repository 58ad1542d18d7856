//! Environment variables of a guest's main process: `-e`, `--env-file`, and what may not be set.

use std::path::{Path, PathBuf};

use crate::explain::Explain;

/// Most variables.
const MAX: usize = 4000;

/// Why a variable cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// Not a name.
    #[error("-e {0}: a variable is NAME=VALUE, or NAME to take over this process's")]
    Form(String),
    /// A name that belongs to the guest's own programs.
    #[error("-e {0}: names that begin with OPENSHELL_ are the sandbox's own")]
    Reserved(String),
    /// A file of variables.
    #[error("cannot read the file of variables {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// A line of it.
    #[error("{}:{line}: a line is NAME=VALUE, NAME, or begins with #", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// More than a guest takes.
    #[error("{0} variables are more than {MAX}")]
    TooMany(usize),
}

impl Explain for EnvironmentError {
    fn fix(&self) -> Option<String> {
        Some(
            match self {
                Self::Form(_) | Self::Line { .. } => "write it as NAME=VALUE",
                Self::Reserved(_) => "take another name",
                Self::Read(..) => "check the path and who may read it",
                Self::TooMany(_) => "put them into a file of the guest's",
            }
            .to_owned(),
        )
    }
}

/// The variables of files, then of flags, each as `NAME=VALUE`; `own` looks up variables of this process.
///
/// # Errors
/// [`EnvironmentError`].
pub fn collect(
    files: &[PathBuf],
    flags: &[String],
    own: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvironmentError> {
    let mut variables = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|source| EnvironmentError::Read(path.clone(), source))?;
        read(path, &text, own, &mut variables)?;
    }
    for flag in flags {
        let found = variable(flag, own).ok_or_else(|| EnvironmentError::Form(flag.clone()))?;
        variables.extend(found);
    }
    if variables.len() > MAX {
        return Err(EnvironmentError::TooMany(variables.len()));
    }
    match variables.iter().find(|one| one.starts_with("OPENSHELL_")) {
        Some(reserved) => {
            let name = reserved.split('=').next().unwrap_or_default();
            Err(EnvironmentError::Reserved(name.to_owned()))
        }
        None => Ok(variables),
    }
}

fn read(
    path: &Path,
    text: &str,
    own: &dyn Fn(&str) -> Option<String>,
    into: &mut Vec<String>,
) -> Result<(), EnvironmentError> {
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || EnvironmentError::Line { path: path.to_owned(), line: number };
        into.extend(variable(line, own).ok_or_else(wrong)?);
    }
    Ok(())
}

/// The variable of one word: none inside when this process does not have it, none at all when it is no variable.
fn variable(word: &str, own: &dyn Fn(&str) -> Option<String>) -> Option<Option<String>> {
    let name = word.split('=').next().unwrap_or_default();
    let sound = !name.is_empty() && !word.contains('\0') && !name.contains(char::is_whitespace);
    if !sound {
        return None;
    }
    if name.len() < word.len() {
        return Some(Some(word.to_owned()));
    }
    Some(own(name).map(|value| format!("{name}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_first_and_names_take_over_this_process() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("env");
        std::fs::write(&path, "# a comment\n\nA=1\n  B = no\n").unwrap();
        let own = |name: &str| (name == "HOST").then(|| "here".to_owned());
        let check = |files: &[PathBuf], flags: &[&str]| {
            let flags: Vec<_> = flags.iter().map(|&flag| flag.to_owned()).collect();
            collect(files, &flags, &own)
        };
        let error = check(std::slice::from_ref(&path), &[]).unwrap_err().to_string();
        assert!(error.contains("env:4: a line is"), "{error}");
        std::fs::write(&path, "A=1\nHOST\n").unwrap();
        let found = check(&[path], &["A=2=3", "HOST", "GONE", "E="]).unwrap();
        assert_eq!(found, ["A=1", "HOST=here", "A=2=3", "HOST=here", "E="]);
        for (flag, want) in [
            ("=x", "-e =x: a variable is"),
            ("", "-e : a variable is"),
            ("OPENSHELL_TOKEN=x", "-e OPENSHELL_TOKEN: names that begin"),
        ] {
            let error = check(&[], &[flag]).unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
            assert!(error.fix().is_some());
        }
        assert!(check(&["/nowhere".into()], &[]).is_err());
    }
}
