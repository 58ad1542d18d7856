//! Errors that say what to do about them.
//!
//! Invariant: an error that reaches a person has one line that says what did not happen, at most a few that say why, and
//! one that says how to get on.

use std::error::Error;

/// An error with a reason and a remedy.
pub trait Explain: Error {
    /// Why it happened, one line, when the message does not say it already. The sources of the error by default.
    fn why(&self) -> Option<String> {
        let mut causes = Vec::new();
        let mut source = self.source();
        while let Some(error) = source {
            causes.push(error.to_string());
            source = error.source();
        }
        (!causes.is_empty()).then(|| causes.join(": "))
    }

    /// What the reader can do, one line.
    fn fix(&self) -> Option<String> {
        None
    }
}
