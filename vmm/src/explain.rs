//! Errors that say what to do about them.
//!
//! Invariant: an error that reaches a person has one line that says what did not happen, at most a few that say why, and
//! one that says how to get on.

use std::error::Error;

/// An error with a reason and a remedy.
pub trait Explain: Error {
    /// Why it happened, one line, when the message does not say it already. The sources of the error by default.
    fn why(&self) -> Option<String> {
        let message = self.to_string();
        let causes: Vec<_> = std::iter::successors(self.source(), |&error| error.source())
            .map(ToString::to_string)
            .filter(|cause| !message.contains(cause))
            .collect();
        (!causes.is_empty()).then(|| causes.join(": "))
    }

    /// What the reader can do, one line.
    fn fix(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("is short")]
    struct Image(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("kernel k {0}")]
        Told(#[source] Image),
        #[error("cannot start")]
        Plain(#[source] Image),
    }

    impl Explain for Failure {}

    #[test]
    fn a_reason_is_given_once() {
        let image = || Image(io::Error::other("disk gone"));
        for (failure, why) in [
            (Failure::Told(image()), "disk gone"),
            (Failure::Plain(image()), "is short: disk gone"),
        ] {
            assert_eq!(failure.why().as_deref(), Some(why));
        }
    }
}
