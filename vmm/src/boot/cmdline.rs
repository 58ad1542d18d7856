//! The kernel command line, built from arguments.
//!
//! Invariant: it holds no control character, so that no argument ends it early or adds a line to the kernel's log. How much of
//! it a kernel takes is checked when it is written to guest RAM.

use std::fmt;

/// Longest command line that Linux on x86 takes without a header that says otherwise, without the terminating zero.
pub const DEFAULT_MAX: usize = 2047;

/// Why an argument was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandLineError {
    /// A control character.
    #[error("kernel argument {argument:?} holds the control character {found:?}")]
    Control {
        /// The argument.
        argument: String,
        /// The character.
        found: char,
    },
}

/// A kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one argument, or several with spaces between them, after a space. Nothing is quoted: what is pushed is what the
    /// kernel reads. An empty argument adds nothing.
    ///
    /// # Errors
    /// [`CommandLineError`] for control characters; the line is unchanged then.
    pub fn push(&mut self, argument: &str) -> Result<(), CommandLineError> {
        if let Some(found) = argument.chars().find(|c| c.is_control()) {
            return Err(CommandLineError::Control { argument: argument.to_owned(), found });
        }
        let argument = argument.trim();
        if !argument.is_empty() && !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(argument);
        Ok(())
    }

    /// The line as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Length in bytes, without the terminating zero.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn to_bytes_with_nul(&self) -> Vec<u8> {
        let mut bytes = self.0.clone().into_bytes();
        bytes.push(0);
        bytes
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
