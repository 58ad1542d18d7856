//! What a panic ends: the process, or one piece of work whose owner can do without it.
//!
//! Invariant: outside of [`contain`] a panic ends the process before anything is unwound, so that no part of a machine runs on
//! without another. Any thread.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// The work panicked, which was printed when it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub struct Panicked;

/// Makes panics end the process from now on, after they were printed.
pub fn end_the_process() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !CONTAINED.get() {
            std::process::abort();
        }
    }));
}

/// Does `work`, whose panics end nothing else. What it shares with others must be usable when it was left halfway.
///
/// # Errors
/// [`Panicked`].
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let before = CONTAINED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.map_err(drop).map_err(|()| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_panics_is_left_alone() {
        assert_eq!(contain(|| 3), Ok(3));
        assert_eq!(contain(|| assert!(CONTAINED.get(), "inside")), Ok(()));
        let failed: Result<(), _> = contain(|| panic::panic_any("on purpose"));
        assert_eq!(failed, Err(Panicked));
        assert!(!CONTAINED.get(), "nothing is contained any more");
    }
}
