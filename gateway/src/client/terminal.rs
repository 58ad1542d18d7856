//! The terminal of the user, while a command in a sandbox has it.
//!
//! Invariant: it is as it was before when the value is dropped.

use std::io::{IsTerminal as _, stdin};

use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that hands on every key.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Takes the terminal at standard input, if there is one.
    pub(super) fn take() -> Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin()).context("terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw).context("terminal")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        tcsetattr(stdin(), OptionalActions::Flush, &self.0).ok();
    }
}

/// Columns and rows.
pub(super) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some((u32::from(size.ws_col), u32::from(size.ws_row)))
}
