//! What the developer reads while a verb works: one line per long step, with the time it took.
//!
//! Everything goes to stderr, so that stdout carries only what was asked for.

use std::fmt::Display;
use std::time::Instant;

/// Prints one line about what is going on.
#[expect(clippy::print_stderr, reason = "the one place that talks to the developer")]
pub(crate) fn line(text: impl Display) {
    eprintln!("xtask: {text}");
}

/// Prints text as it stands, for the output of others that is quoted whole.
#[expect(clippy::print_stderr, reason = "the one place that talks to the developer")]
pub(crate) fn quote(text: impl Display) {
    eprintln!("{text}");
}

/// Runs `work` between a line that says it began and a line that says how long it took.
pub(crate) fn step<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    line(format_args!("{what} ..."));
    let begin = Instant::now();
    let outcome = work();
    let verdict = if outcome.is_ok() { "done" } else { "FAILED" };
    line(format_args!("{what}: {verdict} in {:.1} s", begin.elapsed().as_secs_f64()));
    outcome
}
